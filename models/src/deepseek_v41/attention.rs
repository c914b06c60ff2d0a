//! Attention to a window and to compressed rows that few layers make and few select (sheet `deepseek-v41`, "Attention",
//! "Compressor", "Candidates").
//!
//! ```text
//! r = norm(x Wqa);   q^h = rope(r Wqb)_h;   k = rope(norm(x Wkv))           one row: key and value of all heads
//! o^h = softmax over {k_s: t - W < s ≤ t}, {c_j: j selected}, sink_h         one softmax
//! y = (rope⁻¹(o) in groups) Woa Wob
//! ```
//!
//! A row `c_j` stands for the tokens `m j .. m j + m`, at the position of the first, and is there once the last is. Its
//! latent row, before it turns, also makes a key, by which the queries of selecting layers score it.
//!
//! What layers leave for others goes by names: a parameter `rows` is the last result `rows` of a layer before.

use super::config::Config;
use super::plan::{Candidates, Layer};
use crate::blocks::Block;
use crate::blocks::compressor::Compressor;
use crate::blocks::kept::{Kept, Narrow};
use crate::blocks::shared_kv::{Set, Turn, divided};
use crate::formats::Activations;
use hadal_ir::module::{Counter, ValueId};
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::reduce::ReduceKind;
use hadal_ir::ops::{Softmax, Transpose};
use hadal_types::{DType, Dim, Sym, TensorType};

/// How rows of windows, compressed rows, and index queries and keys are rounded.
pub(super) const WINDOW: Narrow = Narrow { values: DType::F8E4M3, block: 32, scales: DType::F8E8M0 };
const ROWS: Narrow = Narrow { values: DType::F4E2M1, block: 16, scales: DType::F8E4M3 };
const INDEX: Narrow = Narrow { values: DType::F4E2M1, block: 32, scales: DType::F8E8M0 };

/// Where in the model a layer's attention is.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// The model.
    pub config: &'a Config,
    /// The layer's number.
    pub number: usize,
    /// What it does.
    pub layer: &'a Layer,
    /// Rotation of the new tokens.
    pub turn: Turn<'a>,
    /// Counts its rows.
    pub counter: Counter,
    /// Counts candidate blocks.
    pub blocks: Option<Sym>,
}

/// `[T, d]` to `[T, d]`. State: `window`; those of a source: `rows`, `keys`, and `open` for the tokens of a group that is
/// not complete.
pub(super) fn attention(f: &mut Block<'_>, at: Place<'_>, x: ValueId) -> ValueId {
    let (c, a) = (at.config, &at.config.attention);
    f.within("attn", |f| {
        let latent = a.latent(f, x);
        let q = a.query(f, latent, at.turn);
        let row = a.row(f, x, at.turn);
        let to = kept(f, WINDOW);
        let window = Kept::append(f, "window", a.window, row, to).read(f);
        let mut sets = vec![a.near_of(f, window)];
        if at.layer.ratio() > 0 {
            sets.push(compressed(f, at, x, latent));
        }
        let o = a.attend(f, q, &sets);
        a.project(f, o, at.turn, c.frame.hidden)
    })
}

/// How `to` is kept, where states are narrow.
pub(super) fn kept(f: &Block<'_>, to: Narrow) -> Option<Narrow> {
    (f.formats().activations != Activations::F32).then_some(to)
}

