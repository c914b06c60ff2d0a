//! The DeepSeek-V3.2 graph (paper "DeepSeek-V3.2", section 2), as its masked-dense definition.

use super::Config;
use crate::blocks::Block;
use crate::blocks::assembly::Frame;
use crate::blocks::decoder::Decoder;
use crate::blocks::indexer::indexer;
use crate::blocks::mla::{attend, query_row};
use crate::blocks::moe::feed_forward;
use crate::blocks::rope::{Angles, Rope};
use hadal_ir::module::ValueId;

impl Decoder for Config {
    fn frame(&self) -> &Frame {
        &self.base.frame
    }

    fn rope(&self) -> &Rope {
        &self.base.attention.rope
    }

    fn mtp_layers(&self) -> usize {
        self.base.mtp_layers
    }

    fn kind(&self, layer: usize) -> &'static str {
        self.base.feed_forward.kind(layer)
    }

    fn layer(&self, f: &mut Block<'_>, layer: usize, x: ValueId, angles: Angles) -> ValueId {
        let eps = self.base.frame.eps;
        // 2.1 DeepSeek Sparse Attention, instantiated under MLA
        let n = f.norm(x, "input_layernorm", eps);
        let y = f.within("self_attn", |f| {
            let from = query_row(f, &self.base.attention, n);
            let mask = indexer(f, &self.indexer, n, from, angles);
            attend(f, &self.base.attention, n, from, angles, Some(mask))
        });
        let x = f.add(x, y);
        // DeepSeekMoE, as in V3
        let n = f.norm(x, "post_attention_layernorm", eps);
        let y = feed_forward(f, &self.base.feed_forward, layer, n);
        f.add(x, y)
    }
}
