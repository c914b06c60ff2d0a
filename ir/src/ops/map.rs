//! `add %a, %b`, `exp %x`, `select %c, %a, %b`, …: an elementwise function. The mnemonic is the function's name.
//!
//! - C1: as many operands as the function takes.
//! - C2: all operands have one shape. There is no implicit broadcasting.
//! - C3: operands have one format, which suits the function: arithmetic takes reals or integers, the transcendental
//!   functions reals, `and`, `or`, `not` truth values; `select` takes a truth value first.

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
    Tanh "tanh" 1 "hyperbolic tangent", Sigmoid "sigmoid" 1 "`1/(1+e^-x)`", Floor "floor" 1 "largest integer below",
    Not "not" 1 "negation",
    Add "add" 2 "`x+y`", Sub "sub" 2 "`x-y`", Mul "mul" 2 "`x·y`", Div "div" 2 "`x/y`, truncating for integers",
    Max "max" 2 "`x` if `x>y`, else `y`", Min "min" 2 "`x` if `x<y`, else `y`", Lt "lt" 2 "`x<y`", Le "le" 2 "`x≤y`", Eq "eq" 2 "`x=y`",
    And "and" 2 "both", Or "or" 2 "either",
    Select "select" 3 "second operand where the first is true, else the third",
}

impl MapFn {
    /// Whether it takes reals only.
    pub const fn real_only(self) -> bool {
        use MapFn::*;
        matches!(self, Exp | Log | Sqrt | Rsqrt | Sin | Cos | Tanh | Sigmoid | Floor)
    }

    /// Whether it takes truth values.
    pub const fn logical(self) -> bool {
        matches!(self, MapFn::Not | MapFn::And | MapFn::Or)
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
            Exp => x.exp(),
            Log => x.ln(),
            Sqrt => x.sqrt(),
            Rsqrt => 1.0 / x.sqrt(),
            Sin => x.sin(),
            Cos => x.cos(),
            Tanh => x.tanh(),
            Sigmoid => 1.0 / (1.0 + (-x).exp()),
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
            Not | And | Or | Select => unreachable!("not on reals"),
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
            Exp | Log | Sqrt | Rsqrt | Sin | Cos | Tanh | Sigmoid | Floor | Select => unreachable!("not on integers"),
        }
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
        let logical = dtype == DType::Bool;
        ensure!(logical == self.f.logical(), "C3", "`{}` on {dtype}", self.f.name());
        ensure!(dtype.is_float() || !self.f.real_only(), "C3", "`{}` on {dtype}", self.f.name());
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
    fn constraints() {
        let (a, b) = (wave(&[2]), wave(&[3]));
        let ints = Tensor::int(DType::I32, &[2], vec![1, 2]);
        assert_eq!(run(op(MapFn::Add), &[&a]).unwrap_err().constraint, "C1");
        assert_eq!(run(op(MapFn::Add), &[&a, &b]).unwrap_err().constraint, "C2");
        assert_eq!(run(op(MapFn::Add), &[&a, &ints]).unwrap_err().constraint, "C3");
        assert_eq!(run(op(MapFn::Exp), &[&ints]).unwrap_err().constraint, "C3");
        assert_eq!(run(op(MapFn::And), &[&ints, &ints]).unwrap_err().constraint, "C3");
        assert_eq!(run(op(MapFn::Select), &[&a, &a, &a]).unwrap_err().constraint, "C3");
    }
}
