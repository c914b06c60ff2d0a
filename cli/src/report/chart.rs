//! Charts as SVG: lines, dots and areas over linear or logarithmic axes.
//!
//! A mark's `<title>` says what it stands for; the page's script shows it at once, and without a script the browser
//! does. Series differ by dash and by colour, so that neither is needed to tell them apart. Colours are classes, given
//! by the style sheet for light and dark.

use super::svg::{at, escape, path, width_of};
use std::fmt::Write as _;

/// A chart.
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// The same in a sentence, for those who cannot see it.
    pub summary: String,
    /// Left to right.
    pub x: Axis,
    /// Bottom to top.
    pub y: Axis,
    /// What is drawn, in this order.
    pub series: Vec<Series>,
}

/// An axis.
pub struct Axis {
    /// What it measures.
    pub label: &'static str,
    /// Base of the logarithm; `None` is linear from zero.
    pub log: Option<f64>,
    /// How a value is written.
    pub show: fn(f64) -> String,
}

/// Points that belong together.
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// How it is drawn.
    pub marks: Marks,
    /// Its points.
    pub points: Vec<Point>,
}

/// How points are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Marks {
    /// A line through them, with a mark on each.
    Line,
    /// A line without marks, behind everything: a limit.
    Limit,
    /// A circle for each.
    Dots,
    /// Steps, filled down to the axis.
    Area,
}

/// A point.
pub struct Point {
    /// Left to right.
    pub x: f64,
    /// Bottom to top.
    pub y: f64,
    /// Radius of a dot.
    pub size: f64,
    /// What it stands for.
    pub tip: String,
    /// What is written beside it: of an area, above the line that begins here.
    pub label: Option<String>,
}

impl Point {
    /// A point of the usual size.
    pub fn new(x: f64, y: f64, tip: String) -> Point {
        Point { x, y, size: 3.0, tip, label: None }
    }
}

/// Size of a chart, in units of about a pixel.
pub const WIDTH: f64 = 520.0;
/// Width of a chart for a narrow screen, where letters must not shrink.
const NARROW: f64 = 340.0;
/// See [`WIDTH`].
pub const HEIGHT: f64 = 330.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 18.0;
const BOTTOM: f64 = 46.0;
const LEGEND_LINE: f64 = 17.0;
/// Dots that are nearer hide each other.
const APART: f64 = 3.0;

/// From values to places.
struct Scale {
    low: f64,
    high: f64,
    log: bool,
    from: f64,
    to: f64,
}

impl Scale {
    fn of(axis: &Axis, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Scale {
        let usable = |v: &f64| v.is_finite() && (axis.log.is_none() || *v > 0.0);
        let (low, high) =
            values.filter(usable).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let (mut low, mut high) = if low <= high { (low, high) } else { (1.0, 10.0) };
        match axis.log {
            Some(base) => {
                // A little air, and something to see where there is one value only.
                let air = (high / low).powf(0.04).max(base.powf(0.08));
                (low, high) = (low / air, high * air);
            }
            None => (low, high) = (low.min(0.0), if high > 0.0 { high * 1.05 } else { 1.0 }),
        }
        Scale { low, high, log: axis.log.is_some(), from, to }
    }

    fn place(&self, v: f64) -> f64 {
        let f = |x: f64| if self.log { x.max(f64::MIN_POSITIVE).ln() } else { x };
        let (low, high) = (f(self.low), f(self.high));
        let part = (f(v) - low) / (high - low);
        self.from + part.clamp(-0.1, 1.1) * (self.to - self.from)
    }

    /// Values that deserve a label: some round ones.
    fn ticks(&self, axis: &Axis, most: usize) -> Vec<f64> {
        let all: Vec<f64> = match axis.log {
            Some(base) => {
                let first = (self.low.ln() / base.ln() - 1e-9).ceil() as i32;
                let last = (self.high.ln() / base.ln() + 1e-9).floor() as i32;
                let powers: Vec<f64> = (first..=last).map(|e| base.powi(e)).collect();
                // Less than two powers: the steps between them.
                if powers.len() < 2 && base == 10.0 {
                    let fine = (first - 1..=last + 1).flat_map(|e| [1.0, 2.0, 5.0].map(|d| d * base.powi(e)));
                    fine.filter(|v| (self.low..=self.high).contains(v)).collect()
                } else {
                    powers
                }
            }
            None => {
                let raw = (self.high - self.low) / most as f64;
                let unit = 10f64.powf(raw.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * unit).find(|s| *s >= raw).unwrap_or(raw);
                let first = (self.low / step).ceil() as i64;
                (first..).map(|i| i as f64 * step).take_while(|v| *v <= self.high).collect()
            }
        };
        all.iter().copied().step_by(all.len().div_ceil(most).max(1)).collect()
    }
}

impl Chart {
    /// The chart as an `<svg>` element.
    pub fn svg(&self) -> String {
        self.drawn(WIDTH, "")
    }

