//! Random graphs through every pass: evaluation before and after agrees, and the plan runs on simulated memory.

use crate::common::*;
use hadal_ir::attr::Real;
use hadal_ir::interpret::eval_func;
use hadal_ir::module::{Entry, Range};
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::reduce::ReduceKind;
use hadal_ir::ops::*;
use hadal_ir::text::print_module;
use hadal_ir::{Bindings, Builder, DType, Dim, Func, FuncKind, Module, Sym, Tensor, TensorType, ValueId, verify};
use hadal_passes::rows::{are_apart, token_axis};
use hadal_passes::{Options, canonicalise, compile, run_passes};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Takes choices one after the other from what proptest drew.
struct Choices<'a> {
    drawn: &'a [u16],
    at: usize,
}

impl Choices<'_> {
    fn below(&mut self, n: usize) -> usize {
        let drawn = self.drawn.get(self.at).copied().unwrap_or(0) as usize;
        self.at += 1;
        drawn % n.max(1)
    }

    fn of<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }
}

struct Generator<'a> {
    b: Builder,
    pool: Vec<ValueId>,
    choices: Choices<'a>,
    names: usize,
}

impl Generator<'_> {
    fn name(&mut self) -> String {
        self.names += 1;
        format!("w{}", self.names)
    }

    fn weight(&mut self, shape: &[Dim]) -> ValueId {
        let (name, dtype) = (self.name(), self.choices.of(&[DType::F32, DType::BF16]));
        self.b.weight(&name, TensorType { dtype, shape: shape.to_vec() })
    }

    fn pick(&mut self) -> ValueId {
        // Newer values more often, so that graphs grow deep.
        let n = self.pool.len();
        let back = self.choices.below(n).min(self.choices.below(n));
        self.pool[n - 1 - back]
    }

    fn like(&mut self, ty: &TensorType) -> Option<ValueId> {
        let same: Vec<ValueId> = self.pool.iter().copied().filter(|v| self.b.ty(*v) == ty).collect();
        (!same.is_empty()).then(|| self.choices.of(&same))
    }

    /// One more op, if the one drawn fits.
    fn step(&mut self) -> Option<ValueId> {
        let x = self.pick();
        let ty = self.b.ty(x).clone();
        let rank = ty.rank();
        let axis = self.choices.below(rank);
        let constant = |a: usize| ty.shape[a].as_const().filter(|n| *n > 0);
        let all: Vec<usize> = (0..rank).collect();
        Some(match self.choices.below(18) {
            0 => {
                let f = self.choices.of(&[MapFn::Neg, MapFn::Tanh, MapFn::Sigmoid, MapFn::Abs]);
                self.b.map(f, &[x])
            }
            1 | 2 => {
                let y = self.like(&ty)?;
                let f = self.choices.of(&[MapFn::Add, MapFn::Mul, MapFn::Sub, MapFn::Max]);
                self.b.map(f, &[x, y])
            }
            3 => {
                let factor = self.choices.of(&[0.5, 1.0, 2.0]);
                self.b.mul_scalar(x, factor)
            }
            4 => self.b.op(Softmax, &[x]),
            5 => {
                let w = self.weight(&[Dim::from(constant(rank - 1)?)]);
                self.b.op(RmsNorm { eps: Real(0.1) }, &[x, w])
            }
            6 if rank > 1 => {
                let kind = self.choices.of(&[ReduceKind::Sum, ReduceKind::Max]);
                self.b.reduce(kind, &[axis], x)
            }
            7 => {
                let mut perm = all;
                perm.rotate_left(axis);
                self.b.op(Transpose { perm }, &[x])
            }
            8 => {
                let n = constant(axis)?;
                let start = self.choices.below(n as usize) as i64;
                let len = 1 + self.choices.below((n - start) as usize) as i64;
                self.b.slice(x, axis, start, len, 1)
            }
            9 => {
                let n = constant(axis)?;
                let parts = [self.b.slice(x, axis, 0, n / 2, 1), self.b.slice(x, axis, n / 2, n - n / 2, 1)];
                let order = self.choices.of(&[[0, 1], [1, 0]]);
                self.b.concat(&[parts[order[0]], parts[order[1]]], axis)
            }
            10 => {
                let n = constant(axis).filter(|n| n % 2 == 0)?;
                let mut shape = ty.shape.clone();
                shape.splice(axis..=axis, [Dim::from(2), Dim::from(n / 2)]);
                self.b.reshape(x, &shape)
            }
            11 if rank > 2 => {
                let (a, b) = (constant(rank - 2)?, constant(rank - 1)?);
                let mut shape = ty.shape.clone();
                shape.splice(rank - 2.., [Dim::from(a * b)]);
                self.b.reshape(x, &shape)
            }
            12 if rank < 3 => {
                let mut shape = ty.shape.clone();
                shape.insert(axis, Dim::from(self.choices.of(&[1, 2, 3])));
                let dims: Vec<usize> = (0..=rank).filter(|d| *d != axis).collect();
                self.b.broadcast(x, &shape, &dims)
            }
            13 | 14 => {
                // A projection of the last axis.
                let n = constant(rank - 1)?;
                let width = self.choices.of(&[2i64, 3, 4]);
                let w = self.weight(&[width.into(), n.into()]);
                let letters = &"abcdef"[..rank];
                let c = Contract {
                    inputs: vec![letters.into(), format!("z{}", &letters[rank - 1..])],
                    output: format!("{}z", &letters[..rank - 1]),
                };
                self.b.op(c, &[x, w])
            }
            15 => {
                // All pairs of leading indices of two values with a common last axis.
                let y = self.pick();
                let other = self.b.ty(y).clone();
                let fits = rank <= 2 && other.rank() <= 2 && ty.shape.last() == other.shape.last();
                if !fits {
                    return None;
                }
                let (a, b) = (&"ab"[..rank - 1], &"uv"[..other.rank() - 1]);
                let c = Contract { inputs: vec![format!("{a}d"), format!("{b}d")], output: format!("{a}{b}") };
                self.b.op(c, &[x, y])
            }
            16 => {
                let rows = self.b.cast(x, DType::F32);
                let name = self.name();
                let row = ty.shape[1..].iter().all(|d| d.as_const().is_some());
                (row && ty.shape[0] == Dim::from(Sym::T)).then(|| self.b.append(&name, rows, DType::F32))?
            }
            _ => {
                let iota = self.b.iota(2, 1);
                self.b.op(Gather { axis, batch: 0 }, &[x, iota])
            }
        })
    }
}

