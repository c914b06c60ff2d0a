//! The gated feed-forward block (SwiGLU).

use super::Block;
use hadal_ir::module::ValueId;
use hadal_ir::ops::map::MapFn;

/// How a gated block's weights are called, and what it computes between them.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Gated {
    /// The projection that gates.
    pub gate: &'static str,
    /// The one that is gated.
    pub up: &'static str,
    /// The one back.
    pub down: &'static str,
    /// The largest gate before `silu`, and the largest magnitude of what is gated.
    pub limit: Option<f64>,
}

/// The usual names, and no limit.
pub const PROJECTIONS: Gated = Gated { gate: "gate_proj", up: "up_proj", down: "down_proj", limit: None };

impl Gated {
    /// `silu(min(gate, limit)) · clamp(up, ±limit)`.
    pub fn inner(&self, f: &mut Block<'_>, gate: ValueId, up: ValueId) -> ValueId {
        let (gate, up) = match self.limit {
            None => (gate, up),
            Some(limit) => {
                let (most, least) = (f.scalar_like(gate, limit), f.scalar_like(up, -limit));
                let gate = f.map(MapFn::Min, &[gate, most]);
                let up = f.map(MapFn::Max, &[up, least]);
                (gate, f.map(MapFn::Min, &[up, most]))
            }
        };
        let gate = silu(f, gate);
        f.mul(gate, up)
    }

    /// `inner(x Wgᵀ, x Wuᵀ) Wdᵀ` with `width` features inside, under the name `name`.
    pub fn block(&self, f: &mut Block<'_>, name: &str, x: ValueId, width: usize, bias: bool) -> ValueId {
        let d = f.size(x, 1);
        f.within(name, |f| {
            let gate = f.linear(x, self.gate, width, bias);
            let up = f.linear(x, self.up, width, bias);
            let inner = self.inner(f, gate, up);
            f.linear(inner, self.down, d, bias)
        })
    }
}

/// `silu(z) = z · sigmoid(z)`.
pub fn silu(f: &mut Block<'_>, z: ValueId) -> ValueId {
    let gate = f.map(MapFn::Sigmoid, &[z]);
    f.mul(z, gate)
}

/// `(silu(x Wgᵀ) · x Wuᵀ) Wdᵀ` with `width` features inside, under the name `name`.
pub fn mlp(f: &mut Block<'_>, name: &str, x: ValueId, width: usize, bias: bool) -> ValueId {
    PROJECTIONS.block(f, name, x, width, bias)
}
