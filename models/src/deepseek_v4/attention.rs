//! Hybrid compressed attention (sheet `deepseek-v4`, "Attention"): the last tokens one by one, and all before in compressed
//! rows, of which a query sees every one or its best.

use super::config::{Config, SELECTED};
use crate::blocks::Block;
use crate::blocks::compressor::Compressor;
use crate::blocks::selection::Compressed;
use crate::blocks::shared_kv::{Set, Turn};
use hadal_ir::module::ValueId;

/// `[T, d]` to `[T, d]`. `compressed` are the compressed rows of the layer, and what turns those that a call adds. States: the
/// window, and with compressed rows these, their index keys, and the tokens of open groups.
pub(super) fn attention(
    f: &mut Block<'_>,
    c: &Config,
    x: ValueId,
    turn: Turn<'_>,
    compressed: Option<(Compressed, Turn<'_>)>,
) -> ValueId {
    let a = &c.attention;
    f.within("attn", |f| {
        let latent = a.latent(f, x);
        let q = a.query(f, latent, turn);
        let row = a.row(f, x, turn);
        let window = a.keep(f, "window", a.window, row);
        let mut sets = vec![a.recent(f, window)];
        if let Some((rows, of_rows)) = compressed {
            sets.push(far(f, c, x, latent, turn, rows, of_rows));
        }
        let o = a.attend(f, q, &sets);
        a.project(f, o, turn, c.frame.hidden)
    })
}

/// The compressed rows, and which of them queries see.
fn far(
    f: &mut Block<'_>,
    c: &Config,
    x: ValueId,
    latent: ValueId,
    turn: Turn<'_>,
    of: Compressed,
    of_rows: Turn<'_>,
) -> Set {
    let a = &c.attention;
    let overlap = of.ratio == SELECTED;
    let compressor = Compressor { overlap, placed: true, channels: a.head_dim, eps: a.eps };
    let rows = compressor.rows(f, x, of);
    let rows = of_rows.there(f, rows);
    let rows = a.keep(f, "compressed", of.counter.held, rows);
    let seen = match &c.selection {
        Some(selection) if overlap => f.within("indexer", |f| {
            let compressor = Compressor { channels: selection.head_dim, ..compressor };
            let keys = compressor.rows(f, x, of);
            let keys = of_rows.there(f, keys);
            let keys = selection.keep(f, keys, of);
            let scores = selection.scores(f, x, latent, &keys, turn, of);
            let best = f.top_k(scores, selection.kept);
            f.member(best, of.counter.all())
        }),
        _ => of.there(f),
    };
    Set { rows, seen: Some(seen) }
}
