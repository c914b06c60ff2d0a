//! Numbers for people.

/// `8.24 MB`, decimal, three significant digits.
pub fn bytes(n: f64) -> String {
    scaled(n, &["B", "kB", "MB", "GB", "TB"], 1000.0)
}

/// `671 B`, `5.34 M`: counts of parameters or operations.
pub fn count(n: f64) -> String {
    scaled(n, &["", "k", "M", "G", "T", "P"], 1000.0).trim_end().to_owned()
}

/// `12.3 ms`.
pub fn seconds(s: f64) -> String {
    if s <= 0.0 { "0 s".into() } else { scaled(s * 1e9, &["ns", "µs", "ms", "s"], 1000.0) }
}

/// `12.3 %`.
pub fn percent(part: f64) -> String {
    let n = part * 100.0;
    let digits = if n.abs() < 10.0 { 1 } else { 0 };
    format!("{n:.digits$} %")
}

fn scaled(mut n: f64, units: &[&str], base: f64) -> String {
    let mut unit = 0;
    while n.abs() >= base && unit + 1 < units.len() {
        n /= base;
        unit += 1;
    }
    let digits = match n.abs() {
        x if unit == 0 && x.fract() == 0.0 => 0,
        x if x >= 100.0 => 0,
        x if x >= 10.0 => 1,
        _ => 2,
    };
    format!("{n:.digits$} {}", units[unit])
}

/// `671,026,419,200`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(bytes(8_241_896.0), "8.24 MB");
        assert_eq!(bytes(12.0), "12 B");
        assert_eq!(count(671_026_419_200.0), "671 G");
        assert_eq!(seconds(0.0123), "12.3 ms");
        assert_eq!(grouped(671_026_419_200), "671,026,419,200");
        assert_eq!(grouped(12), "12");
        assert_eq!((percent(0.5), percent(0.0123)), ("50 %".to_owned(), "1.2 %".to_owned()));
    }
}
