//! Which of the CPU features a program asks for are there.

use hadal_artifact::{Target, has_feature};

/// Architecture of this machine, as programs name it.
pub(crate) const ARCH: &str = std::env::consts::ARCH;

/// Whether code for `target` runs here.
pub(crate) fn runs(target: &Target) -> bool {
    target.arch == ARCH && target.features.iter().all(|f| has_feature(f))
}

/// Those of `features` that this CPU lacks or that this runtime has never heard of.
pub(crate) fn missing(features: &[String]) -> Vec<String> {
    features.iter().filter(|f| !has_feature(f)).cloned().collect()
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
