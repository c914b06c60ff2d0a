//! The op table. One file per op: text form, constraints, type inference, a readable evaluation, decomposition into
//! primitives, cost and tests. Parser, printer, builder, verifier, interpreter and e-graph all work through [`OpDef`].
//!
//! A *primitive* has no decomposition and is what code generators know. A *composite* is written by models and
//! defined by its decomposition. A *fused* op is made by passes only, and is defined by its decomposition too.

use crate::attr::{Attr, AttrError, Attrs};
use crate::builder::Builder;
use crate::module::ValueId;
use crate::tensor::Tensor;
use hadal_types::{Bindings, TensorType};
use std::fmt;

/// A constraint of an op that its operands break.
#[derive(Clone, PartialEq, Debug)]
pub struct Violation {
    /// The constraint's number in the op's documentation (`C1`, …).
    pub constraint: &'static str,
    /// What was expected and found.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.constraint)
    }
}

/// Fails with a [`Violation`] unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $constraint:literal, $($message:tt)+) => {
        if !$condition {
            return Err($crate::ops::Violation { constraint: $constraint, message: format!($($message)+) });
        }
    };
}

/// Where an op stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tier {
    /// Known to code generators.
    Primitive,
    /// Written by models, defined by decomposition.
    Composite,
    /// Made by passes, defined by decomposition.
    Fused,
}

/// What every op provides. Operand types reach [`OpDef::eval`] and later only after [`OpDef::infer`] accepted them.
pub trait OpDef: Clone + PartialEq + Eq + Ord + std::hash::Hash + fmt::Debug {
    /// Names in text; most ops have one.
    const MNEMONICS: &'static [&'static str];
    /// Where it stands.
    const TIER: Tier;
    /// Whether the result only renames, repeats or leaves out elements of its operands.
    const VIEW: bool = false;

    /// The name of this instance.
    fn mnemonic(&self) -> &'static str {
        Self::MNEMONICS[0]
    }
    /// Attributes, in printing order.
    fn attrs(&self) -> Vec<(&'static str, Attr)>;
    /// Builds the op from text.
    fn from_attrs(mnemonic: &str, attrs: &mut Attrs) -> Result<Self, AttrError>;
    /// The result type, or the constraint the operands break.
    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation>;
    /// Evaluates with naive loops in wide precision. `shape` is the inferred result shape, `bindings` the symbols.
    fn eval(&self, args: &[&Tensor], out: &TensorType, shape: &[usize], bindings: &Bindings) -> Tensor;
    /// The same in terms of simpler ops. `None` for primitives.
    fn decompose(&self, _b: &mut Builder, _args: &[ValueId]) -> Option<ValueId> {
        None
    }
    /// Floating-point operations, a multiply-add counting two. Default: one per result element.
    fn flops(&self, _args: &[TensorType], out: &TensorType, bindings: &Bindings) -> f64 {
        if Self::VIEW { 0.0 } else { out.count(bindings).unwrap_or(0.0) }
    }
}

