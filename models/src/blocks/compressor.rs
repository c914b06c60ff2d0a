//! One row for a group of tokens (sheets `deepseek-v4` and `deepseek-v41`, "Compressor"): every channel is a mean of
//! the group's, weighted by a softmax over the group for that channel alone.
//!
//! ```text
//! a_t = x_t Wkv;   e_t = x_t Wgate (+ ape[t mod m])
//! c_w = Σ_s softmax_s(e_s) a_s            over the tokens m w .. m w + m
//! ```
//!
//! With an *overlap* rows have twice the channels, and a group is the first half of the group before and the second of
//! its own; the first group has nothing before it. A row is there once its last token is, and stands at the position of
//! the first.

use super::Block;
use super::selection::Compressed;
use hadal_ir::module::ValueId;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::{Softmax, Transpose};
use hadal_types::{Dim, Sym};

/// Sizes of a compressor.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Compressor {
    /// Whether a group reaches into the one before.
    pub overlap: bool,
    /// Whether a gate depends on the place in the group.
    pub placed: bool,
    /// Channels of a row.
    pub channels: usize,
    /// Epsilon of the norm on rows.
    pub eps: f64,
}

impl Compressor {
    /// The normalised rows of the groups that this call completes: `[N, channels]`. State: `open`, of the projected
    /// tokens that a group may still take in.
    pub fn rows(&self, f: &mut Block<'_>, x: ValueId, of: Compressed) -> ValueId {
        let (m, d, counter) = (of.ratio, self.channels, of.counter);
        let reach = if self.overlap { 2 } else { 1 };
        let width = reach * d;
        f.within("compressor", |f| {
            let (a, e) = (f.linear(x, "wkv", width, false), f.linear(x, "wgate", width, false));
            let both = f.concat(&[a, e], 1);
            let kept = reach * m - 1;
            let open = f.remember_last("open", kept, both);
            let ape = self.placed.then(|| f.tensor("ape", &[m, width]));
            // Values and gates of the groups `back` before those completed, from channel `from` on.
            let slots = |f: &mut Block<'_>, back: usize, from: usize| {
                let start = Dim::from(counter.held) * m as i64 - Sym::P + (kept - back * m) as i64;
                let rows = f.slice(open, 0, start, Dim::from(counter.new) * m as i64, 1);
                let rows = f.reshape(rows, &[counter.new.into(), m.into(), (2 * width).into()]);
                let (a, e) = (f.slice(rows, 2, from, d, 1), f.slice(rows, 2, width + from, d, 1));
                let Some(ape) = ape else { return (a, e) };
                let ape = f.slice(ape, 1, from, d, 1);
                let shape = f.shape(e).to_vec();
                let ape = f.broadcast(ape, &shape, &[1, 2]);
                (a, f.add(e, ape))
            };
            let (mut a, mut e) = slots(f, 0, width - d);
            if self.overlap {
                let (before_a, before_e) = slots(f, 1, 0);
                let shape = f.shape(before_e).to_vec();
                let group = f.iota(counter.new, counter.held);
                let zero = f.scalar_like(group, 0.0);
                let there = f.map(MapFn::Lt, &[zero, group]);
                let there = f.broadcast(there, &shape, &[0]);
                let before_e = f.only(there, before_e);
                (a, e) = (f.concat(&[before_a, a], 1), f.concat(&[before_e, e], 1));
            }
            let e = f.op(Transpose { perm: vec![0, 2, 1] }, &[e]);
            let weights = f.op(Softmax, &[e]);
            let pooled = f.contract("ncm,nmc->nc", &[weights, a]);
            f.norm(pooled, "norm", self.eps)
        })
    }
}
