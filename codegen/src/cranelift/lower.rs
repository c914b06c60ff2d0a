//! Control flow and operations of one kernel.

use super::lanes::{parts, register};
use super::memory::Storage;
use crate::Error;
use cranelift_codegen::Context;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::*;
use cranelift_codegen::ir::{
    AbiParam, Block as Bb, BlockArg, Function, InstBuilder, MemFlagsData, Signature, Type, UserFuncName, Value as V,
};
use cranelift_codegen::isa::{CallConv, OwnedTargetIsa};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use hadal_ir::kernel::*;
use hadal_types::{DType, Dim, Sym};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// `offset + Σ coefficient · atom`; an atom comes with the loop depth from which on it is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Affine {
    pub terms: Vec<(V, u32, i64)>,
    pub offset: i64,
}

/// A kernel value while it is being compiled.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// The registers, or the scalar.
    pub regs: Vec<V>,
    /// Nesting of loops from which on it is known; what is shallower may be computed outside.
    pub depth: u32,
    /// Of an i64 scalar.
    pub affine: Option<Affine>,
    /// Of a constant scalar, or the lanes of a splat constant.
    pub constant: Option<u64>,
    /// Of a splat.
    pub splat: Option<V>,
}

/// What encloses the place where code is being written.
pub(super) enum Frame {
    /// A loop of this depth; `guarded` if it may run zero times, with the allocations that are written in it.
    Loop { depth: u32, guarded: bool, writes: BTreeSet<u32> },
    /// A branch.
    Branch,
}

pub(super) struct Lower<'a, 'f> {
    pub k: &'a Kernel,
    pub b: FunctionBuilder<'f>,
    pub values: Vec<Option<Known>>,
    pub params: Vec<Storage>,
    pub allocs: Vec<Storage>,
    pub symbols: BTreeMap<Sym, V>,
    coords: Vec<Option<Affine>>,
    /// Loop variables and coordinates of the grid: nothing simplifies them to what is known further out.
    pub counters: HashSet<V>,
    pub frames: Vec<Frame>,
    pub depth: u32,
}

/// The function of one kernel.
pub(super) fn lower(kernel: &Kernel, isa: &OwnedTargetIsa) -> Result<Context, Error> {
    let mut signature = Signature::new(CallConv::SystemV);
    signature.params = vec![AbiParam::new(I64); 5];
    let mut context = Context::for_function(Function::with_name_signature(UserFuncName::user(0, 0), signature));
    let mut scratch = FunctionBuilderContext::new();
    let mut lower = Lower {
        k: kernel,
        b: FunctionBuilder::new(&mut context.func, &mut scratch),
        values: vec![None; kernel.values.len()],
        params: Vec::new(),
        allocs: Vec::new(),
        symbols: BTreeMap::new(),
        coords: Vec::new(),
        counters: HashSet::new(),
        frames: Vec::new(),
        depth: 0,
    };
    lower.function()?;
    lower.b.seal_all_blocks();
    lower.b.finalize(isa.frontend_config());
    Ok(context)
}

type Done = Result<(), Error>;

