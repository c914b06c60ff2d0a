//! The building blocks of decoders, as functions that add ops to a graph.
//!
//! Everything is written plainly: no fused op, no absorbed weight, one sequence. Making it fast is the optimiser's
//! work. In comments `T` is the number of new tokens, `P` of those already in the states, `S = P + T`, `d` the hidden
//! size.

pub mod assembly;
pub mod attention;
pub mod compressor;
pub mod decoder;
pub mod drafts;
pub mod engram;
pub mod indexer;
pub mod kept;
pub mod mhc;
pub mod mla;
pub mod mlp;
pub mod moe;
pub mod rope;
pub mod rounding;
pub mod selection;
pub mod shared_kv;
pub mod sharing;
pub mod streams;

use crate::checkpoint::{Packed, Plane};
use crate::formats::{Activations, Formats, Rounding};
use hadal_ir::builder::{BuildError, Builder};
use hadal_ir::module::{Counter, Func, ValueId};
use hadal_ir::ops::Dequantize;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::reduce::ReduceKind;
use hadal_types::{DType, TensorType};
use kept::Narrow;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

/// A function under construction: a [`Builder`] that knows where in the checkpoint the function's weights are, so that
/// they have the formats in which they are stored.
pub struct Block<'a> {
    builder: Builder,
    formats: &'a Formats<'a>,
    /// Put before names to find them in the checkpoint; not part of the function.
    at: String,
    /// The part of the function being built, as `self_attn.`; part of the names of weights and states.
    path: String,
    state_dtype: DType,
}

impl Deref for Block<'_> {
    type Target = Builder;
    fn deref(&self) -> &Builder {
        &self.builder
    }
}

impl DerefMut for Block<'_> {
    fn deref_mut(&mut self) -> &mut Builder {
        &mut self.builder
    }
}

