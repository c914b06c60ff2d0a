//! Attention to a window and to compressed rows that few layers make and few select (sheet `deepseek-v41`, "Attention").
//! A compressed row, before it turns, also makes the key by which the queries of selecting layers score it.
//!
//! What layers leave for others goes by names: a parameter `rows` is the last result `rows` of a layer before.

use super::config::Config;
use super::plan::{Candidates, Layer};
use crate::blocks::Block;
use crate::blocks::compressor::Compressor;
use crate::blocks::kept::{Kept, Narrow};
use crate::blocks::selection::{Compressed, INDEX};
use crate::blocks::shared_kv::{Set, Turn};
use hadal_ir::module::ValueId;
use hadal_types::{DType, Dim, Sym, TensorType};

/// How rows of windows, and compressed rows, are rounded.
pub(super) const WINDOW: Narrow = Narrow { values: DType::F8E4M3, block: 32, scales: DType::F8E8M0 };
const ROWS: Narrow = Narrow { values: DType::F4E2M1, block: 16, scales: DType::F8E4M3 };

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
    /// Its compressed rows.
    pub rows: Compressed,
    /// How many candidate blocks they make.
    pub blocks: Option<&'a Dim>,
}

/// `[T, d]` to `[T, d]`. State: `window`; those of a source: `rows`, `keys`, and `open` for the tokens of a group that is
/// not complete.
pub(super) fn attention(f: &mut Block<'_>, at: Place<'_>, x: ValueId) -> ValueId {
    let (c, a) = (at.config, &at.config.attention);
    f.within("attn", |f| {
        let latent = a.latent(f, x);
        let q = a.query(f, latent, at.turn);
        let row = a.row(f, x, at.turn);
        let window = Kept::append(f, "window", a.window, row, f.kept(WINDOW)).read(f);
        let mut sets = vec![a.recent(f, window)];
        if let Layer::Compressed { rows, selection, candidates, .. } = at.layer {
            sets.push(compressed(f, at, x, latent, [*rows, *selection].map(|l| l == at.number), *candidates));
        }
        let o = a.attend(f, q, &sets);
        a.project(f, o, at.turn, c.frame.hidden)
    })
}

/// The compressed rows, and which of them each query sees. The layer may be their `source`, and may select.
fn compressed(
    f: &mut Block<'_>,
    at: Place<'_>,
    x: ValueId,
    latent: ValueId,
    [source, selects]: [bool; 2],
    candidates: Candidates,
) -> Set {
    let (c, all) = (at.config, at.rows.counter.all());
    let (rows, keys) = if source {
        let (rows, keys) = compress(f, at, x);
        let rows = Kept::append(f, "rows", at.rows.counter.held, rows, f.kept(ROWS));
        let keys = c.selection.keep(f, keys, at.rows);
        rows.result(f, "rows");
        keys.result(f, "keys");
        (rows, Some(keys))
    } else {
        let rows = Kept::param(f, "rows", all.clone(), c.attention.head_dim, f.kept(ROWS));
        let (size, to) = (c.selection.head_dim, f.kept(INDEX));
        (rows, selects.then(|| Kept::param(f, "keys", all.clone(), size, to)))
    };
    let numbers = |f: &mut Block<'_>, name: &str, n: usize| {
        f.param(name, TensorType::new(DType::I32, [Sym::T.into(), Dim::from(n)]))
    };
    let selection = match keys {
        None => numbers(f, "selection", c.selection.kept),
        Some(keys) => {
            let scores = f.within("indexer", |f| c.selection.scores(f, x, latent, &keys, at.turn, at.rows));
            let scores = match (candidates, c.blocks.zip(at.blocks)) {
                (Candidates::Chosen, Some((blocks, count))) => {
                    let chosen = blocks.choose(f, scores, count, at.rows);
                    f.result("candidates", chosen);
                    scores
                }
                (Candidates::Kept, Some((blocks, count))) => {
                    let chosen = numbers(f, "candidates", blocks.kept);
                    let within = blocks.rows(f, chosen, count, at.rows);
                    f.only(within, scores)
                }
                _ => scores,
            };
            let selection = f.top_k(scores, c.selection.kept);
            f.result("selection", selection);
            selection
        }
    };
    let rows = rows.read(f);
    Set { rows, seen: Some(f.member(selection, all)) }
}

/// The rows of the groups that this call completes, and their index keys.
fn compress(f: &mut Block<'_>, at: Place<'_>, x: ValueId) -> (ValueId, ValueId) {
    let (c, eps) = (at.config, at.config.frame.eps);
    let channels = c.attention.head_dim;
    // A token on its own is projected and no more.
    let (latent, turn) = if at.rows.ratio == 1 {
        let latent = f.within("compressor", |f| {
            let row = f.linear(x, "wkv", channels, false);
            f.norm(row, "norm", eps)
        });
        (latent, at.turn)
    } else {
        let latent = Compressor { overlap: false, placed: false, channels, eps }.rows(f, x, at.rows);
        let positions = at.rows.positions(f);
        (latent, Turn { angles: at.turn.rope.angles_at(f, positions), ..at.turn })
    };
    let key = f.within("indexer", |f| {
        let key = f.linear(latent, "wk", c.selection.head_dim, false);
        f.norm(key, "k_norm", eps)
    });
    (turn.there(f, latent), turn.there(f, key))
}