impl<'a> Lower<'a, '_> {
    pub(super) fn unsupported(&self, what: &'static str) -> Error {
        Error::Unsupported { kernel: self.k.name.clone(), what }
    }

    /// Prologue, the loop over grid indices and its body.
    fn function(&mut self) -> Done {
        let entry = self.b.create_block();
        self.b.append_block_params_for_function_params(entry);
        self.b.switch_to_block(entry);
        let [args, symbols, lo, hi, scratch] = self.b.block_params(entry)[..] else { return Ok(()) };
        let pointer = MemFlagsData::trusted().with_readonly().with_can_move();
        for (i, symbol) in self.k.symbols.iter().enumerate() {
            let value = self.b.ins().load(I64, pointer, symbols, 8 * i as i32);
            self.symbols.insert(*symbol, value);
        }
        for (i, param) in self.k.params.iter().enumerate() {
            let base = self.b.ins().load(I64, pointer, args, 8 * i as i32);
            let storage = self.storage(base, &param.shape, param.dtype);
            self.params.push(storage);
        }
        self.lay_out_scratch(scratch);

        let (pre, header, exit) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        let any = self.b.ins().icmp(IntCC::SignedLessThan, lo, hi);
        self.b.ins().brif(any, pre, &[], exit, &[]);
        self.b.switch_to_block(pre);
        let extents: Vec<V> = self.k.grid.iter().map(|d| self.dim(d)).collect();
        let first = self.decompose(lo, &extents);

        let start: Vec<BlockArg> = std::iter::once(lo).chain(first).map(BlockArg::Value).collect();
        self.b.ins().jump(header, &start);
        let index = self.b.append_block_param(header, I64);
        let coords: Vec<V> = extents.iter().map(|_| self.b.append_block_param(header, I64)).collect();
        self.counters.extend(std::iter::once(index).chain(coords.iter().copied()));
        self.b.switch_to_block(header);
        self.depth = 1;
        self.frames.push(Frame::Loop { depth: 1, guarded: true, writes: writes(&self.k.body) });
        self.coords = std::iter::zip(&self.k.grid, &coords)
            .map(|(extent, v)| match (extent.is(1), coords.len()) {
                (true, _) => Some(Affine::default()),
                (false, 1) => Some(Affine { terms: vec![(index, 1, 1)], offset: 0 }),
                (false, _) => Some(Affine { terms: vec![(*v, 1, 1)], offset: 0 }),
            })
            .collect();
        self.block(&self.k.body)?;

        let next = self.b.ins().iadd_imm_s(index, 1);
        let again = self.b.ins().icmp(IntCC::SignedLessThan, next, hi);
        let stepped = self.step_coords(&coords, &extents);
        let args: Vec<BlockArg> = std::iter::once(next).chain(stepped).map(BlockArg::Value).collect();
        self.b.ins().brif(again, header, &args, exit, &[]);
        self.b.switch_to_block(exit);
        self.b.ins().return_(&[]);
        Ok(())
    }

    /// Coordinates of a flattened index.
    fn decompose(&mut self, index: V, extents: &[V]) -> Vec<V> {
        let mut rest = index;
        let mut coords = Vec::new();
        for (i, extent) in extents.iter().enumerate().rev() {
            if i == 0 {
                coords.push(rest);
            } else {
                coords.push(self.b.ins().urem(rest, *extent));
                rest = self.b.ins().udiv(rest, *extent);
            }
        }
        coords.reverse();
        coords
    }

    /// Coordinates of the next index: the last grows, and one that reaches its extent carries to the one before.
    fn step_coords(&mut self, coords: &[V], extents: &[V]) -> Vec<V> {
        let mut next = coords.to_vec();
        let mut carry = self.b.ins().iconst(I64, 1);
        for i in (0..coords.len()).rev() {
            next[i] = self.b.ins().iadd(coords[i], carry);
            if i > 0 {
                let full = self.b.ins().icmp(IntCC::Equal, next[i], extents[i]);
                let zero = self.b.ins().iconst(I64, 0);
                next[i] = self.b.ins().select(full, zero, next[i]);
                carry = self.b.ins().uextend(I64, full);
            }
        }
        next
    }

    /// The value of a size.
    pub(super) fn dim(&mut self, dim: &Dim) -> V {
        let mut sum = self.b.ins().iconst(I64, dim.constant());
        for (symbol, k) in dim.terms() {
            let term = self.b.ins().imul_imm_s(self.symbols[symbol], *k);
            sum = self.b.ins().iadd(sum, term);
        }
        sum
    }

    fn block(&mut self, block: &'a Block) -> Done {
        block.stmts.iter().try_for_each(|stmt| self.stmt(stmt))
    }

    fn stmt(&mut self, stmt: &'a Stmt) -> Done {
        match stmt {
            Stmt::Let(value, op) => {
                let known = self.op(op, self.k.ty(*value))?;
                self.values[value.index()] = Some(known);
                Ok(())
            }
            Stmt::Store { place, value, mask } => self.store(place, *value, *mask),
            // A hint, for which there is no instruction.
            Stmt::Prefetch(_) | Stmt::Alloc(_) => Ok(()),
            Stmt::For(l) => match l.kind {
                LoopKind::Unroll => self.unroll(l),
                // Warps come one after the other.
                LoopKind::Serial | LoopKind::Warp => self.serial(l),
            },
            Stmt::If(c) => self.if_stmt(c),
            Stmt::Team(_) | Stmt::Copy(_) | Stmt::Wgmma(_) | Stmt::Settle(_) => {
                Err(self.unsupported("what warps of a block do together"))
            }
        }
    }

    pub(super) fn known(&self, value: Value) -> &Known {
        self.values[value.index()].as_ref().expect("verified: values are defined before they are used")
    }

    pub(super) fn regs(&self, value: Value) -> Vec<V> {
        self.known(value).regs.clone()
    }

    fn scalar(&self, value: Value) -> V {
        self.known(value).regs[0]
    }

    pub(super) fn affine(&self, value: Value) -> Affine {
        self.known(value).affine.clone().expect("verified: an index is a scalar i64")
    }

    fn constant(&self, value: Value) -> Option<u64> {
        self.known(value).constant
    }

    /// A value with nothing known but its registers.
    fn plain(&self, ty: ValueType, regs: Vec<V>, depth: u32) -> Known {
        let affine = (ty == ValueType::INDEX).then(|| Affine { terms: vec![(regs[0], depth, 1)], offset: 0 });
        Known { regs, depth, affine, constant: None, splat: None }
    }

    fn unroll(&mut self, l: &'a For) -> Done {
        let (lo, hi) = (self.affine(l.lo).offset, self.affine(l.hi).offset);
        self.rebind(&l.init, &l.carried);
        let mut i = lo;
        while i < hi {
            let counter = self.int_const(I64, i);
            self.values[l.var.index()] = Some(counter);
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

    fn int_const(&mut self, ty: Type, x: i64) -> Known {
        let affine = (ty == I64).then_some(Affine { terms: Vec::new(), offset: x });
        let mask = u64::MAX >> (64 - ty.bits());
        let v = self.b.ins().iconst(ty, (x as u64 & mask) as i64);
        Known { regs: vec![v], depth: 0, affine, constant: Some(x as u64 & mask), splat: None }
    }

    /// The registers of `values` as a block takes them: the first of each, then the second of each. Cranelift computes
    /// what a jump takes in the order in which it takes it, so sums that share an operand follow each other, and it
    /// dies early.
    fn args(&self, values: &[Value]) -> Vec<BlockArg> {
        let regs: Vec<&[V]> = values.iter().map(|v| self.known(*v).regs.as_slice()).collect();
        let most = regs.iter().map(|r| r.len()).max().unwrap_or(0);
        (0..most).flat_map(|i| regs.iter().filter_map(move |r| r.get(i)).map(|r| BlockArg::Value(*r))).collect()
    }

    /// Makes `values` the parameters of `block`, in the order of `args`.
    fn bind_params(&mut self, block: Bb, values: &[Value], depth: u32) {
        let types: Vec<Vec<Type>> = values.iter().map(|v| parts(self.k.ty(*v))).collect();
        let mut regs: Vec<Vec<V>> = vec![Vec::new(); values.len()];
        for i in 0..types.iter().map(Vec::len).max().unwrap_or(0) {
            for (regs, types) in regs.iter_mut().zip(&types) {
                regs.extend(types.get(i).map(|ty| self.b.append_block_param(block, *ty)));
            }
        }
        for (value, regs) in values.iter().zip(regs) {
            self.values[value.index()] = Some(self.plain(self.k.ty(*value), regs, depth));
        }
    }

    /// A loop that tests at the top, behind a test whether it runs at all where that is not known. So what the body
    /// computes has one use, the next iteration, and the loads that it needs may become operands of its instructions;
    /// a test at the bottom would need a block of its own to go back through.
    fn serial(&mut self, l: &'a For) -> Done {
        let (lo, hi) = (self.scalar(l.lo), self.scalar(l.hi));
        let bounds = (self.constant(l.lo), self.constant(l.hi));
        if let (Some(lo), Some(hi)) = bounds
            && lo as i64 >= hi as i64
        {
            self.rebind(&l.init, &l.results);
            return Ok(());
        }
        let length = self.affine(l.hi).plus(&self.affine(l.lo), -1).and_then(|n| n.as_const());
        let guarded = length.is_none_or(|n| n <= 0);
        let (header, body, exit) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        let init = self.args(&l.init);
        if guarded {
            let pre = self.b.create_block();
            let any = self.b.ins().icmp(IntCC::SignedLessThan, lo, hi);
            self.b.ins().brif(any, pre, &[], exit, &init);
            self.b.switch_to_block(pre);
        }
        let start: Vec<BlockArg> = std::iter::once(BlockArg::Value(lo)).chain(init).collect();
        self.b.ins().jump(header, &start);
        self.depth += 1;
        self.frames.push(Frame::Loop { depth: self.depth, guarded, writes: writes(&l.body) });
        let index = self.b.append_block_param(header, I64);
        self.counters.insert(index);
        self.values[l.var.index()] = Some(self.plain(ValueType::INDEX, vec![index], self.depth));
        self.bind_params(header, &l.carried, self.depth);
        self.b.switch_to_block(header);
        // In this order the exit comes after the body, whose invariants would not move out of the loop otherwise.
        let over = self.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, index, hi);
        let carried = self.args(&l.carried);
        self.b.ins().brif(over, exit, &carried, body, &[]);
        self.b.switch_to_block(body);
        self.block(&l.body)?;
        let next = self.b.ins().iadd_imm_s(index, l.step);
        let yields = self.args(&l.body.yields);
        let args: Vec<BlockArg> = std::iter::once(BlockArg::Value(next)).chain(yields).collect();
        self.b.ins().jump(header, &args);
        self.frames.pop();
        self.depth -= 1;
        self.bind_params(exit, &l.results, self.depth);
        self.b.switch_to_block(exit);
        Ok(())
    }

    fn if_stmt(&mut self, c: &'a If) -> Done {
        if let Some(cond) = self.constant(c.cond) {
            let chosen = if cond != 0 { &c.then } else { &c.otherwise };
            self.block(chosen)?;
            self.rebind(&chosen.yields, &c.results);
            return Ok(());
        }
        let cond = self.scalar(c.cond);
        let (then, otherwise, join) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.b.ins().brif(cond, then, &[], otherwise, &[]);
        self.frames.push(Frame::Branch);
        for (bb, block) in [(then, &c.then), (otherwise, &c.otherwise)] {
            self.b.switch_to_block(bb);
            self.block(block)?;
            let args = self.args(&block.yields);
            self.b.ins().jump(join, &args);
        }
        self.frames.pop();
        self.bind_params(join, &c.results, self.depth);
        self.b.switch_to_block(join);
        Ok(())
    }

    fn op(&mut self, op: &Op, ty: ValueType) -> Result<Known, Error> {
        let mut depth = 0;
        op.for_each_operand(|v| depth = depth.max(self.known(v).depth));
        let regs = match op {
            Op::Const(c) => return Ok(self.const_value(*c)),
            Op::GridIndex(d) => {
                let affine = self.coords[*d as usize].clone().unwrap_or_default();
                return Ok(match affine.terms.first() {
                    Some((v, ..)) => Known { affine: Some(affine.clone()), ..self.plain(ty, vec![*v], 1) },
                    None => self.int_const(I64, 0),
                });
            }
            Op::Symbol(s) => vec![self.symbols[s]],
            Op::Unary(op, a) => {
                if let (UnaryOp::Neg, Some(x)) = (op, self.known(*a).affine.clone()) {
                    return Ok(self.affine_value(x.scale(-1)));
                }
                let regs = self.regs(*a);
                regs.into_iter().map(|x| self.unary_reg(*op, ty, x)).collect::<Result<_, _>>()?
            }
            Op::Binary(op, a, b) => return self.binary(*op, ty, *a, *b, depth),
            Op::Compare(op, a, b) => return Ok(self.compare(*op, ty, *a, *b, depth)),
            Op::Fma(a, b, c) => {
                let (a, b, c) = (self.regs(*a), self.regs(*b), self.regs(*c));
                (0..a.len()).map(|i| self.b.ins().fma(a[i], b[i], c[i])).collect()
            }
            Op::Select(c, a, b) => {
                let (masks, a, b) = (self.regs(*c), self.regs(*a), self.regs(*b));
                if ty.lanes == 1 {
                    vec![self.b.ins().select(masks[0], a[0], b[0])]
                } else {
                    let masks = self.masks_for(ty.elem, &masks, a.len());
                    (0..a.len()).map(|i| self.b.ins().bitselect(masks[i], a[i], b[i])).collect()
                }
            }
            Op::Cast(a) => {
                let regs = self.regs(*a);
                self.cast(self.k.ty(*a), ty.elem, &regs)
            }
            Op::Bitcast(a) => {
                let (from, mut regs) = (self.k.ty(*a), self.regs(*a));
                if from.elem.is_packed() {
                    regs = self.join_nibbles(&regs);
                }
                match (from.lanes, ty.lanes) {
                    // Lanes are regrouped: those of a scalar are the lowest of a register.
                    (2.., 1) => {
                        let whole = self.bits(regs[0], register(ty.elem).0);
                        vec![self.b.ins().extractlane(whole, 0)]
                    }
                    (1, 2..) => {
                        let low = self.low_lane(from.elem, regs[0]);
                        vec![self.bits(low, register(ty.elem).0)]
                    }
                    _ => regs.into_iter().zip(parts(ty)).map(|(x, t)| self.bits(x, t)).collect(),
                }
            }
            Op::Lookup(table, a) => {
                let (from, mut regs) = (self.k.ty(*a), self.regs(*a));
                if from.lanes == 1 {
                    regs = vec![self.low_lane(from.elem, regs[0])];
                }
                let (table, low) = (self.vector_const(I8X16, *table), self.vector_const(I8X16, [15; 16]));
                let found: Vec<V> = regs
                    .into_iter()
                    .map(|x| {
                        let number = self.b.ins().band(x, low);
                        self.b.ins().swizzle(table, number)
                    })
                    .collect();
                if from.lanes == 1 { vec![self.b.ins().extractlane(found[0], 0)] } else { found }
            }
            Op::Zip(half, a, b) => {
                let (a, b) = (self.regs(*a), self.regs(*b));
                // Two lanes of each source make a register.
                let lanes = (0..a.len() as u32).map(|i| half.first(ty.lanes) + 2 * i);
                let pair = |lane: u32| {
                    let byte = |i: usize| (4 * (lane % 4) as usize + i / 8 * 4 + i % 4 + 16 * (i / 4 % 2)) as u8;
                    ((lane / 4) as usize, std::array::from_fn(byte))
                };
                lanes.map(pair).map(|(i, order)| self.shuffle(parts(ty)[0], a[i], b[i], order)).collect()
            }
            Op::Dot(..) => return Err(self.unsupported("a dot product that should have been expanded")),
            Op::Matrix(..) | Op::Rank(_) | Op::Rows(..) => return Err(self.unsupported("tiles of a warp")),
            Op::Splat(a) => {
                let v = self.scalar(*a);
                let constant = self.constant(*a);
                let regs = match (constant, ty.elem) {
                    (Some(bits), DType::F32 | DType::I32) => {
                        let types = parts(ty);
                        vec![self.splat32(types[0], bits as u32); types.len()]
                    }
                    _ => self.splat(ty, v),
                };
                return Ok(Known { constant, splat: Some(v), ..self.plain(ty, regs, depth) });
            }
            Op::Extract(a, lane) => {
                let (from, regs) = (self.k.ty(*a), self.regs(*a));
                vec![if from.lanes == 1 { regs[0] } else { self.extract(from.elem, &regs, *lane) }]
            }
            Op::Iota => self.iota(ty),
            Op::Reduce(op, a) => {
                let (from, regs) = (self.k.ty(*a), self.regs(*a));
                vec![if from.lanes == 1 { regs[0] } else { self.reduce(*op, from, &regs) }]
            }
            Op::Load { place, mask, fill } => {
                let (regs, depth) = self.load(place, ty, *mask, *fill)?;
                return Ok(self.plain(ty, regs, depth));
            }
        };
        Ok(self.plain(ty, regs, depth))
    }

    fn const_value(&mut self, c: Const) -> Known {
        match c {
            Const::Bool(x) => self.int_const(I8, x as i64),
            Const::I32(x) => self.int_const(I32, x as i64),
            Const::I64(x) => self.int_const(I64, x),
            Const::F32(bits) => {
                let v = self.b.ins().f32const(f32::from_bits(bits));
                Known { regs: vec![v], depth: 0, affine: None, constant: Some(bits as u64), splat: None }
            }
        }
    }

    fn iota(&mut self, ty: ValueType) -> Vec<V> {
        parts(ty)
            .into_iter()
            .enumerate()
            .map(|(i, t)| {
                if !t.is_vector() {
                    return self.b.ins().iconst(t, 0);
                }
                let (lanes, size) = (t.lane_count() as usize, t.lane_type().bytes() as usize);
                let mut bytes = [0; 16];
                for (lane, slot) in bytes.chunks_exact_mut(size).enumerate() {
                    slot.copy_from_slice(&((i * lanes + lane) as u64).to_le_bytes()[..size]);
                }
                self.vector_const(t, bytes)
            })
            .collect()
    }

    fn unary_reg(&mut self, op: UnaryOp, ty: ValueType, x: V) -> Result<V, Error> {
        let float = ty.elem == DType::F32;
        Ok(match op {
            UnaryOp::Neg if float => self.b.ins().fneg(x),
            UnaryOp::Abs if float => self.b.ins().fabs(x),
            UnaryOp::Neg => self.b.ins().ineg(x),
            UnaryOp::Abs => self.b.ins().iabs(x),
            UnaryOp::Not if ty == ValueType::scalar(DType::Bool) => self.b.ins().bxor_imm_u(x, 1),
            UnaryOp::Not => self.b.ins().bnot(x),
            UnaryOp::Sqrt => self.b.ins().sqrt(x),
            UnaryOp::Floor => self.b.ins().floor(x),
            UnaryOp::Pow2Ceil
            | UnaryOp::Exp
            | UnaryOp::Exp2
            | UnaryOp::Log
            | UnaryOp::Sin
            | UnaryOp::Cos
            | UnaryOp::Tanh
            | UnaryOp::Erf => {
                return Err(self.unsupported("a function that should have been expanded"));
            }
        })
    }

    /// An i64 scalar from its affine form.
    fn affine_value(&mut self, form: Affine) -> Known {
        if form.terms.is_empty() {
            return self.int_const(I64, form.offset);
        }
        let depth = form.depth();
        let mut sum = None;
        for (v, _, k) in &form.terms {
            let term = if *k == 1 { *v } else { self.b.ins().imul_imm_s(*v, *k) };
            sum = Some(sum.map_or(term, |s| self.b.ins().iadd(s, term)));
        }
        let mut v = sum.unwrap_or_else(|| self.b.ins().iconst(I64, 0));
        if form.offset != 0 {
            v = self.b.ins().iadd_imm_s(v, form.offset);
        }
        Known { regs: vec![v], depth, affine: Some(form), constant: None, splat: None }
    }

    fn binary(&mut self, op: BinaryOp, ty: ValueType, a: Value, b: Value, depth: u32) -> Result<Known, Error> {
        if let (Some(x), Some(y)) = (&self.known(a).affine, &self.known(b).affine) {
            let form = match (op, x.as_const(), y.as_const()) {
                (BinaryOp::Add, ..) => x.plus(y, 1),
                (BinaryOp::Sub, ..) => x.plus(y, -1),
                (BinaryOp::Mul, _, Some(k)) => Some(x.scale(k)),
                (BinaryOp::Mul, Some(k), _) => Some(y.scale(k)),
                (BinaryOp::Div, Some(x), Some(y)) if y != 0 => Some(Affine::of(x.wrapping_div(y))),
                (BinaryOp::Rem, Some(x), Some(y)) if y != 0 => Some(Affine::of(x.wrapping_rem(y))),
                (BinaryOp::Min, Some(x), Some(y)) => Some(Affine::of(x.min(y))),
                (BinaryOp::Max, Some(x), Some(y)) => Some(Affine::of(x.max(y))),
                _ => None,
            };
            if let Some(form) = form {
                return Ok(self.affine_value(form));
            }
        }
        let (x, y) = (self.regs(a), self.regs(b));
        let int = ty.elem != DType::F32;
        let divides = int && matches!(op, BinaryOp::Div | BinaryOp::Rem);
        let shifts = matches!(op, BinaryOp::Shl | BinaryOp::Shr | BinaryOp::Ushr);
        let regs = if divides && ty.lanes == 1 && self.constant(b).is_some_and(|k| k as i32 != -1) {
            vec![match op {
                BinaryOp::Div => self.b.ins().sdiv(x[0], y[0]),
                _ => self.b.ins().srem(x[0], y[0]),
            }]
        } else if shifts && ty.lanes > 1 && self.known(b).splat.is_some() {
            let count = self.known(b).splat.unwrap_or(y[0]);
            x.iter().map(|x| self.binary_reg(op, ty.elem, *x, count)).collect()
        } else if ty.lanes > 1 && (divides || shifts) {
            self.by_lane(ty, ty, &[&x, &y], &mut |this, v| this.binary_reg(op, ty.elem, v[0], v[1]))
        } else {
            (0..x.len()).map(|i| self.binary_reg(op, ty.elem, x[i], y[i])).collect()
        };
        Ok(self.plain(ty, regs, depth))
    }

    fn compare(&mut self, op: CompareOp, ty: ValueType, a: Value, b: Value, depth: u32) -> Known {
        let elem = self.k.ty(a).elem;
        if let (Some(x), Some(y)) = (&self.known(a).affine, &self.known(b).affine)
            && let Some(d) = x.plus(y, -1).and_then(|d| d.as_const())
        {
            let holds = match op {
                CompareOp::Eq => d == 0,
                CompareOp::Ne => d != 0,
                CompareOp::Lt => d < 0,
                CompareOp::Le => d <= 0,
                CompareOp::Gt => d > 0,
                CompareOp::Ge => d >= 0,
            };
            return self.int_const(I8, holds as i64);
        }
        let (x, y) = (self.regs(a), self.regs(b));
        let mut masks: Vec<V> = (0..x.len()).map(|i| self.compare_reg(op, elem, x[i], y[i])).collect();
        if ty.lanes > 1 && elem == DType::I64 {
            masks = self.narrow_masks(&masks);
        }
        self.plain(ty, masks, depth)
    }

    /// Whether nothing writes the allocation in the innermost loop.
    pub(super) fn settled(&self, alloc: u32) -> bool {
        let innermost = self.frames.iter().rev().find_map(|f| match f {
            Frame::Loop { writes, .. } => Some(writes),
            Frame::Branch => None,
        });
        innermost.is_some_and(|writes| !writes.contains(&alloc))
    }

    /// Whether a pure load from an address known at `depth` may move: moving out of loops must not pass a branch
    /// that would have kept it from running.
    pub(super) fn may_move(&self, depth: u32) -> bool {
        let outer = self.frames.iter().position(|f| matches!(f, Frame::Loop { depth: d, .. } if *d == depth + 1));
        outer.is_none_or(|i| self.frames[i + 1..].iter().all(|f| matches!(f, Frame::Loop { guarded: false, .. })))
    }
}

