//! Numbers for people, and as people write them.

/// Longest context that can be asked about.
pub const MAX_CONTEXT: usize = 1 << 24;

/// Most tokens of a chunk.
pub const MAX_CHUNK: usize = 1 << 16;

/// Most sequences at once.
pub const MAX_BATCH: usize = 1 << 16;

/// Most machines.
pub const MAX_DEVICES: usize = 1 << 16;

/// One number or a doubling range on the command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed(pub Vec<usize>);

/// `--context`: `4096`, `4k`, `1m`, or `4k..1m`.
pub fn contexts(text: &str) -> Result<Listed, String> {
    listed(text, MAX_CONTEXT, "tokens")
}

/// `--batch`: `8`, or `1..64`.
pub fn batches(text: &str) -> Result<Listed, String> {
    listed(text, MAX_BATCH, "sequences")
}

/// Tokens of a context: `4096`, `4k`, `1m`.
pub fn context(text: &str) -> Result<u32, String> {
    number(text, MAX_CONTEXT).map(|n| n as u32).ok_or_else(|| expected(MAX_CONTEXT, "tokens"))
}

/// Tokens of a chunk: `512`, `4k`.
pub fn chunk(text: &str) -> Result<u32, String> {
    number(text, MAX_CHUNK).map(|n| n as u32).ok_or_else(|| expected(MAX_CHUNK, "tokens"))
}

/// What can be had in parts of one: `0.7`.
pub fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|a| (0.0..=1.0).contains(a));
    share.ok_or_else(|| "expected a number from 0 to 1, such as 0.8".to_owned())
}

/// A range doubles from its first number for as long as it stays below its last, which is always there.
fn listed(text: &str, most: usize, what: &str) -> Result<Listed, String> {
    let expected = || format!("{}, or a doubling range such as 4..64", expected(most, what));
    let Some((first, last)) = text.split_once("..") else {
        return number(text, most).map(|n| Listed(vec![n])).ok_or_else(expected);
    };
    let (first, last) = (number(first, most).ok_or_else(expected)?, number(last, most).ok_or_else(expected)?);
    if first > last {
        return Err(format!("the range is empty: {first} is above {last}"));
    }
    let below = std::iter::successors(Some(first), |n| Some(n * 2)).take_while(|n| *n < last);
    Ok(Listed(below.chain([last]).collect()))
}

fn expected(most: usize, what: &str) -> String {
    format!("expected 1 to {most} {what}: digits, which k (1024) or m (1024²) may follow, such as 4k")
}

fn number(text: &str, most: usize) -> Option<usize> {
    let (digits, unit) = match text.char_indices().last() {
        Some((i, 'k' | 'K')) => (&text[..i], 1 << 10),
        Some((i, 'm' | 'M')) => (&text[..i], 1 << 20),
        _ => (text, 1),
    };
    let n = digits.parse::<usize>().ok()?.checked_mul(unit)?;
    (1..=most).contains(&n).then_some(n)
}

/// A number of tokens as it can be written on the command line: `4k`, `1m`, `1000`.
pub fn short(n: usize) -> String {
    match n {
        n if n.is_multiple_of(1 << 20) => format!("{}m", n >> 20),
        n if n.is_multiple_of(1 << 10) => format!("{}k", n >> 10),
        n => n.to_string(),
    }
}

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
    fn numbers_have_suffixes_and_ranges() {
        assert_eq!([context("4k"), context("1m"), context("1000")], [Ok(4096), Ok(1_048_576), Ok(1000)]);
        assert_eq!(contexts("4k..20K"), Ok(Listed(vec![4096, 8192, 16384, 20480])));
        assert_eq!(contexts("3k..20k"), Ok(Listed(vec![3072, 6144, 12288, 20480])));
        assert_eq!(batches("1..8"), Ok(Listed(vec![1, 2, 4, 8])));
        assert_eq!(batches("3..3"), Ok(Listed(vec![3])));
        assert_eq!((chunk("64k"), chunk("2K")), (Ok(65536), Ok(2048)));
        for wrong in ["", "k", "0", "-1", "4g", "17m", "99999999999999999999", "8k..4k", "..", "4k..", "é", "4..é"] {
            assert!(contexts(wrong).is_err(), "{wrong}");
        }
        assert!(chunk("65k").is_err() && batches("1..65537").is_err());
        let said = contexts("4g").unwrap_err();
        assert!(["4k", "1024", "4..64", "16777216"].iter().all(|form| said.contains(form)), "{said}");
        assert_eq!([4096, 1 << 20, 1000].map(short), ["4k", "1m", "1000"]);
        assert_eq!((share("0.5"), share("1")), (Ok(0.5), Ok(1.0)));
        assert!(["-0.1", "1.1", "nan", "x"].iter().all(|wrong| share(wrong).is_err()));
    }

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
