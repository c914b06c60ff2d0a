//! Which of the CPU features a program asks for are there.

use hadal_artifact::Target;

/// Architecture of this machine, as programs name it.
pub(crate) const ARCH: &str = std::env::consts::ARCH;

/// Whether code for `target` runs here.
pub(crate) fn runs(target: &Target) -> bool {
    target.arch == ARCH && target.features.iter().all(|f| has(f))
}

/// Those of `features` that this CPU lacks or that this runtime has never heard of.
pub(crate) fn missing(features: &[String]) -> Vec<String> {
    features.iter().filter(|f| !has(f)).cloned().collect()
}

#[cfg(target_arch = "x86_64")]
fn has(feature: &str) -> bool {
    // The macro only takes literals, so the names are spelled out once.
    macro_rules! table {
        ($($name:tt)*) => {
            match feature {
                $($name => std::arch::is_x86_feature_detected!($name),)*
                _ => false,
            }
        };
    }
    table!(
        "sse" "sse2" "sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "lzcnt" "bmi1" "bmi2" "avx" "avx2" "fma" "f16c"
        "avx512f" "avx512cd" "avx512bw" "avx512dq" "avx512vl" "avx512vnni" "avx512bf16" "avx512fp16" "avx512vbmi"
        "avx512vbmi2" "avx512ifma" "avx512bitalg" "avx512vpopcntdq" "avxvnni" "gfni" "vaes" "vpclmulqdq" "cmpxchg16b"
    )
}

#[cfg(target_arch = "aarch64")]
fn has(feature: &str) -> bool {
    macro_rules! table {
        ($($name:tt)*) => {
            match feature {
                $($name => std::arch::is_aarch64_feature_detected!($name),)*
                _ => false,
            }
        };
    }
    table!("neon" "fp16" "dotprod" "i8mm" "bf16" "lse" "sve" "sve2")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has(_: &str) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_features_are_missing() {
        let asked = ["warp drive".to_string()];
        assert_eq!(missing(&asked), asked);
        assert!(missing(&[]).is_empty());
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_baseline_is_there() {
        assert!(missing(&["sse2".to_string()]).is_empty());
    }
}
