//! Kernels on a GPU: **a warp computes a grid index, and its lanes are the lanes of vectors.**
//!
//! | kernel IR | here |
//! |---|---|
//! | grid indices | strided over the warps of the launch; where a kernel has loops over warps, over its blocks |
//! | a loop over warps | the warps of the block, an iteration each, which wait for each other at its end |
//! | a vector of 32·n lanes | n parts; lane `l` holds the n neighbours from element `n·l` on |
//! | a vector of fewer | one part; lane `l` holds element `l` modulo their number |
//! | a scalar | the same number in all lanes |
//! | a load or store of a vector | as few accesses as alignment allows, 16 bytes a lane at most |
//! | a store of a scalar | by the first lane |
//! | a reduction | lanes by halves, then parts by halves: the order of the IR |
//! | allocations | shared memory, or a warp's piece of scratch in global memory ([`gpu::memory`]) |
//!
//! Lanes are not in step: [`super::barriers`] finds where they wait for each other. Conditions of branches are scalars, so
//! all lanes take the same way, but for masked accesses.

use super::emit::{Affine, Done, Emitter};
use super::memory::Storage;
use super::types::*;
use crate::Error;
use crate::gpu::{self, ENTRY};
use crate::processor::Processor;
use hadal_ir::kernel::*;
use hadal_types::{DType, Dim};
use std::fmt::Write;

/// Lanes of a warp.
pub(super) const WARP: usize = 32;

/// The module of one kernel for a GPU.
pub(super) fn emit(kernel: &Kernel, target: &Processor) -> Result<String, Error> {
    let mut e = Emitter::new(kernel, target);
    let (block, scratch) = gpu::memory(kernel, target)?;
    e.threads = block.threads();
    e.kernel_function(block, &scratch)?;
    let mut out = format!("target triple = \"{}\"\n\n", triple(target));
    if block.shared_bytes > 0 {
        let align = kernel.allocs.iter().map(Alloc::align).max().unwrap_or(ALLOC_ALIGN);
        let _ = writeln!(out, "@shared = external addrspace(3) global [0 x i8], align {align}\n");
    }
    let global = |name: &str| format!("{GLOBAL} noalias readonly %{name}");
    let parameters = [global("args"), global("symbols"), format!("{GLOBAL} noalias align {ALLOC_ALIGN} %scratch")];
    let _ = writeln!(out, "define ptx_kernel void @{ENTRY}({}) #0 {{\nentry:\n{}}}\n", parameters.join(", "), e.out);
    out.push_str(&e.declared());
    out.push_str("\nattributes #0 = { nounwind \"no-builtins\" }\n\n");
    out.push_str(&super::memory::metadata(kernel));
    let first = super::memory::nodes(kernel);
    let _ = writeln!(out, "!nvvm.annotations = !{{!{first}, !{}}}", first + 1);
    // The assembler would rather spill than leave room for fewer blocks than there could be at most.
    let bounds = [("maxntidx", block.threads()), ("minctasm", 1)];
    for (number, (name, value)) in (first..).zip(bounds) {
        let _ = writeln!(out, "!{number} = !{{ptr @{ENTRY}, !\"{name}\", i32 {value}}}");
    }
    Ok(out)
}

const GLOBAL: &str = "ptr addrspace(1)";
pub(super) const SHARED: &str = "ptr addrspace(3)";

