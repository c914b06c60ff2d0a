//! Measures the machine at hand, with kernels that our own code generator emits: what they reach is what compiled
//! models can reach, whatever a data sheet says.
//!
//! Every figure is taken several times by all threads at once. The best is what the machine can do; the median and the
//! worst say how much else was going on. Nothing here takes longer than some hundred milliseconds a run.

use crate::failure::Failure;
use hadal_codegen::cranelift::jit::{Aligned, JitFn};
use hadal_codegen::kernels::{self, limits};
use hadal_codegen::processor::Processor;
use hadal_ir::kernel::Kernel;
use hadal_ir::target::{Activations, Peaks, Target, TargetKind};
use hadal_types::DType;
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

/// The figures of several runs, sorted.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    runs: Vec<f64>,
}

impl Sample {
    /// Sorts them.
    pub(crate) fn new(mut runs: Vec<f64>) -> Sample {
        runs.sort_by(f64::total_cmp);
        Sample { runs }
    }

    /// All, the smallest first.
    pub fn runs(&self) -> impl Iterator<Item = f64> + '_ {
        self.runs.iter().copied()
    }

    /// The smallest.
    pub fn min(&self) -> f64 {
        self.runs.first().copied().unwrap_or(f64::NAN)
    }

    /// The one in the middle.
    pub fn median(&self) -> f64 {
        self.runs.get(self.runs.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The largest.
    pub fn max(&self) -> f64 {
        self.runs.last().copied().unwrap_or(f64::NAN)
    }
}

/// What was found.
#[derive(Clone, PartialEq, Debug)]
pub struct Probe {
    /// Threads that measured.
    pub threads: usize,
    /// The processor, as the system calls it.
    pub processor: String,
    /// The level of the code that measured: the best that this build makes and the machine runs.
    pub level: &'static str,
    /// Operations per second of f32 multiply-adds.
    pub flops: Sample,
    /// The same of bf16 dot products, where there are instructions for them.
    pub bf16: Option<Sample>,
    /// The same of dot products of bytes.
    pub i8: Option<Sample>,
    /// Bytes per second read from memory by all threads.
    pub bandwidth: Sample,
    /// Bytes per second read from memory by one thread.
    pub bandwidth_of_one: Sample,
    /// Bytes per second read from each thread's own cache.
    pub cache_bandwidth: Sample,
    /// Seconds of one empty kernel launch.
    pub launch: Sample,
    /// Bytes of the caches that threads do not share with other cores, together.
    pub cache_bytes: u64,
    /// Bytes of all caches together.
    pub all_cache_bytes: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// Runs of each measurement.
const RUNS: usize = 25;

/// Measures with so many threads. `progress` hears what is next.
pub fn probe(threads: usize, progress: &dyn Fn(&str)) -> Result<Probe, Failure> {
    let machine = Machine::here()?;
    let of = kernels::Target::of(&machine.cpu);
    let caches = caches();
    let own = caches.iter().filter(|c| c.level <= 2).map(|c| c.bytes).max().unwrap_or(1 << 20);
    let shared = caches.iter().map(|c| c.bytes).max().unwrap_or(own);
    let memory = memory_bytes();
    let far = far(shared);

    progress("multiply-add peak");
    let steps = 1_000_000;
    let peak = |kernel: &Kernel, lanes: u32| -> Result<Sample, Failure> {
        let amount = threads as f64 * steps as f64 * limits::step_flops(lanes);
        Ok(machine.bench(kernel)?.on(threads, 256)?.per_second(amount))
    };
    let flops = peak(&limits::multiply_adds(steps, machine.lanes), machine.lanes)?;
    let dots = |factors| match limits::dots(steps, factors, machine.lanes) {
        Some((kernel, group)) if of.dots => peak(&kernel, machine.lanes * group).map(Some),
        _ => Ok(None),
    };
    let bf16 = dots((DType::BF16, DType::BF16, DType::F32))?;
    let i8 = dots((DType::U8, DType::I8, DType::I32))?;
    progress("read bandwidth, one thread");
    let one = machine.read(1, far, 1)?;
    progress("read bandwidth, all threads");
    let all = if threads == 1 { one.clone() } else { machine.read(threads, far / threads, 1)? };
    progress("cache bandwidth");
    let near = own as usize / 2;
    let cache = machine.read(threads, near, (64 << 20) / near.max(1))?;
    progress("launch cost");
    let pool = hadal_runtime::Pool::new(threads);
    let launch = Sample::new((0..RUNS).map(|_| pool.launch_seconds()).collect());
    Ok(Probe {
        threads,
        processor: processor(),
        level: machine.cpu.name,
        flops,
        bf16,
        i8,
        bandwidth: all,
        bandwidth_of_one: one,
        cache_bandwidth: cache,
        launch,
        cache_bytes: own * threads as u64,
        all_cache_bytes: shared.max(own * threads as u64),
        memory_bytes: memory,
    })
}

impl Probe {
    /// The description that these figures make: the best of each.
    pub fn target(&self, name: &str) -> Target {
        let digits = |x: f64| {
            let unit = 10f64.powf(x.log10().floor() - 2.0);
            (x / unit).round() * unit
        };
        let threads = if self.threads == 1 { "thread" } else { "threads" };
        let source = format!(
            "measured by `hadal target probe` on {}, {} {threads}, {}",
            self.processor, self.threads, self.level
        );
        // One thread is enough where the others have something else to do.
        let bandwidth = digits(self.bandwidth.max().max(self.bandwidth_of_one.max()));
        Target {
            name: name.to_owned(),
            kind: TargetKind::Cpu,
            arch: std::env::consts::ARCH.to_owned(),
            features: features().into_iter().map(str::to_owned).collect(),
            threads: self.threads as u32,
            activations: Activations::F32,
            bandwidth,
            // Where memory looks faster, something else was in the way of the cache.
            cache_bandwidth: digits(self.cache_bandwidth.max()).max(bandwidth),
            cache_bytes: self.cache_bytes,
            memory_bytes: self.memory_bytes,
            launch_seconds: digits(self.launch.min()),
            source,
            flops: Peaks {
                f32: digits(self.flops.max()),
                bf16: self.bf16.as_ref().map(|s| digits(s.max())),
                f8: None,
                f4: None,
                i8: self.i8.as_ref().map(|s| digits(s.max())),
            },
        }
    }
}

/// Bytes that are far more than any cache holds, and not more than a small machine has.
fn far(largest_cache: u64) -> usize {
    (4 * largest_cache).clamp(256 << 20, 1 << 30).min(memory_bytes() / 4).max(1 << 20) as usize
}

/// Measures what memory gives at a moment: on shared machines that changes within seconds, and a call that waits for
/// memory says little beside what was read a minute ago.
pub struct Reader {
    bench: Bench,
    /// For each thread.
    bytes: usize,
    buffers: Mutex<Vec<Buffers>>,
}

impl Reader {
    /// For calls by so many threads, each of which moves so many bytes; `None` where caches have much to do with what
    /// they take, which reading would empty.
    pub fn beside(probe: &Probe, bytes: f64) -> Result<Option<Reader>, Failure> {
        if bytes < 4.0 * probe.all_cache_bytes as f64 {
            return Ok(None);
        }
        let machine = Machine::here()?;
        let (kernel, bytes) = machine.reading(far(probe.all_cache_bytes) / probe.threads, 1);
        let bench = machine.bench(&kernel)?;
        let buffers = (0..probe.threads).map(|_| bench.buffers(bytes)).collect();
        Ok(Some(Reader { bench, bytes, buffers: Mutex::new(buffers) }))
    }

    /// Seconds that reading a byte takes now.
    pub fn seconds_of_byte(&self) -> Result<f64, Failure> {
        let mut buffers = self.buffers.lock().unwrap_or_else(|e| e.into_inner());
        let took = self.bench.rounds(&mut buffers, 1)?;
        Ok(took[0].as_secs_f64() / (self.bytes * buffers.len()) as f64)
    }
}

/// What measures.
struct Machine {
    cpu: Processor,
    /// f32 lanes of a register.
    lanes: u32,
}

impl Machine {
    fn here() -> Result<Machine, Failure> {
        let Some(cpu) = hadal_codegen::levels().into_iter().find(Processor::is_here) else {
            let needs: Vec<String> =
                hadal_codegen::levels().iter().map(|l| format!("{} ({})", l.name, l.arch)).collect();
            let needs = needs.join(", ");
            return Err(Failure::failed(format!(
                "this machine cannot run the code that this build makes, for {needs}"
            )));
        };
        Ok(Machine { lanes: if kernels::Target::of(&cpu).is_wide() { 16 } else { 4 }, cpu })
    }

    fn bench(&self, kernel: &Kernel) -> Result<Bench, Failure> {
        let failed = |e: hadal_codegen::Error| Failure::internal("compiling a measurement", e);
        let compiled = hadal_codegen::compile(kernel, &self.cpu, false).map_err(failed)?;
        let scratch = compiled.scratch_bytes.as_const().unwrap_or(0).max(0) as usize;
        Ok(Bench { jit: JitFn::new(&compiled).map_err(failed)?, inputs: kernel.params.len() - 1, scratch })
    }

    /// A kernel that reads so many bytes so many times over, and how many there are, since it reads whole vectors.
    fn reading(&self, bytes: usize, times: usize) -> (Kernel, usize) {
        let words = (bytes / 4 / 128).max(1) * 128;
        (limits::read(words as i64, times as i64, self.lanes), words * 4)
    }

    /// Bytes per second that threads read, each from its own `bytes`, so many times over.
    fn read(&self, threads: usize, bytes: usize, times: usize) -> Result<Sample, Failure> {
        let times = times.max(1);
        let (kernel, bytes) = self.reading(bytes, times);
        Ok(self.bench(&kernel)?.on(threads, bytes)?.per_second((threads * bytes * times) as f64))
    }
}

/// A compiled kernel with some inputs, of which the first is the large one, and one output.
struct Bench {
    jit: JitFn,
    inputs: usize,
    scratch: usize,
}

/// Times of runs.
struct Times(Vec<Duration>);

impl Times {
    fn per_second(&self, amount: f64) -> Sample {
        Sample::new(self.0.iter().map(|t| amount / t.as_secs_f64()).collect())
    }
}

/// What a thread's calls read and write.
struct Buffers {
    input: Aligned,
    other: Aligned,
    output: Aligned,
    scratch: Aligned,
}

impl Bench {
    fn buffers(&self, bytes: usize) -> Buffers {
        let new = Aligned::new;
        let mut out =
            Buffers { input: new(bytes.max(256)), other: new(256), output: new(64), scratch: new(self.scratch) };
        // Written to, so that each page is one of its own and not the system's page of zeros.
        out.input.as_mut_slice().fill(0x31);
        out
    }

    /// Runs on so many threads at once, each with an input of its own.
    fn on(&self, threads: usize, bytes: usize) -> Result<Times, Failure> {
        let mut buffers: Vec<Buffers> = (0..threads).map(|_| self.buffers(bytes)).collect();
        self.rounds(&mut buffers, 1)?;
        Ok(Times(self.rounds(&mut buffers, RUNS)?))
    }

    /// So many runs by a thread for each of `buffers` at once; a run's time is that of the slowest.
    fn rounds(&self, buffers: &mut [Buffers], runs: usize) -> Result<Vec<Duration>, Failure> {
        let gate = Barrier::new(buffers.len());
        let worker = |own: &mut Buffers| {
            let args: Vec<*mut u8> = match self.inputs {
                1 => vec![own.input.as_mut_ptr(), own.output.as_mut_ptr()],
                _ => vec![own.input.as_mut_ptr(), own.other.as_mut_ptr(), own.output.as_mut_ptr()],
            };
            let mut run = || {
                gate.wait();
                let start = Instant::now();
                // SAFETY: the inputs are as large as the kernel's parameters, the output and scratch too; they are
                // apart.
                unsafe { self.jit.call(&args, &[], 0, 1, own.scratch.as_mut_ptr()) };
                gate.wait();
                start.elapsed()
            };
            (0..runs).map(|_| run()).collect::<Vec<_>>()
        };
        let threads = buffers.len();
        let times: Vec<Vec<Duration>> = std::thread::scope(|scope| {
            let worker = &worker;
            let handles: Vec<_> = buffers.iter_mut().map(|own| scope.spawn(move || worker(own))).collect();
            handles.into_iter().filter_map(|h| h.join().ok()).collect()
        });
        if times.len() < threads {
            return Err(Failure::failed("a measuring thread ended early: is there memory enough?"));
        }
        Ok((0..runs).filter_map(|i| times.iter().map(|t| t[i]).max()).collect())
    }
}

/// Processor features that matter here, of those this machine has.
fn features() -> Vec<&'static str> {
    ["avx2", "avx512f", "bmi2", "f16c", "fma"].into_iter().filter(|f| hadal_artifact::has_feature(f)).collect()
}

/// A data cache of the first processor.
struct Cache {
    level: u32,
    bytes: u64,
}

fn caches() -> Vec<Cache> {
    let one = |i: usize| {
        let read =
            |file: &str| std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{i}/{file}")).ok();
        let (level, kind, size) = (read("level")?, read("type")?, read("size")?);
        let size = size.trim();
        let bytes = match size.strip_suffix('K') {
            Some(k) => k.parse::<u64>().ok()? << 10,
            None => size.strip_suffix('M')?.parse::<u64>().ok()? << 20,
        };
        (kind.trim() != "Instruction").then_some(Cache { level: level.trim().parse().ok()?, bytes })
    };
    (0..8).filter_map(one).collect()
}

fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(8 << 30, |k| k << 10)
}

