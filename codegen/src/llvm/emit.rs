//! Control flow of one kernel, as the text of an LLVM module.
//!
//! A value has *parts*, names of LLVM's: on a processor one, a vector of all lanes; on a GPU one for every 32 lanes, each
//! a scalar that every lane of the warp has its own of ([`super::warp`]). Operations lane by lane are written once, for a
//! part; what crosses lanes is written for each.
//!
//! The text is made in one pass: values are named as they are written, and what a block needs from below it (the next
//! values of a loop) is written above it once the body is there. LLVM removes what turns out not to be used.

use super::convert::Pairs;
use super::multiples::Multiples;
use super::types::*;
use super::warp::WARP;
use crate::Error;
use crate::processor::Processor;
use hadal_ir::kernel::*;
use hadal_types::{DType, Dim, Sym};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write;

/// A name whose value an index is made of, and the loop depth from which on it is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Atom {
    pub name: String,
    pub depth: u32,
}

/// `offset + Σ coefficient · atom`.
#[derive(Clone, Debug, Default)]
pub(super) struct Affine {
    pub terms: Vec<(Atom, i64)>,
    pub offset: i64,
}

/// A kernel value that is written.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// The name of each part, or a constant's text.
    pub parts: Vec<String>,
    /// Of an i64 scalar.
    pub affine: Option<Affine>,
    /// Of a constant scalar.
    pub constant: Option<u64>,
    /// Of an f32 that was cast from a smaller format: that format, and the name of what was cast.
    pub small: Option<(DType, String)>,
}

pub(super) struct Emitter<'a> {
    pub k: &'a Kernel,
    pub target: &'a Processor,
    /// The function's body as far as it is written.
    pub out: String,
    pub values: Vec<Option<Known>>,
    /// Codes of four bits, a byte each: the bytes in which they lay in memory, two a byte.
    pub pairs: BTreeMap<String, String>,
    /// Small floats as bf16, by name: so, as words of four, and these moved down by two.
    pub halves: BTreeMap<String, Pairs>,
    pub params: Vec<super::memory::Storage>,
    pub allocs: Vec<super::memory::Storage>,
    pub symbols: BTreeMap<Sym, Atom>,
    pub coords: Vec<Affine>,
    /// The block being written.
    pub label: String,
    next: u32,
    pub depth: u32,
    /// Functions of LLVM that are called.
    declarations: BTreeSet<String>,
    /// On a GPU, the number of this warp in its block, where all of them share a grid index.
    pub team: Option<String>,
    /// On a GPU, the number of this lane in its warp.
    pub lane: String,
    /// On a GPU, whether barriers were brought into being that not all warps know of.
    pub new_barriers: bool,
    /// On a GPU, threads of a block.
    pub threads: u32,
    /// On a GPU, statements before which lanes wait for each other.
    barriers: HashSet<*const Stmt>,
    /// What numbers of elements are multiples of.
    pub multiples: Multiples,
}

/// The module of one kernel for a processor.
pub(super) fn emit(kernel: &Kernel, target: &Processor) -> Result<String, Error> {
    let mut e = Emitter::new(kernel, target);
    e.function()?;
    Ok(e.module())
}

impl<'a> Emitter<'a> {
    pub(super) fn new(kernel: &'a Kernel, target: &'a Processor) -> Emitter<'a> {
        let multiples = Multiples::of(kernel);
        Emitter {
            k: kernel,
            target,
            out: String::new(),
            values: vec![None; kernel.values.len()],
            pairs: BTreeMap::new(),
            halves: BTreeMap::new(),
            params: Vec::new(),
            allocs: Vec::new(),
            symbols: BTreeMap::new(),
            coords: Vec::new(),
            label: "entry".into(),
            next: 0,
            depth: 0,
            declarations: BTreeSet::new(),
            team: None,
            lane: "%lane".into(),
            new_barriers: false,
            threads: 0,
            barriers: if target.is_gpu() { super::barriers::before(kernel, &multiples) } else { HashSet::new() },
            multiples,
        }
    }
}

pub(super) type Done = Result<(), Error>;

impl<'a> Emitter<'a> {
    pub(super) fn unsupported(&self, what: &'static str) -> Error {
        Error::Unsupported { kernel: self.k.name.clone(), what }
    }

