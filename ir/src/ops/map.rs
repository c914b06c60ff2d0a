//! `add %a, %b`, `exp %x`, `select %c, %a, %b`, …: an elementwise function. The mnemonic is the function's name.
//!
//! - C1: as many operands as the function takes.
//! - C2: all operands have one shape. There is no implicit broadcasting.
//! - C3: operands have one format, which suits the function: arithmetic takes reals or integers, the transcendental
//!   functions and `pow2_ceil` reals, `rem` integers, `and`, `or`, `not` truth values, `xor` those or integers;
//!   `select` takes a truth value first.
//!
//! `pow2_ceil` is exact, unlike a power of a rounded-up logarithm: from 0 comes 0, from less than 2^-126 (the least
//! normal f32) that, from more than 2^127 infinity, from negative numbers and NaN comes NaN.
//!
//! The functions here are those of the `libm` crate on every machine, so weights that are computed when compiling are
//! the same bytes everywhere.

use super::*;
use crate::ops::cast::wrap;
use crate::tensor::Data;
use hadal_types::DType;

/// Declares the functions: name in text, variant, meaning.
macro_rules! functions {
    ($($variant:ident $name:literal $arity:literal $doc:literal),+ $(,)?) => {
        /// The function applied to each element.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum MapFn {
            $(#[doc = $doc] $variant),+
        }

        impl MapFn {
            /// Every function.
            pub const ALL: &'static [MapFn] = &[$(MapFn::$variant),+];

            /// The name in text.
            pub const fn name(self) -> &'static str {
                match self { $(MapFn::$variant => $name),+ }
            }

            /// How many operands it takes.
            pub const fn arity(self) -> usize {
                match self { $(MapFn::$variant => $arity),+ }
            }
        }

        const NAMES: &[&str] = &[$($name),+];
    };
}

functions! {
    Neg "neg" 1 "`-x`", Abs "abs" 1 "`|x|`", Exp "exp" 1 "`e^x`", Log "log" 1 "natural logarithm",
    Sqrt "sqrt" 1 "square root", Rsqrt "rsqrt" 1 "`1/√x`", Sin "sin" 1 "sine", Cos "cos" 1 "cosine",
    Log1p "log1p" 1 "`ln(1+x)`, accurate near 0", Pow2Ceil "pow2_ceil" 1 "smallest power of two that is not below",
    Tanh "tanh" 1 "hyperbolic tangent", Erf "erf" 1 "`2/√π ∫₀ˣ e^-t² dt`, the error function", Sigmoid "sigmoid" 1 "`1/(1+e^-x)`", Floor "floor" 1 "largest integer below",
    Not "not" 1 "negation",
    Add "add" 2 "`x+y`", Sub "sub" 2 "`x-y`", Mul "mul" 2 "`x·y`", Div "div" 2 "`x/y`, truncating for integers",
    Max "max" 2 "`x` if `x>y`, else `y`", Min "min" 2 "`x` if `x<y`, else `y`", Lt "lt" 2 "`x<y`", Le "le" 2 "`x≤y`", Eq "eq" 2 "`x=y`",
    And "and" 2 "both", Or "or" 2 "either", Xor "xor" 2 "one of both, or of their bits",
    Rem "rem" 2 "`x - y·div(x, y)`, the remainder with the sign of `x`",
    Select "select" 3 "second operand where the first is true, else the third",
}

impl MapFn {
    /// Whether it takes reals only.
    pub const fn real_only(self) -> bool {
        use MapFn::*;
        matches!(self, Exp | Log | Log1p | Pow2Ceil | Sqrt | Rsqrt | Sin | Cos | Tanh | Erf | Sigmoid | Floor)
    }

    /// Whether it takes truth values.
    pub const fn logical(self) -> bool {
        matches!(self, MapFn::Not | MapFn::And | MapFn::Or | MapFn::Xor)
    }

    /// Whether it takes integers only.
    pub const fn int_only(self) -> bool {
        matches!(self, MapFn::Rem)
    }

    /// Whether it takes operands of a format; of `select`, those that are chosen from.
    pub const fn takes(self, dtype: DType) -> bool {
        match dtype {
            DType::Bool => self.logical() || matches!(self, MapFn::Select),
            // Formats of weights alone: they are cast first.
            DType::U4 | DType::I4 => matches!(self, MapFn::Select),
            d if d.is_int() => !self.real_only() && (!self.logical() || matches!(self, MapFn::Xor)),
            _ => !self.logical() && !self.int_only(),
        }
    }

