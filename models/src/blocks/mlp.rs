//! The gated feed-forward block (SwiGLU).

use super::Block;
use crate::config_reader::Object;
use crate::error::Result;
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
    /// The key `swiglu_limit`, which is 0 or absent where there is no limit.
    pub fn read_limit(o: &Object<'_>) -> Result<Option<f64>> {
        match o.f64_or("swiglu_limit", 0.0)? {
            limit if limit < 0.0 => Err(o.error("swiglu_limit", "a number greater than 0, or 0 for no limit")),
            limit => Ok(Some(limit).filter(|l| *l > 0.0)),
        }
    }

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