    /// Everything around the function's body.
    fn module(self) -> String {
        let mut out = String::new();
        let name = &self.k.name;
        let _ = writeln!(out, "target triple = \"{}\"\n", triple(self.target));
        let parameters = "ptr noalias readonly %args, ptr noalias readonly %symbols, i64 %lo, i64 %hi, ptr noalias align 64 %scratch";
        let _ = writeln!(out, "define void @\"{name}\"({parameters}) #0 {{\nentry:\n{}}}\n", self.out);
        out.push_str(&self.declared());
        // Loops that fill memory stay loops: code calls nothing.
        let attributes = [
            format!("\"target-cpu\"=\"{}\"", cpu(self.target)),
            format!("\"target-features\"=\"{}\"", features(self.target)),
            format!("\"prefer-vector-width\"=\"{0}\" \"min-legal-vector-width\"=\"{0}\"", self.target.vector_bits()),
        ];
        let _ = writeln!(out, "\nattributes #0 = {{ nounwind \"no-builtins\" {} }}\n", attributes.join(" "));
        out.push_str(&super::memory::metadata(self.k));
        out
    }

    /// Functions that are called.
    pub(super) fn declared(&self) -> String {
        self.declarations.iter().map(|d| format!("declare {d}\n")).collect()
    }

    /// Prologue, the loop over grid indices and its body.
    fn function(&mut self) -> Done {
        for (i, symbol) in self.k.symbols.iter().enumerate() {
            let at = self.def(format!("getelementptr i64, ptr %symbols, i64 {i}"));
            let name = self.def(format!("load i64, ptr {at}, align 8, !invariant.load !0"));
            self.symbols.insert(*symbol, Atom { name, depth: 0 });
        }
        for (i, param) in self.k.params.iter().enumerate() {
            let at = self.def(format!("getelementptr ptr, ptr %args, i64 {i}"));
            let base = self.def(format!("load ptr, ptr {at}, align 8, !invariant.load !0"));
            let storage = self.storage(("ptr", base), &param.shape, param.dtype);
            self.params.push(storage);
        }
        self.lay_out_scratch();

        let any = self.def("icmp slt i64 %lo, %hi");
        self.branch(&any, "pre", "exit");
        self.begin("pre");
        let extents: Vec<String> = self.k.grid.iter().map(|d| self.dim(d)).collect();
        let first = self.decompose("%lo", &extents);
        self.jump("grid");
        let outer = std::mem::take(&mut self.out);
        self.label = "grid".into();
        self.depth = 1;
        let coords: Vec<String> = (0..extents.len()).map(|d| format!("%g{d}")).collect();
        self.coords = std::iter::zip(&self.k.grid, &coords)
            .map(|(extent, name)| match (extent.is(1), coords.len()) {
                (true, _) => Affine::default(),
                (false, 1) => Affine::atom("%g", 1),
                (false, _) => Affine::atom(name, 1),
            })
            .collect();
        self.block(&self.k.body)?;
        self.line("%g.next = add nsw i64 %g, 1");
        let again = self.def("icmp slt i64 %g.next, %hi");
        let stepped = self.step_coords(&coords, &extents);
        let latch = self.label.clone();
        self.branch(&again, "grid", "exit");
        let body = std::mem::replace(&mut self.out, outer);
        self.out.push_str("grid:\n");
        self.phi("%g", "i64", &[("%lo", "pre"), ("%g.next", &latch)]);
        for (name, (first, next)) in coords.iter().zip(first.iter().zip(&stepped)) {
            self.phi(name, "i64", &[(first, "pre"), (next, &latch)]);
        }
        self.out.push_str(&body);
        self.begin("exit");
        self.line("ret void");
        Ok(())
    }

    /// Coordinates of a flattened index.
    pub(super) fn decompose(&mut self, index: &str, extents: &[String]) -> Vec<String> {
        let mut rest = index.to_string();
        let mut coords = Vec::new();
        for (i, extent) in extents.iter().enumerate().rev() {
            if i == 0 {
                coords.push(rest.clone());
            } else {
                coords.push(self.def(format!("urem i64 {rest}, {extent}")));
                rest = self.def(format!("udiv i64 {rest}, {extent}"));
            }
        }
        coords.reverse();
        coords
    }

    /// Coordinates of the next index: the last grows, and one that reaches its extent carries to the one before.
    fn step_coords(&mut self, coords: &[String], extents: &[String]) -> Vec<String> {
        let mut next = coords.to_vec();
        let mut carry = "1".to_string();
        for i in (0..coords.len()).rev() {
            next[i] = self.def(format!("add i64 {}, {carry}", coords[i]));
            if i > 0 {
                let full = self.def(format!("icmp eq i64 {}, {}", next[i], extents[i]));
                next[i] = self.def(format!("select i1 {full}, i64 0, i64 {}", next[i]));
                carry = self.def(format!("zext i1 {full} to i64"));
            }
        }
        next
    }

