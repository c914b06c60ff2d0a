//! The DeepSeek-V4 graph (sheet `deepseek-v4`, "Forward pass").
//!
//! ```text
//! x = E[tokens] in every stream
//! x = mixed(x, attention(norm(pre x)));   x = mixed(x, experts(norm(pre x)))       for every layer
//! logits = norm(pre x) Wᵀ
//! ```
//!
//! All this is the frame of [`streams`](crate::blocks::streams). Attention is hybrid: the last tokens one by one, and
//! all before in compressed rows, of which a query sees every one or its best.

use super::config::{Config, SELECTED};
use crate::blocks::Block;
use crate::blocks::assembly::{Architecture, Assembly, Frame};
use crate::blocks::compressor::Compressor;
use crate::blocks::shared_kv::Set;
use crate::blocks::streams::{Body, Place, Streamed, Trunk};
use hadal_ir::builder::BuildError;
use hadal_ir::module::ValueId;

impl Architecture for Config {
    fn frame(&self) -> &Frame {
        &self.trunk.frame
    }

    /// Where there is no draft head, `logits` also gives the streams of every token, `hidden`, from which `mtp`
    /// (`mtp1`, …) predicts further. Drafts are made by the first of these layers.
    fn assemble(&self, a: &mut Assembly<'_>) -> Result<(), Box<BuildError>> {
        let body = Body::new(self, a)?;
        if self.trunk.drafter(a).is_some() {
            return body.entries(a);
        }
        let has = |depth: &usize| a.formats.has(&format!("mtp.{depth}.e_proj.weight"));
        let predicting: Vec<usize> = (0..self.trunk.ratios.len() - self.trunk.frame.layers).filter(has).collect();
        a.predicting_entries(
            &predicting,
            |a, name, gives| body.main(a, name, gives, false),
            |a, name, depth, rows| self.mtp(a, name, depth, rows),
        )
    }
}

impl Streamed for Config {
    fn trunk(&self) -> &Trunk {
        &self.trunk
    }

    fn kind(&self, layer: usize) -> String {
        format!("rows{}_layer", self.trunk.ratios[layer])
    }

    /// 2.2 Hybrid attention. States: `compressed`, the index `keys` of rows that are selected, and the tokens of `open`
    /// groups.
    fn far(&self, _: &mut Assembly<'_>, f: &mut Block<'_>, at: Place<'_>, x: ValueId, latent: ValueId) -> Set {
        let (a, of) = (&self.trunk.attention, at.rows);
        let (turn, overlap) = (at.turn_of_rows(f), of.ratio == SELECTED);
        let compressor = Compressor { overlap, placed: true, channels: a.head_dim, eps: a.eps };
        let rows = compressor.rows(f, x, of);
        let rows = turn.there(f, rows);
        let rows = a.keep(f, "compressed", of.counter.held, rows);
        let seen = match &self.selection {
            Some(selection) if overlap => f.within("indexer", |f| {
                let compressor = Compressor { channels: selection.head_dim, ..compressor };
                let keys = compressor.rows(f, x, of);
                let keys = turn.there(f, keys);
                let keys = selection.keep(f, keys, of);
                let scores = selection.scores(f, x, latent, &keys, at.turn, of);
                let best = f.top_k(scores, selection.kept);
                f.member(best, of.counter.all())
            }),
            _ => of.there(f),
        };
        Set { rows, seen: Some(seen) }
    }
}
