//! Casts between formats, exact and rounded as the kernel IR says, without tables in memory or calls.
//!
//! Small floats widen by moving their bits into place under f32's exponent and multiplying by the difference of the
//! biases, which is exact for subnormals too. They narrow by adding the rounding constant to the bits; results that
//! are subnormal come from adding a power of two whose last bit is the unit wanted. Where bytes can be looked up in
//! registers (AVX-512 VBMI), a small float's value is looked up: every one is a bf16, whose two bytes are two
//! look-ups for 64 lanes, and one permutation puts them where f32 or bf16 lanes want them.

use super::emit::Emitter;
use super::types::*;
use hadal_ir::kernel::ValueType;
use hadal_types::{DType, minifloat};

/// How an f32 becomes a small float.
struct Narrow {
    /// Mantissa bits lost.
    drop: i64,
    /// Difference of exponent biases.
    bias: i64,
    /// Bits of the smallest normal number.
    smallest_normal: i64,
    /// Bits of the power of two whose last place is the format's smallest step.
    magic: u32,
    /// Bits of the largest finite number.
    largest: i64,
    /// Code of NaN.
    nan: i64,
    /// How far the sign moves down.
    sign: i64,
}

const E4M3: Narrow = Narrow {
    drop: 20,
    bias: 120,
    smallest_normal: 0x3c80_0000,
    magic: 0x4680_0000,
    largest: 0x43e0_0000,
    nan: 0x7f,
    sign: 24,
};
const E2M1: Narrow = Narrow {
    drop: 22,
    bias: 126,
    smallest_normal: 0x3f80_0000,
    magic: 0x4a80_0000,
    largest: 0x40c0_0000,
    nan: 7,
    sign: 28,
};

/// 64 small floats as bf16, four to a word, of which the first two or the last two are wanted.
#[derive(Clone)]
pub(super) struct Pairs {
    pub elem: DType,
    /// The name of what was cast.
    pub origin: String,
    /// Which.
    pub second: bool,
}

/// A register of bytes, and what permutes two of them.
const BYTES: &str = "<64 x i8>";
const PERMUTE: &str = "llvm.x86.avx512.vpermi2var.qi.512";

/// A value of 2ⁿ.
fn power(n: u32) -> f32 {
    f32::from_bits((n + 127) << 23)
}

/// One operation after the other on values of as many lanes.
struct Lanes<'e, 'a> {
    e: &'e mut Emitter<'a>,
    lanes: u32,
}

impl Lanes<'_, '_> {
    fn op(&mut self, op: &str, elem: &str, x: &str, y: &str) -> String {
        let t = vector(elem, self.lanes);
        self.e.def(format!("{op} {t} {x}, {y}"))
    }

    /// An operation with an i32 constant.
    fn with(&mut self, op: &str, x: &str, k: i64) -> String {
        let k = ints("i32", self.lanes, k as i32 as i64);
        self.op(op, "i32", x, &k)
    }

    fn convert(&mut self, op: &str, from: &str, x: &str, to: &str) -> String {
        let (from, to) = (vector(from, self.lanes), vector(to, self.lanes));
        self.e.def(format!("{op} {from} {x} to {to}"))
    }

    fn select(&mut self, elem: &str, mask: &str, x: &str, y: &str) -> String {
        let (m, t) = (vector("i1", self.lanes), vector(elem, self.lanes));
        self.e.def(format!("select {m} {mask}, {t} {x}, {t} {y}"))
    }

    /// `bits` plus what rounds them to nearest even when the lowest `drop` bits are cut off.
    fn round_bits(&mut self, bits: &str, drop: i64) -> String {
        let odd = self.with("lshr", bits, drop);
        let odd = self.with("and", &odd, 1);
        let sum = self.op("add", "i32", bits, &odd);
        self.with("add", &sum, (1 << (drop - 1)) - 1)
    }

    fn is_nan(&mut self, x: &str) -> String {
        self.op("fcmp uno", "float", x, x)
    }