/// The allocations that a block writes.
fn writes(block: &Block) -> BTreeSet<u32> {
    let mut out = BTreeSet::new();
    for stmt in &block.stmts {
        match stmt {
            Stmt::Store { place, .. } => out.extend(allocation(place)),
            Stmt::Copy(c) => out.extend(allocation(&c.to)),
            Stmt::For(l) => out.extend(writes(&l.body)),
            Stmt::If(c) => out.extend([&c.then, &c.otherwise].into_iter().flat_map(writes)),
            Stmt::Let(..) | Stmt::Prefetch(_) | Stmt::Alloc(_) | Stmt::Team(_) | Stmt::Wgmma(_) | Stmt::Settle(_) => {}
        }
    }
    out
}

fn allocation(place: &Place) -> Option<u32> {
    match place.buf {
        Buf::Alloc(i) => Some(i),
        Buf::Param(_) => None,
    }
}

impl Affine {
    pub(super) fn of(offset: i64) -> Affine {
        Affine { terms: Vec::new(), offset }
    }

    pub(super) fn as_const(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.offset)
    }

    pub(super) fn depth(&self) -> u32 {
        self.terms.iter().map(|(_, depth, _)| *depth).max().unwrap_or(0)
    }

    fn scale(&self, k: i64) -> Affine {
        if k == 0 {
            return Affine::default();
        }
        let terms = self.terms.iter().map(|(v, depth, c)| (*v, *depth, c.wrapping_mul(k)));
        Affine { terms: terms.filter(|t| t.2 != 0).collect(), offset: self.offset.wrapping_mul(k) }
    }

    /// `self + sign · other`, kept short: `None` where it has too many terms to be worth it.
    fn plus(&self, other: &Affine, sign: i64) -> Option<Affine> {
        let mut sum = self.clone();
        sum.offset = sum.offset.wrapping_add(other.offset.wrapping_mul(sign));
        for (v, depth, k) in &other.terms {
            let k = k.wrapping_mul(sign);
            match sum.terms.iter_mut().find(|t| t.0 == *v) {
                Some(term) => term.2 = term.2.wrapping_add(k),
                None => sum.terms.push((*v, *depth, k)),
            }
        }
        sum.terms.retain(|t| t.2 != 0);
        (sum.terms.len() <= 8).then_some(sum)
    }
}
