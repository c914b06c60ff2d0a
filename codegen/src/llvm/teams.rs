//! What warps of a block do together, as instructions of PTX that LLVM has no names for.
//!
//! A barrier counts warps, whose first lane arrives for all of them; every lane waits. Copies are `cp.async`, as many bytes
//! at once as alignment allows. Tiles of products are swizzled as hardware does it: bits 4 to 6 of an address are
//! exchanged with bits 7 to 9.

use super::emit::{Done, Emitter};
use super::warp::{SHARED, WARP};
use hadal_ir::kernel::*;
use hadal_types::DType;
use std::fmt::Write;

impl<'a> Emitter<'a> {
    /// Runs an assembler text without results.
    fn assembler(&mut self, text: &str, constraints: &str, operands: &[String]) {
        self.line(format!(
            "call void asm sideeffect \"{text}\", \"{constraints}~{{memory}}\"({})",
            operands.join(", ")
        ));
    }

    /// Whether warps wait for each other at barriers of their own, as those of different roles do.
    pub(super) fn has_roles(&self) -> bool {
        self.k.allocs.iter().any(|a| matches!(a.space, Space::Barrier(_)))
    }

    /// The numbers of this warp and lane, got in a way that neither LLVM nor the assembler moves out of the loop over the
    /// grid: what is computed from them would wait in registers, of which roles have few.
    pub(super) fn renumbered(&mut self) -> (String, String) {
        let (thread, lane) = (self.register("tid.x"), self.lane.clone());
        let warp = self.def(format!("lshr i32 {thread}, 5"));
        let warp = self.shuffle(DType::I32, &warp, "idx", "0");
        (self.def(format!("zext i32 {warp} to i64")), self.shuffle(DType::I32, &lane, "idx", &lane))
    }

    /// Runs an instruction that has no operands.
    fn instruct(&mut self, text: &str) {
        self.assembler(text, "", &[]);
    }

    /// The 32-bit address of an element in shared memory.
    fn shared_address(&mut self, place: &Place) -> String {
        let address = self.address(place);
        self.def(format!("ptrtoint {SHARED} {} to i32", address.pointer))
    }

    /// Does something in one lane, of the block or of each warp.
    fn in_one(&mut self, first: &str, does: impl FnOnce(&mut Self)) {
        let [one, join] = self.labels(["one", "join"]);
        let is_first = self.def(format!("icmp eq i32 {first}, 0"));
        self.branch(&is_first, &one, &join);
        self.begin(&one);
        does(self);
        self.jump(&join);
        self.begin(&join);
    }

    /// The addresses of all barriers of an allocation, if it is one of barriers, and who arrives.
    fn barriers_of(&mut self, alloc: u32) -> Option<(Vec<String>, u32)> {
        let Space::Barrier(arrivals) = self.k.allocs[alloc as usize].space else { return None };
        let count = self.k.allocs[alloc as usize].shape.iter().try_fold(1, |n, d| d.as_const().map(|d| n * d))?;
        let base = self.alloc_base(alloc);
        let base = self.def(format!("ptrtoint {SHARED} {base} to i32"));
        Some(((0..count).map(|i| self.def(format!("add i32 {base}, {}", 8 * i))).collect(), arrivals))
    }

    /// Brings barriers into being, which warps have to wait for.
    pub(super) fn begin_barriers(&mut self, alloc: u32) {
        let Some((barriers, arrivals)) = self.barriers_of(alloc) else { return };
        let thread = self.register("tid.x");
        self.in_one(&thread, |e| {
            for at in &barriers {
                let operands = [format!("i32 {at}"), format!("i32 {arrivals}")];
                e.assembler("mbarrier.init.shared::cta.b64 [$0], $1;", "r,r,", &operands);
            }
        });
        self.new_barriers = true;
    }