    fn narrow_bf16(&mut self, x: &str) -> String {
        let bits = self.convert("bitcast", "float", x, "i32");
        let rounded = self.round_bits(&bits, 16);
        let quiet = self.with("or", &bits, 0x0040_0000);
        let nan = self.is_nan(x);
        let bits = self.select("i32", &nan, &quiet, &rounded);
        let top = self.with("lshr", &bits, 16);
        self.convert("trunc", "i32", &top, "i16")
    }

    /// The codes of a format.
    fn narrow(&mut self, format: &Narrow, x: &str) -> String {
        let bits = self.convert("bitcast", "float", x, "i32");
        let magnitude = self.with("and", &bits, 0x7fff_ffff);
        let large = self.with("icmp sgt", &magnitude, format.largest);
        let largest = ints("i32", self.lanes, format.largest);
        let clamped = self.select("i32", &large, &largest, &magnitude);
        let rounded = self.round_bits(&clamped, format.drop);
        let rebased = self.with("sub", &rounded, format.bias << 23);
        let rebased = self.with("lshr", &rebased, format.drop);
        let value = self.convert("bitcast", "i32", &clamped, "float");
        let magic = floats(self.lanes, f32::from_bits(format.magic));
        let sum = self.op("fadd", "float", &value, &magic);
        let sum = self.convert("bitcast", "float", &sum, "i32");
        let subnormal = self.with("sub", &sum, format.magic as i64);
        let small = self.with("icmp slt", &clamped, format.smallest_normal);
        let code = self.select("i32", &small, &subnormal, &rebased);
        let is_nan = self.is_nan(x);
        let nan = ints("i32", self.lanes, format.nan);
        let code = self.select("i32", &is_nan, &nan, &code);
        let sign = self.with("lshr", &bits, format.sign);
        let sign = self.with("and", &sign, 1 << (31 - format.sign));
        let code = self.op("or", "i32", &code, &sign);
        self.convert("trunc", "i32", &code, "i8")
    }

    /// The nearest power of two's exponent byte; 255 for NaN and negative numbers.
    fn narrow_e8m0(&mut self, x: &str) -> String {
        let bits = self.convert("bitcast", "float", x, "i32");
        let rounded = self.round_bits(&bits, 23);
        let normal = self.with("lshr", &rounded, 23);
        let over = self.with("icmp sgt", &normal, 254);
        let top = ints("i32", self.lanes, 254);
        let normal = self.select("i32", &over, &top, &normal);
        // Below 2^-126 only 2^-127 is left, and their middle is 0x600000.
        let above = self.with("icmp sgt", &bits, 0x0060_0000);
        let small = self.convert("zext", "i1", &above, "i32");
        let is_small = self.with("icmp slt", &bits, 0x0080_0000);
        let code = self.select("i32", &is_small, &small, &normal);
        let zero = floats(self.lanes, 0.0);
        let bad = self.op("fcmp ult", "float", x, &zero);
        let nan = ints("i32", self.lanes, 255);
        let code = self.select("i32", &bad, &nan, &code);
        // Minus zero is zero.
        let is_zero = self.op("fcmp oeq", "float", x, &zero);
        let nothing = ints("i32", self.lanes, 0);
        let code = self.select("i32", &is_zero, &nothing, &code);
        self.convert("trunc", "i32", &code, "i8")
    }

    /// f32 of the bits at the top of sixteen.
    fn widen_halves(&mut self, halves: &str) -> String {
        let wide = self.convert("zext", "i16", halves, "i32");
        let top = self.with("shl", &wide, 16);
        self.convert("bitcast", "i32", &top, "float")
    }

    /// In 16-bit lanes, so that it takes half the instructions: the upper halves of f32 numbers that are the values
    /// divided by 2^120, or NaN.
    fn widen_e4m3(&mut self, x: &str) -> String {
        let (bytes, halves) = (|k| ints("i8", self.lanes, k), |k| ints("i16", self.lanes, k));
        let (largest, eight, four, keep) = (bytes(0x7f), halves(8), halves(4), halves(0x87f0 - 0x1_0000));
        let magnitude = self.op("and", "i8", x, &largest);
        let nan = self.op("icmp eq", "i8", &magnitude, &largest);
        let wide = self.convert("zext", "i8", x, "i16");
        let top = self.op("shl", "i16", &wide, &eight);
        let moved = self.op("ashr", "i16", &top, &four);
        let value = self.op("and", "i16", &moved, &keep);
        let ones = ints("i16", self.lanes, -1);
        let value = self.select("i16", &nan, &ones, &value);
        let small = self.widen_halves(&value);
        let scale = floats(self.lanes, power(120));
        self.op("fmul", "float", &small, &scale)
    }