impl<'a> Block<'a> {
    /// Starts the function `name`, for the instance whose weights' names begin with `at`.
    pub fn new(name: &str, formats: &'a Formats<'a>, at: &str, state_dtype: DType) -> Block<'a> {
        Block { builder: Builder::new(name), formats, at: at.into(), path: String::new(), state_dtype }
    }

    /// Runs `f` inside the part `name`: weights and states are `name.…`, and ops remember that they came from it.
    pub fn within<R>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> R) -> R {
        let outer = self.path.len();
        self.path += name;
        self.path.push('.');
        self.enter(name);
        let result = f(self);
        self.leave();
        self.path.truncate(outer);
        result
    }

    /// The formats that this function's weights are stored in.
    pub fn formats(&self) -> &'a Formats<'a> {
        self.formats
    }

    /// A weight as it is stored; `{0..64}` in `name` stacks 64 of them under the first axis.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let name = format!("{}{name}", self.path);
        let dtype = self.formats.of(&format!("{}{name}", self.at));
        self.builder.weight(&name, TensorType::new(dtype, shape.iter().copied()))
    }

    /// The matrix `name.weight`, `[outputs, inputs]`, or a stack of them; from a block-scaled format where it is stored
    /// so: `w[i, j] = q[i, j] · s[i / 128, j / 128]` (sheet `deepseek-v3`, "Quantised form").
    pub fn matrix(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let name = format!("{name}.weight");
        let full = format!("{}{}{name}", self.at, self.path);
        if let Some(packed) = self.formats.packed(&full) {
            return self.unpacked(&name, shape, &packed);
        }
        let stored = self.tensor(&name, shape);
        let Some([rows, columns]) = self.formats.block(&full) else {
            return stored;
        };
        let mut block = vec![1; shape.len() - 2];
        block.extend([rows, columns]);
        let blocks: Vec<usize> = shape.iter().zip(&block).map(|(n, b)| n.div_ceil(*b)).collect();
        let scales = self.formats.scales_of(&full);
        let scales = self.tensor(&scales[full.len() - name.len()..], &blocks);
        self.op(Dequantize { block }, &[stored, scales])
    }

    /// The weight `name` from its planes: `w = codes · scales (+ offsets)`, group by group.
    fn unpacked(&mut self, name: &str, shape: &[usize], packed: &Packed) -> ValueId {
        let (leading, matrix) = shape.split_at(shape.len() - 2);
        let name = format!("{}{name}", self.path);
        let mut planes = BTreeMap::new();
        for (plane, dtype, sizes) in packed.planes([matrix[0], matrix[1]]) {
            let ty = TensorType::new(dtype, leading.iter().copied().chain(sizes));
            planes.insert(plane, self.builder.weight(&format!("{name}{}", plane.suffix()), ty));
        }
        let dequantised = |f: &mut Self, [rows, columns]: [usize; 2], parts: &[ValueId]| {
            let block = leading.iter().map(|_| 1).chain([rows, columns]).collect();
            f.op(Dequantize { block }, parts)
        };
        let mut parts = vec![planes[&Plane::Codes]];
        let levels = [
            (Some(packed.scales), Plane::Scales, Plane::ScalesOver),
            (packed.offsets, Plane::Offsets, Plane::OffsetsOver),
        ];
        for (level, plane, over) in levels {
            let Some(level) = level else { continue };
            parts.push(match level.over {
                Some(o) => dequantised(self, o.block, &[planes[&plane], planes[&over]]),
                None => planes[&plane],
            });
        }
        dequantised(self, [1, packed.group], &parts)
    }

    /// How whatever is multiplied with `name.weight` is rounded before, where it is.
    pub fn rounding(&self, name: &str) -> Option<Rounding> {
        self.formats.rounding(&format!("{}{}{name}.weight", self.at, self.path))
    }

    /// `x` in bf16, where products with `name.weight` read it so.
    pub fn halved(&mut self, x: ValueId, name: &str) -> ValueId {
        let halves = self.formats.halves(&format!("{}{}{name}.weight", self.at, self.path));
        if halves { self.cast(x, DType::BF16) } else { x }
    }

    /// `x` as a product with `name.weight` reads it.
    pub fn operand(&mut self, x: ValueId, name: &str) -> ValueId {
        match self.rounding(name) {
            Some(to) => rounding::rounded(self, x, to),
            None => self.halved(x, name),
        }
    }

    /// `y = x Wᵀ (+ b)` with the weight `name.weight` of `outputs` rows.
    pub fn linear(&mut self, x: ValueId, name: &str, outputs: usize, bias: bool) -> ValueId {
        let inputs = self.size(x, 1);
        self.enter(name);
        let x = self.operand(x, name);
        let w = self.matrix(name, &[outputs, inputs]);
        let mut y = self.contract("td,fd->tf", &[x, w]);
        if bias {
            let b = self.tensor(&format!("{name}.bias"), &[outputs]);
            let b = self.cast(b, DType::F32);
            let shape = self.shape(y).to_vec();
            let b = self.broadcast(b, &shape, &[1]);
            y = self.add(y, b);
        }
        self.leave();
        y
    }

    /// `(x - mean(x)) · rsqrt(mean((x - mean(x))²) + eps) · g + b` over the last axis of `[T, n]`, with `g =
    /// name.weight` and `b = name.bias`.
    pub fn layer_norm(&mut self, x: ValueId, name: &str, eps: f64) -> ValueId {
        let shape = self.shape(x).to_vec();
        let size = self.size(x, 1);
        let of = |f: &mut Self, part: &str| {
            let w = f.tensor(&format!("{name}.{part}"), &[size]);
            let w = f.cast(w, DType::F32);
            f.broadcast(w, &shape, &[1])
        };
        let mean = |f: &mut Self, x: ValueId| {
            let sum = f.reduce(ReduceKind::Sum, &[1], x);
            f.mul_scalar(sum, 1.0 / size as f64)
        };
        self.enter(name);
        let middle = mean(self, x);
        let middle = self.broadcast(middle, &shape, &[0]);
        let x = self.map(MapFn::Sub, &[x, middle]);
        let square = self.mul(x, x);
        let variance = mean(self, square);
        let variance = self.add_scalar(variance, eps);
        let scale = self.map(MapFn::Rsqrt, &[variance]);
        let scale = self.broadcast(scale, &shape, &[0]);
        let x = self.mul(x, scale);
        let g = of(self, "weight");
        let x = self.mul(x, g);
        let b = of(self, "bias");
        let y = self.add(x, b);
        self.leave();
        y
    }

    /// `x · rsqrt(mean(x²) + eps) · g` over the last axis, with `g = name.weight`.
    pub fn norm(&mut self, x: ValueId, name: &str, eps: f64) -> ValueId {
        let size = self.size(x, self.shape(x).len() - 1);
        let g = self.tensor(&format!("{name}.weight"), &[size]);
        self.enter(name);
        let y = self.rms_norm(x, g, eps);
        self.leave();
        y
    }

    /// The rows of the state `name` so far, with `rows` behind them, as f32.
    pub fn remember(&mut self, name: &str, rows: ValueId) -> ValueId {
        let all = self.remember_as(name, rows, self.state_dtype);
        self.cast(all, DType::F32)
    }

    /// The same for a state that has a format of its own, in that format.
    pub fn remember_as(&mut self, name: &str, rows: ValueId, dtype: DType) -> ValueId {
        let name = format!("{}{name}", self.path);
        self.append(&name, rows, dtype)
    }

    /// The last `count` rows before this call of a window in f32, with `rows` behind them. Where none are kept, `rows`
    /// alone.
    pub fn remember_last(&mut self, name: &str, count: usize, rows: ValueId) -> ValueId {
        if count == 0 {
            return rows;
        }
        let name = format!("{}{name}", self.path);
        self.append_to(&name, count, rows, DType::F32)
    }

    /// The rows of a state that has one for each group of tokens, with those that this call completes behind them, as
    /// f32.
    pub fn remember_groups(&mut self, name: &str, groups: Counter, rows: ValueId) -> ValueId {
        let (name, dtype) = (format!("{}{name}", self.path), self.state_dtype);
        let all = self.append_to(&name, groups.held, rows, dtype);
        self.cast(all, DType::F32)
    }

    /// How what `to` describes is kept: so where states are narrow, else as it is.
    pub fn kept(&self, to: Narrow) -> Option<Narrow> {
        matches!(self.formats.activations, Activations::Cache | Activations::Fp8).then_some(to)
    }

    /// `by · x`.
    pub fn times(&mut self, x: ValueId, by: usize) -> ValueId {
        if by == 1 { x } else { self.mul_scalar(x, by as f64) }
    }

    /// `x / by`; of integers, which must not be negative, the whole part.
    pub fn over(&mut self, x: ValueId, by: usize) -> ValueId {
        if by == 1 {
            return x;
        }
        let by = self.scalar_like(x, by as f64);
        self.map(MapFn::Div, &[x, by])
    }

    /// `x` where `seen` is true, else -∞.
    pub fn only(&mut self, seen: ValueId, x: ValueId) -> ValueId {
        let nothing = self.scalar_like(x, f64::NEG_INFINITY);
        self.map(MapFn::Select, &[seen, x, nothing])
    }

    /// The size of one axis, which must not depend on symbols.
    pub(crate) fn size(&self, x: ValueId, axis: usize) -> usize {
        let size = self.shape(x)[axis].as_const().and_then(|n| usize::try_from(n).ok());
        size.expect("blocks take values with constant feature sizes")
    }

    /// The function, or the first broken constraint.
    pub fn finish(self) -> Result<Func, Box<BuildError>> {
        self.builder.finish()
    }
}
