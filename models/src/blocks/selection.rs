//! Which compressed rows a query sees (sheets `deepseek-v4`, "Compressor", and `deepseek-v41`, "Candidates"): those
//! that are complete at its token, or the best of them by a small attention of its own.
//!
//! ```text
//! I[t, j] = Σ_h relu(q^h_t · k_j) u^h_t       index queries and weights of a token, index key of a row; j < ⌊(t+1)/m⌋
//! ```
//!
//! In two levels, the first of which some layer has and others after it reuse: the best blocks of neighbouring rows, by
//! their best row each, with the block of the newest row among them; and the best rows within these.

use super::Block;
use super::indexer::rotate;
use super::kept::{Kept, Narrow};
use super::shared_kv::Turn;
use crate::config_reader::Object;
use crate::error::Result;
use hadal_ir::module::{Counter, Module, ValueId};
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::reduce::ReduceKind;
use hadal_types::{DType, Definition, Dim, Sym};

/// How index queries and keys are rounded, where states are narrow.
pub const INDEX: Narrow = Narrow { values: DType::F4E2M1, block: 32, scales: DType::F8E8M0, aligned: 1, rest: 0 };

/// Compressed rows, each of which stands for neighbouring tokens.
#[derive(Clone, Copy, Debug)]
pub struct Compressed {
    /// Tokens `m` of a row.
    pub ratio: usize,
    /// Counts the rows.
    pub counter: Counter,
}

impl Compressed {
    /// How many are complete at each new token: `i32 [T]`.
    pub fn complete(&self, f: &mut Block<'_>) -> ValueId {
        let tokens = f.iota(Sym::T, Dim::from(Sym::P) + 1);
        f.over(tokens, self.ratio)
    }

    /// The positions of those that this call adds, which are those of their first tokens: `i32 [N]`.
    pub fn positions(&self, f: &mut Block<'_>) -> ValueId {
        let row = f.iota(self.counter.new, self.counter.held);
        f.times(row, self.ratio)
    }

    /// Which of them are complete at which new token: `bool [T, C]`.
    pub fn there(&self, f: &mut Block<'_>) -> ValueId {
        let shape = [Dim::from(Sym::T), self.counter.all()];
        let numbers = f.iota(shape[1].clone(), 0);
        let numbers = f.broadcast(numbers, &shape, &[1]);
        let complete = self.complete(f);
        let complete = f.broadcast(complete, &shape, &[0]);
        f.map(MapFn::Lt, &[numbers, complete])
    }
}

/// Sizes of the selection.
#[derive(Clone, PartialEq, Debug)]
pub struct Selection {
    /// Heads of index queries.
    pub heads: usize,
    /// Their size.
    pub head_dim: usize,
    /// Compressed that a query keeps.
    pub kept: usize,
    /// Whether queries and keys are turned before they are rounded, so that what is large is spread over all channels.
    pub rotated: bool,
}

impl Selection {
    /// Reads the sizes; `turning` channels turn.
    pub fn read(o: &Object<'_>, turning: usize, rotated: bool) -> Result<Selection> {
        Ok(Selection {
            heads: o.require_usize_in("index_n_heads", 1..=1 << 12)?,
            head_dim: o.require_usize_in("index_head_dim", turning..=1 << 14)?,
            kept: o.require_usize_in("index_topk", 1..=1 << 24)?,
            rotated,
        })
    }

    /// All keys, with those of the rows that this call adds. State: `keys`.
    pub fn keep(&self, f: &mut Block<'_>, keys: ValueId, rows: Compressed) -> Kept {
        let to = f.kept(INDEX);
        let keys = if to.is_some() && self.rotated { rotate(f, keys) } else { keys };
        Kept::append(f, "keys", rows.counter.held, keys, to)
    }

