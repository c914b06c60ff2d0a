//! Writes kernels from Rust.
//!
//! Constants, symbols, grid indices and integer arithmetic on them go to the top of the kernel, once each, wherever
//! they are asked for, and integer arithmetic on constants is done here: generators may ask freely. A scalar meeting
//! a vector is splat. Mistakes are not reported here but by [`super::verify`].

use super::*;
use std::collections::{BTreeSet, HashMap};

/// Builds one kernel; statements go to the innermost open block.
pub struct Builder {
    kernel: Kernel,
    top: Vec<Stmt>,
    hoisted: HashMap<(Op, ValueType), Value>,
    at_top: Vec<bool>,
    constants: HashMap<Value, i64>,
    open: Vec<Vec<Stmt>>,
}

impl Builder {
    /// A kernel of this name with an empty body and a grid of one index.
    pub fn new(name: impl Into<String>) -> Self {
        Builder {
            kernel: Kernel {
                name: name.into(),
                symbols: Vec::new(),
                params: Vec::new(),
                grid: Vec::new(),
                values: Vec::new(),
                allocs: Vec::new(),
                body: Block::default(),
            },
            top: Vec::new(),
            hoisted: HashMap::new(),
            at_top: Vec::new(),
            constants: HashMap::new(),
            open: vec![Vec::new()],
        }
    }

    /// The finished kernel. Its symbols are those it mentions, sorted.
    pub fn finish(mut self) -> Kernel {
        let mut stmts = self.top;
        stmts.append(&mut self.open.pop().unwrap_or_default());
        self.kernel.body = Block { stmts, yields: Vec::new() };
        let mut symbols: BTreeSet<Sym> = self.kernel.symbols.iter().copied().collect();
        let dims = self.kernel.params.iter().flat_map(|p| &p.shape).chain(&self.kernel.grid);
        for dim in dims.chain(self.kernel.allocs.iter().flat_map(|a| &a.shape)) {
            symbols.extend(dim.terms().iter().map(|(s, _)| *s));
        }
        symbols.extend(self.hoisted.keys().filter_map(|(op, _)| match op {
            Op::Symbol(s) => Some(*s),
            _ => None,
        }));
        self.kernel.symbols = symbols.into_iter().collect();
        self.kernel.renumber();
        self.kernel
    }

    /// Adds a buffer in global memory; the order of calls is the order of arguments.
    pub fn param(
        &mut self,
        name: impl Into<String>,
        dtype: DType,
        shape: impl IntoIterator<Item = impl Into<Dim>>,
        access: Access,
    ) -> Buf {
        let shape = shape.into_iter().map(Into::into).collect();
        self.kernel.params.push(Param { name: name.into(), dtype, shape, access, align: 1 });
        Buf::Param(self.kernel.params.len() as u32 - 1)
    }

    /// Sets the extents of the grid and gives the coordinates of a grid index.
    pub fn grid(&mut self, extents: impl IntoIterator<Item = impl Into<Dim>>) -> Vec<Value> {
        self.kernel.grid = extents.into_iter().map(Into::into).collect();
        (0..self.kernel.grid.len() as u32).map(|d| self.grid_index(d)).collect()
    }

    /// Adds one more dimension to the grid and gives the coordinate.
    pub fn grid_dim(&mut self, extent: impl Into<Dim>) -> Value {
        self.kernel.grid.push(extent.into());
        self.grid_index(self.kernel.grid.len() as u32 - 1)
    }

    /// The coordinate in dimension `dim` of the grid.
    pub fn grid_index(&mut self, dim: u32) -> Value {
        self.op(Op::GridIndex(dim), ValueType::INDEX)
    }

    /// An allocation private to the grid index (or thread), alive from here to the end of the open block.
    pub fn alloc(
        &mut self,
        name: impl Into<String>,
        dtype: DType,
        shape: impl IntoIterator<Item = impl Into<Dim>>,
    ) -> Buf {
        self.alloc_in(Space::Local, Swizzle::None, name, dtype, shape)
    }

    /// An allocation in `space` with a layout.
    pub fn alloc_in(
        &mut self,
        space: Space,
        swizzle: Swizzle,
        name: impl Into<String>,
        dtype: DType,
        shape: impl IntoIterator<Item = impl Into<Dim>>,
    ) -> Buf {
        let shape = shape.into_iter().map(Into::into).collect();
        self.kernel.allocs.push(Alloc { name: name.into(), dtype, shape, space, swizzle });
        let index = self.kernel.allocs.len() as u32 - 1;
        self.stmt(Stmt::Alloc(index));
        Buf::Alloc(index)
    }

