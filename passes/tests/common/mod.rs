//! Helpers shared by the integration tests.
#![allow(dead_code)]

pub mod law;
pub mod releases;

use hadal_ir::interpret::{Interpreter, WeightSource};
use hadal_ir::plan::Program;
use hadal_ir::target::Target;
use hadal_ir::text::parse_module;
use hadal_ir::{Bindings, DType, Module, Sym, Tensor, TensorType};
use hadal_passes::simulate;

/// Weights made from their names, the same each time.
pub struct Made;

impl WeightSource for Made {
    fn weight(&self, name: &str, ty: &TensorType) -> Result<Tensor, String> {
        let shape = ty.eval_shape(&Bindings::new()).map_err(|s| s.to_string())?;
        let seed = name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(b as u64));
        Ok(noise(ty.dtype, &shape, seed))
    }
}

/// Pseudo-random values in the format, about ±1; integers are 0..4.
pub fn noise(dtype: DType, shape: &[usize], mut seed: u64) -> Tensor {
    let n = shape.iter().product::<usize>();
    let mut next = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as f64 / (1u64 << 31) as f64
    };
    match dtype.is_float() {
        true => Tensor::real(dtype, shape, (0..n).map(|_| dtype.round(2.0 * next() - 1.0)).collect()),
        false => Tensor::int(dtype, shape, (0..n).map(|_| (4.0 * next()) as i64).collect()),
    }
}

pub fn parse(text: &str) -> Module {
    let module = parse_module(text).unwrap();
    hadal_ir::verify::module(&module).unwrap();
    module
}

pub fn cpu() -> Target {
    Target::by_name("cpu").unwrap()
}

#[track_caller]
pub fn assert_close(a: &Tensor, b: &Tensor, tolerance: f64, what: &str) {
    assert_eq!((a.dtype, &a.shape), (b.dtype, &b.shape), "{what}");
    for i in 0..a.len() {
        let (x, y) = (a.at(i), b.at(i));
        let same = x == y || x.is_nan() && y.is_nan();
        assert!(same || (x - y).abs() <= tolerance * (1.0 + x.abs()), "{what}, element {i}: {x} and {y}");
    }
}

pub fn bindings(p: usize, t: usize) -> Bindings {
    Bindings::from([(Sym::P, p as i64), (Sym::T, t as i64)])
}

/// Inputs of the entry's function for a call.
pub fn inputs(module: &Module, entry: &str, bindings: &Bindings, seed: u64) -> Vec<Tensor> {
    let version = module.version(entry, bindings).expect("a version for these sizes");
    let func = module.func(&version.func).unwrap();
    let of = |(i, p): (usize, &hadal_ir::ValueId)| {
        let ty = func.ty(*p);
        noise(ty.dtype, &ty.eval_shape(bindings).unwrap(), seed + i as u64)
    };
    func.params.iter().enumerate().map(of).collect()
}

/// A sequence: prefill of five tokens, of two more, and three decoded, through the interpreter on `module`.
pub fn sequence(module: &Module) -> Vec<Tensor> {
    let mut run = Interpreter::new(module, &Made);
    let mut out = Vec::new();
    for (entry, p, t) in STEPS {
        let b = bindings(*p, *t);
        let func = &module.version(entry, &b).expect("a version for these sizes").func;
        out.extend(run.run(func, "", &inputs(module, entry, &b, *p as u64), &b).unwrap());
    }
    out
}

/// The same through the plan on simulated memory.
pub fn planned_sequence(module: &Module, program: &Program) -> Vec<Tensor> {
    let mut memory = simulate::Memory::default();
    let mut out = Vec::new();
    for (entry, p, t) in STEPS {
        let b = bindings(*p, *t);
        let args = inputs(module, entry, &b, *p as u64);
        let plan = program.plan_for(entry, &b).expect("a version for these sizes");
        out.extend(simulate::run(program, plan, &mut memory, &Made, &args, &b).unwrap());
    }
    out
}

const STEPS: &[(&str, usize, usize)] =
    &[("prefill", 0, 5), ("prefill", 5, 2), ("decode", 7, 1), ("decode", 8, 1), ("decode", 9, 1)];

#[track_caller]
pub fn assert_all_close(a: &[Tensor], b: &[Tensor], tolerance: f64, what: &str) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert_close(a, b, tolerance, &format!("{what}, output {i}"));
    }
}