    /// Takes back those that a block has brought into being, where all warps are in step.
    pub(super) fn end_barriers(&mut self, block: &Block) {
        for stmt in &block.stmts {
            let Stmt::Alloc(alloc) = stmt else { continue };
            let Some((barriers, _)) = self.barriers_of(*alloc) else { continue };
            let thread = self.register("tid.x");
            self.in_one(&thread, |e| {
                for at in &barriers {
                    e.assembler("mbarrier.inval.shared::cta.b64 [$0];", "r,", &[format!("i32 {at}")]);
                }
            });
        }
    }

    pub(super) fn team_op(&mut self, op: &TeamOp) -> Done {
        match op {
            TeamOp::Arrive(place) => {
                let at = self.shared_address(place);
                self.warp_barrier();
                let lane = self.lane.clone();
                self.in_one(&lane, |e| {
                    let text = "{ .reg .b64 s; mbarrier.arrive.shared::cta.b64 s, [$0]; }";
                    e.assembler(text, "r,", &[format!("i32 {at}")]);
                });
            }
            TeamOp::Wait { place, parity } => {
                let at = self.shared_address(place);
                let parity = self.text(*parity);
                let parity = self.def(format!("trunc i64 {parity} to i32"));
                let parity = self.def(format!("and i32 {parity}, 1"));
                let text = "{ .reg .pred p; WAIT_${:uid}: mbarrier.try_wait.parity.shared::cta.b64 p, [$0], $1; \
                            @!p bra WAIT_${:uid}; }";
                self.assembler(text, "r,r,", &[format!("i32 {at}"), format!("i32 {parity}")]);
            }
            TeamOp::Commit => self.instruct("cp.async.commit_group;"),
            TeamOp::AwaitCopies(n) => self.instruct(&format!("cp.async.wait_group {n};")),
            TeamOp::FenceAsync => self.instruct("fence.proxy.async.shared::cta;"),
            TeamOp::Registers(n) => {
                let way = if *n < registers(self.threads) { "dec" } else { "inc" };
                self.instruct(&format!("setmaxnreg.{way}.sync.aligned.u32 {n};"));
                // What a role begins with has to fit into the fewest registers: it gets arguments anew.
                self.launch_arguments(true)?;
                self.outside_again()?;
            }
        }
        Ok(())
    }

    /// Whether units of 16 bytes are permuted within rows of 128 bytes.
    pub(super) fn is_swizzled(&self, buf: Buf) -> bool {
        matches!(buf, Buf::Alloc(i) if self.k.allocs[i as usize].swizzle == Swizzle::B128)
    }

    /// Where a byte of shared memory lies in a permuted row: bits 4 to 6 of its address are exchanged with bits 7 to 9.
    pub(super) fn swizzled(&mut self, at: &str) -> String {
        let row = self.def(format!("lshr i32 {at}, 3"));
        let row = self.def(format!("and i32 {row}, 112"));
        self.def(format!("xor i32 {at}, {row}"))
    }