    /// The value of a size.
    pub(super) fn dim(&mut self, dim: &Dim) -> String {
        let mut sum = dim.constant().to_string();
        for (symbol, k) in dim.terms() {
            let name = self.symbols[symbol].name.clone();
            let term = self.def(format!("mul i64 {name}, {k}"));
            sum = self.def(format!("add i64 {sum}, {term}"));
        }
        sum
    }

    // ---- text ----

    /// Writes an instruction with a result and gives its name.
    pub(super) fn def(&mut self, instruction: impl std::fmt::Display) -> String {
        let name = format!("%t{}", self.next);
        self.next += 1;
        let _ = writeln!(self.out, "  {name} = {instruction}");
        name
    }

    /// Writes an instruction without a result.
    pub(super) fn line(&mut self, instruction: impl std::fmt::Display) {
        let _ = writeln!(self.out, "  {instruction}");
    }

    /// Calls one of LLVM's functions. `arguments` come with their types.
    pub(super) fn call(&mut self, result: &str, function: &str, arguments: &[(&str, &str)], suffix: &str) -> String {
        let typed: Vec<String> = arguments.iter().map(|(ty, v)| format!("{ty} {v}")).collect();
        let types: Vec<&str> = arguments.iter().map(|(ty, _)| *ty).collect();
        self.declarations.insert(format!("{result} @{function}({})", types.join(", ")));
        let call = format!("call {result} @{function}({}){suffix}", typed.join(", "));
        if result == "void" {
            self.line(call);
            return String::new();
        }
        self.def(call)
    }

    pub(super) fn phi(&mut self, name: &str, ty: &str, from: &[(&str, &str)]) {
        let from: Vec<String> = from.iter().map(|(value, label)| format!("[ {value}, %{label} ]")).collect();
        self.line(format!("{name} = phi {ty} {}", from.join(", ")));
    }

    pub(super) fn branch(&mut self, cond: &str, yes: &str, no: &str) {
        self.line(format!("br i1 {cond}, label %{yes}, label %{no}"));
    }

    pub(super) fn jump(&mut self, to: &str) {
        self.line(format!("br label %{to}"));
    }

    pub(super) fn begin(&mut self, label: &str) {
        let _ = writeln!(self.out, "{label}:");
        self.label = label.into();
    }

