//! The Qwen graph: the Llama graph whose attention has biases (Qwen2) or normed heads (Qwen3).

use super::Config;
use crate::blocks::Block;
use crate::blocks::assembly::Frame;
use crate::blocks::attention::attention;
use crate::blocks::decoder::Decoder;
use crate::blocks::mlp::mlp;
use crate::blocks::rope::{Angles, Rope};
use hadal_ir::module::ValueId;

impl Decoder for Config {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn rope(&self) -> &Rope {
        &self.attention.rope
    }

    fn kind(&self, _: usize) -> &'static str {
        "layer"
    }

    fn layer(&self, f: &mut Block<'_>, _: usize, x: ValueId, angles: Angles) -> ValueId {
        // x ← x + Attention(RMSNorm(x))
        let n = f.norm(x, "input_layernorm", self.frame.eps);
        let y = attention(f, &self.attention, n, angles);
        let x = f.add(x, y);
        // x ← x + SwiGLU(RMSNorm(x))
        let n = f.norm(x, "post_attention_layernorm", self.frame.eps);
        let y = mlp(f, "mlp", n, self.mlp_width, false);
        f.add(x, y)
    }
}
