//! What is LLVM's own: levels that this machine does not have, determinism, errors.
#![cfg(feature = "llvm-backend")]

use hadal_codegen::Error;
use hadal_codegen::llvm::{Options, compile, llvm_ir_text};
use hadal_codegen::processor::{CompiledKernel, Processor};
use hadal_ir::kernel::*;
use hadal_types::{DType, Dim, Sym};

/// A cast between formats of many lanes, with masks at the edge.
fn cast_kernel(from: DType, to: DType, lanes: u32) -> Kernel {
    let mut b = Builder::new(format!("{from}_{to}_{lanes}"));
    let n = Dim::from(Sym::T);
    let (x, y) = (b.param("x", from, [n.clone()], Access::Read), b.param("y", to, [n.clone()], Access::Write));
    let g = b.grid([1i64])[0];
    let (end, width) = (b.dim(&n), b.const_i64(lanes as i64));
    let at = b.mul(g, width);
    let mask = b.lanes_below(at, end, lanes);
    let v = b.load_masked(x, &[at], mask, None);
    let v = b.cast(v, to);
    if to.is_packed() {
        b.store(y, &[at], v)
    } else {
        b.store_masked(y, &[at], v, mask)
    }
    b.finish()
}

fn casts() -> Vec<Kernel> {
    let pairs = DType::ALL.into_iter().flat_map(|a| DType::ALL.map(|b| (a, b)));
    let pairs = pairs.filter(|(a, b)| a != b && verify::can_cast(*a, *b));
    pairs.flat_map(|(a, b)| [2, 16, 64].map(|lanes| cast_kernel(a, b, lanes))).collect()
}

#[test]
fn every_level_has_code_for_every_cast() {
    for target in Processor::LEVELS {
        for kernel in casts() {
            let compiled = compile(&kernel, &target, Options::default()).unwrap_or_else(|e| panic!("{e}"));
            assert!(compiled.name == kernel.name && !compiled.code.is_empty());
        }
    }
}

#[test]
fn any_thread_makes_the_same_bytes() {
    let kernels: Vec<Kernel> = casts().into_iter().step_by(17).collect();
    for target in Processor::LEVELS {
        let made = || kernels.iter().map(|k| compile(k, &target, Options::default()).unwrap_or_else(|e| panic!("{e}")));
        let all: Vec<CompiledKernel> =
            std::thread::scope(|scope| scope.spawn(|| made().collect()).join().expect("kernels compile"));
        for ((kernel, other), one) in kernels.iter().zip(all).zip(made()) {
            assert!(one.code == other.code, "{} for {}", kernel.name, target.name);
        }
    }
}

#[test]
fn text_is_shown_before_and_after() {
    let kernel = cast_kernel(DType::BF16, DType::F32, 16);
    let [before, after] = [false, true].map(|o| llvm_ir_text(&kernel, &Processor::X86_64_V4, o).unwrap());
    assert!(before.contains("llvm.masked.load.v16i16.p0") && after.contains("llvm.masked.load.v16i16.p0"), "{before}");
    let folded = "getelementptr ptr, ptr %args, i64 0";
    assert!(before.contains(folded) && !after.contains(folded), "{after}");
    let assembly = |target| compile(&kernel, &target, Options { disassembly: true }).unwrap().disassembly.unwrap();
    assert!(assembly(Processor::X86_64_V4).contains("zmm"));
    assert!(assembly(Processor::AARCH64_NEON).contains(".4s"));
}

#[test]
fn what_cannot_be_compiled_is_an_error() {
    let mut b = Builder::new("gpu");
    let (zero, n) = (b.const_i64(0), b.const_i64(4));
    let met = b.barriers("met", 1, 4);
    b.for_each(zero, n, 1, LoopKind::Warp, |b, _| b.arrive(met, zero));
    let error = compile(&b.finish(), &Processor::X86_64_V4, Options::default()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let mut kernel = cast_kernel(DType::BF16, DType::F32, 16);
    kernel.values.pop();
    assert!(matches!(compile(&kernel, &Processor::X86_64_V4, Options::default()), Err(Error::Malformed(_))));
    let unknown = Processor { arch: "pdp11", ..Processor::X86_64_V3 };
    let kernel = cast_kernel(DType::BF16, DType::F32, 16);
    assert!(matches!(compile(&kernel, &unknown, Options::default()), Err(Error::Backend { .. })));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(100))]

    #[test]
    fn arbitrary_kernels_compile_for_arm(bytes in proptest::collection::vec(0u8.., 0..400)) {
        let kernel = arbitrary::kernel(&bytes);
        let compiled = compile(&kernel, &Processor::AARCH64_NEON, Options::default());
        compiled.unwrap_or_else(|e| panic!("{e}\n{kernel}"));
    }
}