    /// The chart for wide and for narrow screens, of which a page shows one.
    pub fn both(&self) -> String {
        self.drawn(WIDTH, " broad") + &self.drawn(NARROW, " narrow")
    }

    fn drawn(&self, wide: f64, class: &str) -> String {
        let (legend, lines) = self.legend(wide);
        let top = 26.0 + LEGEND_LINE * lines as f64;
        let points = || self.series.iter().flat_map(|s| &s.points);
        let x = Scale::of(&self.x, points().map(|p| p.x), LEFT, wide - RIGHT);
        let y = Scale::of(&self.y, points().map(|p| p.y), HEIGHT - BOTTOM, top);
        let mut out = format!(
            "<svg class=\"chart{class}\" viewBox=\"0 0 {wide} {HEIGHT}\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\" \
             aria-label=\"{}\">\n{legend}",
            escape(&format!("{}: {}", self.title, self.summary))
        );
        self.axes(&mut out, (&x, &y), top, wide);
        let place = |p: &Point| (x.place(p.x), y.place(p.y));
        let order = |s: &&(usize, &Series)| match s.1.marks {
            Marks::Area => 0,
            Marks::Limit => 1,
            Marks::Line => 2,
            Marks::Dots => 3,
        };
        let mut series: Vec<(usize, &Series)> = self.series.iter().enumerate().collect();
        series.sort_by_key(|s| order(&s));
        let (mut dots, mut labels) = (Vec::new(), Vec::new());
        for (i, s) in series {
            let (colour, dash) = styles(i);
            match s.marks {
                Marks::Area => {
                    let d = steps(s.points.iter().map(place), x.place(x.high));
                    let base = at(y.place(y.low));
                    _ = writeln!(
                        out,
                        "<path class=\"area c{colour}\" d=\"{d}V{base}H{}Z\"><title>{}</title></path>",
                        s.points.first().map_or_else(String::new, |p| at(x.place(p.x))),
                        escape(&s.name)
                    );
                    for p in &s.points {
                        let Some(label) = &p.label else { continue };
                        let px = at(x.place(p.x));
                        _ = writeln!(out, "<path class=\"axis d2\" d=\"M{px} {}V{base}\"/>", at(top));
                        _ = writeln!(
                            out,
                            "<text class=\"tick\" x=\"{px}\" y=\"{}\" dx=\"3\">{}</text>",
                            at(top + 10.0),
                            escape(label)
                        );
                    }
                }
                Marks::Limit | Marks::Line => {
                    let class = if s.marks == Marks::Limit { "limit" } else { "line" };
                    _ = writeln!(
                        out,
                        "<path class=\"{class} c{colour} d{dash}\" d=\"{}\"/>",
                        path(s.points.iter().map(place))
                    );
                }
                Marks::Dots => {}
            }
            if matches!(s.marks, Marks::Line | Marks::Dots) {
                for p in &s.points {
                    let (mut px, py) = place(p);
                    // What would hide another is moved aside.
                    while s.marks == Marks::Dots && dots.iter().any(|(x, y)| (x - px).hypot(y - py) < APART) {
                        px += APART;
                    }
                    dots.push((px, py));
                    _ = writeln!(
                        out,
                        "<circle class=\"dot c{colour}\" cx=\"{}\" cy=\"{}\" r=\"{}\"><title>{}</title></circle>",
                        at(px),
                        at(py),
                        at(p.size),
                        escape(&p.tip)
                    );
                    labels.extend(p.label.as_ref().map(|label| (px, py, p.size, label)));
                }
            }
        }
        beside(&mut out, labels, wide);
        out + "</svg>\n"
    }

