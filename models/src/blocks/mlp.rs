//! The gated feed-forward block (SwiGLU).

use super::Block;
use hadal_ir::module::ValueId;
use hadal_ir::ops::map::MapFn;

/// `silu(z) = z · sigmoid(z)`.
pub fn silu(f: &mut Block<'_>, z: ValueId) -> ValueId {
    let gate = f.map(MapFn::Sigmoid, &[z]);
    f.mul(z, gate)
}

/// `(silu(x Wgᵀ) · x Wuᵀ) Wdᵀ` with `width` features inside, under the name `name`.
pub fn mlp(f: &mut Block<'_>, name: &str, x: ValueId, width: usize, bias: bool) -> ValueId {
    let d = f.size(x, 1);
    f.within(name, |f| {
        let gate = f.linear(x, "gate_proj", width, bias);
        let up = f.linear(x, "up_proj", width, bias);
        let gate = silu(f, gate);
        let inner = f.mul(gate, up);
        f.linear(inner, "down_proj", d, bias)
    })
}