    /// The type of a value.
    pub fn ty(&self, value: Value) -> ValueType {
        self.kernel.ty(value)
    }

    /// Format of a buffer's elements.
    pub fn dtype(&self, buf: Buf) -> DType {
        self.kernel.buffer(buf).1
    }

    /// Shape of a buffer.
    pub fn shape(&self, buf: Buf) -> &[Dim] {
        self.kernel.buffer(buf).2
    }

    /// The value of an i64 that is known while building.
    pub fn as_const(&self, value: Value) -> Option<i64> {
        self.constants.get(&value).copied()
    }

    // ---- values ----

    /// An f32 constant.
    pub fn const_f32(&mut self, x: f32) -> Value {
        self.constant(Const::F32(x.to_bits()))
    }

    /// An i64 constant.
    pub fn const_i64(&mut self, x: i64) -> Value {
        self.constant(Const::I64(x))
    }

    /// An i32 constant.
    pub fn const_i32(&mut self, x: i32) -> Value {
        self.constant(Const::I32(x))
    }

    /// A truth value.
    pub fn const_bool(&mut self, x: bool) -> Value {
        self.constant(Const::Bool(x))
    }

    /// A constant.
    pub fn constant(&mut self, c: Const) -> Value {
        let value = self.op(Op::Const(c), ValueType::scalar(c.dtype()));
        if let Const::I64(x) = c {
            self.constants.insert(value, x);
        }
        value
    }

    /// The value of a symbol.
    pub fn sym(&mut self, sym: Sym) -> Value {
        self.op(Op::Symbol(sym), ValueType::INDEX)
    }

    /// The value of an affine form.
    pub fn dim(&mut self, dim: &Dim) -> Value {
        let mut sum = self.const_i64(dim.constant());
        for (sym, k) in dim.terms() {
            let (s, k) = (self.sym(*sym), self.const_i64(*k));
            let term = self.mul(s, k);
            sum = self.add(sum, term);
        }
        sum
    }

    /// One operand, lane by lane.
    pub fn unary(&mut self, op: UnaryOp, a: Value) -> Value {
        self.op(Op::Unary(op, a), self.ty(a))
    }

    /// Two operands, lane by lane; a scalar meeting a vector is splat.
    pub fn binary(&mut self, op: BinaryOp, a: Value, b: Value) -> Value {
        if let Some(value) = self.fold(op, a, b) {
            return value;
        }
        let (a, b) = self.same_lanes(a, b);
        self.op(Op::Binary(op, a, b), self.ty(a))
    }

    /// A comparison, lane by lane.
    pub fn compare(&mut self, op: CompareOp, a: Value, b: Value) -> Value {
        let (a, b) = self.same_lanes(a, b);
        self.op(Op::Compare(op, a, b), self.ty(a).with_elem(DType::Bool))
    }

    /// `a * b + c`, rounded once.
    pub fn fma(&mut self, a: Value, b: Value, c: Value) -> Value {
        let lanes = self.ty(a).lanes.max(self.ty(b).lanes).max(self.ty(c).lanes);
        let [a, b, c] = [a, b, c].map(|v| self.splat(v, lanes));
        self.op(Op::Fma(a, b, c), self.ty(a))
    }

    /// `a` where `cond`, else `b`.
    pub fn select(&mut self, cond: Value, a: Value, b: Value) -> Value {
        let lanes = self.ty(cond).lanes.max(self.ty(a).lanes).max(self.ty(b).lanes);
        let [cond, a, b] = [cond, a, b].map(|v| self.splat(v, lanes));
        self.op(Op::Select(cond, a, b), self.ty(a))
    }

    /// Conversion to another format, through f32 where it takes two steps; nothing where it has that format already.
    pub fn cast(&mut self, a: Value, elem: DType) -> Value {
        let ty = self.ty(a);
        if ty.elem == elem {
            return a;
        }
        let a = if verify::can_cast(ty.elem, elem) { a } else { self.cast(a, DType::F32) };
        self.op(Op::Cast(a), ty.with_elem(elem))
    }

