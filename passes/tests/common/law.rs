//! The check that every law passes: on its example, for random sizes and values, both sides are equal.

use super::{noise, parse};
use hadal_ir::interpret::eval_func;
use hadal_ir::ops::map::MapFn;
use hadal_ir::{Bindings, Builder, DType, Dim, Func, Inst, InstKind, Module, Op, Sym, Tensor, ValueId};
use hadal_passes::bounds::Bounds;
use hadal_passes::rule::{NumericClass, Rule, Site, Term, V};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// A function as laws see it.
pub struct View<'a>(pub &'a Func);

impl Site for View<'_> {
    fn ty(&self, v: V) -> &hadal_ir::TensorType {
        self.0.ty(ValueId(v.0))
    }

    fn forms(&self, v: V) -> Vec<(&Op, Vec<V>)> {
        let inst = self.0.insts.iter().find(|i| i.results.contains(&ValueId(v.0)));
        match inst {
            Some(Inst { kind: InstKind::Op(op), args, .. }) => vec![(op, args.iter().map(|a| V(a.0)).collect())],
            _ => vec![],
        }
    }

    fn readers(&self, v: V) -> Vec<(V, &Op, Vec<V>)> {
        let readers = self.0.insts.iter().filter(|i| i.args.contains(&ValueId(v.0)));
        let of = |i: &Inst| i.args.iter().map(|a| V(a.0)).collect();
        let ops = readers.filter_map(|i| match &i.kind {
            InstKind::Op(op) => Some((V(i.results[0].0), op, of(i))),
            InstKind::Call(_) => None,
        });
        ops.collect()
    }

    fn constant(&self, v: V) -> bool {
        let id = ValueId(v.0);
        let made = self.0.insts.iter().find(|i| i.results.contains(&id));
        let from_constants = |i: &Inst| i.args.iter().all(|a| self.constant(V(a.0)));
        let sized = self.0.ty(id).shape.iter().all(|d| d.as_const().is_some());
        self.0.weights.iter().any(|w| w.value == id) || (sized && made.is_some_and(from_constants))
    }

    fn upper(&self, size: &Dim) -> Option<i64> {
        bounds().upper(size)
    }

    fn lower(&self, size: &Dim) -> Option<i64> {
        bounds().lower(size)
    }
}

/// The sizes that examples are run with.
fn bounds() -> &'static Bounds {
    static KNOWN: OnceLock<Bounds> = OnceLock::new();
    KNOWN.get_or_init(|| Bounds::of(&parse(&with_symbols("")), "", &Default::default()))
}

/// The example of a law.
pub fn example(rule: &Rule) -> Module {
    parse(&with_symbols(rule.example))
}

/// An example as a module's text.
pub fn with_symbols(example: &str) -> String {
    format!("symbols A in 1..9, B in 1..9, C in 1..9, D in 1..9, P in 0..9, T in 1..9\n{example}")
}

/// All that a law says about the values of a function.
pub fn firings(rule: &Rule, func: &Func) -> Vec<(ValueId, Term)> {
    let mut out = Vec::new();
    for inst in &func.insts {
        let InstKind::Op(op) = &inst.kind else { continue };
        let args: Vec<V> = inst.args.iter().map(|a| V(a.0)).collect();
        out.extend((rule.apply)(&View(func), op, &args).into_iter().map(|t| (inst.results[0], t)));
    }
    out
}

/// A function that returns the value and the term for it.
fn both(func: &Func, value: ValueId, term: &Term) -> Func {
    let mut b = Builder::new("both");
    let mut map = BTreeMap::new();
    // Weights are inputs here, so that they get random values like any other.
    for p in func.params.iter().chain(func.weights.iter().map(|w| &w.value)) {
        map.insert(*p, b.param("p", func.ty(*p).clone()));
    }
    for inst in &func.insts {
        let InstKind::Op(op) = &inst.kind else { panic!("examples do not call") };
        let args: Vec<ValueId> = inst.args.iter().map(|a| map[a]).collect();
        map.insert(inst.results[0], b.op(op.clone(), &args));
    }
    fn add(b: &mut Builder, map: &BTreeMap<ValueId, ValueId>, term: &Term) -> ValueId {
        match term {
            Term::Old(v) => map[&ValueId(v.0)],
            Term::New(op, args) => {
                let args: Vec<ValueId> = args.iter().map(|a| add(b, map, a)).collect();
                b.op(op.clone(), &args)
            }
        }
    }
    let other = add(&mut b, &map, term);
    b.result("one", map[&value]);
    b.result("other", other);
    b.finish().unwrap()
}