impl<'a> Emitter<'a> {
    /// Prologue, the loop over the grid indices of a warp, and its body.
    fn kernel_function(&mut self, block: gpu::Block, scratch: &Dim) -> Done {
        let thread = self.register("tid.x");
        let lane = self.register("laneid");
        self.line(format!("%lane = or i32 {lane}, 0"));
        let (number, blocks) = (self.register("ctaid.x"), self.register("nctaid.x"));
        let within = self.def(format!("lshr i32 {thread}, 5"));
        let mut slot = within.clone();
        if gpu::team(self.k)?.is_some() {
            // The same in all lanes, which the assembler cannot know of a thread's number.
            let uniform = self.shuffle(DType::I32, &within, "idx", "0");
            self.team = Some(self.def(format!("zext i32 {uniform} to i64")));
            slot = "0".into();
        }
        let first = self.def(format!("mul i32 {number}, {}", block.indices));
        let first = self.def(format!("add i32 {first}, {slot}"));
        let first = self.def(format!("zext i32 {first} to i64"));
        let total = self.def(format!("mul i32 {blocks}, {}", block.indices));
        let total = self.def(format!("zext i32 {total} to i64"));
        self.launch_arguments(false)?;
        self.place_allocations(block, scratch, &slot, &first);
        let extents: Vec<String> = self.k.grid.iter().map(|d| self.dim(d)).collect();
        let mut count = "1".to_string();
        for extent in &extents {
            count = self.def(format!("mul i64 {count}, {extent}"));
        }
        let any = self.def(format!("icmp slt i64 {first}, {count}"));
        self.branch(&any, "pre", "exit");
        self.begin("pre");
        self.jump("grid");
        let outer = std::mem::take(&mut self.out);
        self.label = "grid".into();
        self.depth = 1;
        // Nothing of a grid index that has roles waits in registers for the next one, as `renumbered` says.
        let index = if self.has_roles() { self.shuffle(DType::I64, "%g", "idx", "0") } else { "%g".into() };
        let coords = self.decompose(&index, &extents);
        self.coords = std::iter::zip(&self.k.grid, &coords)
            .map(|(extent, name)| if extent.is(1) { Affine::default() } else { Affine::atom(name, 1) })
            .collect();
        self.block(&self.k.body)?;
        self.line(format!("%g.next = add nsw i64 %g, {total}"));
        let again = self.def(format!("icmp slt i64 %g.next, {count}"));
        let latch = self.label.clone();
        self.branch(&again, "grid", "exit");
        let body = std::mem::replace(&mut self.out, outer);
        self.out.push_str("grid:\n");
        self.phi("%g", "i64", &[(&first, "pre"), ("%g.next", &latch)]);
        self.out.push_str(&body);
        self.begin("exit");
        self.line("ret void");
        Ok(())
    }

    /// Reads a special register.
    pub(super) fn register(&mut self, name: &str) -> String {
        self.call("i32", &format!("llvm.nvvm.read.ptx.sreg.{name}"), &[], "")
    }

    /// Gives allocations their places: a grid index's own part of shared memory, or of scratch, by its number in the block
    /// and in the launch. Of what each warp of a team has for itself there are as many.
    fn place_allocations(&mut self, block: gpu::Block, scratch_bytes: &Dim, slot: &str, number: &str) {
        let mut shared = String::new();
        if block.shared_bytes > 0 {
            let at = self.def(format!("mul i32 {slot}, {}", block.shared_bytes));
            shared = self.def(format!("getelementptr i8, {SHARED} @shared, i32 {at}"));
        }
        let mut scratch = "%scratch".to_string();
        if !scratch_bytes.is(0) {
            let bytes = self.rounded(scratch_bytes);
            let at = self.def(format!("mul i64 {number}, {bytes}"));
            scratch = self.def(format!("getelementptr i8, {GLOBAL} %scratch, i64 {at}"));
        }
        // Those that are aligned to more come first, behind the beginning.
        let mut order: Vec<usize> = (0..self.k.allocs.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(self.k.allocs[*i].align()));
        let private = gpu::private(self.k);
        let mut bases = vec![(GLOBAL, String::new()); order.len()];
        for i in order {
            let bytes = self.k.allocs[i].bytes().unwrap_or_default();
            let (space, next) = match bytes.as_const() {
                Some(_) if block.shared_bytes > 0 => (SHARED, &mut shared),
                _ => (GLOBAL, &mut scratch),
            };
            let mut base = next.clone();
            let mut bytes = self.rounded(&bytes);
            if let Some(team) = self.team.clone().filter(|_| private[i]) {
                let own = self.def(format!("mul i64 {team}, {bytes}"));
                base = self.def(format!("getelementptr i8, {space} {base}, i64 {own}"));
                bytes = self.def(format!("mul i64 {bytes}, {}", block.warps));
            }
            let next = next.clone();
            let end = self.def(format!("getelementptr i8, {space} {next}, i64 {bytes}"));
            if space == SHARED {
                shared = end
            } else {
                scratch = end
            }
            bases[i] = (space, base);
        }
        for (alloc, base) in self.k.allocs.iter().zip(bases) {
            let storage = self.storage(base, &alloc.shape, alloc.dtype);
            self.allocs.push(storage);
        }
    }

