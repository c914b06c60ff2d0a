//! Stand-ins for the approximate functions of f32.
//!
//! Hardware promises an error, not a result. What stands in is the f64 function rounded once; an option moves it by
//! up to the promised error, so that a program that leans on more than was promised can be found.

/// An approximate function of one f32.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Approx {
    Exp2,
    Log2,
    Reciprocal,
    ReciprocalRoot,
    Root,
    Sine,
    Cosine,
    Tanh,
}

impl Approx {
    /// The rounded value.
    pub(crate) fn of(self, x: f32) -> f32 {
        let wide = f64::from(x);
        let y = match self {
            Approx::Exp2 => wide.exp2(),
            Approx::Log2 => wide.log2(),
            Approx::Reciprocal => 1.0 / wide,
            Approx::ReciprocalRoot => 1.0 / wide.sqrt(),
            Approx::Root => wide.sqrt(),
            Approx::Sine => wide.sin(),
            Approx::Cosine => wide.cos(),
            Approx::Tanh => wide.tanh(),
        } as f32;
        if y.is_nan() { f32::from_bits(0x7fff_ffff) } else { y }
    }

    /// The largest promised error, relative and absolute.
    pub(crate) fn error(self) -> (f32, f32) {
        match self {
            // Two units in the last place, of a result anywhere in its binade.
            Approx::Exp2 => (2.0 * f32::EPSILON, 0.0),
            Approx::Log2 => (2f32.powi(-22), 2f32.powi(-22)),
            Approx::Reciprocal => (2f32.powi(-23), 0.0),
            Approx::ReciprocalRoot => (2f32.powf(-22.9), 0.0),
            Approx::Root => (2f32.powi(-23), 0.0),
            Approx::Sine | Approx::Cosine => (0.0, 2f32.powf(-20.9)),
            Approx::Tanh => (2f32.powi(-11), 0.0),
        }
    }

    /// The value moved by a share of the promised error, from -1 to 1. Zeros, infinities and NaN stay.
    pub(crate) fn perturbed(self, x: f32, share: f32) -> f32 {
        let y = self.of(x);
        if y == 0.0 || !y.is_finite() {
            return y;
        }
        let (relative, absolute) = self.error();
        y + share * (relative * y.abs()).max(absolute)
    }
}
