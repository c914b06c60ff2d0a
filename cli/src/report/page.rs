//! The frame of a page: one file, nothing from elsewhere.

use super::chart::Chart;
use super::svg::escape;
use std::fmt::Write as _;

/// Colours and shapes of charts, for pages and for files of their own.
pub const CHART_STYLE: &str = include_str!("chart.css");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// A whole page around `body`.
pub fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
         <style>\n{CHART_STYLE}{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
         <div id=\"tip\" role=\"status\" hidden></div>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )
}

/// Charts beside each other, as far as there is room.
pub fn charts(charts: &[Chart]) -> String {
    let mut out = "<div class=\"charts\">\n".to_owned();
    for chart in charts {
        let (title, summary) = (escape(&chart.title), escape(&chart.summary));
        _ = writeln!(
            out,
            "<figure><figcaption><b>{title}</b> <span>{summary}</span></figcaption>{}</figure>",
            chart.both()
        );
    }
    out + "</div>\n"
}

/// A table; all columns but the first `left` ones hold numbers. Wide ones scroll by themselves.
pub fn table(caption: &str, left: usize, head: &[&str], rows: &[Vec<String>]) -> String {
    let class = |i: usize| if i < left { "" } else { " class=\"n\"" };
    let mut out = format!("<div class=\"wide\"><table><caption>{}</caption><thead><tr>", escape(caption));
    for (i, h) in head.iter().enumerate() {
        _ = write!(out, "<th scope=\"col\"{}>{}</th>", class(i), escape(h));
    }
    out += "</tr></thead>\n<tbody>\n";
    for row in rows {
        out += "<tr>";
        for (i, cell) in row.iter().enumerate() {
            _ = write!(out, "<td{}>{}</td>", class(i), escape(cell));
        }
        out += "</tr>\n";
    }
    out + "</tbody></table></div>\n"
}