    /// Bytes of an allocation, or of several: a size that depends on symbols includes what rounding takes away.
    fn rounded(&mut self, bytes: &Dim) -> String {
        match bytes.as_const() {
            Some(n) => n.to_string(),
            None => {
                let bytes = self.dim(bytes);
                self.def(format!("and i64 {bytes}, {}", -(ALLOC_ALIGN as i64)))
            }
        }
    }

    /// Waits for all lanes, and makes what they have written seen.
    pub(super) fn warp_barrier(&mut self) {
        self.call("void", "llvm.nvvm.bar.warp.sync", &[("i32", "-1")], "");
    }

    /// Waits for all warps of the block, and makes what they have written seen.
    pub(super) fn block_barrier(&mut self) {
        self.call("void", "llvm.nvvm.barrier0", &[], "");
    }

    // ---- lanes ----

    /// The number of the element that this lane holds of a part of a vector.
    pub(super) fn element(&mut self, lanes: u32, part: usize) -> String {
        match (lanes as usize, part) {
            (1, _) => "0".into(),
            (n, _) if n < WARP => self.def(format!("and i32 {}, {}", self.lane, n - 1)),
            (WARP, _) => self.lane.clone(),
            (n, part) => {
                let first = self.def(format!("mul i32 {}, {}", self.lane, n / WARP));
                if part == 0 { first } else { self.def(format!("add i32 {first}, {part}")) }
            }
        }
    }

    /// What another lane holds: `mode` says how `by` names it.
    pub(super) fn shuffle(&mut self, elem: DType, x: &str, mode: &str, by: &str) -> String {
        if !x.starts_with('%') {
            return x.into();
        }
        let t = super::types::elem(elem);
        let word = |e: &mut Self, x: &str| {
            let arguments = [("i32", "-1"), ("i32", x), ("i32", by), ("i32", "31")];
            e.call("i32", &format!("llvm.nvvm.shfl.sync.{mode}.i32"), &arguments, "")
        };
        match t {
            "i32" => word(self, x),
            "float" => {
                let bits = self.def(format!("bitcast float {x} to i32"));
                let moved = word(self, &bits);
                self.def(format!("bitcast i32 {moved} to float"))
            }
            "i64" | "double" => {
                let bits = if t == "i64" { x.into() } else { self.def(format!("bitcast double {x} to i64")) };
                let low = self.def(format!("trunc i64 {bits} to i32"));
                let high = self.def(format!("lshr i64 {bits}, 32"));
                let high = self.def(format!("trunc i64 {high} to i32"));
                let [low, high] = [low, high].map(|x| {
                    let moved = word(self, &x);
                    self.def(format!("zext i32 {moved} to i64"))
                });
                let high = self.def(format!("shl i64 {high}, 32"));
                let both = self.def(format!("or i64 {low}, {high}"));
                if t == "i64" { both } else { self.def(format!("bitcast i64 {both} to double")) }
            }
            narrow => {
                let wide = self.def(format!("zext {narrow} {x} to i32"));
                let moved = word(self, &wide);
                self.def(format!("trunc i32 {moved} to {narrow}"))
            }
        }
    }

    /// The element of a vector that each lane asks for by its number.
    fn pick(&mut self, from: ValueType, parts: &[String], element: &str) -> String {
        if let [part] = parts {
            return self.shuffle(from.elem, part, "idx", element);
        }
        let t = ty(ValueType::scalar(from.elem));
        let lane = self.def(format!("udiv i32 {element}, {}", parts.len()));
        let wanted = self.def(format!("urem i32 {element}, {}", parts.len()));
        let mut found = String::new();
        for (i, part) in parts.iter().enumerate() {
            let moved = self.shuffle(from.elem, part, "idx", &lane);
            found = if i == 0 {
                moved
            } else {
                let this = self.def(format!("icmp eq i32 {wanted}, {i}"));
                self.def(format!("select i1 {this}, {t} {moved}, {t} {found}"))
            };
        }
        found
    }

    pub(super) fn of(&self, value: Value) -> (ValueType, Vec<String>) {
        (self.k.ty(value), self.known(value).parts.clone())
    }