    fn axes(&self, out: &mut String, (x, y): (&Scale, &Scale), top: f64, wide: f64) {
        let (left, right, bottom) = (LEFT, wide - RIGHT, HEIGHT - BOTTOM);
        for v in y.ticks(&self.y, 6) {
            let py = y.place(v);
            let (line, text) = (at(py), escape(&trimmed((self.y.show)(v))));
            _ = writeln!(out, "<path class=\"grid\" d=\"M{left} {line}H{right}\"/>");
            _ = writeln!(out, "<text class=\"tick end\" x=\"{}\" y=\"{}\">{text}</text>", left - 7.0, at(py + 4.0));
        }
        for v in x.ticks(&self.x, (wide / 62.0) as usize) {
            let (px, text) = (at(x.place(v)), escape(&trimmed((self.x.show)(v))));
            _ = writeln!(out, "<path class=\"grid\" d=\"M{px} {}V{bottom}\"/>", at(top));
            _ = writeln!(out, "<text class=\"tick mid\" x=\"{px}\" y=\"{}\">{text}</text>", bottom + 16.0);
        }
        _ = writeln!(out, "<path class=\"axis\" d=\"M{left} {}V{bottom}H{right}\"/>", at(top));
        _ = writeln!(out, "<text class=\"label\" x=\"4\" y=\"{}\">{}</text>", at(top - 11.0), escape(self.y.label));
        let mid = (left + right) / 2.0;
        _ = writeln!(
            out,
            "<text class=\"label mid\" x=\"{mid}\" y=\"{}\">{}</text>",
            HEIGHT - 8.0,
            escape(self.x.label)
        );
    }

    /// The legend, and how many lines it takes: none where there is only one series.
    fn legend(&self, most: f64) -> (String, usize) {
        if self.series.len() < 2 {
            return (String::new(), 0);
        }
        let (mut x, mut line, mut out) = (6.0, 0, String::new());
        for (i, s) in self.series.iter().enumerate() {
            let wide = 34.0 + width_of(&s.name);
            if x > 6.0 && x + wide > most {
                (x, line) = (6.0, line + 1);
            }
            let (y, (colour, dash)) = (10.0 + LEGEND_LINE * line as f64, styles(i));
            let swatch = match s.marks {
                Marks::Dots => format!("<circle class=\"dot c{colour}\" cx=\"{}\" cy=\"{y}\" r=\"4\"/>", at(x + 10.0)),
                Marks::Area => format!("<path class=\"area c{colour}\" d=\"M{} {}h20v8h-20z\"/>", at(x), y - 4.0),
                Marks::Line => format!("<path class=\"line c{colour} d{dash}\" d=\"M{} {y}h20\"/>", at(x)),
                Marks::Limit => format!("<path class=\"limit c{colour} d{dash}\" d=\"M{} {y}h20\"/>", at(x)),
            };
            _ = writeln!(
                out,
                "{swatch}<text class=\"tick\" x=\"{}\" y=\"{}\">{}</text>",
                at(x + 25.0),
                y + 4.0,
                escape(&s.name)
            );
            x += wide;
        }
        (out, line + 1)
    }
}

/// Writes labels beside dots, each where none is yet.
fn beside(out: &mut String, mut labels: Vec<(f64, f64, f64, &String)>, wide: f64) {
    labels.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut taken: Vec<(f64, f64, f64)> = Vec::new();
    for (px, py, size, label) in labels {
        // No more than fits beside its dot; the tip has all of it.
        let most = (wide / 22.0) as usize;
        let label = match label.char_indices().nth(most) {
            Some((i, _)) => format!("{}…", &label[..i]),
            None => label.clone(),
        };
        let long = width_of(&label);
        let left = if px + size + 3.0 + long > wide { px - size - 3.0 - long } else { px + size + 3.0 }.max(2.0);
        let mut y = py + 4.0;
        while taken.iter().any(|(l, r, at)| left < *r && *l < left + long && (at - y).abs() < 12.0) {
            y += 12.0;
        }
        taken.push((left, left + long, y));
        _ = writeln!(out, "<text class=\"label\" x=\"{}\" y=\"{}\">{}</text>", at(left), at(y), escape(&label));
    }
}

/// Colour and dash of a series: after six of each, other pairs.
fn styles(i: usize) -> (usize, usize) {
    (i % 6, (i + i / 6) % 6)
}

/// A tick's label without idle zeros: `10.0 ms` is `10 ms`.
fn trimmed(label: String) -> String {
    match label.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.')).trim_end().to_owned()
        }
        _ => label,
    }
}