    /// How well each row suits each query, -∞ where it is not complete: `[T, C]`.
    pub fn scores(
        &self,
        f: &mut Block<'_>,
        x: ValueId,
        latent: ValueId,
        keys: &Kept,
        turn: Turn<'_>,
        rows: Compressed,
    ) -> ValueId {
        let (h, d) = (self.heads, self.head_dim);
        let q = f.linear(latent, "wq_b", h * d, false);
        let q = f.reshape(q, &[Sym::T.into(), h.into(), d.into()]);
        let mut q = turn.there(f, q);
        if let Some(to) = f.kept(INDEX) {
            let spread = if self.rotated { rotate(f, q) } else { q };
            q = Kept::round(f, spread, to).read(f);
        }
        let keys = keys.read(f);
        let matches = f.contract("thd,sd->ths", &[q, keys]);
        let zero = f.scalar_like(matches, 0.0);
        let matches = f.map(MapFn::Max, &[matches, zero]);
        let weights = f.linear(x, "weights_proj", h, false);
        let weights = f.mul_scalar(weights, ((h * d) as f64).powf(-0.5));
        let scores = f.contract("ths,th->ts", &[matches, weights]);
        let there = rows.there(f);
        f.only(there, scores)
    }
}

/// Blocks of rows that selections stay within.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Blocks {
    /// Compressed in one.
    pub size: usize,
    /// Blocks that a query keeps.
    pub kept: usize,
}

impl Blocks {
    /// Reads the sizes, if there are any.
    pub fn read(o: &Object<'_>) -> Result<Option<Blocks>> {
        let Some(size) = o.optional_usize_in("candidate_block_size", 1..=1 << 20)? else { return Ok(None) };
        Ok(Some(Blocks { size, kept: o.require_usize_in("candidate_topk_blocks", 1..=1 << 24)? }))
    }

    /// How many blocks `rows` make, the last of which may be short. They are counted by a symbol, unless each is a row.
    pub fn count(self, module: &mut Module, rows: Compressed) -> Dim {
        if self.size == 1 {
            return rows.counter.all();
        }
        let sym = Sym::new(&format!("B{}", self.size)).expect("a size of at most seven digits");
        let by = self.size as i64;
        let blocks = Definition::Quotient { of: rows.counter.all() + (by - 1), by };
        module.define(sym, blocks).expect("rows are counted before");
        sym.into()
    }

    /// The best blocks of `count`, by their best row each, and the one with the newest row whatever it is.
    pub fn choose(self, f: &mut Block<'_>, scores: ValueId, count: &Dim, rows: Compressed) -> ValueId {
        let size = self.size;
        let tokens = f.shape(scores)[0].clone();
        let shape = [tokens.clone(), count.clone()];
        let best = if size == 1 {
            scores
        } else {
            let missing = count.clone() * size as i64 - rows.counter.all();
            let nothing = f.scalar(f64::NEG_INFINITY);
            let nothing = f.broadcast(nothing, &[tokens.clone(), missing], &[]);
            let scores = f.concat(&[scores, nothing], 1);
            let scores = f.reshape(scores, &[tokens, count.clone(), size.into()]);
            f.reduce(ReduceKind::Max, &[2], scores)
        };
        let newest = rows.complete(f);
        let before = f.scalar_like(newest, size as f64 - 1.0);
        let newest = f.add(newest, before);
        let newest = f.over(newest, size);
        let newest = f.broadcast(newest, &shape, &[0]);
        let next = f.iota(count.clone(), 1);
        let next = f.broadcast(next, &shape, &[1]);
        let newest = f.map(MapFn::Eq, &[next, newest]);
        let always = f.scalar_like(best, f64::INFINITY);
        let best = f.map(MapFn::Select, &[newest, always, best]);
        f.top_k(best, self.kept)
    }

    /// Which of `rows` are in the `chosen` ones of `count` blocks: `bool [T, C]`.
    pub fn rows(self, f: &mut Block<'_>, chosen: ValueId, count: &Dim, rows: Compressed) -> ValueId {
        let (tokens, size) = (f.shape(chosen)[0].clone(), self.size);
        let kept = f.member(chosen, count.clone());
        if size == 1 {
            return kept;
        }
        let kept = f.broadcast(kept, &[tokens.clone(), count.clone(), size.into()], &[0, 1]);
        let kept = f.reshape(kept, &[tokens, count.clone() * size as i64]);
        f.slice(kept, 1, 0, rows.counter.all(), 1)
    }
}