/// The compressed rows, and which of them each query sees.
fn compressed(f: &mut Block<'_>, at: Place<'_>, x: ValueId, latent: ValueId) -> Set {
    let (c, all) = (at.config, at.counter.all());
    let Layer::Compressed { rows, selection, candidates, .. } = at.layer else { unreachable!("it has no rows") };
    let (rows_to, keys_to) = (kept(f, ROWS), kept(f, INDEX));
    let (source, selects) = (*rows == at.number, *selection == at.number);
    let (rows, keys) = if source {
        let (rows, keys) = compress(f, at, x);
        let rows = Kept::append(f, "rows", at.counter.held, rows, rows_to);
        let keys = Kept::append(f, "keys", at.counter.held, keys, keys_to);
        rows.result(f, "rows");
        keys.result(f, "keys");
        (rows, Some(keys))
    } else {
        let rows = Kept::param(f, "rows", all.clone(), c.attention.head_dim, rows_to);
        (rows, selects.then(|| Kept::param(f, "keys", all, c.index.head_dim, keys_to)))
    };
    let numbers = |f: &mut Block<'_>, name: &str, n: usize| {
        f.param(name, TensorType::new(DType::I32, [Sym::T.into(), Dim::from(n)]))
    };
    let selection = match keys {
        None => numbers(f, "selection", c.index.kept),
        Some(keys) => {
            let scores = f.within("indexer", |f| index_scores(f, at, x, latent, &keys));
            let scores = match (candidates, &c.index.blocks) {
                (Candidates::Chosen, Some(blocks)) => {
                    let chosen = choose_blocks(f, at, scores, blocks.size, blocks.kept);
                    f.result("candidates", chosen);
                    scores
                }
                (Candidates::Kept, Some(blocks)) => {
                    let chosen = numbers(f, "candidates", blocks.kept);
                    within_blocks(f, at, scores, blocks.size, chosen)
                }
                _ => scores,
            };
            let selection = f.top_k(scores, c.index.kept);
            f.result("selection", selection);
            selection
        }
    };
    let rows = rows.read(f);
    Set { rows, seen: Some(f.member(selection, at.counter.all())) }
}

/// The rows of the groups that this call completes, and their index keys.
fn compress(f: &mut Block<'_>, at: Place<'_>, x: ValueId) -> (ValueId, ValueId) {
    let c = at.config;
    let ratio = at.layer.ratio();
    let latent = f.within("compressor", |f| {
        let pooled = match ratio {
            1 => f.linear(x, "wkv", c.attention.head_dim, false),
            _ => pool(f, at, x),
        };
        f.norm(pooled, "norm", c.frame.eps)
    });
    let turn = match ratio {
        1 => at.turn,
        _ => {
            let first = Compressor::positions(f, ratio, at.counter);
            Turn { angles: c.far.angles_at(f, first), ..at.turn }
        }
    };
    let key = f.within("indexer", |f| {
        let key = f.linear(latent, "wk", c.index.head_dim, false);
        f.norm(key, "k_norm", c.frame.eps)
    });
    (turn.there(f, latent), turn.there(f, key))
}

/// For every channel the softmax of a group's gates, and the sum of its values that it weighs.
fn pool(f: &mut Block<'_>, at: Place<'_>, x: ValueId) -> ValueId {
    let (n, m) = (at.config.attention.head_dim, at.layer.ratio());
    let (values, gates) = (f.linear(x, "wkv", n, false), f.linear(x, "wgate", n, false));
    let both = f.concat(&[values, gates], 1);
    let before = m as i64 - 1;
    let both = f.remember_last("open", before as usize, both);
    let start = Dim::from(at.counter.held) * m as i64 - Sym::P + before;
    let both = f.slice(both, 0, start, Dim::from(at.counter.new) * m as i64, 1);
    let both = f.reshape(both, &[at.counter.new.into(), m.into(), (2 * n).into()]);
    let (values, gates) = (f.slice(both, 2, 0, n, 1), f.slice(both, 2, n, n, 1));
    let gates = f.op(Transpose { perm: vec![0, 2, 1] }, &[gates]);
    let weights = f.op(Softmax, &[gates]);
    f.contract("ncm,nmc->nc", &[weights, values])
}

