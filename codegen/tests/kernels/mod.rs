//! Runs kernel functions through the graph interpreter, the kernel interpreter and machine code, and compares.
#![allow(dead_code, reason = "shared by several test programs")]

#[cfg(feature = "llvm-backend")]
pub mod emulated;
#[cfg(feature = "llvm-backend")]
pub mod gpu;
pub mod machines;
pub mod random;
#[cfg(feature = "llvm-backend")]
pub mod ways;

use hadal_codegen::kernels::{Generated, Target, loops};
use hadal_ir::kernel::{interpret, interpret::Buffer, verify};
use hadal_ir::ops::Op;
use hadal_ir::{Bindings, DType, Func, InstKind, Tensor};

/// Small numbers that never leave the exact range of f32 in short sums of products, the same for the same seed.
pub struct Numbers(pub u64);

impl Numbers {
    /// The next one below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n.max(1)
    }

    fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let n = shape.iter().product();
        match dtype {
            DType::Bool => Tensor::int(dtype, shape, (0..n).map(|_| self.below(2) as i64).collect()),
            DType::U8 => Tensor::int(dtype, shape, (0..n).map(|_| self.below(9) as i64).collect()),
            // Also an index of nothing.
            d if d.is_int() => Tensor::int(dtype, shape, (0..n).map(|_| self.below(10) as i64 - 1).collect()),
            d => {
                let real = |this: &mut Self| match d {
                    DType::F8E8M0 => [0.5, 1.0, 2.0][this.below(3) as usize],
                    _ => (this.below(25) as f64 - 12.0) / 8.0,
                };
                Tensor::real(dtype, shape, (0..n).map(|_| d.round(real(self))).collect())
            }
        }
    }
}

/// Emits, verifies and runs a kernel for random arguments, and compares with the graph interpreter.
pub fn check(func: &Func, bindings: &Bindings, seed: u64) -> Generated {
    let generated = loops::emit(func, &Target::default()).unwrap_or_else(|e| panic!("{e}"));
    check_generated(func, &generated, bindings, seed, &[]);
    generated
}

/// The same for a kernel that is there, with the tolerance of each result.
pub fn check_generated(func: &Func, generated: &Generated, bindings: &Bindings, seed: u64, tolerances: &[f64]) {
    let kernel = &generated.kernel;
    let faults = verify::verify(kernel);
    assert!(faults.is_empty(), "{}\n{kernel}", faults[0]);
    let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let shape = |v| func.ty(v).eval_shape(bindings).unwrap();
    let args: Vec<Tensor> = func.params.iter().map(|p| numbers.tensor(func.ty(*p).dtype, &shape(*p))).collect();
    let expected = hadal_ir::interpret::eval_func(func, &args, bindings).unwrap();
    let mut buffers: Vec<Buffer> = args.iter().map(|t| Buffer::from_bytes(t.dtype, t.to_bytes())).collect();
    let defs = func.definitions();
    for (_, v) in &func.results {
        let ty = func.ty(*v);
        let mut buffer = Buffer::uninit(ty.dtype, shape(*v).iter().product());
        // An append finds the old rows in its buffer.
        if let Some(inst) = defs[v.index()].map(|i| &func.insts[i])
            && matches!(inst.kind, InstKind::Op(Op::Append(_)))
            && let Some(at) = func.params.iter().position(|p| *p == inst.args[0])
        {
            let old = &buffers[at];
            buffer.bytes[..old.bytes.len()].copy_from_slice(&old.bytes);
            buffer.initialised[..old.initialised.len()].fill(true);
        }
        buffers.push(buffer);
    }
    let mut interpreted = buffers.clone();
    interpret::run(kernel, bindings, &mut interpreted).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
    let mut runs = vec![("interpreter", interpreted)];
    runs.extend(machines::run_all(kernel, bindings, &buffers, &[1, 3]));
    for (who, buffers) in &runs {
        for (i, want) in expected.iter().enumerate() {
            let got = &buffers[func.params.len() + i];
            let unset = got.initialised.iter().position(|set| !set);
            assert!(
                *who != "interpreter" || unset.is_none(),
                "element {unset:?} of result {i} is not written\n{kernel}"
            );
            let got = Tensor::from_bytes(want.dtype, &want.shape, &got.bytes).unwrap();
            let unit = match want.dtype {
                DType::BF16 => 1.0 / 128.0,
                DType::F16 => 1.0 / 512.0,
                DType::F8E4M3 | DType::F8E8M0 | DType::F4E2M1 => 0.5,
                _ => 2e-5,
            };
            let mut largest = (0..want.len()).map(|n| want.at(n).abs()).filter(|x| x.is_finite()).fold(1.0, f64::max);
            let unit = match (unit, tolerances.get(i)) {
                (2e-5, Some(tolerance)) => {
                    largest = 1.0;
                    *tolerance
                }
                _ => unit,
            };
            for n in 0..want.len() {
                let (x, y) = (got.at(n), want.at(n));
                let equal = x == y || (x.is_nan() && y.is_nan());
                let close = want.dtype.is_float() && (x - y).abs() <= unit * largest;
                assert!(equal || close, "{who}, result {i}, element {n}: {x} for {y} ({bindings:?})\n{kernel}");
            }
        }
    }
}
