//! What GPUs multiply in their tensor cores: which kernel it is, on which arguments, and what is left out of it on purpose.

use super::gpu;
use hadal_codegen::kernels::{self as generators, Generated, Ranges};
use hadal_codegen::processor::{CompiledKernel, Processor};
use hadal_ir::kernel::Kernel;
use hadal_ir::kernel::interpret::Buffer;
use hadal_ir::{Func, Tensor};
use hadal_types::{Bindings, DType, Sym};
use ptx_emulator::{FaultKind, Options, Report};

pub fn func(text: &str) -> Func {
    let module = hadal_ir::text::parse_module(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    hadal_ir::verify::module(&module).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
    module.funcs[0].clone()
}

/// What a GPU runs of a function: a form of kernel with an instruction.
#[derive(Clone, Copy)]
pub struct Way {
    pub processor: Processor,
    pub form: &'static str,
    pub instruction: &'static str,
}

pub const TILES: Way = Way { processor: Processor::SM_80, form: "tiles", instruction: "mma.sync" };
pub const PIPELINE: Way = Way { processor: Processor::SM_90A, form: "pipeline", instruction: "wgmma.mma_async" };

impl Way {
    pub fn of(self, func: &Func) -> Generated {
        self.within(func, &Ranges::new())
    }

    /// For symbols of such ranges.
    pub fn within(self, func: &Func, ranges: &Ranges) -> Generated {
        let target = generators::Target::of(&self.processor);
        let made = generators::select(func, ranges, &target).expect("a product");
        assert!(made.schedule.starts_with(self.form), "{}", made.schedule);
        Generated { kernel: gpu::aligned(&made.kernel), ..made }
    }
}

/// Elements of which there are few enough bits that sums of them are exact, or more.
pub fn arguments(func: &Func, bindings: &Bindings, exact: bool) -> Vec<Tensor> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = move || {
        state = state.wrapping_mul(0xD134_2543_DE82_EF95).wrapping_add(1);
        (state >> 40) as f64 / (1u64 << 24) as f64
    };
    let tensors = func.params.iter().map(|p| {
        let shape = func.ty(*p).eval_shape(bindings).expect("sizes");
        let (dtype, n) = (func.ty(*p).dtype, shape.iter().product());
        match dtype {
            DType::I32 | DType::I8 => Tensor::int(dtype, &shape, (0..n).map(|_| (next() * 9.0) as i64 - 2).collect()),
            _ if exact => Tensor::real(dtype, &shape, (0..n).map(|_| (next() * 8.0).floor() / 2.0 - 2.0).collect()),
            _ => Tensor::real(dtype, &shape, (0..n).map(|_| dtype.round(next() * 2.0 - 1.0)).collect()),
        }
    });
    tensors.collect()
}

/// So many tokens after so many others.
pub fn call(t: i64, p: i64) -> Bindings {
    Bindings::from([(Sym::T, t), (Sym::P, p)])
}

/// Runs code on the emulator, where what comes out is looked at by others.
pub fn emulated(
    kernel: &Kernel,
    code: &CompiledKernel,
    func: &Func,
    bindings: &Bindings,
    seed: u64,
) -> Result<Report, FaultKind> {
    emulated_with(kernel, code, func, bindings, seed).map(|(report, _)| report)
}

/// The bytes that come out.
pub fn emulated_result(
    kernel: &Kernel,
    code: &CompiledKernel,
    func: &Func,
    bindings: &Bindings,
    seed: u64,
) -> Result<Vec<u8>, FaultKind> {
    emulated_with(kernel, code, func, bindings, seed).map(|(_, result)| result)
}

pub fn emulated_with(
    kernel: &Kernel,
    code: &CompiledKernel,
    func: &Func,
    bindings: &Bindings,
    seed: u64,
) -> Result<(Report, Vec<u8>), FaultKind> {
    let args = arguments(func, bindings, false);
    let result = func.ty(func.results[0].1);
    let count = result.eval_shape(bindings).expect("sizes").iter().product();
    let mut buffers: Vec<Buffer> = args.iter().map(|t| Buffer::from_bytes(t.dtype, t.to_bytes())).collect();
    buffers.push(Buffer::uninit(result.dtype, count));
    let options = Options { seed, ..Options::default() };
    let report = gpu::run(code, kernel, bindings, &mut buffers, &options).map_err(|fault| fault.kind)?;
    Ok((report, buffers.pop().expect("a result").bytes))
}

/// What a pipeline would not be right without, and what it is exchanged for: waits, arrivals, fences, swizzles.
const PARTS: [(&str, &str); 8] = [
    ("mbarrier.try_wait.parity", ""),
    ("mbarrier.arrive", ""),
    ("fence.proxy.async", ""),
    ("cp.async.wait_group", ""),
    ("wgmma.wait_group", ""),
    ("wgmma.commit_group", ""),
    ("bar.sync", ""),
    ("xor.b32", "or.b32"),
];

/// Each wait, arrival, fence and wait for copies or products, and each swizzle, is needed: without it `right` says, for
/// some seed, that code is not.
pub fn every_part_is_needed(code: &CompiledKernel, right: impl Fn(&CompiledKernel, u64) -> bool) {
    let ptx = std::str::from_utf8(&code.code).expect("PTX is text");
    for (what, instead) in PARTS {
        let places: Vec<usize> = ptx.match_indices(what).map(|(at, _)| at).collect();
        assert!(!places.is_empty(), "no {what}\n{ptx}");
        for at in places {
            let mut changed = ptx.to_string();
            let after = |what: &str| ptx[at + 1..].find(what);
            if what == "wgmma.commit_group" && after(what).is_some_and(|next| Some(next) < after("wgmma.wait_group")) {
                // What is not committed here is a moment later.
                continue;
            }
            let statement = |from: usize| from + ptx[from..].find(';').expect("a statement");
            // A wait is a loop: what it would jump back for goes too.
            let end = if what.contains("try_wait") { statement(statement(at) + 1) } else { statement(at) };
            match instead {
                "" => changed.replace_range(at..=end, ""),
                _ => changed.replace_range(at..at + what.len(), instead),
            }
            let code = CompiledKernel { code: changed.into_bytes(), ..code.clone() };
            assert!((0..6).any(|seed| !right(&code, seed)), "without the {what} at {at}\n{ptx}");
        }
    }
}