/// The processor, as the system calls it.
pub(crate) fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|(_, n)| n.trim()));
    name.filter(|n| !n.is_empty()).unwrap_or("an unnamed processor").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_sorted() {
        let s = Sample::new(vec![3.0, 1.0, 2.0]);
        assert_eq!((s.min(), s.median(), s.max()), (1.0, 2.0, 3.0));
    }

    #[test]
    fn a_small_read_is_measured_and_counts_what_it_read() {
        let machine = Machine { cpu: Processor::X86_64_V3, lanes: 4 };
        let s = machine.read(2, 1 << 16, 64).unwrap();
        // Between a slow disk's speed and what no core has.
        assert!(s.min() > 1e7 && s.max() < 1e13, "{s:?}");
        assert_eq!(s.runs.len(), RUNS);
    }

    #[test]
    fn what_was_found_makes_a_description_that_parses() {
        let s = |x: f64| Sample::new(vec![x / 3.0, x / 2.0, x]);
        let probe = Probe {
            threads: 2,
            processor: "a \"quoted\" processor".into(),
            level: "x86-64-v4-dot",
            bf16: Some(s(2.4e11)),
            i8: None,
            flops: s(1.234567e11),
            bandwidth: s(4e10),
            bandwidth_of_one: s(3e10),
            cache_bandwidth: s(2e11),
            launch: s(3e-6),
            cache_bytes: 1 << 21,
            all_cache_bytes: 1 << 25,
            memory_bytes: 1 << 34,
        };
        let target = probe.target("mine");
        let back = Target::parse(&target.to_text()).unwrap();
        assert_eq!(back, target);
        assert_eq!((back.flops.f32, back.bandwidth, back.launch_seconds), (1.23e11, 4e10, 1e-6));
        assert_eq!((back.flops.bf16, back.flops.i8), (Some(2.4e11), None));
    }
}
