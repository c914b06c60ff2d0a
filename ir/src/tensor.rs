//! Concrete tensors for the interpreters and for folding weights.

use hadal_types::DType;

/// Element values in wide precision.
#[derive(Clone, PartialEq, Debug)]
pub enum Data {
    /// Real numbers.
    Real(Vec<f64>),
    /// Integers and truth values.
    Int(Vec<i64>),
}

/// A row-major tensor whose elements are held wide, whatever its nominal format.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    /// Nominal element format.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: Data,
}

impl Tensor {
    /// A tensor of reals. Panics if the count does not match, which is a bug in the caller.
    pub fn real(dtype: DType, shape: &[usize], values: Vec<f64>) -> Tensor {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "element count");
        Tensor { dtype, shape: shape.to_vec(), data: Data::Real(values) }
    }

    /// A tensor of integers or truth values.
    pub fn int(dtype: DType, shape: &[usize], values: Vec<i64>) -> Tensor {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "element count");
        Tensor { dtype, shape: shape.to_vec(), data: Data::Int(values) }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The reals. Panics on integers: the verifier has excluded it.
    pub fn reals(&self) -> &[f64] {
        match &self.data {
            Data::Real(v) => v,
            Data::Int(_) => panic!("integer tensor where reals were verified"),
        }
    }

    /// The integers. Panics on reals.
    pub fn ints(&self) -> &[i64] {
        match &self.data {
            Data::Int(v) => v,
            Data::Real(_) => panic!("real tensor where integers were verified"),
        }
    }

    /// Element `i` in row-major order as a real.
    pub fn at(&self, i: usize) -> f64 {
        match &self.data {
            Data::Real(v) => v[i],
            Data::Int(v) => v[i] as f64,
        }
    }

    /// A tensor with `shape` whose element at row-major position `i` is element `source(i)` of `self`.
    pub fn pick(&self, shape: &[usize], source: impl FnMut(usize) -> usize) -> Tensor {
        let count = shape.iter().product();
        let data = match &self.data {
            Data::Real(v) => Data::Real((0..count).map(source).map(|i| v[i]).collect()),
            Data::Int(v) => Data::Int((0..count).map(source).map(|i| v[i]).collect()),
        };
        Tensor { dtype: self.dtype, shape: shape.to_vec(), data }
    }

    /// Decodes stored bytes; packed formats are unpacked. `None` if the length does not match.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Option<Tensor> {
        use hadal_types::minifloat as m;
        let count: usize = shape.iter().product();
        if bytes.len() as u64 != dtype.bytes(count as u64) {
            return None;
        }
        fn each<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
            bytes.as_chunks::<N>().0.iter().map(|c| f(*c)).collect()
        }
        let data = match dtype {
            DType::F64 => Data::Real(each(bytes, f64::from_le_bytes)),
            DType::F32 => Data::Real(each(bytes, |b| f32::from_le_bytes(b) as f64)),
            DType::F16 => Data::Real(each(bytes, |b| half::f16::from_le_bytes(b).to_f64())),
            DType::BF16 => Data::Real(each(bytes, |b| half::bf16::from_le_bytes(b).to_f64())),
            DType::F8E4M3 => Data::Real(each(bytes, |[b]| m::e4m3_to_f32(b) as f64)),
            DType::F8E8M0 => Data::Real(each(bytes, |[b]| m::e8m0_to_f32(b) as f64)),
            DType::F4E2M1 => {
                Data::Real((0..count).map(|i| m::e2m1_to_f32(bytes[i / 2] >> (4 * (i % 2)) & 15) as f64).collect())
            }
            DType::U4 => Data::Int((0..count).map(|i| (bytes[i / 2] >> (4 * (i % 2)) & 15) as i64).collect()),
            DType::I4 => {
                Data::Int((0..count).map(|i| ((bytes[i / 2] << (4 - 4 * (i % 2))) as i8 >> 4) as i64).collect())
            }
            DType::Bool | DType::U8 => Data::Int(each(bytes, |[b]| b as i64)),
            DType::I8 => Data::Int(each(bytes, |[b]| b as i8 as i64)),
            DType::I32 => Data::Int(each(bytes, |b| i32::from_le_bytes(b) as i64)),
            DType::I64 => Data::Int(each(bytes, i64::from_le_bytes)),
        };
        Some(Tensor { dtype, shape: shape.to_vec(), data })
    }

    /// Encodes the elements in the nominal format, rounding as [`DType::round`] does.
    pub fn to_bytes(&self) -> Vec<u8> {
        use hadal_types::minifloat as m;
        let n = self.len();
        let real = |i: usize| self.at(i);
        let int = |i: usize| match &self.data {
            Data::Int(v) => v[i],
            Data::Real(v) => v[i] as i64,
        };
        match self.dtype {
            DType::F64 => (0..n).flat_map(|i| real(i).to_le_bytes()).collect(),
            DType::F32 => (0..n).flat_map(|i| (real(i) as f32).to_le_bytes()).collect(),
            DType::F16 => (0..n).flat_map(|i| half::f16::from_f64(real(i)).to_le_bytes()).collect(),
            DType::BF16 => (0..n).flat_map(|i| half::bf16::from_f64(real(i)).to_le_bytes()).collect(),
            DType::F8E4M3 => (0..n).map(|i| m::e4m3_from_f64(real(i))).collect(),
            DType::F8E8M0 => (0..n).map(|i| m::e8m0_from_f64(real(i))).collect(),
            DType::F4E2M1 => {
                let code = |i: usize| if i < n { m::e2m1_from_f64(real(i)) } else { 0 };
                (0..n.div_ceil(2)).map(|i| code(2 * i) | code(2 * i + 1) << 4).collect()
            }
            DType::U4 | DType::I4 => {
                let code = |i: usize| if i < n { int(i) as u8 & 15 } else { 0 };
                (0..n.div_ceil(2)).map(|i| code(2 * i) | code(2 * i + 1) << 4).collect()
            }
            DType::Bool => (0..n).map(|i| (int(i) != 0) as u8).collect(),
            DType::U8 => (0..n).map(|i| int(i) as u8).collect(),
            DType::I8 => (0..n).map(|i| int(i) as u8).collect(),
            DType::I32 => (0..n).flat_map(|i| (int(i) as i32).to_le_bytes()).collect(),
            DType::I64 => (0..n).flat_map(|i| int(i).to_le_bytes()).collect(),
        }
    }
}

/// Row-major strides of `shape`.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i] * shape[i];
    }
    out
}

/// Splits row-major position `at` into one coordinate per dimension.
pub fn coordinates(shape: &[usize], mut at: usize, out: &mut Vec<usize>) {
    out.clear();
    out.resize(shape.len(), 0);
    for (c, n) in out.iter_mut().zip(shape).rev() {
        *c = at % n;
        at /= n;
    }
}

/// The row-major position of `coordinates`.
pub fn position(shape: &[usize], coordinates: &[usize]) -> usize {
    coordinates.iter().zip(shape).fold(0, |at, (c, n)| at * n + c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip_in_every_format() {
        for dtype in DType::ALL {
            let t = if dtype.is_float() {
                Tensor::real(dtype, &[3], vec![1.0, 0.5, 2.0])
            } else {
                Tensor::int(dtype, &[3], vec![1, 0, 1])
            };
            assert_eq!(Tensor::from_bytes(dtype, &[3], &t.to_bytes()), Some(t));
        }
        assert_eq!(Tensor::from_bytes(DType::F32, &[2], &[0; 7]), None);
    }
}
