//! The choice: which rows one grid index computes.

use super::desc::Desc;
use crate::kernels::contract::view::Var;

/// Keys of a block. Part of the meaning of the result's bits, so it does not depend on anything.
pub const KEYS: i64 = 32;

/// How an attention is run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    /// The letter of heads that a grid index has several of; they share keys and values.
    pub shared: Option<Var>,
    /// How many of them; divides their number.
    pub heads: i64,
    /// Queries of a grid index.
    pub queries: i64,
    /// Letters that are dimensions of the grid by themselves.
    pub grid: Vec<Var>,
}

/// All sensible schedules, the preferred one first.
pub fn candidates(desc: &Desc) -> Vec<Schedule> {
    let constant = |v: &Var| desc.size(*v).as_const();
    let shared: Option<Var> =
        desc.heads.iter().copied().filter(|h| desc.shared(*h) && constant(h).is_some()).max_by_key(constant);
    let grid: Vec<Var> = desc.heads.iter().copied().filter(|h| Some(*h) != shared).collect();
    let count = shared.as_ref().and_then(constant).unwrap_or(1).max(1);
    let fitting = |most: i64| (1..=most).rev().find(|n| count % n == 0).unwrap_or(1);
    // Queries that see different rows have nothing to share.
    let single = desc.size(desc.query).is(1) || desc.listed();
    let mut out = Vec::new();
    // Rows that lie anywhere are dear to fetch, so more heads share each. With one query there are no others to share the
    // work of a grid with, so heads are not taken all together.
    let many: &[i64] = match desc.listed() {
        true if desc.size(desc.query).is(1) => &[16, 8, 4, 1],
        true => &[32, 8, 4, 1],
        false => &[8, 4, 1],
    };
    for most in many.iter().copied() {
        let heads = fitting(most);
        // As many queries as make enough rows, in fours where possible.
        let queries = if single { 1 } else { (1..=8).find(|q| heads * q >= 8 && heads * q % 4 == 0).unwrap_or(1) };
        let schedule = Schedule { shared, heads, queries, grid: grid.clone() };
        if !out.contains(&schedule) {
            out.push(schedule);
        }
    }
    out
}

/// The preferred schedule.
pub fn select(desc: &Desc) -> Option<Schedule> {
    candidates(desc).into_iter().next()
}

impl Schedule {
    /// Rows of a grid index.
    pub fn rows(&self) -> i64 {
        self.heads * self.queries
    }

    /// For people, with the letters of `desc`.
    pub fn show(&self, desc: &Desc) -> String {
        let grid: String = self.grid.iter().map(|v| desc.vars.name(*v)).collect();
        let shared = self.shared.map_or("-".into(), |v| desc.vars.name(v));
        format!("flash {} queries x {} heads of {shared}, keys by {KEYS}, grid [{grid}]", self.queries, self.heads)
    }
}
