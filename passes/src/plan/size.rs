//! The largest sizes that symbol ranges allow.

use super::Ranges;
use crate::Error;
use hadal_ir::plan::ALIGN;
use hadal_ir::{Bindings, Dim, Sym, TensorType};

/// The largest value of `dim` over `ranges`, where `P + T` never exceeds `max_context`. At least 0.
///
/// An affine form is largest at a corner. Corners of the box cut by `P + T ≤ max_context` are those of the box that lie
/// within, and the points where an edge of the box meets the cut.
pub fn largest(dim: &Dim, ranges: &Ranges, max_context: i64) -> Result<i64, Sym> {
    let mut bindings = Bindings::new();
    for (sym, k) in dim.terms() {
        let range = ranges.get(sym).ok_or(*sym)?;
        bindings.insert(*sym, if *k > 0 { range.max } else { range.min });
    }
    let (Some(p), Some(t)) = (ranges.get(&Sym::P), ranges.get(&Sym::T)) else { return dim.eval(&bindings) };
    let ps = [p.min, p.max, max_context - t.min, max_context - t.max];
    let ts = [t.min, t.max, max_context - p.min, max_context - p.max];
    let mut best = None;
    for (at_p, at_t) in ps.iter().flat_map(|a| ts.iter().map(move |b| (*a, *b))) {
        let inside = p.min <= at_p && at_p <= p.max && t.min <= at_t && at_t <= t.max && at_p + at_t <= max_context;
        if inside {
            bindings.extend([(Sym::P, at_p), (Sym::T, at_t)]);
            best = best.max(Some(dim.eval(&bindings)?));
        }
    }
    // Ranges that the limit leaves empty are never run; any size will do.
    Ok(best.unwrap_or(0).max(0))
}

/// Bytes a tensor needs at its largest, a multiple of [`ALIGN`].
pub fn largest_bytes(ty: &TensorType, ranges: &Ranges, max_context: i64) -> Result<u64, Error> {
    let too_large = || Error::TooLarge { ty: ty.clone() };
    let mut count = 1u64;
    for d in &ty.shape {
        let n = largest(d, ranges, max_context).map_err(|sym| Error::NoRange { sym, ty: ty.clone() })?;
        count = count.checked_mul(n.max(0) as u64).ok_or_else(too_large)?;
    }
    let bits = count.checked_mul(ty.dtype.bits()).ok_or_else(too_large)?;
    bits.div_ceil(8).checked_next_multiple_of(ALIGN).ok_or_else(too_large)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hadal_ir::{DType, Range};

    fn ranges() -> Ranges {
        Ranges::from([(Sym::P, Range { min: 0, max: 4095 }), (Sym::T, Range { min: 1, max: 512 })])
    }

    fn s() -> Dim {
        Dim::from(Sym::P) + Sym::T
    }

    #[test]
    fn the_context_limits_the_sum() {
        assert_eq!(largest(&s(), &ranges(), 4096), Ok(4096));
        assert_eq!(largest(&s(), &ranges(), 1 << 20), Ok(4095 + 512));
        assert_eq!(largest(&(s() + Sym::T), &ranges(), 4096), Ok(4096 + 512));
        assert_eq!(largest(&(Dim::from(Sym::P) * 2 + Sym::T), &ranges(), 4096), Ok(2 * 4095 + 1));
        assert_eq!(largest(&Dim::from(Sym::T), &ranges(), 100), Ok(100));
        assert_eq!(largest(&(Dim::from(10) - Sym::T), &ranges(), 4096), Ok(9));
    }

    #[test]
    fn absurd_sizes_are_refused() {
        let ty = TensorType::new(DType::F32, [i64::MAX, 8]);
        assert_eq!(largest_bytes(&ty, &ranges(), 4096), Err(Error::TooLarge { ty: ty.clone() }));
        let free = TensorType { dtype: DType::F32, shape: vec![Sym::B.into()] };
        assert!(matches!(largest_bytes(&free, &ranges(), 4096), Err(Error::NoRange { sym: Sym::B, .. })));
        assert_eq!(largest_bytes(&TensorType::new(DType::BF16, [33]), &ranges(), 4096), Ok(128));
    }
}
