//! Target descriptions: what passes and kernel selection know about a machine, as data.
//!
//! One file per machine in `ir/targets`, with the source of its numbers. Nothing here names a compiler back end.

use serde::{Deserialize, Serialize};

/// What kind of machine it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetKind {
    /// Threads of a processor.
    Cpu,
    /// A CUDA device.
    Cuda,
}

/// A machine.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Name on the command line.
    pub name: String,
    /// What kind of machine it is.
    pub kind: TargetKind,
    /// Architecture, as Rust (`x86_64`) or CUDA (`sm_90a`) spells it.
    pub arch: String,
    /// Needed processor features.
    pub features: Vec<String>,
    /// Workers the figures below hold for: threads or multiprocessors.
    pub threads: u32,
    /// Peak floating-point operations per second in the working format, a multiply-add counting two.
    pub flops: f64,
    /// Bytes per second read from memory.
    pub bandwidth: f64,
    /// Seconds one kernel launch costs besides its work.
    pub launch_seconds: f64,
    /// Bytes of the last cache that a worker can count on.
    pub cache_bytes: u64,
    /// Where the numbers come from.
    pub source: String,
}

/// Why a text is no target description.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum TargetError {
    /// Not a well-formed description.
    #[error("{0}")]
    Malformed(String),
    /// A rate or time that cannot be.
    #[error("`{field}` is {value}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// Its value.
        value: f64,
    },
}

const TEXTS: [&str; 5] = [
    include_str!("../targets/cpu.toml"),
    include_str!("../targets/h100.toml"),
    include_str!("../targets/h200.toml"),
    include_str!("../targets/h800.toml"),
    include_str!("../targets/b200.toml"),
];

impl Target {
    /// Reads a description.
    pub fn parse(text: &str) -> Result<Target, TargetError> {
        let target: Target = toml::from_str(text).map_err(|e| TargetError::Malformed(e.to_string()))?;
        for (field, value) in [("flops", target.flops), ("bandwidth", target.bandwidth)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(TargetError::OutOfRange { field, value });
            }
        }
        match target.launch_seconds {
            t if t.is_finite() && t >= 0.0 => Ok(target),
            value => Err(TargetError::OutOfRange { field: "launch_seconds", value }),
        }
    }

    /// Every machine described here.
    pub fn all() -> Vec<Target> {
        TEXTS.iter().map(|t| Target::parse(t).expect("checked by a test")).collect()
    }

    /// The machine called `name`.
    pub fn by_name(name: &str) -> Option<Target> {
        Target::all().into_iter().find(|t| t.name == name)
    }

    /// Seconds for work of so many operations and bytes, in one launch.
    pub fn seconds(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.flops).max(bytes / self.bandwidth) + self.launch_seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_description_parses_and_has_its_own_name() {
        let mut names: Vec<String> = Target::all().into_iter().map(|t| t.name).collect();
        assert_eq!(names, ["cpu", "h100", "h200", "h800", "b200"]);
        names.dedup();
        assert_eq!(names.len(), TEXTS.len());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(Target::parse("name = 1"), Err(TargetError::Malformed(_))));
        let zero = TEXTS[0].replace("67.5e9", "0.0");
        assert_eq!(Target::parse(&zero), Err(TargetError::OutOfRange { field: "flops", value: 0.0 }));
        let extra = format!("{}\ncolour = 1\n", TEXTS[0]);
        assert!(matches!(Target::parse(&extra), Err(TargetError::Malformed(_))));
    }

    #[test]
    fn time_is_the_slower_of_work_and_traffic() {
        let t = Target::by_name("cpu").unwrap();
        assert_eq!(t.seconds(67.5e9, 1.0), 1.0 + t.launch_seconds);
        assert_eq!(t.seconds(1.0, 39e9), 1.0 + t.launch_seconds);
    }
}