    fn widen_e2m1(&mut self, x: &str) -> String {
        let wide = self.convert("zext", "i8", x, "i32");
        let top = self.with("shl", &wide, 28);
        let moved = self.with("ashr", &top, 6);
        let value = self.with("and", &moved, 0x81c0_0000);
        let small = self.convert("bitcast", "i32", &value, "float");
        let scale = floats(self.lanes, power(126));
        self.op("fmul", "float", &small, &scale)
    }

    fn widen_e8m0(&mut self, x: &str) -> String {
        let wide = self.convert("zext", "i8", x, "i32");
        let value = self.with("shl", &wide, 23);
        let (subnormal, quiet) = (ints("i32", self.lanes, 0x0040_0000), ints("i32", self.lanes, 0x7fc0_0000));
        let is_zero = self.with("icmp eq", &wide, 0);
        let is_nan = self.with("icmp eq", &wide, 255);
        let value = self.select("i32", &is_zero, &subnormal, &value);
        let value = self.select("i32", &is_nan, &quiet, &value);
        self.convert("bitcast", "i32", &value, "float")
    }

    /// Codes in two's complement of four bits, as bytes: with their sign turned over, less eight.
    fn sign_nibbles(&mut self, x: &str) -> String {
        let eight = ints("i8", self.lanes, 8);
        let turned = self.op("xor", "i8", x, &eight);
        self.op("sub", "i8", &turned, &eight)
    }

    /// To an integer, towards zero; what does not fit becomes the nearest that does, NaN becomes 0.
    fn saturate(&mut self, x: &str, to: DType) -> String {
        let (zero, bits) = (floats(self.lanes, 0.0), to.bits() as i32);
        let (low, high) = match to {
            DType::U8 => (0.0, 255.0),
            _ => (-(2f32.powi(bits - 1)), 2f32.powi(bits - 1) - if bits == 8 { 1.0 } else { 0.0 }),
        };
        let [below, above] = [low, high].map(|x| floats(self.lanes, x));
        let number = self.op("fcmp ord", "float", x, x);
        let x = self.select("float", &number, x, &zero);
        let under = self.op("fcmp olt", "float", &x, &below);
        if bits == 8 {
            // The limits are numbers: clamp first.
            let x = self.select("float", &under, &below, &x);
            let over = self.op("fcmp ogt", "float", &x, &above);
            let x = self.select("float", &over, &above, &x);
            let wide = self.convert("fptosi", "float", &x, "i32");
            return self.convert("trunc", "i32", &wide, "i8");
        }
        let over = self.op("fcmp oge", "float", &x, &above);
        let x = self.select("float", &over, &zero, &x);
        let x = self.select("float", &under, &zero, &x);
        let int = elem(to);
        let whole = self.convert("fptosi", "float", &x, int);
        let [least, most] = [i64::MIN >> (64 - bits), i64::MAX >> (64 - bits)].map(|x| ints(int, self.lanes, x));
        let whole = self.select(int, &over, &most, &whole);
        self.select(int, &under, &least, &whole)
    }
}