    pub(super) fn copy(&mut self, c: &AsyncCopy) -> Done {
        let [Some(to), Some(from)] = [&c.to, &c.from].map(|p| p.index.last().copied()) else {
            return Err(self.unsupported("copies of a single element"));
        };
        let runs = self.k.ty(to).lanes;
        let (_, dtype, _) = self.k.buffer(c.to.buf);
        let (each, unit) = (c.lanes / runs, dtype.bits() / 8);
        let bytes = u64::from(each) * unit;
        let element = ValueType::vector(dtype, c.lanes);
        let [a, b] = [&c.to, &c.from].map(|p| self.bits_together(p, element, each as usize) / 8);
        let piece = a.min(b).min(bytes);
        if piece < 4 {
            return Err(self.unsupported("asynchronous copies of what is not aligned to four bytes"));
        }
        let starts = [to, from].map(|v| self.known(v).parts.clone());
        let counts = c.counts.map(|v| self.known(v).parts.clone());
        let [to, from] = [&c.to, &c.from].map(|place| {
            let rest = Place { buf: place.buf, index: place.index[..place.index.len() - 1].to_vec() };
            self.address(&rest)
        });
        // Runs are there several times where they are fewer than lanes.
        let guard = (runs < WARP as u32).then(|| {
            let [some, join] = self.labels(["some", "join"]);
            let own = self.def(format!("icmp ult i32 {}, {runs}", self.lane));
            self.branch(&own, &some, &join);
            self.begin(&some);
            join
        });
        for i in 0..starts[0].len() {
            let offset = |e: &mut Self, start: &str, first: u64| {
                let bytes = e.def(format!("mul i64 {start}, {unit}"));
                e.def(format!("add i64 {bytes}, {first}"))
            };
            for first in (0..bytes).step_by(piece as usize) {
                let target = offset(self, &starts[0][i], first);
                let target = self.def(format!("getelementptr i8, {} {}, i64 {target}", to.space, to.pointer));
                let mut target = self.def(format!("ptrtoint {SHARED} {target} to i32"));
                if to.swizzled {
                    target = self.swizzled(&target);
                }
                let source = offset(self, &starts[1][i], first);
                let source = self.def(format!("getelementptr i8, {} {}, i64 {source}", from.space, from.pointer));
                let cached = if piece == 16 { "cg" } else { "ca" };
                let mut text = format!("cp.async.{cached}.shared.global [$0], [$1], {piece}");
                let mut operands = vec![format!("i32 {target}"), format!("{} {source}", from.space)];
                if let Some(counts) = &counts {
                    let bytes = self.def(format!("mul i64 {}, {unit}", counts[i]));
                    let left = self.def(format!("sub i64 {bytes}, {first}"));
                    let left = self.call("i64", "llvm.smax.i64", &[("i64", &left), ("i64", "0")], "");
                    let left = self.call("i64", "llvm.smin.i64", &[("i64", &left), ("i64", &piece.to_string())], "");
                    operands.push(format!("i32 {}", self.def(format!("trunc i64 {left} to i32"))));
                    text.push_str(", $2");
                }
                let constraints = if operands.len() == 3 { "r,l,r," } else { "r,l," };
                self.assembler(&format!("{text};"), constraints, &operands);
            }
        }
        if let Some(join) = guard {
            self.jump(&join);
            self.begin(&join);
        }
        Ok(())
    }

    /// What tells the hardware where rows of 128 bytes lie, eight of which follow each other, and how far panels are apart.
    fn descriptor(&mut self, place: &Place, panels: Option<u32>) -> String {
        let at = self.shared_address(place);
        let start = self.def(format!("lshr i32 {at}, 4"));
        let start = self.def(format!("and i32 {start}, 16383"));
        let start = self.def(format!("zext i32 {start} to i64"));
        let apart = panels.map_or(1, |elements| i64::from(elements) / 8);
        let fixed = 1i64 << 62 | (SWIZZLE_ALIGN as i64 >> 4) << 32 | apart << 16;
        self.def(format!("or i64 {start}, {fixed}"))
    }

