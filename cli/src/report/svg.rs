//! The little of SVG that charts and graphs need.

use std::fmt::Write as _;

/// Text as it may stand in an element or an attribute.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            // Control characters may not stand in XML at all.
            c if c.is_control() && c != '\n' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A coordinate, in as few digits as a screen needs.
pub fn at(x: f64) -> String {
    let mut text = format!("{x:.1}");
    if text.ends_with(".0") {
        text.truncate(text.len() - 2);
    }
    text
}

/// A path through points.
pub fn path(points: impl IntoIterator<Item = (f64, f64)>) -> String {
    let mut out = String::new();
    for (i, (x, y)) in points.into_iter().enumerate() {
        _ = write!(out, "{}{} {}", if i == 0 { "M" } else { "L" }, at(x), at(y));
    }
    out
}

/// How wide a text of so many characters is, at the size that charts and graphs use.
pub fn width_of(text: &str) -> f64 {
    text.chars().count() as f64 * 6.6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_breaks_out_of_its_element() {
        assert_eq!(escape("<a b=\"c\">&\u{1}"), "&lt;a b=&quot;c&quot;&gt;&amp; ");
    }

    #[test]
    fn coordinates_are_short() {
        assert_eq!(path([(0.0, 1.04), (2.26, 3.0)]), "M0 1L2.3 3");
    }
}