/// Declares the modules and the enum over all ops, with one dispatching method per [`OpDef`] method.
macro_rules! ops {
    ($($(#[$doc:meta])* $variant:ident: $module:ident),+ $(,)?) => {
        $(pub mod $module;)+
        $(pub use $module::$variant;)+

        /// Any op.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Op {
            $($(#[$doc])* $variant($variant)),+
        }

        $(impl From<$variant> for Op {
            fn from(op: $variant) -> Op { Op::$variant(op) }
        })+

        impl Op {
            /// Every mnemonic with the tier of its op, in table order.
            pub const TABLE: &'static [(&'static [&'static str], Tier)] =
                &[$((<$variant as OpDef>::MNEMONICS, <$variant as OpDef>::TIER)),+];

            /// Builds an op from its text; `None` if no op has this name.
            pub fn from_text(mnemonic: &str, mut attrs: Attrs) -> Option<Result<Op, AttrError>> {
                $(if <$variant as OpDef>::MNEMONICS.contains(&mnemonic) {
                    let op = <$variant as OpDef>::from_attrs(mnemonic, &mut attrs);
                    return Some(op.and_then(|op| attrs.finish().map(|()| Op::$variant(op))));
                })+
                None
            }
            /// The name in text.
            pub fn mnemonic(&self) -> &'static str {
                match self { $(Op::$variant(op) => op.mnemonic()),+ }
            }
            /// Attributes, in printing order.
            pub fn attrs(&self) -> Vec<(&'static str, Attr)> {
                match self { $(Op::$variant(op) => op.attrs()),+ }
            }
            /// The result type, or the constraint the operands break.
            pub fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
                match self { $(Op::$variant(op) => op.infer(args)),+ }
            }
            /// Evaluates. The operand types must have passed [`Op::infer`], whose result is `out`.
            pub fn eval(&self, args: &[&Tensor], out: &TensorType, bindings: &Bindings) -> Tensor {
                let shape = out.eval_shape(bindings).expect("every symbol is bound");
                match self { $(Op::$variant(op) => op.eval(args, out, &shape, bindings)),+ }
            }
            /// The same in terms of simpler ops; `None` for primitives.
            pub fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<ValueId> {
                match self { $(Op::$variant(op) => op.decompose(b, args)),+ }
            }
            /// Floating-point operations.
            pub fn flops(&self, args: &[TensorType], out: &TensorType, bindings: &Bindings) -> f64 {
                match self { $(Op::$variant(op) => op.flops(args, out, bindings)),+ }
            }
            /// Where the op stands.
            pub fn tier(&self) -> Tier {
                match self { $(Op::$variant(_) => <$variant as OpDef>::TIER),+ }
            }
            /// Whether the result only renames, repeats or leaves out elements.
            pub fn is_view(&self) -> bool {
                match self { $(Op::$variant(_) => <$variant as OpDef>::VIEW),+ }
            }
        }
    };
}

ops! {
    /// Product-sum in index notation.
    Contract: contract,
    /// Elementwise function.
    Map: map,
    /// Sum, maximum or minimum over axes.
    Reduce: reduce,
    /// Repeats along new or unit axes.
    Broadcast: broadcast,
    /// Another shape of the same elements.
    Reshape: reshape,
    /// Reorders axes.
    Transpose: transpose,
    /// A regular part of one axis.
    Slice: slice,
    /// Joins along one axis.
    Concat: concat,
    /// Another element format.
    Cast: cast,
    /// Block-scaled elements to reals.
    Dequantize: dequantize,
    /// Rows chosen by indices.
    Gather: gather,
    /// Indices of the largest elements.
    TopK: top_k,
    /// Which positions occur among indices.
    Member: member,
    /// Consecutive integers.
    Iota: iota,
    /// A literal scalar or vector.
    Constant: constant,
    /// Old rows of a state and new ones.
    Append: append,
    /// Root-mean-square normalisation.
    RmsNorm: rms_norm,
    /// Softmax along one axis.
    Softmax: softmax,
    /// Rotary position embedding.
    Rope: rope,
    /// Nearly doubly stochastic matrices.
    Sinkhorn: sinkhorn,
    /// Hides keys after the query.
    CausalMask: causal_mask,
    /// Softmax-weighted values without the score matrix.
    Attention: attention,
}

/// Checks the number of operands.
pub(crate) fn arity(args: &[TensorType], n: usize) -> Result<(), Violation> {
    ensure!(args.len() == n, "C0", "expected {n} operand(s), found {}", args.len());
    Ok(())
}

/// Checks that `axis` exists.
pub(crate) fn axis_in(ty: &TensorType, axis: usize) -> Result<(), Violation> {
    ensure!(axis < ty.rank(), "C1", "axis {axis} does not exist in {ty}");
    Ok(())
}

#[cfg(test)]
pub(crate) mod testing {
    //! Helpers for op tests: build a one-op function, evaluate it and its decomposition.
    use super::*;

    /// Infers and evaluates `op` on concrete tensors.
    pub fn run(op: impl Into<Op>, args: &[&Tensor]) -> Result<Tensor, Violation> {
        run_bound(op, args, &Bindings::new())
    }

    /// The same, with symbols bound.
    pub fn run_bound(op: impl Into<Op>, args: &[&Tensor], bindings: &Bindings) -> Result<Tensor, Violation> {
        let op = op.into();
        let types: Vec<_> = args.iter().map(|t| TensorType::new(t.dtype, t.shape.clone())).collect();
        let out = op.infer(&types)?;
        Ok(op.eval(args, &out, bindings))
    }

    /// Evaluates the decomposition of `op`, down to primitives.
    pub fn run_decomposed(op: impl Into<Op>, args: &[&Tensor]) -> Tensor {
        let op = op.into();
        let mut b = Builder::new("f");
        let values: Vec<_> = args
            .iter()
            .enumerate()
            .map(|(i, t)| b.param(&format!("a{i}"), TensorType::new(t.dtype, t.shape.clone())))
            .collect();
        let result = b.op(op, &values);
        b.result("out", result);
        let func = crate::builder::decompose_func(&b.finish().unwrap(), |_| true);
        crate::verify::func(&func).unwrap();
        let args: Vec<Tensor> = args.iter().map(|t| (*t).clone()).collect();
        crate::interpret::eval_func(&func, &args, &Bindings::new()).unwrap().remove(0)
    }

    /// Asserts elementwise closeness.
    pub fn assert_close(a: &Tensor, b: &Tensor, tolerance: f64) {
        assert_eq!(a.shape, b.shape);
        for i in 0..a.len() {
            let (x, y) = (a.at(i), b.at(i));
            assert!(x == y || (x - y).abs() <= tolerance, "element {i}: {x} and {y}");
        }
    }

    /// Reals `0, 0.25, -0.5, …` in a fixed irregular pattern.
    pub fn wave(shape: &[usize]) -> Tensor {
        let n = shape.iter().product();
        let values = (0..n).map(|i| ((i * 37 + 11) % 29) as f64 / 7.0 - 2.0).collect();
        Tensor::real(hadal_types::DType::F32, shape, values)
    }
}
