//! Operations, as text.

use super::convert::Pairs;
use super::emit::{Affine, Emitter, Known};
use super::types::*;
use crate::Error;
use hadal_ir::kernel::*;
use hadal_types::DType;

impl Emitter<'_> {
    pub(super) fn op(&mut self, op: &Op, result: ValueType) -> Result<Known, Error> {
        let parts = match op {
            Op::Const(c) => return Ok(self.constant(*c)),
            Op::GridIndex(d) => {
                let affine = self.coords[*d as usize].clone();
                let text = affine.terms.first().map_or_else(|| "0".to_string(), |(atom, _)| atom.name.clone());
                let constant = affine.as_const().map(|x| x as u64);
                return Ok(Known { parts: vec![text], affine: Some(affine), constant, small: None });
            }
            Op::Symbol(s) => {
                let atom = self.symbols[s].clone();
                let affine = Affine { terms: vec![(atom.clone(), 1)], offset: 0 };
                return Ok(Known { parts: vec![atom.name], affine: Some(affine), constant: None, small: None });
            }
            Op::Unary(op, a) => self.unary(*op, result, *a)?,
            Op::Binary(op, a, b) => return Ok(self.binary(*op, result, *a, *b)),
            Op::Compare(op, a, b) => return Ok(self.compare(*op, result, *a, *b)),
            Op::Fma(a, b, c) => self.by_part(result, [*a, *b, *c], |e, part, [a, b, c]| {
                let (t, function) = (ty(part), format!("llvm.fma.{}", mangled(part)));
                e.call(&t, &function, &[(&t, a), (&t, b), (&t, c)], "")
            }),
            Op::Select(c, a, b) => self.by_part(result, [*c, *a, *b], |e, part, [c, a, b]| {
                let (mask, t) = (ty(part.with_elem(DType::Bool)), ty(part));
                e.def(format!("select {mask} {c}, {t} {a}, {t} {b}"))
            }),
            Op::Cast(a) => return Ok(self.cast_value(*a, result)),
            Op::Iota if result.lanes == 1 => return Ok(self.int_const(result, 0)),
            Op::Extract(a, _) if self.k.ty(*a).lanes == 1 => vec![self.text(*a)],
            Op::Load { place, mask, fill } => self.load(place, result, *mask, *fill),
            _ if self.target.is_gpu() => self.across_warp(op, result)?,
            _ => vec![self.across_vector(op, result)?],
        };
        Ok(self.plain(result, parts))
    }

    fn cast_value(&mut self, a: Value, result: ValueType) -> Known {
        let from = self.k.ty(a);
        if let (DType::BF16, Some((elem, origin))) = (result.elem, self.known(a).small.clone()) {
            let (small, _) = self.split(from.with_elem(elem));
            let text = self.small_to_bf16(small, &origin);
            if let Some(pairs) = self.pairs_of(small, &origin) {
                self.halves.insert(text.clone(), pairs);
            }
            return self.plain(result, vec![text]);
        }
        let x = self.text(a);
        if let (DType::I64, DType::I32, Some(pairs)) = (from.elem, result.elem, self.halves.get(&x).cloned()) {
            let text = self.look_up_pairs(&pairs);
            return self.plain(result, vec![text]);
        }
        let pairs = self.target.is_gpu() && (from.elem, result.elem) == (DType::F32, DType::BF16);
        let parts = match self.split(from).1 {
            count if pairs && count % 2 == 0 => self.narrow_pairs(a),
            _ => self.by_part(from, [a], |e, part, [x]| e.cast(part, result.elem, x)),
        };
        let whole = parts.len() == 1 && result.elem == DType::F32 && is_within_bf16(from.elem);
        Known { small: whole.then_some((from.elem, x)), ..self.plain(result, parts) }
    }

    /// What crosses the lanes of one vector.
    fn across_vector(&mut self, op: &Op, result: ValueType) -> Result<String, Error> {
        let t = ty(result);
        Ok(match op {
            Op::Dot(a, b, c) => self.dot(*a, *b, *c)?,
            Op::Lookup(table, a) => self.lookup(table, *a),
            Op::Zip(half, a, b) => {
                let (a, b, first) = (self.text(*a), self.text(*b), half.first(result.lanes));
                let order = (0..result.lanes).map(|i| (first + i / 2 + i % 2 * result.lanes).to_string());
                let order = list_of("i32", order);
                self.def(format!("shufflevector {t} {a}, {t} {b}, {order}"))
            }
            Op::Bitcast(a) => {
                let (from, mut x) = (self.k.ty(*a), self.text(*a));
                let mut from_ty = ty(from);
                if from.elem.is_packed() {
                    let known = self.pairs.get(&x).cloned();
                    x = known.unwrap_or_else(|| self.join_nibbles(from, &x));
                    from_ty = vector("i8", from.lanes / 2);
                }
                let text = self.def(format!("bitcast {from_ty} {x} to {t}"));
                if let (DType::I64, Some(pairs)) = (result.elem, self.halves.get(&x).cloned()) {
                    self.halves.insert(text.clone(), pairs);
                }
                text
            }
            Op::Splat(a) => self.splat(result, &self.text(*a)),
            Op::Extract(a, lane) => {
                self.def(format!("extractelement {} {}, i64 {lane}", ty(self.k.ty(*a)), self.text(*a)))
            }
            Op::Iota => list(result.elem, (0..result.lanes as i64).map(|i| i.to_string())),
            Op::Reduce(op, a) => self.reduce(*op, *a),
            _ => unreachable!("lane by lane: {op:?}"),
        })
    }

    fn constant(&self, c: Const) -> Known {
        match c {
            Const::Bool(x) => Known { parts: vec![x.to_string()], affine: None, constant: Some(x as u64), small: None },
            Const::I32(x) => self.int_const(ValueType::scalar(DType::I32), x as i64),
            Const::I64(x) => self.int_const(ValueType::INDEX, x),
            Const::F32(bits) => {
                let parts = vec![float(f32::from_bits(bits))];
                Known { parts, affine: None, constant: Some(bits as u64), small: None }
            }
        }
    }

    /// A scalar in every lane.
    pub(super) fn splat(&mut self, to: ValueType, x: &str) -> String {
        let (t, elem) = (ty(to), elem(to.elem));
        match (to.lanes, x.starts_with('%')) {
            (1, _) => x.to_string(),
            (_, false) => format!("splat ({elem} {x})"),
            (lanes, true) => {
                let low = self.def(format!("insertelement {t} poison, {elem} {x}, i64 0"));
                self.def(format!("shufflevector {t} {low}, {t} poison, <{lanes} x i32> zeroinitializer"))
            }
        }
    }

    fn unary(&mut self, op: UnaryOp, whole: ValueType, a: Value) -> Result<Vec<String>, Error> {
        use UnaryOp::*;
        if let (Exp2, true) = (op, self.target.is_gpu()) {
            return Ok(self
                .by_part(whole, [a], |e, _, [x]| e.call("float", "llvm.nvvm.ex2.approx.ftz.f", &[("float", x)], "")));
        }
        if let Pow2Ceil | Exp | Exp2 | Log | Sin | Cos | Tanh | Erf = op {
            return Err(self.unsupported("a function that should have been expanded"));
        }
        Ok(self.by_part(whole, [a], |e, part, [x]| {
            let (float, t, mangled) = (part.elem == DType::F32, ty(part), mangled(part));
            let call = |e: &mut Self, name: &str| e.call(&t, &format!("llvm.{name}.{mangled}"), &[(&t, x)], "");
            match op {
                Neg if float => e.def(format!("fneg {t} {x}")),
                Abs if float => call(e, "fabs"),
                Neg => e.def(format!("sub {t} {}, {x}", int(part, 0))),
                Abs => e.call(&t, &format!("llvm.abs.{mangled}"), &[(&t, x), ("i1", "false")], ""),
                Not => e.def(format!("xor {t} {x}, {}", int(part, -1))),
                Sqrt => call(e, "sqrt"),
                _ => call(e, "floor"),
            }
        }))
    }

    fn binary(&mut self, op: BinaryOp, ty_: ValueType, a: Value, b: Value) -> Known {
        let mut affine = None;
        if let (Some(x), Some(y)) = (&self.known(a).affine, &self.known(b).affine) {
            affine = match (op, x.as_const(), y.as_const()) {
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
        }
        if let Some(x) = affine.as_ref().and_then(Affine::as_const) {
            return self.int_const(ty_, x);
        }
        let parts = self.by_part(ty_, [a, b], |e, part, [x, y]| {
            let text = e.binary_text(op, part, x, y);
            if op == BinaryOp::Ushr
                && let Some(pairs) = e.halves.get(x).filter(|p| !p.second && y == ints("i64", part.lanes, 32)).cloned()
            {
                e.halves.insert(text.clone(), Pairs { second: true, ..pairs });
            }
            text
        });
        let plain = self.plain(ty_, parts);
        Known { affine: affine.or(plain.affine.clone()), ..plain }
    }

    pub(super) fn binary_text(&mut self, op: BinaryOp, ty_: ValueType, x: &str, y: &str) -> String {
        let (float, t) = (ty_.elem == DType::F32, ty(ty_));
        let word = match op {
            BinaryOp::Add if float => "fadd",
            BinaryOp::Sub if float => "fsub",
            BinaryOp::Mul if float => "fmul",
            BinaryOp::Div if float => "fdiv",
            BinaryOp::Add => "add",
            BinaryOp::Sub => "sub",
            BinaryOp::Mul => "mul",
            BinaryOp::And => "and",
            BinaryOp::Or => "or",
            BinaryOp::Xor => "xor",
            BinaryOp::Min | BinaryOp::Max => {
                let less = if op == BinaryOp::Min { (x, y) } else { (y, x) };
                let word = if float { "fcmp olt" } else { "icmp slt" };
                let mask = self.def(format!("{word} {t} {}, {}", less.0, less.1));
                let mask_ty = ty(ty_.with_elem(DType::Bool));
                return self.def(format!("select {mask_ty} {mask}, {t} {x}, {t} {y}"));
            }
            BinaryOp::Shl | BinaryOp::Shr | BinaryOp::Ushr => {
                let word = match op {
                    BinaryOp::Shl => "shl",
                    BinaryOp::Shr => "ashr",
                    _ => "lshr",
                };
                let count = self.def(format!("and {t} {y}, {}", int(ty_, ty_.elem.bits() as i64 - 1)));
                return self.def(format!("{word} {t} {x}, {count}"));
            }
            BinaryOp::Div | BinaryOp::Rem => return self.divide(ty_, x, y, op == BinaryOp::Rem),
        };
        self.def(format!("{word} {t} {x}, {y}"))
    }

    /// Integer division, where the smallest number by -1 wraps.
    fn divide(&mut self, ty_: ValueType, x: &str, y: &str, remainder: bool) -> String {
        let (t, mask) = (ty(ty_), ty(ty_.with_elem(DType::Bool)));
        let minus = self.def(format!("icmp eq {t} {y}, {}", int(ty_, -1)));
        let safe = self.def(format!("select {mask} {minus}, {t} {}, {t} {y}", int(ty_, 1)));
        if remainder {
            return self.def(format!("srem {t} {x}, {safe}"));
        }
        let quotient = self.def(format!("sdiv {t} {x}, {safe}"));
        let negated = self.def(format!("sub {t} {}, {x}", int(ty_, 0)));
        self.def(format!("select {mask} {minus}, {t} {negated}, {t} {quotient}"))
    }

    fn compare(&mut self, op: CompareOp, result: ValueType, a: Value, b: Value) -> Known {
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
            return self.constant(Const::Bool(holds));
        }
        let from = self.k.ty(a);
        let word = match (from.elem, op) {
            (DType::F32, CompareOp::Eq) => "fcmp oeq",
            (DType::F32, CompareOp::Ne) => "fcmp une",
            (DType::F32, CompareOp::Lt) => "fcmp olt",
            (DType::F32, CompareOp::Le) => "fcmp ole",
            (DType::F32, CompareOp::Gt) => "fcmp ogt",
            (DType::F32, CompareOp::Ge) => "fcmp oge",
            (_, CompareOp::Eq) => "icmp eq",
            (_, CompareOp::Ne) => "icmp ne",
            (_, CompareOp::Lt) => "icmp slt",
            (_, CompareOp::Le) => "icmp sle",
            (_, CompareOp::Gt) => "icmp sgt",
            (_, CompareOp::Ge) => "icmp sge",
        };
        let parts = self.by_part(from, [a, b], |e, part, [x, y]| e.def(format!("{word} {} {x}, {y}", ty(part))));
        self.plain(result, parts)
    }

    /// `count` lanes of a vector from lane `start` on; lanes beyond its end hold anything.
    pub(super) fn lanes(&mut self, from: ValueType, x: &str, start: u32, count: u32) -> String {
        if start == 0 && count == from.lanes {
            return x.to_string();
        }
        let t = ty(from);
        let order = (start..start + count).map(|i| if i < from.lanes { i.to_string() } else { "poison".into() });
        self.def(format!("shufflevector {t} {x}, {t} poison, {}", list_of("i32", order)))
    }

    /// Vectors of one type, one after the other: `lanes` lanes of them.
    pub(super) fn join(&mut self, part: ValueType, parts: &[String], lanes: u32) -> String {
        let mut level = parts.to_vec();
        let mut each = part;
        while level.len() > 1 {
            let t = ty(each);
            let both = list_of("i32", (0..2 * each.lanes).map(|i| i.to_string()));
            level = level
                .chunks(2)
                .map(|c| match c {
                    [a, b] => self.def(format!("shufflevector {t} {a}, {t} {b}, {both}")),
                    rest => self.def(format!("shufflevector {t} {0}, {t} {0}, {both}", rest[0])),
                })
                .collect();
            each.lanes *= 2;
        }
        self.lanes(each, &level[0].clone(), 0, lanes)
    }

    /// Combines all lanes by halves into a scalar.
    fn reduce(&mut self, op: ReduceOp, a: Value) -> String {
        let (mut ty_, mut x) = (self.k.ty(a), self.text(a));
        if ty_.lanes == 1 {
            return x;
        }
        while ty_.lanes > 1 {
            let half = ValueType { lanes: ty_.lanes / 2, ..ty_ };
            let (low, high) = (self.lanes(ty_, &x, 0, half.lanes), self.lanes(ty_, &x, half.lanes, half.lanes));
            if half.lanes == 1 {
                // A vector of one lane is not a scalar.
                let one = format!("<1 x {}>", elem(ty_.elem));
                let [low, high] = [low, high].map(|v| self.def(format!("extractelement {one} {v}, i64 0")));
                return self.binary_text(op.binary(), half, &low, &high);
            }
            x = self.binary_text(op.binary(), half, &low, &high);
            ty_ = half;
        }
        x
    }

    /// A dot product by instructions, in vectors of up to 512 bits.
    fn dot(&mut self, a: Value, b: Value, c: Value) -> Result<String, Error> {
        let (sum_ty, [left, right]) = (self.k.ty(c), [a, b].map(|v| self.k.ty(v)));
        let bf16 = right.elem == DType::BF16;
        if !self.target.has(if bf16 { "avx512bf16" } else { "avx512vnni" }) {
            return Err(self.unsupported("a dot product that should have been expanded"));
        }
        let each = sum_ty.lanes.clamp(4, 16);
        let group = left.lanes / sum_ty.lanes;
        let part = ValueType { lanes: each, ..sum_ty };
        let (t, bits) = (ty(part), 32 * each);
        // How the instruction sees its factors.
        let factors = if bf16 { vector("bfloat", 2 * each) } else { vector("i32", each) };
        let [x, y] = [a, b].map(|v| self.text(v));
        let sum = self.text(c);
        let mut parts = Vec::new();
        for i in 0..sum_ty.lanes.div_ceil(each) {
            let start = i * each;
            let mut factor = |from: ValueType, v: &str| {
                let piece = self.lanes(from, v, start * group, each * group);
                let have = vector(elem(from.elem), each * group);
                self.def(format!("bitcast {have} {piece} to {factors}"))
            };
            let (x, y) = (factor(left, &x), factor(right, &y));
            let sum = match sum_ty.lanes {
                1 => self.splat(part, &sum),
                _ => self.lanes(sum_ty, &sum, start, each),
            };
            parts.push(match left.elem {
                DType::BF16 => {
                    let name = format!("llvm.x86.avx512bf16.dpbf16ps.{bits}");
                    self.call(&t, &name, &[(&t, &sum), (&factors, &x), (&factors, &y)], "")
                }
                DType::U8 => self.dot_bytes(part, &sum, &x, &y),
                // The instruction's first factor has no sign: 128 more than it is, and 128 times the second taken off.
                _ => {
                    let lifted = self.def(format!("xor {t} {x}, {}", int(part, 0x8080_8080u32 as i32 as i64)));
                    let sum = self.dot_bytes(part, &sum, &lifted, &y);
                    let zero = int(part, 0);
                    let extra = self.dot_bytes(part, &zero, &int(part, 0x8080_8080u32 as i32 as i64), &y);
                    self.def(format!("sub {t} {sum}, {extra}"))
                }
            });
        }
        Ok(match sum_ty.lanes {
            1 => self.def(format!("extractelement {t} {}, i64 0", parts[0])),
            lanes => self.join(part, &parts, lanes),
        })
    }

    /// Bytes of a table, by the instruction that looks up as many as a register has.
    fn lookup(&mut self, table: &[u8; 16], a: Value) -> String {
        let (from, x) = (self.k.ty(a), self.text(a));
        let widest = self.target.vector_bits() / 8;
        let part = ValueType { lanes: from.lanes.clamp(16, widest), ..from };
        let function = match (self.target.arch, part.lanes) {
            ("x86_64", 64) => "llvm.x86.avx512.pshuf.b.512",
            ("x86_64", 32) => "llvm.x86.avx2.pshuf.b",
            ("x86_64", _) => "llvm.x86.ssse3.pshuf.b.128",
            _ => "llvm.aarch64.neon.tbl1.v16i8",
        };
        let t = ty(part);
        let bytes = list(DType::U8, (0..part.lanes as usize).map(|i| table[i % 16].to_string()));
        let parts: Vec<String> = (0..from.lanes.div_ceil(part.lanes))
            .map(|i| {
                let piece = match from.lanes {
                    1 => self.splat(part, &x),
                    _ => self.lanes(from, &x, i * part.lanes, part.lanes),
                };
                let number = self.def(format!("and {t} {piece}, {}", int(part, 15)));
                self.call(&t, function, &[(&t, &bytes), (&t, &number)], "")
            })
            .collect();
        match from.lanes {
            1 => self.def(format!("extractelement {t} {}, i64 0", parts[0])),
            lanes => self.join(part, &parts, lanes),
        }
    }

    /// Unsigned bytes by signed ones, four at a time.
    fn dot_bytes(&mut self, part: ValueType, sum: &str, x: &str, y: &str) -> String {
        let (t, name) = (ty(part), format!("llvm.x86.avx512.vpdpbusd.{}", 32 * part.lanes));
        self.call(&t, &name, &[(&t, sum), (&t, x), (&t, y)], "")
    }
}
