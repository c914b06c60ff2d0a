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
use super::memory::{Address, Storage};
use super::multiples::gcd;
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
    e.kernel_function(block, &scratch)?;
    let mut out = format!("target triple = \"{}\"\n\n", triple(target));
    if block.shared_bytes > 0 {
        let _ = writeln!(out, "@shared = external addrspace(3) global [0 x i8], align {ALLOC_ALIGN}\n");
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
const SHARED: &str = "ptr addrspace(3)";

/// Runs of neighbours of each lane.
struct Runs {
    /// Where each begins.
    starts: Vec<String>,
    /// Its elements.
    each: usize,
    /// Elements that are accessed at once.
    together: usize,
    /// The buffer.
    address: Address,
}

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
            self.team = Some(self.def(format!("zext i32 {within} to i64")));
            slot = "0".into();
        }
        let first = self.def(format!("mul i32 {number}, {}", block.indices));
        let first = self.def(format!("add i32 {first}, {slot}"));
        let first = self.def(format!("zext i32 {first} to i64"));
        let total = self.def(format!("mul i32 {blocks}, {}", block.indices));
        let total = self.def(format!("zext i32 {total} to i64"));
        self.launch_arguments()?;
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
        let coords = self.decompose("%g", &extents);
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
    fn register(&mut self, name: &str) -> String {
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
        for (alloc, private) in self.k.allocs.iter().zip(gpu::private(self.k)) {
            let bytes = alloc.bytes().unwrap_or_default();
            let (space, next) = match bytes.as_const() {
                Some(_) if block.shared_bytes > 0 => (SHARED, &mut shared),
                _ => (GLOBAL, &mut scratch),
            };
            let mut base = next.clone();
            let mut bytes = self.rounded(&bytes);
            if let Some(team) = self.team.clone().filter(|_| private) {
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
            let storage = self.storage((space, base), &alloc.shape, alloc.dtype);
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
    fn element(&mut self, lanes: u32, part: usize) -> String {
        match (lanes as usize, part) {
            (1, _) => "0".into(),
            (n, _) if n < WARP => self.def(format!("and i32 %lane, {}", n - 1)),
            (WARP, _) => "%lane".into(),
            (n, part) => {
                let first = self.def(format!("mul i32 %lane, {}", n / WARP));
                if part == 0 { first } else { self.def(format!("add i32 {first}, {part}")) }
            }
        }
    }

    /// What another lane holds: `mode` says how `by` names it.
    fn shuffle(&mut self, elem: DType, x: &str, mode: &str, by: &str) -> String {
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

    fn of(&self, value: Value) -> (ValueType, Vec<String>) {
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

    /// Lanes of two vectors in turn, from element `16·n` on or from the first, where each lane holds n > 1 neighbours:
    /// two lanes get what one lane has.
    fn zip_neighbours(&mut self, from: ValueType, operands: [&[String]; 2], first: usize) -> Vec<String> {
        let (n, t) = (operands[0].len(), ty(ValueType::scalar(from.elem)));
        let source = self.def("lshr i32 %lane, 1");
        let source = if first == 0 { source } else { self.def(format!("add i32 {source}, {first}")) };
        let odd = self.def("trunc i32 %lane to i1");
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
    fn pairs_of_nibbles(&mut self, nibbles: &[String]) -> Vec<String> {
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
    fn joined(&mut self, parts: &[String], have: u32, want: u32) -> Vec<String> {
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

    /// An integer as smaller ones, the lowest bits first.
    fn cut(&mut self, x: &str, have: u32, want: u32) -> Vec<String> {
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
                let bit = self.def(format!("and i32 %lane, {step}"));
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

    /// What two lanes hold, combined; the lower one's comes first.
    fn combined(&mut self, op: ReduceOp, part: ValueType, x: &str, step: u32) -> String {
        let other = self.shuffle(part.elem, x, "bfly", &step.to_string());
        // Of two zeros or NaN the second is taken.
        if !(matches!(op, ReduceOp::Min | ReduceOp::Max) && part.elem == DType::F32) {
            return self.binary_text(op.binary(), part, x, &other);
        }
        let bit = self.def(format!("and i32 %lane, {step}"));
        let low = self.def(format!("icmp eq i32 {bit}, 0"));
        let first = self.def(format!("select i1 {low}, float {x}, float {other}"));
        let second = self.def(format!("select i1 {low}, float {other}, float {x}"));
        self.binary_text(op.binary(), part, &first, &second)
    }

    // ---- memory ----

    /// Where this lane finds its element of a part, and for packed elements how far up its bits are.
    fn lane_address(&mut self, address: &Address, ty: ValueType, part: usize) -> (String, Option<String>) {
        let (pointer, space) = (&address.pointer, address.space);
        let element = self.element(ty.lanes, part);
        let element = match element.starts_with('%') {
            true => self.def(format!("zext i32 {element} to i64")),
            false => element,
        };
        if let Some(flat) = &address.flat {
            let flat = self.def(format!("add i64 {flat}, {element}"));
            let byte = self.def(format!("ashr i64 {flat}, 1"));
            let at = self.def(format!("getelementptr i8, {space} {}, i64 {byte}", address.base));
            let odd = self.def(format!("trunc i64 {flat} to i8"));
            let odd = self.def(format!("and i8 {odd}, 1"));
            return (at, Some(self.def(format!("shl i8 {odd}, 2"))));
        }
        if element == "0" {
            return (pointer.clone(), None);
        }
        let unit = ty.elem.bits() / 8;
        let bytes = self.def(format!("mul i64 {element}, {}", unit.max(1)));
        (self.def(format!("getelementptr i8, {space} {pointer}, i64 {bytes}")), None)
    }

    /// How an access of n > 1 neighbours a lane is made: elements of each, of which a power of two is as many as
    /// alignment and 16 bytes allow. Nothing where elements are accessed one by one.
    fn together(&self, place: &Place, ty: ValueType) -> Option<usize> {
        let (count, bits) = (self.split(ty).1, ty.elem.bits());
        let together = self.bits_together(place, ty, count);
        (count > 1 && together >= 8 && together > bits).then_some((together / bits) as usize)
    }

    /// How many bits of so many neighbours are accessed at once.
    fn bits_together(&self, place: &Place, ty: ValueType, count: usize) -> u64 {
        let align = match place.buf {
            Buf::Param(i) => u64::from(self.k.params[i as usize].align),
            Buf::Alloc(_) => ALLOC_ALIGN,
        };
        // In bits, as elements may have four.
        let bits = ty.elem.bits();
        let known = gcd(gcd(8 * align, self.multiples.flat(self.k, place).saturating_mul(bits)), count as u64 * bits);
        (1 << known.trailing_zeros()).min(128).max(bits)
    }

    /// The parts of what is loaded.
    pub(super) fn load_parts(
        &mut self,
        place: &Place,
        result: ValueType,
        mask: Option<Value>,
        fill: Option<Value>,
    ) -> Vec<String> {
        if let Some(runs) = self.runs(place, result) {
            let [mask, fill] = [mask, fill].map(|v| v.map(|v| self.known(v).parts.clone()));
            return self.load_runs(&runs, result, mask.as_deref(), fill.as_deref());
        }
        let address = self.address(place);
        let [mask, fill] = [mask, fill].map(|v| v.map(|v| self.known(v).parts.clone()));
        let Some(each) = self.together(place, result) else {
            return self.load_each(&address, result, mask.as_deref(), fill.as_deref());
        };
        let Some(mask) = mask else { return self.load_together(&address, result, each) };
        let all = self.all_on(&mask);
        let t = ty(ValueType::scalar(result.elem));
        let [whole, some, join] = self.labels(["whole", "some", "join"]);
        self.branch(&all, &whole, &some);
        self.begin(&whole);
        let loaded = self.load_together(&address, result, each);
        let from_whole = self.label.clone();
        self.jump(&join);
        self.begin(&some);
        let others = self.load_each(&address, result, Some(&mask), fill.as_deref());
        let from_some = self.label.clone();
        self.jump(&join);
        self.begin(&join);
        let pairs = loaded.iter().zip(&others);
        pairs.map(|(a, b)| self.def(format!("phi {t} [ {a}, %{from_whole} ], [ {b}, %{from_some} ]"))).collect()
    }

    /// Whether this lane's part of a mask is on as a whole.
    fn all_on(&mut self, mask: &[String]) -> String {
        let mut all = mask[0].clone();
        for on in &mask[1..] {
            all = self.def(format!("and i1 {all}, {on}"));
        }
        all
    }

    /// Where the runs of a lane begin, and how many elements are accessed at once; nothing where there is one run.
    fn runs(&mut self, place: &Place, ty: ValueType) -> Option<Runs> {
        let last = place.index.last().filter(|v| self.k.ty(**v).lanes > 1)?;
        let starts = self.known(*last).parts.clone();
        // Verified: elements of whole bytes.
        let (bits, each) = (ty.elem.bits(), self.split(ty).1 / starts.len());
        let together = self.bits_together(place, ty, each);
        let rest = Place { buf: place.buf, index: place.index[..place.index.len() - 1].to_vec() };
        let address = self.address(&rest);
        let starts = starts.iter().map(|start| {
            let bytes = self.def(format!("mul i64 {start}, {}", bits / 8));
            self.def(format!("getelementptr i8, {} {}, i64 {bytes}", address.space, address.pointer))
        });
        Some(Runs { starts: starts.collect(), each, together: (together / bits) as usize, address })
    }

    /// Loads runs, under a mask element by element.
    fn load_runs(
        &mut self,
        runs: &Runs,
        result: ValueType,
        mask: Option<&[String]>,
        fill: Option<&[String]>,
    ) -> Vec<String> {
        let (part, bytes) = (self.split(result).0, result.elem.bits() as usize / 8);
        let together = if mask.is_some() { 1 } else { runs.together };
        let mut out = Vec::new();
        for start in &runs.starts {
            for first in (0..runs.each).step_by(together) {
                let (space, offset) = (runs.address.space, first * bytes);
                let at = self.def(format!("getelementptr i8, {space} {start}, i64 {offset}"));
                match mask {
                    None => out.extend(self.load_elements(&runs.address, &at, result, together)),
                    Some(mask) => {
                        let fill = fill.map(|fill| &fill[out.len()][..]);
                        out.push(self.load_if(&mask[out.len()], part, &runs.address, (&at, None), fill));
                    }
                }
            }
        }
        out
    }

    /// Stores runs, under a mask element by element.
    fn store_runs(&mut self, runs: &Runs, from: ValueType, parts: &[String], mask: Option<&[String]>) {
        let bytes = from.elem.bits() as usize / 8;
        let together = if mask.is_some() { 1 } else { runs.together };
        for (start, run) in runs.starts.iter().zip(0..) {
            for first in (0..runs.each).step_by(together) {
                let (space, offset, number) = (runs.address.space, first * bytes, run * runs.each + first);
                let at = self.def(format!("getelementptr i8, {space} {start}, i64 {offset}"));
                let group = &parts[number..number + together];
                let Some(mask) = mask else {
                    self.store_group(&runs.address, &at, from, group);
                    continue;
                };
                let [some, join] = self.labels(["some", "join"]);
                self.branch(&mask[number], &some, &join);
                self.begin(&some);
                self.store_group(&runs.address, &at, from, group);
                self.jump(&join);
                self.begin(&join);
            }
        }
    }

    /// Loads an element where a mask is on.
    fn load_if(
        &mut self,
        on: &str,
        part: ValueType,
        address: &Address,
        (at, shift): (&str, Option<&str>),
        fill: Option<&str>,
    ) -> String {
        let zero = match part.elem {
            DType::F32 | DType::F64 => "0.0".to_string(),
            _ => int(part, 0),
        };
        let [some, join] = self.labels(["some", "join"]);
        let before = self.label.clone();
        self.branch(on, &some, &join);
        self.begin(&some);
        let loaded = self.load_lane(part, (address.space, at), shift, &address.notes);
        self.jump(&join);
        self.begin(&join);
        let fill = fill.unwrap_or(&zero);
        self.def(format!("phi {} [ {loaded}, %{some} ], [ {fill}, %{before} ]", ty(part)))
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

    /// Loads all parts, so many elements at once.
    fn load_together(&mut self, address: &Address, result: ValueType, each: usize) -> Vec<String> {
        let count = self.split(result).1;
        let mut out = Vec::new();
        for first in (0..count).step_by(each) {
            let at = self.piece(address, result, first);
            out.extend(self.load_elements(address, &at, result, each));
        }
        out
    }

    /// Loads so many elements at once.
    fn load_elements(&mut self, address: &Address, at: &str, result: ValueType, each: usize) -> Vec<String> {
        let bits = result.elem.bits() as usize;
        let words = self.load_words(address.space, at, each * bits, &address.notes);
        if bits == 64 {
            let whole = self.joined(&words, 32, 64);
            let real = result.elem == DType::F64;
            let cast = |x: String| if real { self.def(format!("bitcast i64 {x} to double")) } else { x };
            return whole.into_iter().map(cast).collect();
        }
        let width = (each * bits).min(32);
        words.iter().flat_map(|word| self.elements_of(word, width as u32, result.elem)).collect()
    }

    /// Where this lane's elements from part `first` on lie; the first of them begins a byte.
    fn piece(&mut self, address: &Address, ty: ValueType, first: usize) -> String {
        let element = self.element(ty.lanes, first);
        let element = self.def(format!("zext i32 {element} to i64"));
        let bits = ty.elem.bits();
        let bytes = match bits {
            4 => self.def(format!("lshr i64 {element}, 1")),
            _ => self.def(format!("mul i64 {element}, {}", bits / 8)),
        };
        self.def(format!("getelementptr i8, {} {}, i64 {bytes}", address.space, address.pointer))
    }

    /// Loads so many bits as words of 32, or as one smaller word.
    fn load_words(&mut self, space: &str, at: &str, bits: usize, notes: &str) -> Vec<String> {
        let align = bits / 8;
        match bits / 32 {
            0 => vec![self.def(format!("load i{bits}, {space} {at}, align {align}{notes}"))],
            1 => vec![self.def(format!("load i32, {space} {at}, align {align}{notes}"))],
            n => {
                let all = self.def(format!("load <{n} x i32>, {space} {at}, align {align}{notes}"));
                (0..n).map(|i| self.def(format!("extractelement <{n} x i32> {all}, i64 {i}"))).collect()
            }
        }
    }

    /// The elements that lie in a word.
    fn elements_of(&mut self, word: &str, width: u32, dtype: DType) -> Vec<String> {
        match (dtype, dtype.bits() as u32) {
            (DType::F32, _) => vec![self.def(format!("bitcast i32 {word} to float"))],
            (DType::Bool, _) => {
                let bytes = self.cut_or_whole(word, width, 8);
                bytes.iter().map(|b| self.def(format!("icmp ne i8 {b}, 0"))).collect()
            }
            (_, 4) => {
                let bytes = self.cut_or_whole(word, width, 8);
                let nibbles =
                    |e: &mut Self, b: &str| [e.def(format!("and i8 {b}, 15")), e.def(format!("lshr i8 {b}, 4"))];
                bytes.iter().flat_map(|b| nibbles(self, b)).collect()
            }
            (_, bits) => self.cut_or_whole(word, width, bits),
        }
    }

    fn cut_or_whole(&mut self, word: &str, width: u32, bits: u32) -> Vec<String> {
        if width == bits { vec![word.to_owned()] } else { self.cut(word, width, bits) }
    }

    /// Loads each part by itself.
    fn load_each(
        &mut self,
        address: &Address,
        result: ValueType,
        mask: Option<&[String]>,
        fill: Option<&[String]>,
    ) -> Vec<String> {
        let (part, count) = self.split(result);
        (0..count)
            .map(|i| {
                let (at, shift) = self.lane_address(address, result, i);
                let at = (&at[..], shift.as_deref());
                match mask {
                    None => self.load_lane(part, (address.space, at.0), at.1, &address.notes),
                    Some(mask) => self.load_if(&mask[i], part, address, at, fill.map(|f| &f[i][..])),
                }
            })
            .collect()
    }

    fn load_lane(&mut self, part: ValueType, (space, at): (&str, &str), shift: Option<&str>, notes: &str) -> String {
        let bits = part.elem.bits();
        match (part.elem, shift) {
            (_, Some(shift)) => {
                let byte = self.def(format!("load i8, {space} {at}, align 1{notes}"));
                let moved = self.def(format!("lshr i8 {byte}, {shift}"));
                self.def(format!("and i8 {moved}, 15"))
            }
            (DType::Bool, None) => {
                let byte = self.def(format!("load i8, {space} {at}, align 1{notes}"));
                self.def(format!("icmp ne i8 {byte}, 0"))
            }
            _ => self.def(format!("load {}, {space} {at}, align {}{notes}", ty(part), bits / 8)),
        }
    }

    pub(super) fn store_parts(&mut self, place: &Place, value: Value, mask: Option<Value>) {
        let (from, parts) = self.of(value);
        if let Some(runs) = self.runs(place, from) {
            let mask = mask.map(|m| self.known(m).parts.clone());
            return self.store_runs(&runs, from, &parts, mask.as_deref());
        }
        let address = self.address(place);
        let mask = mask.map(|m| self.known(m).parts.clone());
        let Some(each) = self.together(place, from) else {
            return self.store_each(&address, from, &parts, mask.as_deref());
        };
        let Some(mask) = mask else { return self.store_together(&address, from, &parts, each) };
        let all = self.all_on(&mask);
        let [whole, some, join] = self.labels(["whole", "some", "join"]);
        self.branch(&all, &whole, &some);
        self.begin(&whole);
        self.store_together(&address, from, &parts, each);
        self.jump(&join);
        self.begin(&some);
        self.store_each(&address, from, &parts, Some(&mask));
        self.jump(&join);
        self.begin(&join);
    }

    /// Stores all parts, so many elements at once.
    fn store_together(&mut self, address: &Address, from: ValueType, parts: &[String], each: usize) {
        for (i, group) in parts.chunks(each).enumerate() {
            let at = self.piece(address, from, i * each);
            self.store_group(address, &at, from, group);
        }
    }

    /// Stores neighbours at once.
    fn store_group(&mut self, address: &Address, at: &str, from: ValueType, group: &[String]) {
        let bits = from.elem.bits() as u32;
        let (words, width) = match from.elem {
            DType::F32 => (group.iter().map(|x| self.def(format!("bitcast float {x} to i32"))).collect(), 32),
            DType::F64 => (group.iter().map(|x| self.def(format!("bitcast double {x} to i64"))).collect(), 64),
            DType::Bool => (group.iter().map(|x| self.def(format!("zext i1 {x} to i8"))).collect(), 8),
            _ if bits == 4 => (self.pairs_of_nibbles(group), 8),
            _ => (group.to_vec(), bits),
        };
        let all = words.len() as u32 * width;
        let words: Vec<String> = match (width, all.min(32)) {
            (64, _) => words.iter().flat_map(|x| self.cut(x, 64, 32)).collect(),
            (have, want) if have == want => words,
            (have, want) => self.joined(&words, have, want),
        };
        let (space, notes, align) = (address.space, &address.notes, all / 8);
        if let [word] = &words[..] {
            self.line(format!("store i{} {word}, {space} {at}, align {align}{notes}", all.min(32)));
            return;
        }
        let n = words.len();
        let mut vector = "poison".to_owned();
        for (i, word) in words.iter().enumerate() {
            vector = self.def(format!("insertelement <{n} x i32> {vector}, i32 {word}, i64 {i}"));
        }
        self.line(format!("store <{n} x i32> {vector}, {space} {at}, align {align}{notes}"));
    }

    /// Stores each part by itself.
    fn store_each(&mut self, address: &Address, from: ValueType, parts: &[String], mask: Option<&[String]>) {
        if from.elem.is_packed() && parts.len() > 1 {
            // Pairs are on or off together.
            let bytes = self.pairs_of_nibbles(parts);
            let pairs =
                mask.map(|m| m.chunks_exact(2).map(|m| self.def(format!("or i1 {}, {}", m[0], m[1]))).collect());
            let mask: Option<Vec<String>> = pairs;
            let as_bytes = ValueType::vector(DType::U8, from.lanes / 2);
            let plain = Address { flat: None, ..address.clone() };
            return self.store_each(&plain, as_bytes, &bytes, mask.as_deref());
        }
        for (i, x) in parts.iter().enumerate() {
            // Elements are there several times where they are fewer than lanes.
            let mut wanted =
                (from.lanes < WARP as u32).then(|| self.def(format!("icmp ult i32 %lane, {}", from.lanes)));
            let mut x = x.clone();
            let mut on = mask.map(|m| m[i].clone());
            let (stored, bits) = match from.elem {
                DType::Bool => {
                    x = self.def(format!("zext i1 {x} to i8"));
                    ("i8", 8)
                }
                // The even lane of a pair stores both.
                d if d.is_packed() => {
                    let high = self.shuffle(d, &x, "bfly", "1");
                    let high = self.def(format!("shl i8 {high}, 4"));
                    x = self.def(format!("or i8 {x}, {high}"));
                    on = on.map(|on| {
                        let other = self.shuffle(DType::Bool, &on, "bfly", "1");
                        self.def(format!("or i1 {on}, {other}"))
                    });
                    let odd = self.def("trunc i32 %lane to i1");
                    let even = self.def(format!("xor i1 {odd}, true"));
                    on = Some(on.map_or_else(|| even.clone(), |on| self.def(format!("and i1 {on}, {even}"))));
                    ("i8", 8)
                }
                d => (elem(d), d.bits()),
            };
            wanted = match (wanted, on) {
                (Some(a), Some(b)) => Some(self.def(format!("and i1 {a}, {b}"))),
                (a, b) => a.or(b),
            };
            let (at, _) = self.lane_address(address, from, i);
            let store = format!("store {stored} {x}, {} {at}, align {}{}", address.space, bits / 8, address.notes);
            let Some(wanted) = wanted else {
                self.line(store);
                continue;
            };
            let [some, join] = self.labels(["some", "join"]);
            self.branch(&wanted, &some, &join);
            self.begin(&some);
            self.line(store);
            self.jump(&join);
            self.begin(&join);
        }
    }

    /// Addresses of buffers and values of symbols.
    fn launch_arguments(&mut self) -> Done {
        for (i, symbol) in self.k.symbols.iter().enumerate() {
            let at = self.def(format!("getelementptr i64, {GLOBAL} %symbols, i64 {i}"));
            let name = self.def(format!("load i64, {GLOBAL} {at}, align 8, !invariant.load !0"));
            self.symbols.insert(*symbol, super::emit::Atom { name, depth: 0 });
        }
        for (i, param) in self.k.params.iter().enumerate() {
            let at = self.def(format!("getelementptr i64, {GLOBAL} %args, i64 {i}"));
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
