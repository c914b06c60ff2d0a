//! The graph around the attention (arXiv 2502.11089, section 3): a pre-norm decoder with SwiGLU.

use super::Config;
use super::branches::attention;
use crate::blocks::Block;
use crate::blocks::assembly::Frame;
use crate::blocks::decoder::Decoder;
use crate::blocks::mlp::mlp;
use crate::blocks::rope::{Angles, Rope};
use hadal_ir::module::ValueId;
use hadal_types::{Definition, Sym};

impl Decoder for Config {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn rope(&self) -> &Rope {
        &self.attention.rope
    }

    fn definitions(&self) -> Vec<(Sym, Definition)> {
        self.branches.definitions()
    }

    fn kind(&self, _: usize) -> &'static str {
        "layer"
    }

    fn layer(&self, f: &mut Block<'_>, _: usize, x: ValueId, angles: Angles) -> ValueId {
        // x ← x + NSA(RMSNorm(x))
        let n = f.norm(x, "input_layernorm", self.frame.eps);
        let y = f.within("self_attn", |f| attention(f, &self.attention, &self.branches, n, angles));
        let x = f.add(x, y);
        // x ← x + SwiGLU(RMSNorm(x))
        let n = f.norm(x, "post_attention_layernorm", self.frame.eps);
        let y = mlp(f, "mlp", n, self.mlp_width, false);
        f.add(x, y)
    }
}
