//! Manifold-constrained hyper-connections (sheet `mhc`; paper "mHC"): the residual is `n` parallel streams, which every
//! attention and every feed-forward part reads through one weighting and writes through another, while a nearly doubly
//! stochastic matrix mixes them.
//!
//! ```text
//! m = (x W) · rsqrt(mean(x²) + eps)                       over all streams of a token together
//! pre = σ(s₀ m + b) + ε;   post = 2 σ(s₁ m + b);   C = sinkhorn(s₂ m + b)
//! y = Σ_j pre_j x_j;   x'_k = post_k F(norm(y)) + Σ_j C_jk x_j
//! ```
//!
//! In a *single pass* (sheet `deepseek-v41`) a part reads with the `pre` that the part before it computed, the first
//! one the first stream, and the head with that of the last part; else the head has weights of its own.

use super::Block;
use super::assembly::Named;
use crate::config_reader::Object;
use crate::error::Result;
use hadal_ir::attr::Real;
use hadal_ir::module::ValueId;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::reduce::ReduceKind;
use hadal_ir::ops::{Constant, Sinkhorn};
use hadal_types::{DType, Dim, TensorType};

/// Sizes of hyper-connections.
#[derive(Clone, PartialEq, Debug)]
pub struct Hyper {
    /// Streams `n`.
    pub streams: usize,
    /// Rounds of the Sinkhorn iteration.
    pub rounds: usize,
    /// Added to what is read with, and inside the iteration.
    pub eps: f64,
    /// That of the model's norms; also inside the root.
    pub norm_eps: f64,
    /// Whether streams are read with what the part before computed.
    pub single_pass: bool,
}

/// The streams between two parts.
#[derive(Clone, Copy, Debug)]
pub struct Streams {
    /// All of them, `[T, n, d]`.
    pub all: ValueId,
    /// The weights `[T, n]` that they are read with next, where that is known.
    pub pre: Option<ValueId>,
}

/// How one part reads the streams and writes them.
struct Mix {
    /// Weights `[T, n]` that streams are read with.
    pre: ValueId,
    /// Weights `[T, n]` that the answer is written with.
    post: ValueId,
    /// Weights `[T, n, n]` of old streams (first) in new ones.
    comb: ValueId,
}

impl Streams {
    /// The streams that a function before left.
    pub fn named(named: &Named) -> Streams {
        Streams { all: named["streams"], pre: named.get("pre").copied() }
    }

    /// Names them for functions after.
    pub fn name(self, named: &mut Named) {
        named.insert("streams".into(), self.all);
        named.extend(self.pre.map(|pre| ("pre".into(), pre)));
    }

    /// Gives them out under the names that functions after take them by.
    pub fn result(self, f: &mut Block<'_>) {
        f.result("streams", self.all);
        if let Some(pre) = self.pre {
            f.result("pre", pre);
        }
    }

    /// Those of the last new token.
    pub fn last_row(self, f: &mut Block<'_>) -> Streams {
        Streams { all: f.last_row(self.all), pre: self.pre.map(|pre| f.last_row(pre)) }
    }
}

impl Hyper {
    /// Reads the sizes; `norm_eps` is the model's.
    pub fn read(o: &Object<'_>, norm_eps: f64, single_pass: bool) -> Result<Hyper> {
        Ok(Hyper {
            streams: o.require_usize_in("hc_mult", 1..=64)?,
            rounds: o.require_usize_in("hc_sinkhorn_iters", 1..=1000)?,
            eps: o.positive_or("hc_eps", 1e-6)?,
            norm_eps,
            single_pass,
        })
    }

    /// `x`, `[T, d]`, in every stream.
    pub fn streams(&self, f: &mut Block<'_>, x: ValueId) -> Streams {
        let [t, d] = [0, 1].map(|axis| f.shape(x)[axis].clone());
        let n = self.streams;
        let all = f.broadcast(x, &[t.clone(), n.into(), d], &[0, 2]);
        let pre = self.single_pass.then(|| {
            let first = f.op(Constant::vector((0..n).map(|j| if j == 0 { 1.0 } else { 0.0 })), &[]);
            f.broadcast(first, &[t, n.into()], &[1])
        });
        Streams { all, pre }
    }

