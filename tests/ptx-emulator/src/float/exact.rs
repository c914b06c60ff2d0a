//! Arithmetic that keeps all bits until one rounding at the end.
//!
//! A finite value is `±mant · 2^exp` with up to 128 bits of `mant`. What does not fit is jammed: the lowest bit is
//! set if anything below it was. With at least two bits between that one and the last bit of the result, every
//! rounding comes out as if of the exact value.

/// How the last bit is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rounding {
    Nearest,
    /// To nearest, ties away from zero.
    NearestAway,
    Zero,
    Down,
    Up,
}

/// A binary format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Format {
    pub exponent: u32,
    /// Stored bits of the significand.
    pub mantissa: u32,
    /// Whether the largest exponent holds numbers, with one NaN and no infinity.
    pub finite: bool,
}

pub(crate) const F64: Format = Format { exponent: 11, mantissa: 52, finite: false };
pub(crate) const F32: Format = Format { exponent: 8, mantissa: 23, finite: false };
pub(crate) const TF32: Format = Format { exponent: 8, mantissa: 10, finite: false };
pub(crate) const F16: Format = Format { exponent: 5, mantissa: 10, finite: false };
pub(crate) const BF16: Format = Format { exponent: 8, mantissa: 7, finite: false };
pub(crate) const E5M2: Format = Format { exponent: 5, mantissa: 2, finite: false };
pub(crate) const E4M3: Format = Format { exponent: 4, mantissa: 3, finite: true };

impl Format {
    pub(crate) fn bits(self) -> u32 {
        1 + self.exponent + self.mantissa
    }

    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// The NaN that hardware makes.
    pub(crate) fn nan(self) -> u64 {
        if self == F64 { 0x7ff8_0000_0000_0000 } else { (1 << (self.bits() - 1)) - 1 }
    }

    pub(crate) fn infinity(self, negative: bool) -> u64 {
        let magnitude = if self.finite { self.nan() } else { ((1u64 << self.exponent) - 1) << self.mantissa };
        magnitude | u64::from(negative) << (self.bits() - 1)
    }

    pub(crate) fn largest(self, negative: bool) -> u64 {
        (self.infinity(false) - 1) | u64::from(negative) << (self.bits() - 1)
    }

    pub(crate) fn decode(self, bits: u64) -> Value {
        let negative = bits >> (self.bits() - 1) & 1 == 1;
        let magnitude = bits & ((1 << (self.bits() - 1)) - 1);
        if magnitude > self.infinity(false) || (self.finite && magnitude == self.nan()) {
            return Value::Nan;
        }
        if !self.finite && magnitude == self.infinity(false) {
            return Value::Infinite(negative);
        }
        let exponent = (magnitude >> self.mantissa) as i32;
        let fraction = magnitude & ((1 << self.mantissa) - 1);
        let (mant, exp) = if exponent == 0 { (fraction, 1) } else { (fraction | 1 << self.mantissa, exponent) };
        Value::Finite(Finite { negative, mant: u128::from(mant), exp: exp - self.bias() - self.mantissa as i32 })
    }

    /// The nearest code by `rounding`; what is too large becomes infinity, or stays finite with `saturate`.
    pub(crate) fn encode(self, value: Value, rounding: Rounding, saturate: bool) -> u64 {
        let finite = match value {
            Value::Nan => return self.nan(),
            Value::Infinite(negative) if saturate => return self.largest(negative),
            Value::Infinite(negative) => return self.infinity(negative),
            Value::Finite(finite) => finite,
        };
        let Finite { negative, mant, exp } = finite;
        let sign = u64::from(negative) << (self.bits() - 1);
        if mant == 0 {
            return sign;
        }
        // The exponent of the last bit that the format keeps here.
        let top = 127 - mant.leading_zeros() as i32 + exp;
        let least = 1 - self.bias() - self.mantissa as i32;
        let last = (top - self.mantissa as i32).max(least);
        let shift = last - exp;
        let (kept, half, rest) = split(mant, shift);
        let up = match rounding {
            Rounding::Nearest => half && (rest || kept & 1 == 1),
            Rounding::NearestAway => half,
            Rounding::Zero => false,
            Rounding::Down => negative && (half || rest),
            Rounding::Up => !negative && (half || rest),
        };
        let kept = kept + u64::from(up);
        // Adding the significand with its leading bit to the exponent below carries by itself.
        let field = (last - least) as u64;
        let code = (field << self.mantissa) + kept;
        let limit = self.infinity(false);
        if code >= limit {
            let inward = match rounding {
                Rounding::Nearest | Rounding::NearestAway => false,
                Rounding::Zero => true,
                Rounding::Down => !negative,
                Rounding::Up => negative,
            };
            return if saturate || inward { self.largest(negative) } else { self.infinity(negative) };
        }
        code | sign
    }
}