    /// What crosses lanes.
    pub(super) fn across_warp(&mut self, op: &Op, result: ValueType) -> Result<Vec<String>, Error> {
        let (_, count) = self.split(result);
        Ok(match op {
            Op::Splat(a) => vec![self.text(*a); count],
            Op::Iota => (0..count)
                .map(|part| {
                    let element = self.element(result.lanes, part);
                    match result.elem.bits() {
                        32 => element,
                        n if n < 32 => self.def(format!("trunc i32 {element} to {}", elem(result.elem))),
                        _ => self.def(format!("zext i32 {element} to i64")),
                    }
                })
                .collect(),
            Op::Extract(a, lane) => {
                let (from, parts) = self.of(*a);
                let (lane, part) = (*lane as usize / parts.len(), *lane as usize % parts.len());
                vec![self.shuffle(from.elem, &parts[part], "idx", &lane.to_string())]
            }
            Op::Rank(mask) => {
                let (from, parts) = self.of(*mask);
                self.rank(from, &parts)
            }
            Op::Rows(op, a) => {
                let (from, parts) = self.of(*a);
                self.combined_rows(*op, from, &parts)
            }
            Op::Reduce(op, a) => {
                let (from, parts) = self.of(*a);
                vec![self.reduce_lanes(*op, from, parts)]
            }
            Op::Zip(half, a, b) => {
                let (from, [a, b]) = (result, [a, b].map(|v| self.known(*v).parts.clone()));
                let first = half.first(from.lanes);
                if count > 1 {
                    return Ok(self.zip_neighbours(from, [&a, &b], first as usize / count));
                }
                (0..count)
                    .map(|part| {
                        let element = self.element(from.lanes, part);
                        let pair = self.def(format!("lshr i32 {element}, 1"));
                        let pair = self.def(format!("add i32 {pair}, {first}"));
                        let [a, b] = [&a, &b].map(|parts| self.pick(from, parts, &pair));
                        let odd = self.def(format!("trunc i32 {element} to i1"));
                        let t = ty(ValueType::scalar(from.elem));
                        self.def(format!("select i1 {odd}, {t} {b}, {t} {a}"))
                    })
                    .collect()
            }
            Op::Bitcast(a) => {
                let (mut from, mut parts) = self.of(*a);
                if from.elem.is_packed() {
                    let nibbles = (from, parts);
                    from = ValueType::vector(DType::U8, from.lanes / 2);
                    parts = match from.lanes as usize >= WARP {
                        true => self.pairs_of_nibbles(&nibbles.1),
                        false => self.gathered(from, 2, |e, i, element| {
                            let nibble = e.pick(nibbles.0, &nibbles.1, element);
                            if i == 0 { nibble } else { e.def(format!("shl i8 {nibble}, 4")) }
                        }),
                    };
                }
                self.bitcast(from, parts, result)
            }
            Op::Lookup(table, a) => {
                let [low, high] = [0, 8].map(|i| i64::from_le_bytes(std::array::from_fn(|j| table[i + j])));
                self.by_part(result, [*a], |e, _, [x]| {
                    let number = e.def(format!("zext i8 {x} to i64"));
                    let upper = e.def(format!("and i64 {number}, 8"));
                    let upper = e.def(format!("icmp ne i64 {upper}, 0"));
                    let bytes = e.def(format!("select i1 {upper}, i64 {high}, i64 {low}"));
                    let shift = e.def(format!("and i64 {number}, 7"));
                    let shift = e.def(format!("shl i64 {shift}, 3"));
                    let moved = e.def(format!("lshr i64 {bytes}, {shift}"));
                    e.def(format!("trunc i64 {moved} to i8"))
                })
            }
            Op::Dot(..) => return Err(self.unsupported("a dot product that should have been expanded")),
            Op::Matrix(a, b, c) => self.matrix([a, b, c].map(|v| self.known(*v).parts.clone())),
            _ => unreachable!("lane by lane: {op:?}"),
        })
    }