/// Whether the term equals the value: in reals as far as the law's class demands, and to the bit on small whole numbers
/// where everything stays whole.
pub fn check(rule: &Rule, func: &Func, value: ValueId, term: &Term) -> Result<(), String> {
    if term.ty(&View(func)).as_ref() != Some(func.ty(value)) {
        return Err("the types differ".to_owned());
    }
    let sides = both(func, value, term);
    let tolerance = if rule.class == NumericClass::Exact { 0.0 } else { 1e-9 };
    for seed in 0..16u64 {
        compare(&sides, seed, tolerance, noise)?;
        if stays_whole(&sides) {
            compare(&sides, seed, 0.0, whole)?;
        }
    }
    Ok(())
}

/// Values of a format and shape, by seed.
type Draw = fn(DType, &[usize], u64) -> Tensor;

fn compare(sides: &Func, seed: u64, tolerance: f64, draw: Draw) -> Result<(), String> {
    let size = |i: u64| 1 + ((seed * 2654435761 + i * 40503) >> 3) as i64 % 5;
    let names = ["A", "B", "C", "D", "P", "T"];
    let bindings: Bindings = names.iter().zip(0..).map(|(n, i)| (Sym::new(n).unwrap(), size(i))).collect();
    let of = |(p, i): (&ValueId, u64)| {
        let ty = sides.ty(*p);
        draw(ty.dtype, &ty.eval_shape(&bindings).unwrap(), seed + i)
    };
    let args: Vec<Tensor> = sides.params.iter().zip(0..).map(of).collect();
    let results = eval_func(sides, &args, &bindings).map_err(|e| e.to_string())?;
    let (one, other) = (&results[0], &results[1]);
    if (one.dtype, &one.shape) != (other.dtype, &other.shape) {
        return Err("the shapes differ".to_owned());
    }
    for i in 0..one.len() {
        let (x, y) = (one.at(i), other.at(i));
        let same = x == y || x.is_nan() && y.is_nan();
        let near = x.is_finite() && (x - y).abs() <= tolerance * (1.0 + x.abs());
        if !same && !near {
            return Err(format!("element {i} is {x} on one side and {y} on the other"));
        }
    }
    Ok(())
}

/// Whole numbers from -3 to 3.
fn whole(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    if !dtype.is_float() {
        return noise(dtype, shape, seed);
    }
    let drawn = noise(DType::F32, shape, seed);
    Tensor::real(dtype, shape, (0..drawn.len()).map(|i| dtype.round((3.4 * drawn.at(i)).round())).collect())
}

/// Whether all that is computed from small whole numbers is whole, so that no order of summation can matter.
fn stays_whole(func: &Func) -> bool {
    use MapFn::{Add, And, Eq, Le, Lt, Max, Min, Mul, Neg, Not, Or, Select, Sub};
    func.insts.iter().all(|i| match &i.kind {
        InstKind::Op(Op::Contract(_) | Op::Reduce(_) | Op::Gather(_) | Op::Iota(_)) => true,
        InstKind::Op(Op::Map(m)) => {
            matches!(m.f, Add | And | Eq | Le | Lt | Max | Min | Mul | Neg | Not | Or | Select | Sub)
        }
        InstKind::Op(Op::Constant(c)) => c.values.iter().all(|v| v.0.fract() == 0.0),
        InstKind::Op(op) => op.is_view(),
        InstKind::Call(_) => false,
    })
}

/// The law's example with whole numbers in place of reals, where its ops take them.
pub fn in_integers(rule: &Rule) -> Option<Module> {
    let text = with_symbols(&rule.example.replace("bf16", "i64").replace("f32", "i64"));
    hadal_ir::text::parse_module(&text).ok().filter(|m| hadal_ir::verify::module(m).is_ok())
}
