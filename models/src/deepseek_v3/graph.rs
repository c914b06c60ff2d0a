//! The DeepSeek-V3 graph (paper "DeepSeek-V3 Technical Report", section 2).

use super::Config;
use crate::blocks::Block;
use crate::blocks::assembly::Frame;
use crate::blocks::decoder::Decoder;
use crate::blocks::mla::mla;
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

    // 2.2 Multi-Token Prediction: layers of the same kind after the last one, see `blocks::decoder`.
    fn mtp_layers(&self) -> usize {
        self.mtp_layers
    }

    fn kind(&self, layer: usize) -> &'static str {
        self.feed_forward.kind(layer)
    }

    fn layer(&self, f: &mut Block<'_>, layer: usize, x: ValueId, angles: Angles) -> ValueId {
        // 2.1.1 Multi-Head Latent Attention
        let n = f.norm(x, "input_layernorm", self.frame.eps);
        let y = mla(f, &self.attention, n, angles);
        let x = f.add(x, y);
        // 2.1.2 DeepSeekMoE with auxiliary-loss-free load balancing
        let n = f.norm(x, "post_attention_layernorm", self.frame.eps);
        let y = feed_forward(f, &self.feed_forward, layer, n);
        f.add(x, y)
    }
}