    /// Of each element how many before it are true: those of the lanes before, and of this lane's neighbours.
    fn rank(&mut self, from: ValueType, parts: &[String]) -> Vec<String> {
        let lanes = (from.lanes as usize).min(WARP);
        let own =
            if lanes < WARP { self.def(format!("and i32 {}, {}", self.lane, lanes - 1)) } else { self.lane.clone() };
        let bit = self.def(format!("shl i32 1, {own}"));
        let before = self.def(format!("sub i32 {bit}, 1"));
        let mut count = "0".to_string();
        for on in parts {
            let all = self.call("i32", "llvm.nvvm.vote.ballot.sync", &[("i32", "-1"), ("i1", on)], "");
            let all = self.def(format!("and i32 {all}, {before}"));
            let some = self.call("i32", "llvm.ctpop.i32", &[("i32", &all)], "");
            count = self.def(format!("add i32 {count}, {some}"));
        }
        let mut out = Vec::new();
        for on in parts {
            out.push(self.def(format!("zext i32 {count} to i64")));
            let one = self.def(format!("zext i1 {on} to i32"));
            count = self.def(format!("add i32 {count}, {one}"));
        }
        out
    }

    /// Lanes of two vectors in turn, from element `16·n` on or from the first, where each lane holds n > 1 neighbours:
    /// two lanes get what one lane has.
    fn zip_neighbours(&mut self, from: ValueType, operands: [&[String]; 2], first: usize) -> Vec<String> {
        let (n, t) = (operands[0].len(), ty(ValueType::scalar(from.elem)));
        let source = self.def(format!("lshr i32 {}, 1", self.lane));
        let source = if first == 0 { source } else { self.def(format!("add i32 {source}, {first}")) };
        let odd = self.def(format!("trunc i32 {} to i1", self.lane));
        let mut out = Vec::new();
        for i in 0..n / 2 {
            for parts in operands {
                let [low, high] = [i, n / 2 + i].map(|p| self.shuffle(from.elem, &parts[p], "idx", &source));
                out.push(self.def(format!("select i1 {odd}, {t} {high}, {t} {low}")));
            }
        }
        out
    }

    /// Bytes of two neighbouring codes of four bits.
    pub(super) fn pairs_of_nibbles(&mut self, nibbles: &[String]) -> Vec<String> {
        let pairs = nibbles.chunks_exact(2);
        pairs
            .map(|pair| {
                let high = self.def(format!("shl i8 {}, 4", pair[1]));
                self.def(format!("or i8 {}, {high}", pair[0]))
            })
            .collect()
    }

    /// Each element of a vector as the bits, side by side, of `each` elements of another.
    fn gathered(
        &mut self,
        to: ValueType,
        each: u32,
        mut piece: impl FnMut(&mut Self, u32, &str) -> String,
    ) -> Vec<String> {
        let (part, count) = self.split(to);
        let t = ty(part);
        (0..count)
            .map(|number| {
                let element = self.element(to.lanes, number);
                let first = self.def(format!("mul i32 {element}, {each}"));
                let mut all = String::new();
                for i in 0..each {
                    let at = self.def(format!("add i32 {first}, {i}"));
                    let bits = piece(self, i, &at);
                    all = if i == 0 { bits } else { self.def(format!("or {t} {all}, {bits}")) };
                }
                all
            })
            .collect()
    }

    /// The same bits as elements of another width.
    fn bitcast(&mut self, from: ValueType, parts: Vec<String>, to: ValueType) -> Vec<String> {
        let [have, want] = [from, to].map(|t| t.elem.bits() as u32);
        let integer = |bits: u32| format!("i{bits}");
        let cast = |e: &mut Self, from: &str, x: &str, to: &str| match from == to {
            true => x.to_string(),
            false => e.def(format!("bitcast {from} {x} to {to}")),
        };
        let (have_ty, want_ty) = (elem(from.elem), elem(to.elem));
        let parts: Vec<String> = parts.iter().map(|x| cast(self, have_ty, x, &integer(have))).collect();
        let bits = ValueType { elem: unsigned(have), ..from };
        let own = from.lanes.min(to.lanes) as usize >= WARP;
        let parts = if have == want {
            parts
        } else if own && have < want {
            self.joined(&parts, have, want)
        } else if own {
            parts.iter().flat_map(|x| self.cut(x, have, want)).collect()
        } else if have < want {
            self.gathered(ValueType { elem: unsigned(want), ..to }, want / have, |e, i, element| {
                let x = e.pick(bits, &parts, element);
                let wide = e.def(format!("zext i{have} {x} to i{want}"));
                if i == 0 { wide } else { e.def(format!("shl i{want} {wide}, {}", i * have)) }
            })
        } else {
            let each = have / want;
            (0..self.split(to).1)
                .map(|number| {
                    let element = self.element(to.lanes, number);
                    let whole = self.def(format!("udiv i32 {element}, {each}"));
                    let x = self.pick(bits, &parts, &whole);
                    let piece = self.def(format!("and i32 {element}, {}", each - 1));
                    let shift = self.def(format!("mul i32 {piece}, {want}"));
                    let shift = match have {
                        32 => shift,
                        64 => self.def(format!("zext i32 {shift} to i64")),
                        _ => self.def(format!("trunc i32 {shift} to i{have}")),
                    };
                    let moved = self.def(format!("lshr i{have} {x}, {shift}"));
                    self.def(format!("trunc i{have} {moved} to i{want}"))
                })
                .collect()
        };
        parts.iter().map(|x| cast(self, &integer(want), x, want_ty)).collect()
    }