    fn fresh(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    /// Names of blocks to come.
    pub(super) fn labels<const N: usize>(&mut self, names: [&str; N]) -> [String; N] {
        let n = self.fresh();
        names.map(|s| format!("{s}{n}"))
    }

    // ---- statements ----

    pub(super) fn block(&mut self, block: &'a Block) -> Done {
        block.stmts.iter().try_for_each(|stmt| self.stmt(stmt))?;
        self.end_barriers(block);
        Ok(())
    }

    fn stmt(&mut self, stmt: &'a Stmt) -> Done {
        if self.barriers.contains(&std::ptr::from_ref(stmt)) {
            self.warp_barrier();
        }
        match stmt {
            Stmt::Let(value, op) => {
                let known = self.op(op, self.k.ty(*value))?;
                self.values[value.index()] = Some(known);
                Ok(())
            }
            Stmt::Store { place, value, mask } => {
                self.store(place, *value, *mask);
                Ok(())
            }
            Stmt::Prefetch(place) => {
                self.prefetch(place);
                Ok(())
            }
            Stmt::Alloc(i) => {
                self.begin_barriers(*i);
                Ok(())
            }
            Stmt::For(l) => match l.kind {
                LoopKind::Unroll => self.unroll(l),
                LoopKind::Warp if self.team.is_some() => self.shared_by_warps(l),
                LoopKind::Serial | LoopKind::Warp => self.serial(l),
            },
            Stmt::If(c) => self.if_stmt(c),
            Stmt::Team(op) => self.team_op(op),
            Stmt::Copy(c) => self.copy(c),
            Stmt::Wgmma(w) => self.wgmma(w),
            Stmt::Settle(s) => self.settle(s),
        }
    }

    pub(super) fn known(&self, value: Value) -> &Known {
        self.values[value.index()].as_ref().expect("verified: values are defined before they are used")
    }

    /// The only part of a scalar, or of any value on a processor.
    pub(super) fn text(&self, value: Value) -> String {
        self.known(value).parts[0].clone()
    }

    /// The type of a value's parts, and how many it has.
    pub(super) fn split(&self, ty: ValueType) -> (ValueType, usize) {
        match self.target.is_gpu() {
            true => (ValueType::scalar(ty.elem), (ty.lanes as usize / WARP).max(1)),
            false => (ty, 1),
        }
    }

    /// Does something to each part of values of as many lanes. `ty` has as many.
    pub(super) fn by_part<const N: usize>(
        &mut self,
        ty: ValueType,
        operands: [Value; N],
        mut f: impl FnMut(&mut Self, ValueType, [&str; N]) -> String,
    ) -> Vec<String> {
        let (part, count) = self.split(ty);
        let operands = operands.map(|v| self.known(v).parts.clone());
        (0..count).map(|i| f(self, part, operands.each_ref().map(|parts| parts[i].as_str()))).collect()
    }

    pub(super) fn affine(&self, value: Value) -> Affine {
        self.known(value).affine.clone().expect("verified: an index is a scalar i64")
    }

    /// A value with nothing known but its name.
    pub(super) fn plain(&self, ty: ValueType, parts: Vec<String>) -> Known {
        let affine = (ty == ValueType::INDEX).then(|| Affine::atom(&parts[0], self.depth));
        Known { parts, affine, constant: None, small: None }
    }

    pub(super) fn int_const(&self, ty: ValueType, x: i64) -> Known {
        let affine = (ty == ValueType::INDEX).then(|| Affine { terms: Vec::new(), offset: x });
        Known { parts: vec![x.to_string()], affine, constant: Some(x as u64), small: None }
    }

    fn unroll(&mut self, l: &'a For) -> Done {
        let (lo, hi) = (self.affine(l.lo).offset, self.affine(l.hi).offset);
        self.rebind(&l.init, &l.carried);
        let mut i = lo;
        while i < hi {
            self.values[l.var.index()] = Some(self.int_const(ValueType::INDEX, i));
            self.block(&l.body)?;
            self.rebind(&l.body.yields, &l.carried);
            i = i.saturating_add(l.step);
        }
        self.rebind(&l.carried, &l.results);
        Ok(())
    }

    /// Gives `to` what is known of `from`, all at once.
    fn rebind(&mut self, from: &[Value], to: &[Value]) {
        let known: Vec<Known> = from.iter().map(|v| self.known(*v).clone()).collect();
        to.iter().zip(known).for_each(|(v, known)| self.values[v.index()] = Some(known));
    }

    /// What each warp of a block does, after which all wait for each other. All of them do, and know, what is outside.
    fn shared_by_warps(&mut self, l: &'a For) -> Done {
        let (mut team, lane) = (self.team.clone().unwrap_or_default(), self.lane.clone());
        if self.has_roles() {
            (team, self.lane) = self.renumbered();
            self.outside_again()?;
        }
        if std::mem::take(&mut self.new_barriers) {
            self.block_barrier();
        }
        self.values[l.var.index()] = Some(self.plain(ValueType::INDEX, vec![team]));
        self.block(&l.body)?;
        self.lane = lane;
        self.block_barrier();
        Ok(())
    }

    /// What is computed outside of loops, again: from arguments and numbers as they are known now.
    pub(super) fn outside_again(&mut self) -> Done {
        let computed = |stmt: &&Stmt| matches!(stmt, Stmt::Let(_, op) if !matches!(op, Op::Load { .. }));
        self.k.body.stmts.iter().filter(computed).try_for_each(|stmt| self.stmt(stmt))
    }

    /// Names values whose definitions are written later.
    fn name(&mut self, values: &[Value], prefix: &str) {
        let mut next = 0;
        for value in values {
            let (_, count) = self.split(self.k.ty(*value));
            let names = (next..next + count).map(|i| format!("%{prefix}.{i}")).collect();
            self.values[value.index()] = Some(self.plain(self.k.ty(*value), names));
            next += count;
        }
    }

    /// All parts of values, in order.
    fn parts(&self, values: &[Value]) -> Vec<String> {
        values.iter().flat_map(|v| self.known(*v).parts.clone()).collect()
    }

    /// Chooses each part of values by where it comes from: the parts, and the block.
    fn phis(&mut self, values: &[Value], from: &[(&[String], &str)]) {
        let mut next = 0;
        for value in values {
            let (part, _) = self.split(self.k.ty(*value));
            for name in self.known(*value).parts.clone() {
                let from: Vec<(&str, &str)> =
                    from.iter().map(|(parts, label)| (parts[next].as_str(), *label)).collect();
                self.phi(&name, &ty(part), &from);
                next += 1;
            }
        }
    }

    /// A loop that tests at the bottom, behind a test whether it runs at all where that is not known.
    fn serial(&mut self, l: &'a For) -> Done {
        let (lo, hi) = (self.text(l.lo), self.text(l.hi));
        let length = self.affine(l.hi).plus(&self.affine(l.lo), -1).and_then(|n| n.as_const());
        if length.is_some_and(|n| n <= 0) {
            self.rebind(&l.init, &l.results);
            return Ok(());
        }
        let guarded = length.is_none();
        let [pre, header, exit] = self.labels(["pre", "loop", "exit"]);
        let init = self.parts(&l.init);
        let before = self.label.clone();
        if guarded {
            let any = self.def(format!("icmp slt i64 {lo}, {hi}"));
            self.branch(&any, &pre, &exit);
            self.begin(&pre);
        }
        let entered = self.label.clone();
        self.jump(&header);
        let outer = std::mem::take(&mut self.out);
        self.label = header.clone();
        self.depth += 1;
        self.name(&[l.var], &pre);
        let var = self.text(l.var);
        self.name(&l.carried, &header);
        self.block(&l.body)?;
        let next = self.def(format!("add nsw i64 {var}, {}", l.step));
        let again = self.def(format!("icmp slt i64 {next}, {hi}"));
        let yields = self.parts(&l.body.yields);
        let latch = self.label.clone();
        self.branch(&again, &header, &exit);
        self.depth -= 1;

        let body = std::mem::replace(&mut self.out, outer);
        let _ = writeln!(self.out, "{header}:");
        self.phi(&var, "i64", &[(&lo, &entered), (&next, &latch)]);
        self.phis(&l.carried, &[(&init, &entered), (&yields, &latch)]);
        self.out.push_str(&body);
        self.begin(&exit);
        self.name(&l.results, &exit);
        let from = [(init.as_slice(), before.as_str()), (&yields, &latch)];
        self.phis(&l.results, if guarded { &from } else { &from[1..] });
        Ok(())
    }

    fn if_stmt(&mut self, c: &'a If) -> Done {
        if let Some(cond) = self.known(c.cond).constant {
            let chosen = if cond != 0 { &c.then } else { &c.otherwise };
            self.block(chosen)?;
            self.rebind(&chosen.yields, &c.results);
            return Ok(());
        }
        let [then, otherwise, join] = self.labels(["then", "else", "join"]);
        let cond = self.text(c.cond);
        self.branch(&cond, &then, &otherwise);
        let mut arms = Vec::new();
        for (label, block) in [(then, &c.then), (otherwise, &c.otherwise)] {
            self.begin(&label);
            // A role's arguments are its own.
            let role = block.stmts.iter().any(|s| matches!(s, Stmt::Team(TeamOp::Registers(_))));
            let outside = role.then(|| (self.params.clone(), self.symbols.clone(), self.values.clone()));
            self.block(block)?;
            arms.push((self.parts(&block.yields), self.label.clone()));
            if let Some((params, symbols, values)) = outside {
                (self.params, self.symbols, self.values) = (params, symbols, values);
            }
            self.jump(&join);
        }
        self.begin(&join);
        self.name(&c.results, &join);
        let from: Vec<(&[String], &str)> = arms.iter().map(|(v, label)| (v.as_slice(), label.as_str())).collect();
        self.phis(&c.results, &from);
        Ok(())
    }
}

impl Affine {
    pub(super) fn of(offset: i64) -> Affine {
        Affine { terms: Vec::new(), offset }
    }

    pub(super) fn atom(name: &str, depth: u32) -> Affine {
        Affine { terms: vec![(Atom { name: name.into(), depth }, 1)], offset: 0 }
    }

    pub(super) fn as_const(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.offset)
    }

    pub(super) fn scale(&self, k: i64) -> Affine {
        let terms = self.terms.iter().map(|(atom, c)| (atom.clone(), c.wrapping_mul(k))).filter(|t| t.1 != 0);
        Affine { terms: terms.collect(), offset: self.offset.wrapping_mul(k) }
    }

    /// `self + sign · other`, kept short: `None` where it has too many terms to be worth it.
    pub(super) fn plus(&self, other: &Affine, sign: i64) -> Option<Affine> {
        let mut sum = self.clone();
        sum.offset = sum.offset.wrapping_add(other.offset.wrapping_mul(sign));
        for (atom, k) in &other.terms {
            let k = k.wrapping_mul(sign);
            match sum.terms.iter_mut().find(|t| t.0 == *atom) {
                Some(term) => term.1 = term.1.wrapping_add(k),
                None => sum.terms.push((atom.clone(), k)),
            }
        }
        sum.terms.retain(|t| t.1 != 0);
        (sum.terms.len() <= 8).then_some(sum)
    }
}