    pub(super) fn wgmma(&mut self, w: &'a Wgmma) -> Done {
        if !self.target.has("sm_90a") {
            return Err(self.unsupported("products of warpgroups on other GPUs than sm_90a"));
        }
        let (_, dtype, _) = self.k.buffer(w.b.buf);
        let (registers, columns) = (4 * w.results.len(), 8 * w.results.len());
        let steps = dtype.bytes(w.depth.into()) / WGMMA_STEP;
        // In registers, four for each step; or from a descriptor on, so many 16 bytes further with each step.
        let (words, rows) = match &w.a {
            WgmmaRows::Tile(place) => (Vec::new(), Some(self.descriptor(place, None))),
            WgmmaRows::Values(values) => {
                let parts = values.iter().flat_map(|v| self.known(*v).parts.clone()).collect::<Vec<_>>();
                (self.joined(&parts, 16, 32), None)
            }
        };
        let rows = rows.map(|rows| (rows, WGMMA_STEP / 16));
        let columns_apart = if w.panels.is_some() { 16 * 128 / 16 } else { WGMMA_STEP / 16 };
        let tiles: Vec<(String, u64)> =
            rows.into_iter().chain([(self.descriptor(&w.b, w.panels), columns_apart)]).collect();
        let across = if w.panels.is_some() { "1" } else { "0" };
        let (format, depth, rest) = match (dtype, &w.a) {
            (DType::F8E4M3, _) => ("e4m3", 32, String::new()),
            (_, WgmmaRows::Tile(_)) => ("bf16", 16, format!(", 0, {across}")),
            (_, WgmmaRows::Values(_)) => ("bf16", 16, format!(", {across}")),
        };
        let sums: Vec<String> = w.sums.iter().flat_map(|v| self.known(*v).parts.clone()).collect();
        let list: Vec<String> = (0..registers).map(|i| format!("${i}")).collect();
        let list = list.join(", ");
        let mut text = "{ .reg .pred p; wgmma.fence.sync.aligned; ".to_string();
        let mut operands: Vec<String> = sums.iter().map(|x| format!("float {x}")).collect();
        for step in 0..steps {
            let added = if step == 0 && sums.is_empty() { "ne.b32 p, 0, 0" } else { "eq.b32 p, 0, 0" };
            let mut named = |operand: String| {
                operands.push(operand);
                format!("${}", registers + operands.len() - 1)
            };
            let mut factors = Vec::new();
            if !words.is_empty() {
                let own = words.iter().skip(4 * step as usize).take(4);
                let own: Vec<String> = own.map(|word| named(format!("i32 {word}"))).collect();
                factors.push(format!("{{{}}}", own.join(", ")));
            }
            for (descriptor, apart) in &tiles {
                let at = self.def(format!("add i64 {descriptor}, {}", step * apart));
                factors.push(named(format!("i64 {at}")));
            }
            let _ = write!(
                text,
                "setp.{added}; wgmma.mma_async.sync.aligned.m64n{columns}k{depth}.f32.{format}.{format} {{{list}}}, {}, p, \
                 1, 1{rest}; ",
                factors.join(", ")
            );
        }
        text.push_str("wgmma.commit_group.sync.aligned; }");
        let mut constraints = vec!["=f".to_string(); registers];
        constraints.extend((0..sums.len()).map(|i| i.to_string()));
        constraints.extend(
            operands.iter().skip(sums.len()).map(|x| if x.starts_with("i32") { "r".into() } else { "l".into() }),
        );
        self.sums(&w.results, &text, constraints, &operands);
        Ok(())
    }

    /// Runs an assembler text whose results are sums.
    fn sums(&mut self, results: &[Value], text: &str, mut constraints: Vec<String>, operands: &[String]) {
        let count = 4 * results.len();
        let ty = format!("{{ {} }}", vec!["float"; count].join(", "));
        constraints.push("~{memory}".into());
        let constraints = constraints.join(",");
        let all = self.def(format!("call {ty} asm sideeffect \"{text}\", \"{constraints}\"({})", operands.join(", ")));
        for (number, value) in results.iter().enumerate() {
            let parts =
                (4 * number..4 * number + 4).map(|i| self.def(format!("extractvalue {ty} {all}, {i}"))).collect();
            self.values[value.index()] = Some(self.plain(MATRIX[2], parts));
        }
    }

    /// Waits for products, through which all their sums pass: nothing reads them before.
    pub(super) fn settle(&mut self, s: &'a Settle) -> Done {
        let text = format!("wgmma.wait_group.sync.aligned {};", s.pending);
        if s.open.is_empty() {
            self.instruct(&text);
            return Ok(());
        }
        let open: Vec<String> = s.open.iter().flat_map(|v| self.known(*v).parts.clone()).collect();
        let operands: Vec<String> = open.iter().map(|x| format!("float {x}")).collect();
        let mut constraints = vec!["=f".to_string(); open.len()];
        constraints.extend((0..open.len()).map(|i| i.to_string()));
        self.sums(&s.results, &text, constraints, &operands);
        Ok(())
    }
}

/// Registers that each thread of a block of so many begins with at most, where it is the only one of a multiprocessor.
fn registers(threads: u32) -> u32 {
    ((64 << 10) / threads.max(1)).min(255) / 8 * 8
}