    /// The same bits as another format, in more or fewer lanes where its width is another.
    pub fn bitcast(&mut self, a: Value, elem: DType) -> Value {
        let ty = self.ty(a);
        let lanes = (ty.lanes as u64 * ty.elem.bits()).div_ceil(elem.bits()) as u32;
        self.op(Op::Bitcast(a), ValueType::vector(elem, lanes))
    }

    /// The bytes, as `elem` (u8 or i8), of a table that lanes number by their low four bits.
    pub fn lookup(&mut self, table: [u8; 16], a: Value, elem: DType) -> Value {
        self.op(Op::Lookup(table, a), self.ty(a).with_elem(elem))
    }

    /// Lanes of `a` and `b` in turn, from this half of each.
    pub fn zip(&mut self, half: Half, a: Value, b: Value) -> Value {
        self.op(Op::Zip(half, a, b), self.ty(a))
    }

    /// As many vectors as each has lanes, a power of two, turned: lane `i` of the `j`th becomes lane `j` of the `i`th.
    pub fn transpose(&mut self, mut rows: Vec<Value>) -> Vec<Value> {
        let half = rows.len() / 2;
        for _ in 0..rows.len().ilog2() {
            let pairs = (0..half).flat_map(|i| [Half::Low, Half::High].map(|h| self.zip(h, rows[i], rows[i + half])));
            rows = pairs.collect();
        }
        rows
    }

    /// Products of groups of neighbouring lanes of `a` and `b`, added to `c`.
    pub fn dot(&mut self, a: Value, b: Value, c: Value) -> Value {
        self.op(Op::Dot(a, b, c), self.ty(c))
    }

    /// Products of 16 rows and 8 rows of 32 elements, added to a tile of sums; see [`matrix_place`].
    pub fn matrix(&mut self, a: Value, b: Value, c: Value) -> Value {
        self.op(Op::Matrix(a, b, c), self.ty(c))
    }

    /// A scalar in every one of `lanes` lanes; nothing where it has that many already.
    pub fn splat(&mut self, a: Value, lanes: u32) -> Value {
        let ty = self.ty(a);
        if ty.lanes == lanes { a } else { self.op(Op::Splat(a), ValueType::vector(ty.elem, lanes)) }
    }

    /// One lane of a vector.
    pub fn extract(&mut self, a: Value, lane: u32) -> Value {
        self.op(Op::Extract(a, lane), ValueType::scalar(self.ty(a).elem))
    }

    /// 0, 1, 2, … in `lanes` lanes of `elem` (i32 or i64).
    pub fn iota(&mut self, elem: DType, lanes: u32) -> Value {
        self.op(Op::Iota, ValueType::vector(elem, lanes))
    }

    /// All lanes combined by halves; nothing for a scalar.
    pub fn reduce_lanes(&mut self, op: ReduceOp, a: Value) -> Value {
        let ty = self.ty(a);
        if ty.lanes == 1 { a } else { self.op(Op::Reduce(op, a), ValueType::scalar(ty.elem)) }
    }

    /// As many vectors as each has lanes, a power of two, to one: its lane `i` is the sum of the lanes of the `i`th,
    /// added in the order of [`Builder::reduce_lanes`].
    pub fn sum_each(&mut self, mut rows: Vec<Value>) -> Value {
        while rows.len() > 1 {
            let (left, right) = rows.split_at(rows.len() / 2);
            let halve = |(a, c): (&Value, &Value)| {
                let [low, high] = [Half::Low, Half::High].map(|h| self.zip(h, *a, *c));
                self.add(low, high)
            };
            rows = left.iter().zip(right).map(halve).collect();
        }
        rows[0]
    }

    // ---- memory ----

    /// `lanes` consecutive elements from `index` on.
    pub fn load(&mut self, buf: Buf, index: &[Value], lanes: u32) -> Value {
        let ty = ValueType::vector(self.dtype(buf), lanes);
        self.op(Op::Load { place: place(buf, index), mask: None, fill: None }, ty)
    }

    /// As `load`, where lanes with a false mask are `fill` (zero without one) and touch no memory.
    pub fn load_masked(&mut self, buf: Buf, index: &[Value], mask: Value, fill: Option<Value>) -> Value {
        let ty = ValueType::vector(self.dtype(buf), self.ty(mask).lanes);
        let fill = fill.map(|f| self.splat(f, ty.lanes));
        self.op(Op::Load { place: place(buf, index), mask: Some(mask), fill }, ty)
    }