/// How well every row suits every query, -∞ where its group is not complete at the query's token.
fn index_scores(f: &mut Block<'_>, at: Place<'_>, x: ValueId, latent: ValueId, keys: &Kept) -> ValueId {
    let ix = &at.config.index;
    let q = f.linear(latent, "wq_b", ix.heads * ix.head_dim, false);
    let q = f.reshape(q, &[Sym::T.into(), ix.heads.into(), ix.head_dim.into()]);
    let q = at.turn.there(f, q);
    let q = match kept(f, INDEX) {
        Some(to) => Kept::round(f, q, to).read(f),
        None => q,
    };
    let keys = keys.read(f);
    let weights = f.linear(x, "weights_proj", ix.heads, false);
    let weights = f.mul_scalar(weights, ((ix.heads * ix.head_dim) as f64).powf(-0.5));
    let matches = f.contract("thd,sd->ths", &[q, keys]);
    let zero = f.scalar_like(matches, 0.0);
    let matches = f.map(MapFn::Max, &[matches, zero]);
    let scores = f.contract("ths,th->ts", &[matches, weights]);
    let shape = f.shape(scores).to_vec();
    let rows = f.iota(at.counter.all(), 0);
    let rows = f.broadcast(rows, &shape, &[1]);
    let there = complete(f, at);
    let there = f.broadcast(there, &shape, &[0]);
    let seen = f.map(MapFn::Lt, &[rows, there]);
    f.only(seen, scores)
}

/// Rows that are complete at each new token.
fn complete(f: &mut Block<'_>, at: Place<'_>) -> ValueId {
    let tokens = f.iota(Sym::T, Dim::from(Sym::P) + 1);
    divided(f, tokens, at.layer.ratio())
}

/// The best blocks of rows, by their best row each, and the one with the newest row whatever it is.
fn choose_blocks(f: &mut Block<'_>, at: Place<'_>, scores: ValueId, size: usize, kept: usize) -> ValueId {
    let blocks = Dim::from(at.blocks.expect("counted where blocks are chosen"));
    let tokens = f.shape(scores)[0].clone();
    let missing = blocks.clone() * size as i64 - at.counter.all();
    let nothing = f.scalar(f64::NEG_INFINITY);
    let nothing = f.broadcast(nothing, &[tokens.clone(), missing], &[]);
    let scores = f.concat(&[scores, nothing], 1);
    let scores = f.reshape(scores, &[tokens.clone(), blocks.clone(), size.into()]);
    let best = f.reduce(ReduceKind::Max, &[2], scores);
    let shape = [tokens, blocks.clone()];
    let newest = complete(f, at);
    let before = f.scalar_like(newest, size as f64 - 1.0);
    let newest = f.add(newest, before);
    let newest = divided(f, newest, size);
    let newest = f.broadcast(newest, &shape, &[0]);
    let next = f.iota(blocks, 1);
    let next = f.broadcast(next, &shape, &[1]);
    let newest = f.map(MapFn::Eq, &[next, newest]);
    let always = f.scalar_like(best, f64::INFINITY);
    let best = f.map(MapFn::Select, &[newest, always, best]);
    f.top_k(best, kept)
}

/// Scores, with -∞ outside the chosen blocks.
fn within_blocks(f: &mut Block<'_>, at: Place<'_>, scores: ValueId, size: usize, chosen: ValueId) -> ValueId {
    let count = at.blocks.expect("counted where blocks are chosen");
    let kept = rows_of_blocks(f, size, count, at.counter.all(), chosen);
    f.only(kept, scores)
}

/// Which of `rows` rows are in the `chosen` ones of `count` blocks.
pub(super) fn rows_of_blocks(f: &mut Block<'_>, size: usize, count: Sym, rows: Dim, chosen: ValueId) -> ValueId {
    let (tokens, count) = (f.shape(chosen)[0].clone(), Dim::from(count));
    let kept = f.member(chosen, count.clone());
    let kept = f.broadcast(kept, &[tokens.clone(), count.clone(), size.into()], &[0, 1]);
    let kept = f.reshape(kept, &[tokens, count * size as i64]);
    f.slice(kept, 1, 0, rows, 1)
}
