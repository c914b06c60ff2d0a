//! Time, work and state against the context, drawn: shared by `hadal predict --plot=FILE` and `hadal report`.

use super::chart::{Axis, Chart, HEIGHT, Marks, Point, Series, WIDTH};
use super::page;
use super::svg::escape;
use crate::predict::{Context, Phase, Predicted, Prediction};
use crate::units::{bytes, count, seconds, short};
use std::fmt::Write as _;

fn context_axis() -> Axis {
    Axis { label: "tokens in the context", log: Some(2.0), show: |n| short(n.round() as usize) }
}

/// The curves of a prediction.
pub fn charts(prediction: &Prediction) -> Vec<Chart> {
    vec![time(prediction), work(prediction), state(prediction)]
}

/// One line per kind of call and batch.
fn lines(prediction: &Prediction, of: &dyn Fn(&Context, &Predicted) -> (f64, String)) -> Vec<Series> {
    let mut kinds: Vec<(Phase, usize)> = Vec::new();
    for call in prediction.at.iter().flat_map(|c| &c.calls) {
        if !kinds.contains(&(call.phase, call.batch)) {
            kinds.push((call.phase, call.batch));
        }
    }
    let batches = kinds.iter().filter(|(p, _)| *p == Phase::Decode).count() > 1;
    let line = |(phase, batch): (Phase, usize)| {
        let calls = prediction.at.iter().flat_map(|c| c.phase(phase).map(move |p| (c, p)));
        let calls: Vec<_> = calls.filter(|(_, p)| p.batch == batch).collect();
        let most = calls.iter().map(|(_, p)| p.tokens).max().unwrap_or(0);
        let mut name = match phase {
            Phase::Prompt => "whole prompt".to_owned(),
            Phase::Prefill => format!("last chunk of {most}"),
            Phase::Verify => format!("verify {} drafts", most.saturating_sub(1)),
            other => other.name().to_owned(),
        };
        if batches && !matches!(phase, Phase::Prompt | Phase::Prefill) {
            _ = write!(name, " ×{batch}");
        }
        let point = |(c, p): &(&Context, &Predicted)| {
            let (y, text) = of(c, p);
            Point::new(c.tokens as f64, y, format!("{name} at {}: {text}", short(c.tokens)))
        };
        let points = calls.iter().map(point).collect();
        Series { name: name.clone(), marks: Marks::Line, points }
    };
    kinds.into_iter().map(line).collect()
}

fn time(prediction: &Prediction) -> Chart {
    Chart {
        title: "Time of a call".into(),
        summary: "predicted seconds of each kind of call against the context".into(),
        x: context_axis(),
        y: Axis { label: "seconds a call", log: Some(10.0), show: seconds },
        series: lines(prediction, &|_, p| {
            let s = &p.step;
            (s.seconds(), format!("{}, bound by {}", seconds(s.seconds()), s.bound()))
        }),
    }
}

fn work(prediction: &Prediction) -> Chart {
    let mut series = lines(prediction, &|_, p| (p.flops_per_token(), format!("{}FLOP", count(p.flops_per_token()))));
    // The same for every batch.
    let mut seen = Vec::new();
    series.retain(|s| {
        let kind = s.name.split(" ×").next().unwrap_or_default().to_owned();
        let new = !seen.contains(&kind);
        seen.push(kind);
        new
    });
    series.iter_mut().for_each(|s| s.name = s.name.split(" ×").next().unwrap_or_default().to_owned());
    Chart {
        title: "Work of a token".into(),
        summary: "operations per new token against the context".into(),
        x: context_axis(),
        y: Axis { label: "FLOP a token", log: Some(10.0), show: count },
        series,
    }
}

fn state(prediction: &Prediction) -> Chart {
    let of = |name: &str, f: &dyn Fn(&Context) -> u64| {
        let point = |c: &Context| {
            let n = f(c) as f64;
            Point::new(c.tokens as f64, n, format!("{name} at {}: {}", short(c.tokens), bytes(n)))
        };
        Series { name: name.to_owned(), marks: Marks::Line, points: prediction.at.iter().map(point).collect() }
    };
    Chart {
        title: "Bytes".into(),
        summary: "states of one sequence, against the weights".into(),
        x: context_axis(),
        y: Axis { label: "bytes", log: Some(10.0), show: bytes },
        series: vec![of("states of one sequence", &Context::state_bytes), of("weights", &Context::weight_bytes)],
    }
}

/// The curves as one SVG file, one under the other.
pub fn svg(title: &str, prediction: &Prediction) -> String {
    let charts = charts(prediction);
    let tall = charts.len() as f64 * (HEIGHT + 30.0) + 30.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {tall}\" width=\"{}\">\n",
        1.5 * WIDTH
    );
    _ = writeln!(out, "<style>{}</style>", page::CHART_STYLE);
    _ = writeln!(out, "<rect class=\"ground\" width=\"100%\" height=\"100%\"/>");
    _ = writeln!(out, "<text class=\"heading\" x=\"6\" y=\"20\">{}</text>", escape(title));
    for (i, chart) in charts.iter().enumerate() {
        let y = 34.0 + i as f64 * (HEIGHT + 30.0);
        _ = writeln!(out, "<text class=\"label\" x=\"6\" y=\"{}\">{}</text>", y + 14.0, escape(&chart.title));
        _ = writeln!(out, "<svg y=\"{}\" width=\"{WIDTH}\" height=\"{HEIGHT}\">{}</svg>", y + 22.0, chart.svg());
    }
    out + "</svg>\n"
}

/// The curves as a page.
pub fn html(title: &str, prediction: &Prediction) -> String {
    let body = format!("<h1>{}</h1>\n{}", escape(title), page::charts(&charts(prediction)));
    page::page(title, &body)
}
