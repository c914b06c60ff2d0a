//! Target descriptions: what passes and kernel selection know about a machine, as data.
//!
//! One file per machine in `ir/targets`, with the source of its numbers. Nothing here names a compiler back end.

use hadal_types::DType;
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

/// Peak operations per second of products, by the format that is multiplied; a multiply-add counts two. Absent: not
/// multiplied natively, so done in the next wider format that is.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peaks {
    /// f32, and all arithmetic that is no product.
    pub f32: f64,
    /// bf16 and f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bf16: Option<f64>,
    /// Floats of eight bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f8: Option<f64>,
    /// Floats of four bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f4: Option<f64>,
    /// Integers of eight bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub i8: Option<f64>,
}

impl Peaks {
    /// One figure, whatever the format.
    pub const fn flat(flops: f64) -> Peaks {
        Peaks { f32: flops, bf16: None, f8: None, f4: None, i8: None }
    }

    /// Name and figure of every format that is multiplied natively, widest first.
    pub fn list(&self) -> Vec<(&'static str, f64)> {
        let all = [("f32", Some(self.f32)), ("bf16", self.bf16), ("f8", self.f8), ("f4", self.f4), ("i8", self.i8)];
        all.into_iter().filter_map(|(name, peak)| Some((name, peak?))).collect()
    }
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
    /// Format in which kernels hand values on.
    pub activations: Activations,
    /// Bytes per second read from memory.
    pub bandwidth: f64,
    /// Bytes per second read from the last cache that a worker can count on.
    pub cache_bandwidth: f64,
    /// Bytes of that cache.
    pub cache_bytes: u64,
    /// Bytes of memory, for weights, states and values together.
    pub memory_bytes: u64,
    /// Seconds one kernel launch costs besides its work.
    pub launch_seconds: f64,
    /// Where the numbers come from.
    pub source: String,
    /// Peak operations per second.
    pub flops: Peaks,
}

/// Formats in which kernels can hand values on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// As the graph has them.
    F32,
    /// Half as wide as the graph has them.
    BF16,
}

impl Activations {
    /// The format.
    pub fn dtype(self) -> DType {
        match self {
            Activations::F32 => DType::F32,
            Activations::BF16 => DType::BF16,
        }
    }
}

/// Why a text is no target description.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum TargetError {
    /// Not a well-formed description.
    #[error("{0}")]
    Malformed(String),
    /// A figure that no machine has.
    #[error("`{field}` is {value:?}, expected {expected}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What it can be.
        expected: &'static str,
    },
    /// A name that cannot stand on a command line and in a description.
    #[error("`name` is {0:?}, expected 1 to 64 characters, none of them a quote, a backslash or a control character")]
    Name(String),
}

const TEXTS: [&str; 7] = [
    include_str!("../targets/cpu.toml"),
    include_str!("../targets/a100.toml"),
    include_str!("../targets/l40s.toml"),
    include_str!("../targets/h100.toml"),
    include_str!("../targets/h200.toml"),
    include_str!("../targets/h800.toml"),
    include_str!("../targets/b200.toml"),
];

/// Operations or bytes a second that no single machine reaches.
const MAX_RATE: f64 = 1e18;

/// Bytes of memory below which nothing that is compiled runs.
const MIN_MEMORY: u64 = 1 << 20;

/// Checks what a machine is to be called.
pub fn check_name(name: &str) -> Result<(), TargetError> {
    let fits = (1..=64).contains(&name.chars().count());
    let plain = !name.chars().any(|c| c.is_control() || matches!(c, '"' | '\'' | '`' | '\\'));
    if fits && plain { Ok(()) } else { Err(TargetError::Name(name.to_owned())) }
}

impl Target {
    /// Reads a description.
    pub fn parse(text: &str) -> Result<Target, TargetError> {
        let target: Target = toml::from_str(text).map_err(|e| TargetError::Malformed(e.to_string()))?;
        check_name(&target.name)?;
        let out_of_range = |field, value, expected| Err(TargetError::OutOfRange { field, value, expected });
        let peaks = target.flops.list().into_iter().map(|(_, peak)| ("flops", peak));
        let rates = [("bandwidth", target.bandwidth), ("cache_bandwidth", target.cache_bandwidth)];
        for (field, value) in peaks.chain(rates) {
            if !(value > 0.0 && value <= MAX_RATE) {
                return out_of_range(field, value, "a rate above 0 and at most 1e18 a second");
            }
        }
        if target.cache_bandwidth < target.bandwidth {
            return out_of_range("cache_bandwidth", target.cache_bandwidth, "no less than `bandwidth`");
        }
        if target.threads == 0 {
            return out_of_range("threads", 0.0, "at least 1");
        }
        if target.memory_bytes < MIN_MEMORY {
            return out_of_range("memory_bytes", target.memory_bytes as f64, "at least 1048576, a MiB");
        }
        if !(0.0..=1.0).contains(&target.launch_seconds) {
            return out_of_range("launch_seconds", target.launch_seconds, "0 to 1 seconds");
        }
        Ok(target)
    }

