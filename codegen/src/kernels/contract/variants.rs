//! Schedules that give the same bits as a chosen one: what a measured search may take instead.
//!
//! They differ in tiles, in the columns of a grid index and in what is laid out at a time, never in the form, in lanes
//! or in the order of a sum. So tuning changes no result, and kernels of one model may be tuned one by one.

use super::desc::Desc;
use super::schedule::{Form, Schedule, UNIT, candidates, folds};
use crate::kernels::Target;
use crate::kernels::index::gcd;

/// Others than `chosen`, which is one of its [`candidates`].
pub fn variants(desc: &Desc, chosen: &Schedule, target: &Target) -> Vec<Schedule> {
    let mut all = vec![chosen.clone()];
    let offered = candidates(desc, target).into_iter().filter(|s| same_order(s, chosen));
    for s in std::iter::once(chosen.clone()).chain(offered) {
        for s in blocks(desc, &s).into_iter().chain(tiles(&s)).chain(depths(desc, &s)).chain([s]) {
            let shares_scales = !s.fold || folds(desc, &s);
            if shares_scales && !all.contains(&s) {
                all.push(s);
            }
        }
    }
    all.split_off(1)
}

/// Whether two schedules differ only in what no bit depends on.
fn same_order(a: &Schedule, b: &Schedule) -> bool {
    let Schedule { tile, strip, apart, block, depth, .. } = b.clone();
    Schedule { tile, strip, apart, block, depth, ..a.clone() } == *b
}

/// More columns in a grid index, or fewer.
fn blocks(desc: &Desc, s: &Schedule) -> Vec<Schedule> {
    let (Some(block), Some(columns)) = (s.block, s.cols.and_then(|n| desc.size(n).as_const())) else {
        return Vec::new();
    };
    // What a grid index takes at a time.
    let unit = match s.form {
        Form::Dot => s.tile.1.max(s.strip) as i64,
        // Panels are counted, not columns.
        Form::Laid => s.strip as i64,
        Form::Tiles | Form::Pipeline => return Vec::new(),
        Form::Outer | Form::Packed => s.tile.1.max(s.strip) as i64 * i64::from(s.register),
    };
    let scaled = |(times, parts): (i64, i64)| {
        let whole = |n: i64| (n * times % parts == 0).then_some(n * times / parts);
        // Streams of a step are as many, each longer or shorter.
        let apart = if s.apart > 1 { whole(s.apart)? } else { s.apart };
        let block = whole(block).filter(|b| b % unit == 0 && *b < columns.max(unit + 1))?;
        Some(Schedule { block: Some(block), apart, ..s.clone() })
    };
    [(1, 2), (2, 1), (4, 1)].into_iter().filter_map(scaled).collect()
}

/// Lower tiles of rows, whose sums leave registers for more loads on their way.
fn tiles(s: &Schedule) -> Vec<Schedule> {
    let rows: &[usize] = match s.form {
        _ if s.step => &[],
        Form::Packed => &[8, 6, 4],
        Form::Laid => &[8, 4],
        Form::Tiles => &[16],
        Form::Pipeline => &[],
        Form::Dot | Form::Outer => &[2],
    };
    let lower = rows.iter().filter(|r| **r < s.tile.0);
    lower.map(|r| Schedule { tile: (*r, s.tile.1), ..s.clone() }).collect()
}

/// Half as much laid out at a time, or twice as much.
fn depths(desc: &Desc, s: &Schedule) -> Vec<Schedule> {
    let Some(size) = s.sums.last().and_then(|k| desc.size(*k).as_const()).filter(|_| s.depth > 0) else {
        return Vec::new();
    };
    // Groups are not cut.
    let unit = if s.group > 0 { UNIT * s.group / gcd(UNIT, s.group) } else { UNIT };
    let cut = s.group == 0 || s.group < size;
    let fits = |depth: &i64| cut && depth % unit == 0 && *depth > 0 && depth / 2 < size;
    [s.depth / 2, s.depth * 2].into_iter().filter(fits).map(|depth| Schedule { depth, ..s.clone() }).collect()
}