    /// Whether the result is a truth value whatever the operands are.
    pub const fn compares(self) -> bool {
        matches!(self, MapFn::Lt | MapFn::Le | MapFn::Eq)
    }

    /// The value on reals.
    pub fn real(self, x: f64, y: f64) -> f64 {
        use MapFn::*;
        match self {
            Neg => -x,
            Abs => x.abs(),
            Exp => libm::exp(x),
            Log => libm::log(x),
            Log1p => libm::log1p(x),
            Pow2Ceil => pow2_ceil(x),
            Sqrt => x.sqrt(),
            Rsqrt => 1.0 / x.sqrt(),
            Sin => libm::sin(x),
            Cos => libm::cos(x),
            Tanh => libm::tanh(x),
            Erf => libm::erf(x),
            Sigmoid => 1.0 / (1.0 + libm::exp(-x)),
            Floor => x.floor(),
            Add => x + y,
            Sub => x - y,
            Mul => x * y,
            Div => x / y,
            Max if x > y => x,
            Min if x < y => x,
            Max | Min => y,
            Lt => (x < y) as u8 as f64,
            Le => (x <= y) as u8 as f64,
            Eq => (x == y) as u8 as f64,
            Not | And | Or | Xor | Rem | Select => unreachable!("not on reals"),
        }
    }

    /// The value on integers and truth values. Arithmetic wraps; division by zero gives zero.
    pub fn int(self, x: i64, y: i64) -> i64 {
        use MapFn::*;
        match self {
            Neg => x.wrapping_neg(),
            Abs => x.wrapping_abs(),
            Add => x.wrapping_add(y),
            Sub => x.wrapping_sub(y),
            Mul => x.wrapping_mul(y),
            Div => x.checked_div(y).unwrap_or(0),
            Max => x.max(y),
            Min => x.min(y),
            Lt => (x < y) as i64,
            Le => (x <= y) as i64,
            Eq => (x == y) as i64,
            Not => (x == 0) as i64,
            And => x & y,
            Or => x | y,
            Xor => x ^ y,
            Rem => x.checked_rem(y).unwrap_or(0),
            Exp | Log | Log1p | Pow2Ceil | Sqrt | Rsqrt | Sin | Cos | Tanh | Erf | Sigmoid | Floor | Select => {
                unreachable!("not on integers")
            }
        }
    }
}

/// The smallest power of two that is not below `x`, from 2^-126 to 2^127.
pub fn pow2_ceil(x: f64) -> f64 {
    let (least, most) = (f64::from(f32::MIN_POSITIVE), f64::from_bits((127 + 1023) << 52));
    match x {
        0.0 => 0.0,
        x if x > most => f64::INFINITY,
        x if x > 0.0 => f64::from_bits((x.max(least).to_bits() + ((1 << 52) - 1)) >> 52 << 52),
        _ => f64::NAN,
    }
}

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Map {
    /// The function.
    pub f: MapFn,
}