fn graph(drawn: &[u16]) -> Option<Func> {
    let mut g = Generator { b: Builder::new("f"), pool: vec![], choices: Choices { drawn, at: 0 }, names: 0 };
    let t = Dim::from(Sym::T);
    for (name, shape) in [("x", vec![t.clone(), 4.into()]), ("y", vec![t.clone(), 2.into(), 3.into()])] {
        let p = g.b.param(name, TensorType { dtype: DType::F32, shape });
        g.pool.push(p);
    }
    while g.choices.at < drawn.len() {
        if let Some(v) = g.step().filter(|v| g.b.ty(*v).rank() > 0 && g.b.ty(*v).rank() <= 4) {
            g.pool.push(v);
        }
    }
    for i in 0..3 {
        let v = g.pick();
        g.b.result(&format!("r{i}"), v);
    }
    g.b.finish().ok()
}

fn module(func: Func) -> Module {
    let range = |min, max| Range { min, max };
    let symbols = BTreeMap::from([(Sym::P, range(0, 15)), (Sym::T, range(1, 8))]);
    let entry =
        |name: &str, t| Entry { name: name.into(), func: func.name.clone(), ranges: BTreeMap::from([(Sym::T, t)]) };
    let entries = vec![entry("prefill", range(1, 8)), entry("decode", range(1, 1))];
    Module { symbols, funcs: vec![func], entries, ..Module::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn passes_keep_the_meaning(drawn in prop::collection::vec(any::<u16>(), 20..160)) {
        let Some(func) = graph(&drawn) else { return Ok(()) };
        let module = module(func);
        prop_assert!(verify::module(&module).is_ok(), "{}", print_module(&module));
        let before = sequence(&module);

        let (canonical, _) = run_passes(&module, ["canonicalise"], &cpu(), &Options::default()).unwrap();
        assert_all_close(&before, &sequence(&canonical), 1e-12, "canonicalise");
        let (again, _) = canonicalise::run(&canonical, &Options::default());
        prop_assert_eq!(print_module(&again), print_module(&canonical), "canonicalise twice");

        let (fused, program) = compile(&module, &cpu(), &Options::default()).unwrap();
        assert_all_close(&before, &sequence(&fused.optimised), 1e-8, "optimised");
        assert_all_close(&before, &sequence(&fused.module), 1e-8, "fused");
        assert_all_close(&before, &planned_sequence(&module, &program), 1e-3, "planned");

        let plain = Options { rewrite: false, ..Options::default() };
        let (_, program) = compile(&module, &cpu(), &plain).unwrap();
        assert_all_close(&before, &planned_sequence(&module, &program), 1e-3, "planned without rewriting");
    }
}

/// The rows of token `t` of a tensor of type `ty`, or all of one without tokens.
fn of_token(x: &Tensor, ty: &TensorType, t: usize) -> Tensor {
    let Some((axis, k)) = token_axis(ty).expect("a type with tokens on one axis") else { return x.clone() };
    let slice = Op::from(Slice { axis, start: (t as i64 * k).into(), len: k.into(), step: 1 });
    let out = slice.infer(&[TensorType::new(x.dtype, x.shape.clone())]).expect("inside");
    slice.eval(&[x], &out, &Bindings::new())
}

/// Whether every token alone has the values that it has among others.
fn computed_apart(kernel: &Func, tokens: usize, seed: u64) -> bool {
    let at = |t: usize| Bindings::from([(Sym::T, t as i64)]);
    let args: Vec<Tensor> = kernel
        .params
        .iter()
        .enumerate()
        .map(|(i, p)| {
            let ty = kernel.ty(*p);
            noise(ty.dtype, &ty.eval_shape(&at(tokens)).expect("only tokens"), seed + i as u64)
        })
        .collect();
    let together = eval_func(kernel, &args, &at(tokens)).expect("evaluates");
    (0..tokens).all(|t| {
        let rows: Vec<Tensor> = kernel.params.iter().zip(&args).map(|(p, x)| of_token(x, kernel.ty(*p), t)).collect();
        let alone = eval_func(kernel, &rows, &at(1)).expect("evaluates");
        kernel.results.iter().zip(&together).zip(&alone).all(|(((_, r), all), one)| {
            let row = of_token(all, kernel.ty(*r), t);
            row.shape == one.shape && (0..one.len()).all(|i| row.at(i).to_bits() == one.at(i).to_bits())
        })
    })
}

#[test]
fn tokens_that_are_apart_are_computed_apart() {
    let (mut apart, mut others, mut seed) = (0, 0, 1u64);
    for case in 0..150 {
        let mut next = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 40) as u16
        };
        let drawn: Vec<u16> = (0..40 + case % 100).map(|_| next()).collect();
        let Some(func) = graph(&drawn) else { continue };
        let (_, program) = compile(&module(func), &cpu(), &Options::default()).expect("compiles");
        let kernels = program.module.funcs.iter().filter(|f| f.kind == FuncKind::Kernel);
        for kernel in
            kernels.filter(|k| k.results.iter().any(|(_, r)| !k.ty(*r).shape.iter().all(|d| d.as_const().is_some())))
        {
            if are_apart(kernel) {
                assert!(computed_apart(kernel, 3, case), "{}", hadal_ir::text::print_func(kernel));
                apart += 1;
            } else {
                others += 1;
            }
        }
    }
    assert!(apart > 100 && others > 30, "{apart} kernels are apart, {others} are not");
}