    /// Every machine described here.
    pub fn all() -> Vec<Target> {
        TEXTS.iter().map(|t| Target::parse(t).expect("checked by a test")).collect()
    }

    /// The machine called `name`.
    pub fn by_name(name: &str) -> Option<Target> {
        Target::all().into_iter().find(|t| t.name == name)
    }

    /// The description as text, which [`Target::parse`] reads back.
    pub fn to_text(&self) -> String {
        toml::to_string(self).expect("a struct of numbers and names")
    }

    /// So many of these machines, which share all work and all memory evenly, at no cost: what no system reaches.
    pub fn several(&self, machines: u32) -> Target {
        let n = f64::from(machines);
        let Peaks { f32, bf16, f8, f4, i8 } = self.flops;
        let [bf16, f8, f4, i8] = [bf16, f8, f4, i8].map(|peak| peak.map(|p| p * n));
        Target {
            threads: self.threads.saturating_mul(machines),
            bandwidth: self.bandwidth * n,
            cache_bandwidth: self.cache_bandwidth * n,
            cache_bytes: self.cache_bytes.saturating_mul(machines.into()),
            memory_bytes: self.memory_bytes.saturating_mul(machines.into()),
            flops: Peaks { f32: f32 * n, bf16, f8, f4, i8 },
            ..self.clone()
        }
    }

    /// Operations per second of a product of such operands: the widest decides. Values in f32 count as what the
    /// machine's kernels hand on. Row numbers and truth values say what is multiplied and are not: they do not count.
    /// Without operands: of arithmetic that is no product.
    pub fn peak(&self, operands: &[DType]) -> f64 {
        let Peaks { f32, bf16, f8, f4, i8 } = self.flops;
        let wide = bf16.unwrap_or(f32);
        let widths = operands.iter().filter_map(|d| Width::of(*d, self.activations));
        match widths.reduce(Width::join) {
            None | Some(Width::F32) => f32,
            Some(Width::Half) => wide,
            Some(Width::F8) => f8.unwrap_or(wide),
            Some(Width::F4) => f4.or(f8).unwrap_or(wide),
            Some(Width::I8) => i8.unwrap_or(wide),
        }
    }

    /// Seconds for so many bytes from memory, and so many from the cache.
    pub fn traffic(&self, memory: f64, cache: f64) -> f64 {
        memory / self.bandwidth + cache / self.cache_bandwidth
    }

    /// Seconds of one launch whose arithmetic takes `compute` seconds and whose traffic takes `traffic`.
    pub fn seconds(&self, compute: f64, traffic: f64) -> f64 {
        compute.max(traffic) + self.launch_seconds
    }
}

/// What multiplies an operand.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Width {
    F4,
    F8,
    I8,
    Half,
    F32,
}

impl Width {
    /// Nothing for what is never multiplied.
    fn of(dtype: DType, activations: Activations) -> Option<Width> {
        Some(match dtype {
            DType::F4E2M1 => Width::F4,
            DType::F8E4M3 | DType::F8E8M0 => Width::F8,
            DType::I8 | DType::U8 | DType::U4 | DType::I4 => Width::I8,
            DType::BF16 | DType::F16 => Width::Half,
            DType::F32 if activations == Activations::BF16 => Width::Half,
            DType::F32 | DType::F64 => Width::F32,
            DType::I32 | DType::I64 | DType::Bool => return None,
        })
    }

