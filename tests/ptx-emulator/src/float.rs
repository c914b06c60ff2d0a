//! Numbers: exact arithmetic with one rounding, formats of 8 to 64 bits, and stand-ins for approximate functions.

pub(crate) mod approx;
pub(crate) mod exact;
pub(crate) mod format;

pub use format::{
    bf16_to_f32, e4m3_to_f32, e5m2_to_f32, f16_to_f32, f32_to_bf16, f32_to_e4m3, f32_to_e5m2, f32_to_f16,
};