    /// Asks for an element's cache line; it may lie outside the buffer.
    pub fn prefetch(&mut self, buf: Buf, index: &[Value]) {
        self.stmt(Stmt::Prefetch(place(buf, index)));
    }

    /// Writes the value's lanes to consecutive elements from `index` on, cast to the buffer's format.
    pub fn store(&mut self, buf: Buf, index: &[Value], value: Value) {
        let value = self.cast(value, self.dtype(buf));
        self.stmt(Stmt::Store { place: place(buf, index), value, mask: None });
    }

    /// As `store`, for the lanes where the mask is true.
    pub fn store_masked(&mut self, buf: Buf, index: &[Value], value: Value, mask: Value) {
        let value = self.cast(value, self.dtype(buf));
        let value = self.splat(value, self.ty(mask).lanes);
        self.stmt(Stmt::Store { place: place(buf, index), value, mask: Some(mask) });
    }

    /// The mask of lanes `i` with `start + i < end`.
    pub fn lanes_below(&mut self, start: Value, end: Value, lanes: u32) -> Value {
        let iota = self.iota(DType::I64, lanes);
        let left = self.sub(end, start);
        self.lt(iota, left)
    }

    // ---- control ----

    /// A loop carrying values. `body` gets the counter and the carried values and gives their next values; the
    /// results are what they are at the end.
    pub fn for_loop(
        &mut self,
        lo: Value,
        hi: Value,
        step: i64,
        kind: LoopKind,
        init: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let var = self.define(ValueType::INDEX);
        let carried: Vec<Value> = init.iter().map(|v| self.define(self.ty(*v))).collect();
        let body = self.block(|b| body(b, var, &carried));
        let results: Vec<Value> = init.iter().map(|v| self.define(self.ty(*v))).collect();
        let init = init.to_vec();
        self.stmt(Stmt::For(Box::new(For { kind, var, lo, hi, step, carried, init, body, results: results.clone() })));
        results
    }

    /// A loop that carries nothing.
    pub fn for_each(&mut self, lo: Value, hi: Value, step: i64, kind: LoopKind, body: impl FnOnce(&mut Self, Value)) {
        self.for_loop(lo, hi, step, kind, &[], |b, i, _| {
            body(b, i);
            Vec::new()
        });
    }

    /// A choice whose branches give values of the same types.
    pub fn if_else(
        &mut self,
        cond: Value,
        then: impl FnOnce(&mut Self) -> Vec<Value>,
        otherwise: impl FnOnce(&mut Self) -> Vec<Value>,
    ) -> Vec<Value> {
        let then = self.block(then);
        let otherwise = self.block(otherwise);
        let results: Vec<Value> = then.yields.iter().map(|v| self.define(self.ty(*v))).collect();
        self.stmt(Stmt::If(Box::new(If { cond, then, otherwise, results: results.clone() })));
        results
    }

    /// Statements that run only where `cond` is true.
    pub fn if_then(&mut self, cond: Value, then: impl FnOnce(&mut Self)) {
        self.if_else(
            cond,
            |b| {
                then(b);
                Vec::new()
            },
            |_| Vec::new(),
        );
    }

    /// Barriers in shared memory, each for so many arrivals a phase.
    pub fn barriers(&mut self, name: impl Into<String>, count: i64, arrivals: u32) -> Buf {
        self.alloc_in(Space::Barrier(arrivals), Swizzle::None, name, DType::I64, [count])
    }

    /// Tells other warps something, or waits for them.
    pub fn team_op(&mut self, op: TeamOp) {
        self.stmt(Stmt::Team(op));
    }

    /// Arrives at a barrier.
    pub fn arrive(&mut self, barrier: Buf, index: Value) {
        self.team_op(TeamOp::Arrive(place(barrier, &[index])));
    }

    /// Waits for a phase of a barrier.
    pub fn wait(&mut self, barrier: Buf, index: Value, parity: Value) {
        self.team_op(TeamOp::Wait { place: place(barrier, &[index]), parity });
    }

    /// Starts copying runs to shared memory, `lanes` elements in all, so many of each as `counts` says.
    pub fn copy(&mut self, to: (Buf, &[Value]), from: (Buf, &[Value]), lanes: u32, counts: Option<Value>) {
        let (to, from) = (place(to.0, to.1), place(from.0, from.1));
        self.stmt(Stmt::Copy(Box::new(AsyncCopy { to, from, lanes, counts })));
    }