    /// The streams of `rows` tokens that the caller gives as `streams`, and `pre`.
    pub fn param(&self, f: &mut Block<'_>, rows: impl Into<Dim>, d: usize) -> Streams {
        let (rows, n) = (rows.into(), Dim::from(self.streams));
        let mut of = |name: &str, sizes: Vec<Dim>| f.param(name, TensorType::new(DType::F32, sizes));
        Streams {
            all: of("streams", vec![rows.clone(), n.clone(), d.into()]),
            pre: self.single_pass.then(|| of("pre", vec![rows, n])),
        }
    }

    /// One part of a layer, between the streams: `part` is given what it reads, after the norm `name_norm`.
    pub fn site<'b>(
        &self,
        f: &mut Block<'b>,
        name: &str,
        x: Streams,
        part: impl FnOnce(&mut Block<'b>, ValueId) -> ValueId,
    ) -> Streams {
        let mix = self.mix(f, &format!("hc_{name}"), x.all);
        let y = self.collapse(f, x.all, x.pre.unwrap_or(mix.pre));
        let y = f.norm(y, &format!("{name}_norm"), self.norm_eps);
        let y = part(f, y);
        Streams { all: self.expand(f, x.all, y, &mix), pre: x.pre.map(|_| mix.pre) }
    }

    /// The streams read together at the end, `[T, d]`, with weights whose names begin with `prefix` where there are
    /// any.
    pub fn joined(&self, f: &mut Block<'_>, prefix: &str, x: Streams) -> ValueId {
        let pre = x.pre.unwrap_or_else(|| self.last(f, &format!("{prefix}hc_head"), x.all));
        self.collapse(f, x.all, pre)
    }

    /// Their mean, `[T, d]`.
    pub fn mean(&self, f: &mut Block<'_>, x: Streams) -> ValueId {
        let sum = f.reduce(ReduceKind::Sum, &[1], x.all);
        f.mul_scalar(sum, 1.0 / self.streams as f64)
    }

    /// The mix of the part with the weights `name_fn`, `name_scale` and `name_base`.
    fn mix(&self, f: &mut Block<'_>, name: &str, x: ValueId) -> Mix {
        let n = self.streams;
        f.enter(name);
        let m = self.projected(f, name, x, (2 + n) * n);
        let sizes = [n, n, n * n];
        let scale = f.tensor(&format!("{name}_scale"), &[3]);
        let base = f.tensor(&format!("{name}_base"), &[(2 + n) * n]);
        let [pre, post, comb] = [0, 1, 2].map(|part| {
            let start: usize = sizes[..part].iter().sum();
            let m = f.slice(m, 1, start, sizes[part], 1);
            let (scale, base) = (f.slice(scale, 0, part, 1, 1), f.slice(base, 0, start, sizes[part], 1));
            scaled(f, m, scale, base)
        });
        let pre = self.weights(f, pre);
        let post = f.map(MapFn::Sigmoid, &[post]);
        let post = f.mul_scalar(post, 2.0);
        let tokens = f.shape(comb)[0].clone();
        let comb = f.reshape(comb, &[tokens, n.into(), n.into()]);
        let comb = f.op(Sinkhorn { rounds: self.rounds, eps: Real(self.eps) }, &[comb]);
        f.leave();
        Mix { pre, post, comb }
    }

    /// What the streams are read with at the end, by weights of its own: `[T, n]`.
    fn last(&self, f: &mut Block<'_>, name: &str, x: ValueId) -> ValueId {
        f.enter(name);
        let m = self.projected(f, name, x, self.streams);
        let scale = f.tensor(&format!("{name}_scale"), &[1]);
        let base = f.tensor(&format!("{name}_base"), &[self.streams]);
        let m = scaled(f, m, scale, base);
        let pre = self.weights(f, m);
        f.leave();
        pre
    }

    /// `Σ_j pre_j x_j`: `[T, d]`.
    fn collapse(&self, f: &mut Block<'_>, x: ValueId, pre: ValueId) -> ValueId {
        f.contract("tn,tnd->td", &[pre, x])
    }