    /// What multiplies one with the other: integers meet floats in a float that holds both.
    fn join(self, other: Width) -> Width {
        let wider = self.max(other);
        let mixed = wider == Width::I8 && self.min(other) != Width::I8;
        if mixed { Width::Half } else { wider }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_description_parses_and_has_its_own_name() {
        let mut names: Vec<String> = Target::all().into_iter().map(|t| t.name).collect();
        assert_eq!(names, ["cpu", "a100", "l40s", "h100", "h200", "h800", "b200"]);
        names.dedup();
        assert_eq!(names.len(), TEXTS.len());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(Target::parse("name = 1"), Err(TargetError::Malformed(_))));
        let zero = TEXTS[0].replace("67.5e9", "0.0");
        assert!(matches!(Target::parse(&zero), Err(TargetError::OutOfRange { field: "flops", value: 0.0, .. })));
        let wrong = [
            ("67.5e9", "2e18", "flops"),
            ("67.5e9", "nan", "flops"),
            ("bandwidth = 39e9", "bandwidth = inf", "bandwidth"),
            ("cache_bandwidth = 60e9", "cache_bandwidth = 38e9", "cache_bandwidth"),
            ("launch_seconds = 2e-6", "launch_seconds = 2.0", "launch_seconds"),
            ("launch_seconds = 2e-6", "launch_seconds = -1.0", "launch_seconds"),
            ("1_099_511_627_776", "1_048_575", "memory_bytes"),
            ("threads = 1", "threads = 0", "threads"),
        ];
        for (right, wrong, at) in wrong {
            let found = Target::parse(&TEXTS[0].replacen(right, wrong, 1)).unwrap_err();
            assert!(matches!(found, TargetError::OutOfRange { field, .. } if field == at), "{wrong}: {found}");
        }
        let slow = Target::parse(&TEXTS[0].replace("= 60e9", "= 38e9")).unwrap_err();
        assert_eq!(slow.to_string(), "`cache_bandwidth` is 38000000000.0, expected no less than `bandwidth`");
        for name in ["", "a\"b", "a'b", "a\nb", "a\u{1b}b"] {
            assert_eq!(check_name(name), Err(TargetError::Name(name.into())));
        }
        assert_eq!(check_name("my box, 8 × H200"), Ok(()));
        let extra = format!("{}\ncolour = 1\n", TEXTS[0]);
        assert!(matches!(Target::parse(&extra), Err(TargetError::Malformed(_))));
    }

    #[test]
    fn texts_are_read_back() {
        for target in Target::all() {
            assert_eq!(Target::parse(&target.to_text()), Ok(target));
        }
    }

    #[test]
    fn time_is_the_slower_of_work_and_traffic() {
        let t = Target::by_name("h200").unwrap();
        assert_eq!(t.seconds(2.0, 1.0), 2.0 + t.launch_seconds);
        assert_eq!(t.seconds(1.0, t.traffic(4.8e12, t.cache_bandwidth)), 2.0 + t.launch_seconds);
    }

    #[test]
    fn several_machines_have_the_sum_of_everything_but_launches() {
        let one = Target::by_name("b200").unwrap();
        let eight = one.several(8);
        assert_eq!((eight.bandwidth, eight.launch_seconds), (8.0 * one.bandwidth, one.launch_seconds));
        assert_eq!(eight.memory_bytes, 8 * one.memory_bytes);
        assert_eq!(eight.peak(&[DType::F4E2M1]), 8.0 * one.peak(&[DType::F4E2M1]));
        assert_eq!(one.several(1), one);
    }

    #[test]
    fn the_widest_operand_decides_the_peak() {
        use DType::{BF16, Bool, F4E2M1, F8E4M3, F32, I8, I32};
        let (cpu, h100, b200) = (Target::by_name("cpu"), Target::by_name("h100"), Target::by_name("b200"));
        let (cpu, h100, b200) = (cpu.unwrap(), h100.unwrap(), b200.unwrap());
        assert_eq!(cpu.peak(&[F8E4M3, F32]), cpu.flops.f32);
        assert_eq!(cpu.peak(&[F8E4M3, F8E4M3]), cpu.flops.f32);
        assert_eq!(h100.peak(&[F8E4M3, F32]), h100.flops.bf16.unwrap());
        assert_eq!(h100.peak(&[F32, F32]), h100.flops.bf16.unwrap());
        assert_eq!(h100.peak(&[F8E4M3, F8E4M3]), h100.flops.f8.unwrap());
        assert_eq!(h100.peak(&[F4E2M1, F8E4M3]), h100.flops.f8.unwrap());
        assert_eq!(h100.peak(&[F4E2M1, F4E2M1]), h100.flops.f8.unwrap());
        assert_eq!(b200.peak(&[F4E2M1, F4E2M1]), b200.flops.f4.unwrap());
        assert_eq!(b200.peak(&[I8, I8]), b200.flops.i8.unwrap());
        assert_eq!(b200.peak(&[I8, F8E4M3]), b200.flops.bf16.unwrap());
        assert_eq!(b200.peak(&[Bool, BF16]), b200.flops.bf16.unwrap());
        assert_eq!(b200.peak(&[F8E4M3, F8E4M3, I32, Bool]), b200.flops.f8.unwrap());
        assert_eq!(b200.peak(&[I8, I8, I32]), b200.flops.i8.unwrap());
        assert_eq!(b200.peak(&[I32]), b200.flops.f32);
        assert_eq!(b200.peak(&[]), b200.flops.f32);
    }
}