    /// Starts a product of tiles; without sums a new one, of eight columns for each result.
    pub fn wgmma(
        &mut self,
        a: (Buf, Value),
        b: (Buf, Value),
        depth: u32,
        columns: usize,
        sums: Option<&[Value]>,
    ) -> Vec<Value> {
        let a = WgmmaRows::Tile(place(a.0, &[a.1]));
        self.product(a, (b, None), depth, columns, sums)
    }

    /// Starts a product of this warp's rows, eight elements of each after the other, by a tile of columns that lie across,
    /// panels of 64 so far apart.
    pub fn wgmma_across(
        &mut self,
        rows: &[Value],
        (buf, at, panels): (Buf, Value, u32),
        columns: usize,
        sums: Option<&[Value]>,
    ) -> Vec<Value> {
        let a = WgmmaRows::Values(rows.to_vec());
        self.product(a, ((buf, at), Some(panels)), 8 * rows.len() as u32, columns, sums)
    }

    fn product(
        &mut self,
        a: WgmmaRows,
        (b, panels): ((Buf, Value), Option<u32>),
        depth: u32,
        columns: usize,
        sums: Option<&[Value]>,
    ) -> Vec<Value> {
        let results: Vec<Value> = (0..columns / 8).map(|_| self.define(MATRIX[2])).collect();
        let (b, sums) = (place(b.0, &[b.1]), sums.unwrap_or_default().to_vec());
        self.stmt(Stmt::Wgmma(Box::new(Wgmma { results: results.clone(), sums, a, b, panels, depth })));
        results
    }

    /// The eight elements of each row of a tile of sums combined.
    pub fn rows(&mut self, op: ReduceOp, sums: Value) -> Value {
        self.op(Op::Rows(op, sums), MATRIX[2])
    }

    /// Waits until so many products are open, and gives the sums of one that is not.
    pub fn settle(&mut self, open: &[Value], pending: u32) -> Vec<Value> {
        let results: Vec<Value> = open.iter().map(|v| self.define(self.ty(*v))).collect();
        let open = open.to_vec();
        self.stmt(Stmt::Settle(Box::new(Settle { results: results.clone(), open, pending })));
        results
    }

    /// How many of the lanes before are true.
    pub fn rank(&mut self, mask: Value) -> Value {
        let ty = self.ty(mask).with_elem(DType::I64);
        self.op(Op::Rank(mask), ty)
    }

    /// Adds a statement that is made of values of this builder.
    pub fn stmt(&mut self, stmt: Stmt) {
        match self.open.last_mut() {
            Some(block) => block.push(stmt),
            None => self.top.push(stmt),
        }
    }

    /// Adds an operation whose result type is given.
    pub fn op(&mut self, op: Op, ty: ValueType) -> Value {
        let hoist = match &op {
            Op::Const(_) | Op::GridIndex(_) | Op::Symbol(_) | Op::Iota | Op::Splat(_) => true,
            Op::Load { .. } => false,
            // Division may fault, so it stays where it was asked for.
            Op::Binary(BinaryOp::Div | BinaryOp::Rem, ..) => false,
            _ => ty == ValueType::INDEX || ty == ValueType::scalar(DType::Bool),
        };
        let mut operands_at_top = true;
        op.for_each_operand(|v| operands_at_top &= self.at_top[v.index()]);
        if !(hoist && operands_at_top) {
            let value = self.define(ty);
            self.stmt(Stmt::Let(value, op));
            return value;
        }
        if let Some(value) = self.hoisted.get(&(op.clone(), ty)) {
            return *value;
        }
        let value = self.define(ty);
        self.at_top[value.index()] = true;
        self.top.push(Stmt::Let(value, op.clone()));
        self.hoisted.insert((op, ty), value);
        value
    }

    fn define(&mut self, ty: ValueType) -> Value {
        self.kernel.values.push(ty);
        self.at_top.push(false);
        Value(self.kernel.values.len() as u32 - 1)
    }

    fn block(&mut self, body: impl FnOnce(&mut Self) -> Vec<Value>) -> Block {
        self.open.push(Vec::new());
        let yields = body(self);
        Block { stmts: self.open.pop().unwrap_or_default(), yields }
    }

