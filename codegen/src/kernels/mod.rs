//! Kernel generators: from a kernel function of the fused graph to kernel IR.
//!
//! A generator looks at a function, decides whether it knows it, chooses a schedule, and emits. The special ones make
//! well-known shapes fast; the general loop generator ([`loops`]) compiles every kernel function, so removing a
//! special generator makes programs slower, never wrong.

pub mod attention;
pub mod contract;
pub mod index;
pub mod limits;
pub mod loops;
mod ring;

use crate::processor::Processor;
use hadal_ir::ops::Op;
use hadal_ir::panels::Wish;
use hadal_ir::{Func, Inst, InstKind, Range, ValueId, kernel};
use hadal_types::{DType, Dim, Sym};
use std::collections::BTreeMap;

/// What generators know about the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// f32 lanes of the vectors that loops are written with. Back ends split what is wider than a register.
    pub lanes: u32,
    /// Vector registers.
    pub registers: u32,
    /// Whether dot products of two bf16 and of four bytes are instructions.
    pub dots: bool,
    /// Whether four warps multiply tiles in shared memory together.
    pub warpgroups: bool,
    /// Bytes of a core's second-level cache. Levels do not tell, so it is what the smallest server core has that they
    /// were made for.
    pub cache: i64,
}

/// Half a MiB: Zen 2 to 4 have 0.5 or 1, Skylake-X and later 1 to 2.
const CACHE: i64 = 512 << 10;

impl Target {
    /// For kernels of this level.
    pub fn of(cpu: &Processor) -> Target {
        let wide = cpu.has("avx512f") || cpu.is_gpu();
        Target {
            lanes: (cpu.vector_bits() / 32).max(8),
            registers: if wide || cpu.arch == "aarch64" { 32 } else { 16 },
            dots: cpu.has("avx512bf16") && cpu.has("avx512vnni"),
            warpgroups: cpu.has("sm_90a"),
            cache: CACHE,
        }
    }

    /// Whether vectors are the lanes of a warp, each of which holds some neighbours.
    pub fn is_warp(&self) -> bool {
        self.lanes > 16
    }

    /// Whether there are 32 registers of 16 lanes; elsewhere generators write for sixteen of four lanes.
    pub fn is_wide(&self) -> bool {
        self.lanes >= 16 && self.registers >= 32
    }
}

impl Default for Target {
    fn default() -> Self {
        Target { lanes: 8, registers: 16, dots: false, warpgroups: false, cache: CACHE }
    }
}

/// The values that symbols take where a kernel runs; one that is not here may be anything.
pub type Ranges = BTreeMap<Sym, Range>;

/// A kernel with the reason it looks as it does.
#[derive(Clone, PartialEq, Debug)]
pub struct Generated {
    /// The kernel; its parameters are the function's parameters, then its results.
    pub kernel: kernel::Kernel,
    /// The generator that made it (`loops`, `contract`, …).
    pub generator: &'static str,
    /// The schedule it chose, for people.
    pub schedule: String,
}

/// Why a kernel function has no kernel.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// A function with calls, weights or states of its own.
    #[error("@{func} is not a kernel function")]
    NotAKernel {
        /// The function.
        func: String,
    },
    /// An op whose decomposition needs sizes that are not known.
    #[error("@{func}: `{op}` has no decomposition for these shapes")]
    NoPrimitives {
        /// The function.
        func: String,
        /// The op.
        op: &'static str,
    },
    /// Indices of a reshape that are no affine forms of the symbols.
    #[error("@{func}: the reshape of {from:?} to {to:?} needs products of symbols")]
    SymbolProduct {
        /// The function.
        func: String,
        /// Operand shape.
        from: Vec<Dim>,
        /// Result shape.
        to: Vec<Dim>,
    },
    /// A result in a packed format, whose elements cannot be written one by one.
    #[error("@{func}: a result of {dtype} elements, which share bytes")]
    PackedResult {
        /// The function.
        func: String,
        /// The format.
        dtype: DType,
    },
    /// Scratch memory whose size is no affine form of the symbols.
    #[error("@{func}: scratch of shape {shape:?} has no affine size")]
    Scratch {
        /// The function.
        func: String,
        /// What was to be held.
        shape: Vec<Dim>,
    },
}

/// A special generator: the kernels it can make, which all give the same bits, the preferred one first; `None` where it
/// does not know the function.
type Special = fn(&Func, &Ranges, &Target) -> Option<Box<dyn Iterator<Item = Generated>>>;

/// The special generators, in the order they are asked.
const SPECIAL: &[Special] = &[attention::generate, contract::generate];

/// The parameters of a kernel function of which it reads [panels](hadal_ir::panels) in place, all of them or none.
pub fn panels(func: &Func, ranges: &Ranges, target: &Target) -> Vec<Wish> {
    if attention::generate(func, ranges, target).is_some() {
        return Vec::new();
    }
    let of_product = contract::panels(func, ranges, target).into_iter();
    let wishes: Vec<Wish> = of_product.map(|(param, group)| Wish { param, group, pays: true }).collect();
    if wishes.is_empty() { gathered(func) } else { wishes }
}