    /// New streams from the old ones and a part's answer `y`, `[T, d]`.
    fn expand(&self, f: &mut Block<'_>, x: ValueId, y: ValueId, mix: &Mix) -> ValueId {
        let written = f.contract("tn,td->tnd", &[mix.post, y]);
        let mixed = f.contract("tjk,tjd->tkd", &[mix.comb, x]);
        f.add(written, mixed)
    }

    fn weights(&self, f: &mut Block<'_>, m: ValueId) -> ValueId {
        let pre = f.map(MapFn::Sigmoid, &[m]);
        f.add_scalar(pre, self.eps)
    }

    /// `(x Wᵀ) · rsqrt(mean(x²) + eps)`, `[T, outputs]`, over all streams of a token.
    fn projected(&self, f: &mut Block<'_>, name: &str, x: ValueId, outputs: usize) -> ValueId {
        let all = self.streams * f.size(x, 2);
        let tokens = f.shape(x)[0].clone();
        let x = f.reshape(x, &[tokens.clone(), all.into()]);
        let w = f.tensor(&format!("{name}_fn"), &[outputs, all]);
        let m = f.contract("td,fd->tf", &[x, w]);
        let square = f.mul(x, x);
        let sum = f.reduce(ReduceKind::Sum, &[1], square);
        let mean = f.mul_scalar(sum, 1.0 / all as f64);
        let mean = f.add_scalar(mean, self.norm_eps);
        let scale = f.map(MapFn::Rsqrt, &[mean]);
        let scale = f.broadcast(scale, &[tokens, outputs.into()], &[0]);
        f.mul(m, scale)
    }
}

/// `scale m + base`, with one scale and a base for every column.
fn scaled(f: &mut Block<'_>, m: ValueId, scale: ValueId, base: ValueId) -> ValueId {
    let shape: Vec<Dim> = f.shape(m).to_vec();
    let (scale, base) = (f.cast(scale, DType::F32), f.cast(base, DType::F32));
    let scale = f.reshape(scale, &[]);
    let (scale, base) = (f.broadcast(scale, &shape, &[]), f.broadcast(base, &shape, &[1]));
    let m = f.mul(m, scale);
    f.add(m, base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::rounding::testing::evaluate;
    use hadal_ir::Tensor;

    const HYPER: Hyper = Hyper { streams: 2, rounds: 3, eps: 1e-6, norm_eps: 1e-6, single_pass: false };

    #[test]
    fn equal_streams_collapse_to_a_multiple() {
        let x = Tensor::real(DType::F32, &[2, 3], vec![1.0, -2.0, 3.0, 0.5, 0.0, 4.0]);
        let y = evaluate(&x, |f, x| {
            let streams = HYPER.streams(f, x).all;
            let pre = f.scalar(0.75);
            let pre = f.broadcast(pre, &[hadal_types::Sym::T.into(), 2.into()], &[]);
            HYPER.collapse(f, streams, pre)
        });
        assert_eq!(y.reals(), [1.5, -3.0, 4.5, 0.75, 0.0, 6.0]);
    }

    #[test]
    fn old_streams_are_the_first_index_of_the_mix() {
        // Two streams of one channel, 1 and 10; all of the first goes into the second new one.
        let x = Tensor::real(DType::F32, &[1, 2, 1], vec![1.0, 10.0]);
        let y = evaluate(&x, |f, x| {
            let of = |f: &mut Block<'_>, values: &[f64], shape: &[usize]| {
                let all = f.op(hadal_ir::ops::Constant::vector(values.iter().copied()), &[]);
                let shape: Vec<Dim> = shape.iter().map(|n| Dim::from(*n)).collect();
                let one = f.reshape(all, &shape);
                let repeated: Vec<Dim> = [hadal_types::Sym::T.into()].into_iter().chain(shape.clone()).collect();
                let dims: Vec<usize> = (1..=shape.len()).collect();
                f.broadcast(one, &repeated, &dims)
            };
            let post = of(f, &[3.0, 5.0], &[2]);
            let comb = of(f, &[0.0, 1.0, 0.25, 0.0], &[2, 2]);
            let answer = of(f, &[100.0], &[1]);
            HYPER.expand(f, x, answer, &Mix { pre: post, post, comb })
        });
        assert_eq!(y.reals(), [300.0 + 2.5, 500.0 + 1.0]);
    }
}