    fn same_lanes(&mut self, a: Value, b: Value) -> (Value, Value) {
        let lanes = self.ty(a).lanes.max(self.ty(b).lanes);
        (self.splat(a, lanes), self.splat(b, lanes))
    }

    /// Index arithmetic that is known already.
    fn fold(&mut self, op: BinaryOp, a: Value, b: Value) -> Option<Value> {
        if self.ty(a) != ValueType::INDEX || self.ty(b) != ValueType::INDEX {
            return None;
        }
        match (op, self.as_const(a), self.as_const(b)) {
            (BinaryOp::Add, Some(x), Some(y)) => Some(self.const_i64(x.wrapping_add(y))),
            (BinaryOp::Sub, Some(x), Some(y)) => Some(self.const_i64(x.wrapping_sub(y))),
            (BinaryOp::Mul, Some(x), Some(y)) => Some(self.const_i64(x.wrapping_mul(y))),
            (BinaryOp::Div, Some(x), Some(y)) if y != 0 => Some(self.const_i64(x.wrapping_div(y))),
            (BinaryOp::Rem, Some(x), Some(y)) if y != 0 => Some(self.const_i64(x.wrapping_rem(y))),
            (BinaryOp::Min, Some(x), Some(y)) => Some(self.const_i64(x.min(y))),
            (BinaryOp::Max, Some(x), Some(y)) => Some(self.const_i64(x.max(y))),
            (BinaryOp::Add, Some(0), None) | (BinaryOp::Mul, Some(1), None) => Some(b),
            (BinaryOp::Add | BinaryOp::Sub, None, Some(0)) | (BinaryOp::Mul | BinaryOp::Div, None, Some(1)) => Some(a),
            (BinaryOp::Mul, Some(0), None) | (BinaryOp::Mul, None, Some(0)) => Some(self.const_i64(0)),
            (BinaryOp::Rem, None, Some(1)) => Some(self.const_i64(0)),
            _ => None,
        }
    }
}

fn place(buf: Buf, index: &[Value]) -> Place {
    Place { buf, index: index.to_vec() }
}

macro_rules! shorthands {
    ($method:ident: $($name:ident = $op:expr, $doc:literal;)*) => { $(
        #[doc = $doc]
        pub fn $name(&mut self, a: Value, b: Value) -> Value {
            self.$method($op, a, b)
        }
    )* };
    ($($name:ident = $op:expr, $doc:literal;)*) => { $(
        #[doc = $doc]
        pub fn $name(&mut self, a: Value) -> Value {
            self.unary($op, a)
        }
    )* };
}

impl Builder {
    shorthands! { binary:
        add = BinaryOp::Add, "`a + b`.";
        sub = BinaryOp::Sub, "`a - b`.";
        mul = BinaryOp::Mul, "`a * b`.";
        div = BinaryOp::Div, "`a / b`; integers truncate.";
        rem = BinaryOp::Rem, "Remainder of `a / b`, for integers.";
        min = BinaryOp::Min, "`a < b ? a : b`.";
        max = BinaryOp::Max, "`a > b ? a : b`.";
        and = BinaryOp::And, "Bitwise and.";
        or = BinaryOp::Or, "Bitwise or.";
        xor = BinaryOp::Xor, "Bitwise exclusive or.";
        shl = BinaryOp::Shl, "Shift left.";
        shr = BinaryOp::Shr, "Shift right, copying the sign.";
        ushr = BinaryOp::Ushr, "Shift right, filling with zeros.";
    }
    shorthands! { compare:
        eq = CompareOp::Eq, "`a == b`.";
        ne = CompareOp::Ne, "`a != b`.";
        lt = CompareOp::Lt, "`a < b`.";
        le = CompareOp::Le, "`a <= b`.";
        gt = CompareOp::Gt, "`a > b`.";
        ge = CompareOp::Ge, "`a >= b`.";
    }
    shorthands! {
        neg = UnaryOp::Neg, "`-a`.";
        abs = UnaryOp::Abs, "`|a|`.";
        not = UnaryOp::Not, "Complement.";
        sqrt = UnaryOp::Sqrt, "Square root.";
        floor = UnaryOp::Floor, "Towards minus infinity.";
        pow2_ceil = UnaryOp::Pow2Ceil, "The smallest power of two that is not below.";
        exp = UnaryOp::Exp, "e to the power.";
        exp2 = UnaryOp::Exp2, "2 to the power, in one instruction of GPUs.";
        log = UnaryOp::Log, "Natural logarithm.";
        sin = UnaryOp::Sin, "Sine.";
        cos = UnaryOp::Cos, "Cosine.";
        tanh = UnaryOp::Tanh, "Hyperbolic tangent.";
        erf = UnaryOp::Erf, "Error function.";
    }
}

