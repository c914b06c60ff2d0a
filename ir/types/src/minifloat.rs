//! Exact conversions of the 8- and 4-bit floating formats (OCP OFP8 and MX specifications).
//!
//! Encoding rounds to nearest, ties to even, straight from `f64`, so nothing is rounded twice.
//! Values beyond the largest finite one saturate, as the published DeepSeek kernels do.

/// Decodes an e4m3fn byte.
pub fn e4m3_to_f32(byte: u8) -> f32 {
    let magnitude = match (byte >> 3 & 15, byte & 7) {
        (15, 7) => f32::NAN,
        (0, m) => m as f32 * 2f32.powi(-9),
        (e, m) => (8 + m) as f32 * 2f32.powi(e as i32 - 10),
    };
    if byte & 0x80 != 0 { -magnitude } else { magnitude }
}

/// Encodes as e4m3fn; beyond ±448 saturates, NaN stays NaN.
pub fn e4m3_from_f64(value: f64) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    if value.is_nan() {
        return sign | 0x7f;
    }
    sign | nearest(value.abs(), 0x7e, e4m3_to_f32)
}

/// Encodes as e4m3fn; beyond ±448 saturates, NaN stays NaN. Without branches, so that vectors are made of it.
pub fn e4m3_from_f32(value: f32) -> u8 {
    let (sign, bits) = ((value.to_bits() >> 24) as u8 & 0x80, value.to_bits() & 0x7fff_ffff);
    let magnitude = f32::from_bits(bits);
    // Adding half of what is cut off, a little less where the code would be even, carries into the exponent too.
    let normal = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
    // Below 2^-6 codes are multiples of 2^-9; the sum's low bits are the nearest one.
    const INTEGERS: f32 = 1.5 * (1 << 23) as f32;
    let subnormal = (magnitude * 512.0 + INTEGERS).to_bits() & 0xf;
    let code = if magnitude < 0.015625 { subnormal } else { normal.saturating_sub(120 << 3).min(0x7e) };
    sign | if magnitude.is_nan() { 0x7f } else { code as u8 }
}

/// Decodes an e8m0 byte: a power of two.
pub fn e8m0_to_f32(byte: u8) -> f32 {
    match byte {
        255 => f32::NAN,
        0 => f32::from_bits(0x0040_0000),
        e => f32::from_bits((e as u32) << 23),
    }
}

/// Encodes as e8m0: the nearest power of two (ties to the even exponent byte), saturating at 2^-127 and 2^127.
/// Values that are not positive numbers become NaN, except zero, which saturates low.
pub fn e8m0_from_f64(value: f64) -> u8 {
    if value.is_nan() || value < 0.0 {
        return 255;
    }
    nearest(value, 254, e8m0_to_f32)
}

/// Decodes the low nibble of an e2m1 element.
pub fn e2m1_to_f32(nibble: u8) -> f32 {
    let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][(nibble & 7) as usize];
    if nibble & 8 != 0 { -magnitude } else { magnitude }
}

/// Encodes as e2m1 in the low nibble; beyond ±6 saturates, NaN becomes the largest value.
pub fn e2m1_from_f64(value: f64) -> u8 {
    let sign = if value.is_sign_negative() { 8 } else { 0 };
    if value.is_nan() {
        return sign | 7;
    }
    sign | nearest(value.abs(), 7, e2m1_to_f32)
}

/// The code in `0..=max` whose value is nearest to `value`; `decode` must increase with the code.
fn nearest(value: f64, max: u8, decode: fn(u8) -> f32) -> u8 {
    let (mut low, mut high) = (0u8, max);
    while low < high {
        let mid = low + (high - low).div_ceil(2);
        if decode(mid) as f64 <= value {
            low = mid;
        } else {
            high = mid - 1;
        }
    }
    if low == max {
        return low;
    }
    let (below, above) = (value - decode(low) as f64, decode(low + 1) as f64 - value);
    if above < below || (above == below && low & 1 == 1) { low + 1 } else { low }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_e4m3_code_round_trips() {
        for code in 0..=255u8 {
            let value = e4m3_to_f32(code);
            if !value.is_nan() {
                assert_eq!(e4m3_from_f32(value), code, "{value}");
            }
        }
    }

    #[test]
    fn e4m3_of_f32_is_that_of_f64() {
        // All upper halves of f32, and halves of steps and their neighbours behind them.
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7fff, 0x8000, 0xffff] {
                let value = f32::from_bits((upper as u32) << 16 | lower);
                assert_eq!(e4m3_from_f32(value), e4m3_from_f64(value as f64), "{value:e}");
            }
        }
    }

    #[test]
    fn e4m3_rounds_to_even_and_saturates() {
        assert_eq!(e4m3_to_f32(0x7e), 448.0);
        assert_eq!(e4m3_from_f32(1e9), 0x7e);
        assert_eq!(e4m3_from_f32(-1e9), 0xfe);
        // Halfway between 16 and 18 goes to 16 (even mantissa), between 18 and 20 to 20.
        assert_eq!(e4m3_to_f32(e4m3_from_f32(17.0)), 16.0);
        assert_eq!(e4m3_to_f32(e4m3_from_f32(19.0)), 20.0);
        assert_eq!(e4m3_to_f32(e4m3_from_f32(2f32.powi(-10))), 0.0);
        assert_eq!(e4m3_to_f32(1), 2f32.powi(-9));
    }

    #[test]
    fn every_e8m0_and_e2m1_code_round_trips() {
        for code in 0..=254u8 {
            assert_eq!(e8m0_from_f64(e8m0_to_f32(code) as f64), code);
        }
        for code in 0..16u8 {
            assert_eq!(e2m1_from_f64(e2m1_to_f32(code) as f64), code);
        }
        assert_eq!(e2m1_from_f64(2.5), e2m1_from_f64(2.0));
        assert_eq!(e2m1_from_f64(9.0), 7);
    }
}
