//! Compressed rows that few layers make and few select (sheet `deepseek-v41`, "Attention"). A compressed row, before it
//! turns, also makes the key by which the queries of selecting layers score it.
//!
//! What layers leave for others goes by names: a parameter `rows` is the last result `rows` of a layer before.

use super::config::Config;
use crate::blocks::Block;
use crate::blocks::compressor::Compressor;
use crate::blocks::kept::{Kept, Narrow};
use crate::blocks::selection::{Blocks, INDEX};
use crate::blocks::shared_kv::Set;
use crate::blocks::sharing::{Candidates, Shared};
use crate::blocks::streams::Place;
use hadal_ir::module::ValueId;
use hadal_types::{DType, Dim, Sym, TensorType};

/// How compressed rows are rounded.
const ROWS: Narrow = Narrow { values: DType::F4E2M1, block: 16, scales: DType::F8E4M3, aligned: 1, rest: 0 };

impl Config {
    /// The compressed rows, and which of them each query sees. States of a source: `rows`, `keys`, and `open` for the
    /// tokens of a group that is not complete.
    pub(super) fn compressed(
        &self,
        f: &mut Block<'_>,
        at: Place<'_>,
        shared: Shared,
        blocks: Option<(Blocks, Dim)>,
        x: ValueId,
        latent: ValueId,
    ) -> Set {
        let all = at.rows.counter.all();
        let [source, selects] = [shared.rows, shared.selection].map(|l| l == at.layer);
        let (rows, keys) = if source {
            let (rows, keys) = self.compress(f, at, x);
            let rows = Kept::append(f, "rows", at.rows.counter.held, rows, f.kept(ROWS));
            let keys = self.selection.keep(f, keys, at.rows);
            rows.result(f, "rows");
            keys.result(f, "keys");
            (rows, Some(keys))
        } else {
            let rows = Kept::param(f, "rows", all.clone(), self.trunk.attention.head_dim, f.kept(ROWS));
            let (size, to) = (self.selection.head_dim, f.kept(INDEX));
            (rows, selects.then(|| Kept::param(f, "keys", all.clone(), size, to)))
        };
        let selection = match keys {
            None => numbers(f, "selection", self.selection.kept),
            Some(keys) => {
                let scores = f.within("indexer", |f| self.selection.scores(f, x, latent, &keys, at.turn, at.rows));
                let scores = match (shared.candidates, blocks) {
                    (Candidates::Chosen, Some((blocks, count))) => {
                        let chosen = blocks.choose(f, scores, &count, at.rows);
                        f.result("candidates", chosen);
                        scores
                    }
                    (Candidates::Kept, Some((blocks, count))) => {
                        let chosen = numbers(f, "candidates", blocks.kept);
                        let within = blocks.rows(f, chosen, &count, at.rows);
                        f.only(within, scores)
                    }
                    _ => scores,
                };
                let selection = f.top_k(scores, self.selection.kept);
                f.result("selection", selection);
                selection
            }
        };
        let rows = rows.read(f);
        Set { rows, seen: Some(f.member(selection, all)) }
    }

    /// The rows of the groups that this call completes, and their index keys.
    fn compress(&self, f: &mut Block<'_>, at: Place<'_>, x: ValueId) -> (ValueId, ValueId) {
        let (channels, eps) = (self.trunk.attention.head_dim, self.trunk.frame.eps);
        // A token on its own is projected and no more.
        let latent = if at.rows.ratio == 1 {
            f.within("compressor", |f| {
                let row = f.linear(x, "wkv", channels, false);
                f.norm(row, "norm", eps)
            })
        } else {
            Compressor { overlap: false, placed: false, channels, eps }.rows(f, x, at.rows)
        };
        let key = f.within("indexer", |f| {
            let key = f.linear(latent, "wk", self.selection.head_dim, false);
            f.norm(key, "k_norm", eps)
        });
        let turn = at.turn_of_rows(f);
        (turn.there(f, latent), turn.there(f, key))
    }
}

/// What a layer before left as `name`: `n` numbers for every token.
fn numbers(f: &mut Block<'_>, name: &str, n: usize) -> ValueId {
    f.param(name, TensorType::new(DType::I32, [Sym::T.into(), Dim::from(n)]))
}
