//! The DeepSeekMoE graph (paper "DeepSeekMoE", section 3): attention as in the dense line, then a mixture of
//! fine-grained experts with shared ones beside it.

use super::Config;
use crate::blocks::Block;
use crate::blocks::assembly::Frame;
use crate::blocks::attention::attention;
use crate::blocks::decoder::Decoder;
use crate::blocks::moe::feed_forward;
use crate::blocks::rope::{Angles, Rope};
use hadal_ir::module::ValueId;

impl Decoder for Config {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn rope(&self) -> &Rope {
        &self.attention.rope
    }

    fn kind(&self, layer: usize) -> &'static str {
        self.feed_forward.kind(layer)
    }

    fn layer(&self, f: &mut Block<'_>, layer: usize, x: ValueId, angles: Angles) -> ValueId {
        // u = x + Attention(RMSNorm(x))
        let n = f.norm(x, "input_layernorm", self.frame.eps);
        let y = attention(f, &self.attention, n, angles);
        let u = f.add(x, y);
        // h = u + Σ shared + Σ g_i FFN_i
        let n = f.norm(u, "post_attention_layernorm", self.frame.eps);
        let y = feed_forward(f, &self.feed_forward, layer, n);
        f.add(u, y)
    }
}