    /// Neighbouring integers side by side, each `want / have` of them as one.
    pub(super) fn joined(&mut self, parts: &[String], have: u32, want: u32) -> Vec<String> {
        let groups = parts.chunks_exact((want / have) as usize);
        groups
            .map(|group| {
                let mut all = String::new();
                for (i, x) in group.iter().enumerate() {
                    let wide = self.def(format!("zext i{have} {x} to i{want}"));
                    let moved =
                        if i == 0 { wide } else { self.def(format!("shl i{want} {wide}, {}", i as u32 * have)) };
                    all = if i == 0 { moved } else { self.def(format!("or i{want} {all}, {moved}")) };
                }
                all
            })
            .collect()
    }

    /// A lane's f32 as bf16, two at once.
    pub(super) fn narrow_pairs(&mut self, x: Value) -> Vec<String> {
        let parts = self.known(x).parts.clone();
        let mut out = Vec::with_capacity(parts.len());
        for pair in parts.chunks_exact(2) {
            // LLVM's own name for it has a result whose halves it takes apart one by one.
            let text = "call i32 asm \"cvt.rn.bf16x2.f32 $0, $1, $2;\", \"=r,f,f\"";
            let both = self.def(format!("{text}(float {}, float {})", pair[1], pair[0]));
            out.extend(self.cut(&both, 32, 16));
        }
        out
    }

    /// An integer as smaller ones, the lowest bits first.
    pub(super) fn cut(&mut self, x: &str, have: u32, want: u32) -> Vec<String> {
        let pieces = (0..have / want).map(|i| {
            let moved = if i == 0 { x.to_owned() } else { self.def(format!("lshr i{have} {x}, {}", i * want)) };
            self.def(format!("trunc i{have} {moved} to i{want}"))
        });
        pieces.collect()
    }

    /// Combines all lanes, by halves; every lane has the result, with the same bits.
    fn reduce_lanes(&mut self, op: ReduceOp, from: ValueType, mut parts: Vec<String>) -> String {
        let part = ValueType::scalar(from.elem);
        // Which operand comes first matters where the second of two zeros is taken.
        let ordered = matches!(op, ReduceOp::Min | ReduceOp::Max) && from.elem == DType::F32;
        let mut step = from.lanes.min(WARP as u32) / 2;
        let mut shared = Vec::new();
        while parts.len() > 1 && step > 0 {
            if ordered {
                parts = parts.iter().map(|x| self.combined(op, part, x, step)).collect();
            } else {
                // Of two lanes each combines half of the parts: a sum does not ask which operand comes first.
                let bit = self.def(format!("and i32 {}, {step}", self.lane));
                let upper = self.def(format!("icmp ne i32 {bit}, 0"));
                let t = ty(part);
                let high = parts.split_off(parts.len() / 2);
                let halves: Vec<(String, String)> = parts.into_iter().zip(high).collect();
                parts = Vec::new();
                for (low, high) in halves {
                    let kept = self.def(format!("select i1 {upper}, {t} {high}, {t} {low}"));
                    let given = self.def(format!("select i1 {upper}, {t} {low}, {t} {high}"));
                    let other = self.shuffle(from.elem, &given, "bfly", &step.to_string());
                    parts.push(self.binary_text(op.binary(), part, &kept, &other));
                }
                shared.push(step);
            }
            step /= 2;
        }
        while step > 0 {
            parts = parts.iter().map(|x| self.combined(op, part, x, step)).collect();
            step /= 2;
        }
        while parts.len() > 1 {
            let high = parts.split_off(parts.len() / 2);
            parts = parts.iter().zip(&high).map(|(a, b)| self.binary_text(op.binary(), part, a, b)).collect();
        }
        // Parts that lanes have shared out among them: the first halves were halves of all.
        let x = parts.remove(0);
        shared.into_iter().fold(x, |x, step| self.combined(op, part, &x, step))
    }