impl Kernel {
    /// Gives values their numbers in order of definition and drops those that nothing defines. A use of a value that
    /// is nowhere defined keeps a number out of range, for the verifier to find.
    pub fn renumber(&mut self) {
        let mut order = Vec::with_capacity(self.values.len());
        definitions(&self.body, &mut order);
        let mut new = vec![Value(u32::MAX); self.values.len()];
        for (i, old) in order.iter().enumerate() {
            if let Some(slot) = new.get_mut(old.index()) {
                *slot = Value(i as u32);
            }
        }
        self.values = order.iter().filter_map(|v| self.values.get(v.index()).copied()).collect();
        rename(&mut self.body, &mut |v| *v = new.get(v.index()).copied().unwrap_or(Value(u32::MAX)));
    }
}

fn definitions(block: &Block, out: &mut Vec<Value>) {
    for stmt in &block.stmts {
        match stmt {
            Stmt::Let(value, _) => out.push(*value),
            Stmt::For(f) => {
                out.push(f.var);
                out.extend(&f.carried);
                definitions(&f.body, out);
                out.extend(&f.results);
            }
            Stmt::If(f) => {
                definitions(&f.then, out);
                definitions(&f.otherwise, out);
                out.extend(&f.results);
            }
            Stmt::Wgmma(w) => out.extend(&w.results),
            Stmt::Settle(s) => out.extend(&s.results),
            Stmt::Store { .. } | Stmt::Prefetch(_) | Stmt::Alloc(_) | Stmt::Team(_) | Stmt::Copy(_) => {}
        }
    }
}

/// Calls `f` with every value that is defined or used in the block.
fn rename(block: &mut Block, f: &mut impl FnMut(&mut Value)) {
    for stmt in &mut block.stmts {
        match stmt {
            Stmt::Let(value, op) => {
                f(value);
                let taken = std::mem::replace(op, Op::Iota);
                *op = taken.map_operands(|mut v| {
                    f(&mut v);
                    v
                });
            }
            Stmt::Store { place, value, mask } => {
                place.index.iter_mut().chain([value]).chain(mask).for_each(&mut *f);
            }
            Stmt::Prefetch(place) => place.index.iter_mut().for_each(&mut *f),
            Stmt::For(l) => {
                [&mut l.var, &mut l.lo, &mut l.hi].into_iter().for_each(&mut *f);
                l.carried.iter_mut().chain(&mut l.init).chain(&mut l.results).for_each(&mut *f);
                rename(&mut l.body, f);
            }
            Stmt::If(c) => {
                f(&mut c.cond);
                c.results.iter_mut().for_each(&mut *f);
                rename(&mut c.then, f);
                rename(&mut c.otherwise, f);
            }
            Stmt::Copy(c) => c.to.index.iter_mut().chain(&mut c.from.index).chain(&mut c.counts).for_each(&mut *f),
            Stmt::Wgmma(w) => {
                w.results.iter_mut().chain(&mut w.sums).for_each(&mut *f);
                let rows = match &mut w.a {
                    WgmmaRows::Tile(place) => &mut place.index,
                    WgmmaRows::Values(values) => values,
                };
                rows.iter_mut().chain(&mut w.b.index).for_each(&mut *f);
            }
            Stmt::Settle(s) => s.results.iter_mut().chain(&mut s.open).for_each(&mut *f),
            Stmt::Team(TeamOp::Arrive(place)) => place.index.iter_mut().for_each(&mut *f),
            Stmt::Team(TeamOp::Wait { place, parity }) => place.index.iter_mut().chain([parity]).for_each(&mut *f),
            Stmt::Alloc(_)
            | Stmt::Team(TeamOp::Commit | TeamOp::AwaitCopies(_) | TeamOp::FenceAsync | TeamOp::Registers(_)) => {}
        }
    }
    block.yields.iter_mut().for_each(&mut *f);
}