/// The bits above a shift to the right, the bit below, and whether anything is below that.
fn split(mant: u128, shift: i32) -> (u64, bool, bool) {
    match shift {
        ..=0 => ((mant << -shift) as u64, false, false),
        1..128 => {
            let half = 1u128 << (shift - 1);
            ((mant >> shift) as u64, mant & half != 0, mant & (half - 1) != 0)
        }
        128 => (0, mant >> 127 == 1, mant << 1 != 0),
        _ => (0, false, mant != 0),
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Value {
    Nan,
    Infinite(bool),
    Finite(Finite),
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Finite {
    pub negative: bool,
    pub mant: u128,
    pub exp: i32,
}

fn shift_right_jam(mant: u128, by: u32) -> u128 {
    match by {
        0 => mant,
        1..128 => mant >> by | u128::from(mant << (128 - by) != 0),
        _ => u128::from(mant != 0),
    }
}

pub(crate) fn negate(value: Value) -> Value {
    match value {
        Value::Nan => Value::Nan,
        Value::Infinite(negative) => Value::Infinite(!negative),
        Value::Finite(f) => Value::Finite(Finite { negative: !f.negative, ..f }),
    }
}

pub(crate) fn multiply(a: Value, b: Value) -> Value {
    match (a, b) {
        (Value::Nan, _) | (_, Value::Nan) => Value::Nan,
        (Value::Infinite(s), Value::Infinite(t)) => Value::Infinite(s != t),
        (Value::Infinite(s), Value::Finite(f)) | (Value::Finite(f), Value::Infinite(s)) => {
            if f.mant == 0 {
                Value::Nan
            } else {
                Value::Infinite(s != f.negative)
            }
        }
        (Value::Finite(a), Value::Finite(b)) => {
            Value::Finite(Finite { negative: a.negative != b.negative, mant: a.mant * b.mant, exp: a.exp + b.exp })
        }
    }
}

/// The sum; an exact zero from opposite signs is negative only when rounding down.
pub(crate) fn add(a: Value, b: Value, rounding: Rounding) -> Value {
    match (a, b) {
        (Value::Nan, _) | (_, Value::Nan) => Value::Nan,
        (Value::Infinite(s), Value::Infinite(t)) if s != t => Value::Nan,
        (Value::Infinite(s), _) | (_, Value::Infinite(s)) => Value::Infinite(s),
        (Value::Finite(a), Value::Finite(b)) => Value::Finite(add_finite(a, b, rounding)),
    }
}

fn add_finite(a: Finite, b: Finite, rounding: Rounding) -> Finite {
    if a.mant == 0 && b.mant == 0 {
        let negative = if a.negative == b.negative { a.negative } else { rounding == Rounding::Down };
        return Finite { negative, ..a };
    }
    if a.mant == 0 {
        return b;
    }
    if b.mant == 0 {
        return a;
    }
    // Both get their top bit as high as an addition allows, the larger exponent first.
    let lift = |f: Finite| {
        let by = f.mant.leading_zeros().saturating_sub(2);
        Finite { mant: f.mant << by, exp: f.exp - by as i32, ..f }
    };
    let (a, b) = (lift(a), lift(b));
    let (high, low) = if a.exp >= b.exp { (a, b) } else { (b, a) };
    let aligned = shift_right_jam(low.mant, (high.exp - low.exp) as u32);
    if high.negative == low.negative {
        return Finite { mant: high.mant + aligned, ..high };
    }
    let (mant, flip) = if high.mant >= aligned { (high.mant - aligned, false) } else { (aligned - high.mant, true) };
    if mant == 0 {
        return Finite { negative: rounding == Rounding::Down, mant, exp: high.exp };
    }
    Finite { negative: high.negative != flip, mant, exp: high.exp }
}

pub(crate) fn divide(a: Value, b: Value) -> Value {
    match (a, b) {
        (Value::Nan, _) | (_, Value::Nan) | (Value::Infinite(_), Value::Infinite(_)) => Value::Nan,
        (Value::Infinite(s), Value::Finite(f)) => Value::Infinite(s != f.negative),
        (Value::Finite(f), Value::Infinite(s)) => Value::Finite(Finite { negative: s != f.negative, mant: 0, exp: 0 }),
        (Value::Finite(a), Value::Finite(b)) => {
            let negative = a.negative != b.negative;
            if b.mant == 0 {
                return if a.mant == 0 { Value::Nan } else { Value::Infinite(negative) };
            }
            let by = a.mant.leading_zeros();
            let numerator = a.mant << by;
            // Operands have at most 53 bits, so the quotient keeps at least 74.
            let (quotient, rest) = (numerator / b.mant, numerator % b.mant);
            let mant = quotient << 1 | u128::from(rest != 0);
            Value::Finite(Finite { negative, mant, exp: a.exp - by as i32 - b.exp - 1 })
        }
    }
}

pub(crate) fn square_root(a: Value) -> Value {
    match a {
        Value::Finite(f) if f.mant == 0 => a,
        Value::Nan | Value::Infinite(true) | Value::Finite(Finite { negative: true, .. }) => Value::Nan,
        Value::Infinite(false) => a,
        Value::Finite(f) => {
            let mut by = f.mant.leading_zeros() & !1;
            if (f.exp - by as i32) % 2 != 0 {
                by -= 1;
            }
            let mant = f.mant << by;
            let root = mant.isqrt();
            let jam = u128::from(root * root != mant);
            Value::Finite(Finite { negative: false, mant: root << 1 | jam, exp: (f.exp - by as i32) / 2 - 1 })
        }
    }
}

/// The nearest integer by `rounding`, of a size that fits.
pub(crate) fn integer(value: Finite, rounding: Rounding) -> Option<i128> {
    if value.exp >= 0 {
        let fits = value.mant == 0 || value.exp < value.mant.leading_zeros() as i32 - 1;
        let magnitude = fits.then(|| (value.mant.checked_shl(value.exp as u32).unwrap_or(0)) as i128)?;
        return Some(if value.negative { -magnitude } else { magnitude });
    }
    let by = -value.exp;
    let (kept, half, rest) = if by >= 128 {
        split(value.mant, by)
    } else {
        let (_, half, rest) = split(value.mant, by);
        return Some(round_integer((value.mant >> by) as i128, half, rest, value.negative, rounding));
    };
    Some(round_integer(i128::from(kept), half, rest, value.negative, rounding))
}

fn round_integer(kept: i128, half: bool, rest: bool, negative: bool, rounding: Rounding) -> i128 {
    let up = match rounding {
        Rounding::Nearest => half && (rest || kept & 1 == 1),
        Rounding::NearestAway => half,
        Rounding::Zero => false,
        Rounding::Down => negative && (half || rest),
        Rounding::Up => !negative && (half || rest),
    };
    let magnitude = kept + i128::from(up);
    if negative { -magnitude } else { magnitude }
}

/// The value of an integer.
pub(crate) fn from_integer(value: i128) -> Value {
    Value::Finite(Finite { negative: value < 0, mant: value.unsigned_abs(), exp: 0 })
}