    /// The eight elements of each row of a tile of sums combined, of which four lanes have two each.
    fn combined_rows(&mut self, op: ReduceOp, from: ValueType, parts: &[String]) -> Vec<String> {
        let part = ValueType::scalar(from.elem);
        let rows: Vec<String> = parts
            .chunks(2)
            .map(|pair| {
                let own = self.binary_text(op.binary(), part, &pair[0], &pair[1]);
                let two = self.combined(op, part, &own, 1);
                self.combined(op, part, &two, 2)
            })
            .collect();
        rows.into_iter().flat_map(|x| [x.clone(), x]).collect()
    }

    /// What two lanes hold, combined; the lower one's comes first.
    fn combined(&mut self, op: ReduceOp, part: ValueType, x: &str, step: u32) -> String {
        let other = self.shuffle(part.elem, x, "bfly", &step.to_string());
        // Of two zeros or NaN the second is taken.
        if !(matches!(op, ReduceOp::Min | ReduceOp::Max) && part.elem == DType::F32) {
            return self.binary_text(op.binary(), part, x, &other);
        }
        let bit = self.def(format!("and i32 {}, {step}", self.lane));
        let low = self.def(format!("icmp eq i32 {bit}, 0"));
        let first = self.def(format!("select i1 {low}, float {x}, float {other}"));
        let second = self.def(format!("select i1 {low}, float {other}, float {x}"));
        self.binary_text(op.binary(), part, &first, &second)
    }

    /// Products of rows, which the lanes hold as tensor cores take them, added to a tile of sums.
    fn matrix(&mut self, [a, b, mut c]: [Vec<String>; 3]) -> Vec<String> {
        const STRUCT: &str = "{ float, float, float, float }";
        let [a, b] = [a, b].map(|halves| self.joined(&halves, 16, 32));
        for step in [0, 2] {
            // Pairs of elements: two of a row, which the second row's follow, then the next two of either.
            let [a, b] = [vec![&a[step], &a[step + 4], &a[step + 1], &a[step + 5]], vec![&b[step], &b[step + 1]]];
            let words = a.into_iter().chain(b).map(|x| ("i32", x.as_str()));
            let sums = c.iter().map(|x| ("float", x.as_str()));
            let arguments: Vec<(&str, &str)> = words.chain(sums).collect();
            let sums = self.call(STRUCT, "llvm.nvvm.mma.m16n8k16.row.col.bf16", &arguments, "");
            c = (0..4).map(|i| self.def(format!("extractvalue {STRUCT} {sums}, {i}"))).collect();
        }
        c
    }

    /// Loads the addresses of buffers and the values of symbols; `again` where nothing can know that they are the same.
    pub(super) fn launch_arguments(&mut self, again: bool) -> Done {
        self.params.clear();
        let [symbols, args] = ["%symbols", "%args"].map(|list| match again {
            true => self.def(format!("call {GLOBAL} asm sideeffect \"mov.u64 $0, $1;\", \"=l,l\"({GLOBAL} {list})")),
            false => list.to_string(),
        });
        for (i, symbol) in self.k.symbols.iter().enumerate() {
            let at = self.def(format!("getelementptr i64, {GLOBAL} {symbols}, i64 {i}"));
            let name = self.def(format!("load i64, {GLOBAL} {at}, align 8, !invariant.load !0"));
            self.symbols.insert(*symbol, super::emit::Atom { name, depth: 0 });
        }
        for (i, param) in self.k.params.iter().enumerate() {
            let at = self.def(format!("getelementptr i64, {GLOBAL} {args}, i64 {i}"));
            let base = self.def(format!("load {GLOBAL}, {GLOBAL} {at}, align 8, !invariant.load !0"));
            let storage: Storage = self.storage((GLOBAL, base), &param.shape, param.dtype);
            self.params.push(storage);
        }
        Ok(())
    }
}

/// The integer of so many bits.
fn unsigned(bits: u32) -> DType {
    match bits {
        8 => DType::U8,
        16 => DType::F16,
        32 => DType::I32,
        _ => DType::I64,
    }
}
