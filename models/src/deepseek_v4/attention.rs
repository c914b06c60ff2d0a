//! Hybrid compressed attention (sheet `deepseek-v4`, "Attention"): the last tokens one by one, and all before in compressed
//! rows, of which a query sees every one or its best.
//!
//! ```text
//! I[t, w] = Σ_h relu(q^h_t · k_w) u^h_t       index queries and weights of a token, index key of a row
//! selected: the K best rows w < ⌊(t+1)/m⌋ by I[t, ·]
//! ```

use super::config::{Config, Index, SELECTED};
use crate::blocks::Block;
use crate::blocks::compressor::Compressor;
use crate::blocks::indexer::rotate;
use crate::blocks::kept::{Kept, Narrow};
use crate::blocks::shared_kv::{Set, Turn, divided};
use crate::formats::Activations;
use hadal_ir::module::{Counter, ValueId};
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::{Member, TopK};
use hadal_types::{DType, Dim, Sym};

/// How index queries and keys are rounded.
const INDEX: Narrow = Narrow { values: DType::F4E2M1, block: 32, scales: DType::F8E8M0 };

/// The compressed rows of a layer.
#[derive(Clone, Copy)]
pub(super) struct Compressed<'a> {
    /// Tokens `m` of a row.
    pub ratio: usize,
    /// Counts them.
    pub counter: Counter,
    /// Turns the rows that a call adds.
    pub turn: Turn<'a>,
}

/// `[T, d]` to `[T, d]`. States: the window, and with compressed rows these, their index keys, and the tokens of open groups.
pub(super) fn attention(
    f: &mut Block<'_>,
    c: &Config,
    x: ValueId,
    turn: Turn<'_>,
    compressed: Option<Compressed<'_>>,
) -> ValueId {
    let a = &c.attention;
    f.within("attn", |f| {
        let latent = a.latent(f, x);
        let q = a.query(f, latent, turn);
        let row = a.row(f, x, turn);
        let mut sets = vec![a.near(f, row, turn.rope.dim)];
        sets.extend(compressed.map(|of| far(f, c, x, latent, turn, of)));
        let o = a.attend(f, q, &sets);
        a.project(f, o, turn, c.frame.hidden)
    })
}

/// The compressed rows, and which of them queries see.
fn far(f: &mut Block<'_>, c: &Config, x: ValueId, latent: ValueId, turn: Turn<'_>, of: Compressed<'_>) -> Set {
    let a = &c.attention;
    let overlap = of.ratio == SELECTED;
    let compressor = Compressor { ratio: of.ratio, overlap, channels: a.head_dim, eps: a.eps };
    let rows = compressor.rows(f, x, of.counter);
    let rows = of.turn.there(f, rows);
    let rows = a.keep(f, "compressed", of.counter.held, rows, turn.rope.dim);

    let shape = [Dim::from(Sym::T), of.counter.all()];
    let numbers = f.iota(shape[1].clone(), 0);
    let numbers = f.broadcast(numbers, &shape, &[1]);
    let complete = f.iota(Sym::T, Dim::from(Sym::P) + 1);
    let complete = divided(f, complete, of.ratio);
    let complete = f.broadcast(complete, &shape, &[0]);
    let there = f.map(MapFn::Lt, &[numbers, complete]);
    let seen = match &c.index {
        Some(index) if overlap => f.within("indexer", |f| {
            let compressor = Compressor { channels: index.head_dim, ..compressor };
            let keys = compressor.rows(f, x, of.counter);
            let keys = of.turn.there(f, keys);
            let scores = scores(f, index, x, latent, keys, turn, of.counter);
            let scores = f.only(there, scores);
            let best = f.op(TopK { k: index.kept }, &[scores]);
            f.op(Member { len: of.counter.all() }, &[best])
        }),
        _ => there,
    };
    Set { rows, seen: Some(seen) }
}

/// How well each compressed row suits each query. Where states are narrow, queries and keys are rounded after a rotation
/// that spreads what is large over all channels.
fn scores(
    f: &mut Block<'_>,
    index: &Index,
    x: ValueId,
    latent: ValueId,
    keys: ValueId,
    turn: Turn<'_>,
    counter: Counter,
) -> ValueId {
    let (h, d) = (index.heads, index.head_dim);
    let q = f.linear(latent, "wq_b", h * d, false);
    let tokens = f.shape(q)[0].clone();
    let q = f.reshape(q, &[tokens, h.into(), d.into()]);
    let q = turn.there(f, q);
    let (q, keys) = match f.formats().activations {
        Activations::F32 => (q, Kept::append(f, "keys", counter.held, keys, None)),
        Activations::Cache | Activations::Fp8 => {
            let (q, keys) = (rotate(f, q), rotate(f, keys));
            (Kept::round(f, q, INDEX).read(f), Kept::append(f, "keys", counter.held, keys, Some(INDEX)))
        }
    };
    let keys = keys.read(f);
    let matches = f.contract("thd,sd->ths", &[q, keys]);
    let zero = f.scalar_like(matches, 0.0);
    let matches = f.map(MapFn::Max, &[matches, zero]);
    let weights = f.linear(x, "weights_proj", h, false);
    let weights = f.mul_scalar(weights, ((h * d) as f64).powf(-0.5));
    f.contract("ths,th->ts", &[matches, weights])
}