/// A path that keeps each value until the next.
fn steps(points: impl Iterator<Item = (f64, f64)>, end: f64) -> String {
    let mut out = String::new();
    for (i, (x, y)) in points.enumerate() {
        match i {
            0 => _ = write!(out, "M{} {}", at(x), at(y)),
            _ => _ = write!(out, "H{}V{}", at(x), at(y)),
        }
    }
    out + &format!("H{}", at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(v: f64) -> String {
        v.to_string()
    }

    #[test]
    fn ticks_are_round_and_few() {
        let axis = |log| Axis { label: "", log, show: plain };
        let linear = Scale::of(&axis(None), [0.0, 970.0].into_iter(), 0.0, 1.0);
        assert_eq!(linear.ticks(&axis(None), 6), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
        let two = axis(Some(2.0));
        let contexts = Scale::of(&two, [4096.0, 1048576.0].into_iter(), 0.0, 1.0);
        assert_eq!(contexts.ticks(&two, 9).len(), 9);
        assert_eq!(contexts.ticks(&two, 5), [4096.0, 16384.0, 65536.0, 262144.0, 1048576.0]);
        let ten = axis(Some(10.0));
        let narrow = Scale::of(&ten, [1.1, 4.0].into_iter(), 0.0, 1.0);
        assert_eq!(narrow.ticks(&ten, 6), [1.0, 2.0]);
    }

    #[test]
    fn larger_values_stand_higher_and_further_right() {
        let point = |x, y| Point::new(x, y, "a <b>".into());
        let series = Series { name: "s".into(), marks: Marks::Line, points: vec![point(1.0, 1.0), point(100.0, 10.0)] };
        let axis = || Axis { label: "l", log: Some(10.0), show: plain };
        let chart = Chart { title: "t".into(), summary: String::new(), x: axis(), y: axis(), series: vec![series] };
        let svg = chart.svg();
        let numbers = |name: &str| -> Vec<f64> {
            svg.split(&format!("{name}=\"")).skip(1).map(|s| s.split('"').next().unwrap().parse().unwrap()).collect()
        };
        let (x, y) = (numbers("cx"), numbers("cy"));
        assert!(x[0] < x[1] && y[0] > y[1], "{svg}");
        assert!(svg.contains("a &lt;b&gt;") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn nothing_to_draw_is_drawn_as_nothing() {
        let axis = || Axis { label: "l", log: Some(10.0), show: plain };
        let chart = Chart { title: "t".into(), summary: String::new(), x: axis(), y: axis(), series: vec![] };
        assert!(!chart.svg().contains("NaN") && !chart.svg().contains("inf"));
    }
}