impl Emitter<'_> {
    /// A cast that the verifier allows.
    pub(super) fn cast(&mut self, from: ValueType, to: DType, x: &str) -> String {
        if from.elem == to {
            return x.to_string();
        }
        if to == DType::F32 && self.looks_up(from) {
            return self.look_up(from, x, DType::F32);
        }
        let lanes = from.lanes;
        let (have, want) = (elem(from.elem), elem(to));
        let mut l = Lanes { e: self, lanes };
        match (from.elem, to) {
            (DType::I4, _) => {
                let bytes = l.sign_nibbles(x);
                self.cast(from.with_elem(DType::I8), to, &bytes)
            }
            (DType::BF16, DType::F32) => l.widen_halves(x),
            (DType::F16, DType::F32) => {
                // Not `fpext`, which comparisons are pulled through: as such of halves they become calls of the C
                // library.
                let half = l.convert("bitcast", "i16", x, "half");
                let of = |elem: &str| if lanes == 1 { elem.to_owned() } else { format!("v{lanes}{elem}") };
                let function = format!("llvm.experimental.constrained.fpext.{}.{}", of("f32"), of("f16"));
                let arguments = [(&vector("half", lanes)[..], &half[..]), ("metadata", "!\"fpexcept.ignore\"")];
                l.e.call(&vector("float", lanes), &function, &arguments, "")
            }
            (DType::F8E4M3, DType::F32) => l.widen_e4m3(x),
            (DType::F4E2M1, DType::F32) => l.widen_e2m1(x),
            (DType::F8E8M0, DType::F32) => l.widen_e8m0(x),
            (DType::F64, DType::F32) => l.convert("fptrunc", have, x, want),
            (DType::Bool | DType::U8 | DType::U4, DType::F32) => l.convert("uitofp", have, x, want),
            (DType::I8 | DType::I32 | DType::I64, DType::F32) => l.convert("sitofp", have, x, want),
            (DType::F32, DType::F64) => l.convert("fpext", have, x, want),
            (DType::F32, DType::F16) => {
                let half = l.convert("fptrunc", "float", x, "half");
                l.convert("bitcast", "half", &half, "i16")
            }
            (DType::F32, DType::BF16) if l.e.target.is_gpu() => {
                let half = l.e.call("bfloat", "llvm.nvvm.f2bf16.rn", &[("float", x)], "");
                l.convert("bitcast", "bfloat", &half, "i16")
            }
            (DType::F32, DType::BF16) => l.narrow_bf16(x),
            (DType::F32, DType::F8E4M3) => l.narrow(&E4M3, x),
            (DType::F32, DType::F4E2M1) => l.narrow(&E2M1, x),
            (DType::F32, DType::F8E8M0) => l.narrow_e8m0(x),
            (DType::F32, DType::Bool) => {
                let zero = floats(lanes, 0.0);
                l.op("fcmp une", have, x, &zero)
            }
            (DType::F32, _) => l.saturate(x, to),
            (_, DType::Bool) => {
                let zero = ints(have, lanes, 0);
                l.op("icmp ne", have, x, &zero)
            }
            (a, b) => {
                let bits = |d: DType| if d == DType::Bool { 1 } else { d.bits().max(8) };
                let word = match bits(a).cmp(&bits(b)) {
                    std::cmp::Ordering::Greater => "trunc",
                    std::cmp::Ordering::Equal => return x.to_string(),
                    std::cmp::Ordering::Less if matches!(a, DType::Bool | DType::U8 | DType::U4) => "zext",
                    std::cmp::Ordering::Less => "sext",
                };
                l.convert(word, have, x, want)
            }
        }
    }

    /// Values of a format that bf16 holds, as bf16.
    pub(super) fn small_to_bf16(&mut self, from: ValueType, x: &str) -> String {
        if from.elem == DType::BF16 {
            return x.to_string();
        }
        if self.looks_up(from) {
            return self.look_up(from, x, DType::BF16);
        }
        let wide = self.cast(from, DType::F32, x);
        let mut l = Lanes { e: self, lanes: from.lanes };
        let bits = l.convert("bitcast", "float", &wide, "i32");
        let top = l.with("lshr", &bits, 16);
        l.convert("trunc", "i32", &top, "i16")
    }

    /// Whether values of a format are looked up rather than computed.
    fn looks_up(&self, from: ValueType) -> bool {
        self.target.has("avx512vbmi") && from.lanes > 1 && matches!(from.elem, DType::F8E4M3 | DType::F4E2M1)
    }

    /// Values as f32 or bf16 by look-ups of their two bytes.
    fn look_up(&mut self, from: ValueType, x: &str, to: DType) -> String {
        if from.lanes > 64 {
            let part = ValueType { lanes: 64, ..from };
            let parts: Vec<String> = (0..from.lanes / 64)
                .map(|i| {
                    let x = self.lanes(from, x, 64 * i, 64);
                    self.look_up(part, &x, to)
                })
                .collect();
            return self.join(part.with_elem(to), &parts, from.lanes);
        }
        let x = self.lanes(from, x, 0, 64);
        let (low, high) = self.two_bytes(from.elem, &x);
        // Each result register takes the two bytes of its lanes; in f32 lanes they are above two zeros.
        let width = to.bits() as u32 / 8;
        let (each, zeros) = (ValueType::vector(to, 64 / width), width - 2);
        let keep = list_of("i1", (0..64).map(|b| (b % width >= zeros).to_string()));
        let parts: Vec<String> = (0..from.lanes.div_ceil(each.lanes))
            .map(|part| {
                let order = (0..64).map(|b| match (part * each.lanes + b / width, b % width) {
                    (_, at) if at < zeros => 0,
                    (lane, at) => lane + 64 * (at - zeros),
                });
                let mut v = self.arranged(&low, &high, order);
                if zeros > 0 {
                    v = self.def(format!("select {keep}, {BYTES} {v}, {BYTES} zeroinitializer"));
                }
                self.def(format!("bitcast {BYTES} {v} to {}", ty(each)))
            })
            .collect();
        self.join(each, &parts, from.lanes)
    }

    /// Of 64 values, sixteen words of four, the first two of each word as bf16, or the last two, in words.
    pub(super) fn look_up_pairs(&mut self, pairs: &Pairs) -> String {
        let (low, high) = self.two_bytes(pairs.elem, &pairs.origin);
        let first = if pairs.second { 2 } else { 0 };
        let v = self.arranged(&low, &high, (0..64).map(|b| b / 4 * 4 + first + b / 2 % 2 + b % 2 * 64));
        self.def(format!("bitcast {BYTES} {v} to <16 x i32>"))
    }

    /// What 64 values as bf16 are the words of, if that is looked up.
    pub(super) fn pairs_of(&self, from: ValueType, origin: &str) -> Option<Pairs> {
        let whole = from.lanes == 64 && self.looks_up(from);
        whole.then(|| Pairs { elem: from.elem, origin: origin.to_owned(), second: false })
    }

    /// Bytes of two registers, by their numbers in both.
    fn arranged(&mut self, low: &str, high: &str, order: impl Iterator<Item = u32>) -> String {
        let order = list(DType::U8, order.map(|i| i.to_string()));
        self.call(BYTES, PERMUTE, &[(BYTES, low), (BYTES, &order), (BYTES, high)], "")
    }

    /// The low and the high bytes of 64 values as bf16.
    fn two_bytes(&mut self, format: DType, x: &str) -> (String, String) {
        let bytes = BYTES;
        if format == DType::F8E4M3 {
            let table = |shift: u32, from: usize| {
                let codes = (from..from + 64).map(move |c| minifloat::e4m3_to_f32(c as u8).abs().to_bits() >> shift);
                list(DType::U8, codes.map(|x| (x as u8).to_string()))
            };
            let mut look = |shift| {
                let (first, second) = (table(shift, 0), table(shift, 64));
                self.call(bytes, PERMUTE, &[(bytes, &first), (bytes, x), (bytes, &second)], "")
            };
            let (low, high) = (look(16), look(24));
            let sign = self.def(format!("and {bytes} {x}, {}", ints("i8", 64, -128)));
            (low, self.def(format!("or {bytes} {high}, {sign}")))
        } else {
            let mut look = |shift: u32| {
                let codes = (0..64u8).map(|c| minifloat::e2m1_to_f32(c % 16).to_bits() >> shift);
                let table = list(DType::U8, codes.map(|x| (x as u8).to_string()));
                self.call(bytes, "llvm.x86.avx512.pshuf.b.512", &[(bytes, &table), (bytes, x)], "")
            };
            (look(16), look(24))
        }
    }
}
