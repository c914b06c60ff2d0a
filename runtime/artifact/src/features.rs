//! Features of the processor at hand: what code may need of it, and so what a target can name.

/// Defines [`has_feature`] by an architecture's macro, which takes literals only.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! features {
    ($detected:ident: $($name:tt)*) => {
        /// Whether this processor has a feature, by the name that Rust gives it; what is not known here it has not.
        pub fn has_feature(feature: &str) -> bool {
            use std::arch::$detected;
            match feature {
                $($name => $detected!($name),)*
                _ => false,
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
features!(
    is_x86_feature_detected:
    "sse" "sse2" "sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "lzcnt" "bmi1" "bmi2" "avx" "avx2" "fma" "f16c"
    "avx512f" "avx512cd" "avx512bw" "avx512dq" "avx512vl" "avx512vnni" "avx512bf16" "avx512fp16" "avx512vbmi"
    "avx512vbmi2" "avx512ifma" "avx512bitalg" "avx512vpopcntdq" "avxvnni" "gfni" "vaes" "vpclmulqdq" "cmpxchg16b"
);

#[cfg(target_arch = "aarch64")]
features!(
    is_aarch64_feature_detected:
    "neon" "fp16" "dotprod" "i8mm" "bf16" "lse" "sve" "sve2"
);

/// Whether this processor has a feature: none is known of this architecture.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn has_feature(_: &str) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_baseline_is_there_and_inventions_are_not() {
        let baseline = if cfg!(target_arch = "x86_64") { "sse2" } else { "neon" };
        assert!(has_feature(baseline) && !has_feature("warp drive"));
    }
}