impl OpDef for Map {
    const MNEMONICS: &'static [&'static str] = NAMES;
    const TIER: Tier = Tier::Primitive;

    fn mnemonic(&self) -> &'static str {
        self.f.name()
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        Vec::new()
    }

    fn from_attrs(mnemonic: &str, _: &mut Attrs) -> Result<Self, AttrError> {
        let f = *MapFn::ALL.iter().find(|f| f.name() == mnemonic).expect("the table holds only these names");
        Ok(Map { f })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        let n = self.f.arity();
        ensure!(args.len() == n, "C1", "`{}` takes {n} operand(s), found {}", self.f.name(), args.len());
        for a in args {
            ensure!(a.shape == args[0].shape, "C2", "shapes differ: {} and {a}", args[0]);
        }
        let values = if self.f == MapFn::Select { &args[1..] } else { args };
        let dtype = values[0].dtype;
        for a in values {
            ensure!(a.dtype == dtype, "C3", "formats differ: {dtype} and {}", a.dtype);
        }
        if self.f == MapFn::Select {
            ensure!(args[0].dtype == DType::Bool, "C3", "the condition is {}", args[0].dtype);
            return Ok(args[1].clone());
        }
        ensure!(self.f.takes(dtype), "C3", "`{}` on {dtype}", self.f.name());
        Ok(if self.f.compares() { args[0].with_dtype(DType::Bool) } else { args[0].clone() })
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let n = args[0].len();
        if self.f == MapFn::Select {
            let pick = |i: usize| if args[0].ints()[i] != 0 { args[1] } else { args[2] };
            let data = match &args[1].data {
                Data::Real(_) => Data::Real((0..n).map(|i| pick(i).reals()[i]).collect()),
                Data::Int(_) => Data::Int((0..n).map(|i| pick(i).ints()[i]).collect()),
            };
            return Tensor { dtype: out.dtype, shape: shape.to_vec(), data };
        }
        let second = args.get(1);
        match &args[0].data {
            Data::Real(x) => {
                let values = (0..n).map(|i| self.f.real(x[i], second.map_or(0.0, |t| t.reals()[i])));
                if self.f.compares() {
                    Tensor::int(out.dtype, shape, values.map(|v| v as i64).collect())
                } else {
                    Tensor::real(out.dtype, shape, values.collect())
                }
            }
            Data::Int(x) => {
                let values = (0..n).map(|i| wrap(out.dtype, self.f.int(x[i], second.map_or(0, |t| t.ints()[i]))));
                Tensor::int(out.dtype, shape, values.collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    fn op(f: MapFn) -> Map {
        Map { f }
    }

    #[test]
    fn arithmetic_comparison_and_choice() {
        let a = Tensor::real(DType::F32, &[3], vec![1., -2., 4.]);
        let b = Tensor::real(DType::F32, &[3], vec![2., -2., 3.]);
        assert_eq!(run(op(MapFn::Sub), &[&a, &b]).unwrap().reals(), [-1., 0., 1.]);
        let less = run(op(MapFn::Lt), &[&a, &b]).unwrap();
        assert_eq!(less.ints(), [1, 0, 0]);
        assert_eq!(run(op(MapFn::Select), &[&less, &a, &b]).unwrap().reals(), [1., -2., 3.]);
        assert_eq!(run(op(MapFn::Rsqrt), &[&Tensor::real(DType::F32, &[1], vec![4.])]).unwrap().reals(), [0.5]);
    }

    #[test]
    fn powers_of_two_are_exact() {
        let cases = [
            (1.0, 1.0),
            (1.0000001, 2.0),
            (3.0, 4.0),
            (0.3, 0.5),
            (0.0, 0.0),
            (1e-40, f64::from(f32::MIN_POSITIVE)),
            (f64::from(f32::MAX), f64::INFINITY),
            (1.7e38, 2f64.powi(127)),
            (f64::INFINITY, f64::INFINITY),
        ];
        for (x, y) in cases {
            assert_eq!(pow2_ceil(x), y, "{x}");
        }
        assert!(pow2_ceil(-1.0).is_nan() && pow2_ceil(f64::NAN).is_nan() && pow2_ceil(f64::NEG_INFINITY).is_nan());
    }

    #[test]
    fn integers_have_remainders_and_bits() {
        let a = Tensor::int(DType::I64, &[4], vec![7, -7, 5, i64::MIN]);
        let b = Tensor::int(DType::I64, &[4], vec![3, 3, 0, -1]);
        assert_eq!(run(op(MapFn::Rem), &[&a, &b]).unwrap().ints(), [1, -1, 0, 0]);
        assert_eq!(run(op(MapFn::Xor), &[&a, &b]).unwrap().ints(), [4, -7 ^ 3, 5, i64::MAX]);
    }

    #[test]
    fn constraints() {
        let (a, b) = (wave(&[2]), wave(&[3]));
        let ints = Tensor::int(DType::I32, &[2], vec![1, 2]);
        assert_eq!(run(op(MapFn::Add), &[&a]).unwrap_err().constraint, "C1");
        assert_eq!(run(op(MapFn::Add), &[&a, &b]).unwrap_err().constraint, "C2");
        assert_eq!(run(op(MapFn::Add), &[&a, &ints]).unwrap_err().constraint, "C3");
        assert_eq!(run(op(MapFn::Exp), &[&ints]).unwrap_err().constraint, "C3");
        assert_eq!(run(op(MapFn::And), &[&ints, &ints]).unwrap_err().constraint, "C3");
        assert_eq!(run(op(MapFn::Rem), &[&a, &a]).unwrap_err().constraint, "C3");
        assert_eq!(run(op(MapFn::Xor), &[&a, &a]).unwrap_err().constraint, "C3");
        assert_eq!(run(op(MapFn::Select), &[&a, &a, &a]).unwrap_err().constraint, "C3");
    }
}