/// Those of which a kernel without products reads a few rows, which it does from panels as well: embeddings, which may
/// be the output head too.
fn gathered(func: &Func) -> Vec<Wish> {
    if func.insts.iter().any(|inst| matches!(inst.kind, InstKind::Op(Op::Contract(_)))) {
        return Vec::new();
    }
    let ops = |value| func.insts.iter().filter(move |inst| inst.args.contains(&value));
    let rows = |inst: &Inst, value| {
        let gather = matches!(&inst.kind, InstKind::Op(Op::Gather(g)) if g.axis == 0 && g.batch == 0);
        gather && inst.args.first() == Some(&value) && inst.args.last() != Some(&value)
    };
    let few = |value| ops(value).next().is_some() && ops(value).all(|inst| rows(inst, value));
    let kept = |value| func.results.iter().any(|(_, v)| *v == value);
    let wish = |(param, value): (usize, &ValueId)| {
        let mut read = ops(*value);
        let (first, ty) = (read.next()?, func.ty(*value));
        let code = match &first.kind {
            InstKind::Op(Op::Dequantize(_)) if read.next().is_none() && !kept(first.results[0]) => {
                few(first.results[0]).then_some(first.args.first() == Some(value))
            }
            _ => few(*value).then_some(true),
        }?;
        let group = if code { 32 / ty.dtype.bits() as i64 } else { 1 };
        hadal_ir::panels::stored(ty, group)?;
        Some(Wish { param, group, pays: false })
    };
    func.params.iter().enumerate().filter_map(wish).collect()
}

/// The kernel of a kernel function, by the first generator that knows it.
pub fn select(func: &Func, ranges: &Ranges, target: &Target) -> Result<Generated, Error> {
    match SPECIAL.iter().find_map(|generator| generator(func, ranges, target)?.next()) {
        Some(generated) => Ok(generated),
        None => loops::emit(func, target),
    }
}

/// The kernel that [`select`] gives, and others that give the same bits in another time.
pub fn variants(func: &Func, ranges: &Ranges, target: &Target) -> Result<Vec<Generated>, Error> {
    let known = SPECIAL.iter().find_map(|generator| {
        let mut all = generator(func, ranges, target)?.peekable();
        all.peek()?;
        Some(all.collect())
    });
    known.map_or_else(|| Ok(vec![loops::emit(func, target)?]), Ok)
}

#[cfg(test)]
mod tests {
    use super::contract::tests::{arguments, close, compiled, function, interpreted, kernel};
    use super::*;
    use hadal_ir::{Bindings, interpret, panels};

    /// Rows of a table by number: `%w` of a format, whose codes are in groups of 32.
    fn gather(dtype: &str, scales: &str) -> Func {
        let (param, dequantize, table) = match scales {
            "" => (String::new(), String::new(), "%w"),
            _ => (
                format!(", %s: {scales}"),
                "  %0 = dequantize %w, %s {block = [1, 32]} : f32[64, 96]\n".to_owned(),
                "%0",
            ),
        };
        let ty = if scales.is_empty() { dtype } else { "f32" };
        let body = format!("{dequantize}  %y = gather {table}, %t {{axis = 0}} : {ty}[T, 96]");
        function(&kernel(&format!("%w: {dtype}[64, 96]{param}, %t: i32[T]"), &body, &format!("{ty}[T, 96]")))
    }

    #[test]
    fn a_few_rows_are_read_from_panels_too() {
        for (dtype, scales, groups) in [
            ("bf16", "", vec![2]),
            ("f32", "", vec![1]),
            ("i8", "f16[64, 3]", vec![4, 1]),
            ("u4", "f16[64, 3]", vec![8, 1]),
        ] {
            let func = gather(dtype, scales);
            let wishes = panels(&func, &Ranges::new(), &Target::default());
            assert_eq!(wishes.iter().map(|w| w.group).collect::<Vec<_>>(), groups, "{dtype}");
            assert!(wishes.iter().all(|w| !w.pays));
            let bindings = Bindings::from([(Sym::T, 5)]);
            let mut args = arguments(&func, &bindings, 3);
            let expected = interpret::eval_func(&func, &args, &bindings).unwrap();
            let mut reading = func.clone();
            for wish in wishes {
                let fold = panels::fold("lay", func.ty(func.params[wish.param]), wish.group).unwrap();
                let laid = interpret::eval_func(&fold, &args[wish.param..=wish.param], &bindings);
                args[wish.param] = laid.unwrap().remove(0);
                reading = panels::reading(&reading, wish.param, wish.group).unwrap();
            }
            for target in [Target::default(), Target { lanes: 16, registers: 32, dots: true, ..Target::default() }] {
                let made = select(&reading, &Ranges::new(), &target).unwrap().kernel;
                let found = interpreted(&made, &reading, &args, &bindings);
                close(&found[0], &expected[0], 0.0, &|| format!("{dtype}\n{made}"));
                compiled(&made, &reading, &args, &bindings, &found, (false, target.is_wide()));
            }
        }
    }

    #[test]
    fn what_else_reads_a_table_refuses() {
        let gathered_and_added = "  %0 = gather %w, %t {axis = 0} : f32[T, 96]
  %1 = reduce %w {kind = sum, axes = [0]} : f32[96]
  %2 = broadcast %1 {shape = [T, 96], dims = [1]} : f32[T, 96]
  %y = add %0, %2 : f32[T, 96]";
        let func = function(&kernel("%w: f32[64, 96], %t: i32[T]", gathered_and_added, "f32[T, 96]"));
        assert!(panels(&func, &Ranges::new(), &Target::default()).is_empty());
        // A product that does not read panels itself: its columns are odd words.
        let product = "  %0 = gather %w, %t {axis = 0} : f32[T, 96, 7]
  %y = contract %x, %0 {spec = \"td,tfd->tf\"} : f32[T, 96]";
        let func = function(&kernel("%w: f32[64, 96, 7], %x: f32[T, 7], %t: i32[T]", product, "f32[T, 96]"));
        assert!(panels(&func, &Ranges::new(), &Target::default()).iter().all(|wish| wish.pays));
    }
}
