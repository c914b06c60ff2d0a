//! How long calls of a compiled program take, in this process.

use crate::driver::Compiled;
use crate::failure::Failure;
use crate::probe::{Probe, Reader, Sample};
use crate::roofline::{Call, Step};
use hadal_ir::target::Target;
use hadal_ir::{Bindings, Sym};
use hadal_runtime::{Pool, Program, Rng, Session, Watch, Watched};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// One run of a measured call.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Run {
    /// Seconds of a call.
    pub seconds: f64,
    /// What the machine would allow for it.
    pub limit: Step,
}

/// What a call took, run by run, beside what the machine allowed meanwhile.
#[derive(Clone, PartialEq, Debug)]
pub struct Measured {
    /// New tokens of a call.
    pub tokens: usize,
    /// The runs.
    pub runs: Vec<Run>,
    /// Where the time of one more run went, where that was asked for: the kernels that took longest first.
    pub kernels: Vec<KernelRun>,
}

/// The launches of a kernel in a call.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct KernelRun {
    /// The kernel.
    pub name: String,
    /// The first place in the model that it came from.
    pub place: String,
    /// Seconds of its launches.
    pub seconds: f64,
    /// What the machine would allow for them.
    pub limit: Step,
}

impl Measured {
    /// Seconds of a call.
    pub fn seconds(&self) -> Sample {
        Sample::new(self.runs.iter().map(|r| r.seconds).collect())
    }

    /// Of what the machine allowed.
    pub fn share(&self) -> Sample {
        Sample::new(self.runs.iter().map(|r| r.limit.seconds() / r.seconds).collect())
    }
}

/// What a call of a program would take on a machine: the roofline of its launches.
pub struct Limits<'a> {
    /// The program.
    pub compiled: &'a Compiled,
    /// The machine.
    pub rates: Rates<'a>,
}

/// What a machine can do.
#[derive(Clone, Copy, Debug)]
pub enum Rates<'a> {
    /// As it was measured; what memory gives is measured again between calls.
    Measured(&'a Probe),
    /// As it is described: a GPU.
    Described(&'a Target),
}

impl Rates<'_> {
    /// All of them.
    pub fn target(&self) -> Target {
        match self {
            Rates::Measured(probe) => probe.target("here"),
            Rates::Described(target) => (*target).clone(),
        }
    }

    fn reader(&self, bytes: f64) -> Result<Option<Reader>, Failure> {
        match self {
            Rates::Measured(probe) => Reader::beside(probe, bytes),
            Rates::Described(_) => Ok(None),
        }
    }
}

impl Limits<'_> {
    /// For each launch of a call of an entry, of `tokens` that are the last of `context`: its kernel, and what it would
    /// take.
    fn launches(
        &self,
        entry: &str,
        (context, tokens): (usize, usize),
        bandwidth: Option<f64>,
    ) -> Result<Vec<(&str, Step)>, Failure> {
        let program = &self.compiled.program;
        let call = Bindings::from([(Sym::T, tokens as i64), (Sym::P, (context - tokens) as i64)]);
        let bindings = program.module.complete(&call);
        let plan = program.plan_for(entry, &bindings).ok_or_else(|| Failure::internal("no plan for", entry))?;
        let mut target = self.rates.target();
        target.bandwidth = bandwidth.unwrap_or(target.bandwidth);
        let steps = Call { program, plan, target: &target, bindings: &bindings, batch: 1 }.launches();
        Ok(plan.launches.iter().map(|l| l.kernel.as_str()).zip(steps).collect())
    }
}

/// A program and the threads that run it.
pub struct Meter {
    program: Arc<Program>,
    pool: Arc<Pool>,
    repeat: u32,
    by_kernel: bool,
}

impl Meter {
    /// For a compiled file, so many threads, and so many runs of each measurement besides one to warm up.
    pub fn open(file: &Path, threads: usize, repeat: u32) -> Result<Meter, Failure> {
        Ok(Meter::new(Program::open(file)?, threads, repeat))
    }

    /// The same for a program that is open.
    pub fn new(program: Arc<Program>, threads: usize, repeat: u32) -> Meter {
        Meter { program, pool: Pool::new(threads), repeat, by_kernel: false }
    }

    /// Also tells where the time goes, by kernel, in one more run of each measurement.
    pub fn by_kernel(self, by_kernel: bool) -> Meter {
        Meter { by_kernel, ..self }
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The last call of a prompt of `context` tokens, which has `tokens` of them or as many as a call can
    /// take. `None` where the program reads no prompts.
    pub fn prompt(&self, context: usize, tokens: usize, limits: &Limits) -> Result<Option<Measured>, Failure> {
        let Some(described) = self.program.manifest().entries.iter().find(|e| e.name == "prefill") else {
            return Ok(None);
        };
        let most = described.range(Sym::T).map_or(1, |r| r.hi as usize);
        self.measure("prefill", (context, tokens.clamp(1, most).min(context)), 1, limits).map(Some)
    }

    /// A token that is generated, the first of `n` being the last of `context`.
    pub fn decode(&self, context: usize, n: u32, limits: &Limits) -> Result<Measured, Failure> {
        self.measure("decode", (context, 1), n, limits)
    }

    /// Runs of `calls` calls each, the first of `tokens` that are the last of `context`, after one to warm up.
    fn measure(&self, name: &str, sizes: (usize, usize), calls: u32, limits: &Limits) -> Result<Measured, Failure> {
        let mut session = Session::new(self.program.clone(), self.pool.clone())?;
        let entry = session.entry(name)?;
        let (context, tokens) = sizes;
        let limit = |bandwidth| -> Result<Step, Failure> {
            Ok(limits.launches(name, sizes, bandwidth)?.into_iter().map(|(_, step)| step).sum())
        };
        let reader = limits.rates.reader(limit(None)?.bytes())?;
        // Seconds of a call, and the bandwidth that memory had between them.
        let once = |session: &mut Session| -> Result<(f64, Option<f64>), Failure> {
            session.pretend((context - tokens) as u64)?;
            let (mut took, mut read) = (0.0, Vec::new());
            let mut between = || reader.as_ref().map(Reader::seconds_of_byte).transpose().map(|s| read.extend(s));
            for _ in 0..calls {
                between()?;
                took += self.call(session, entry, tokens)?;
            }
            between()?;
            let bandwidth = (!read.is_empty()).then(|| read.len() as f64 / read.iter().sum::<f64>());
            Ok((took / f64::from(calls), bandwidth))
        };
        once(&mut session)?;
        let one = |_| -> Result<Run, Failure> {
            let (seconds, bandwidth) = once(&mut session)?;
            Ok(Run { seconds, limit: limit(bandwidth)? })
        };
        let runs = (0..self.repeat).map(one).collect::<Result<_, _>>()?;
        let mut kernels = Vec::new();
        if self.by_kernel {
            session.watch();
            let (_, bandwidth) = once(&mut session)?;
            let watched = session.watched().map(Watch::calls).unwrap_or_default();
            kernels = self.kernels(watched, limits.launches(name, sizes, bandwidth)?)?;
        }
        Ok(Measured { tokens, runs, kernels })
    }

    /// What launches took in a call, by kernel, beside what they would take. Calls that run another version than the
    /// first, which the limits are for, are left out.
    fn kernels(&self, calls: &[Watched], limits: Vec<(&str, Step)>) -> Result<Vec<KernelRun>, Failure> {
        let m = self.program.manifest();
        let Some(Watched { entry, version, .. }) = calls.first() else { return Ok(Vec::new()) };
        let calls: Vec<&Watched> = calls.iter().filter(|c| c.version == *version).collect();
        let launches = &m.entries[*entry].versions[*version].launches;
        let kernels = launches.iter().map(|l| &m.kernels[l.kernel as usize]);
        if !kernels.clone().map(|k| k.name.as_str()).eq(limits.iter().map(|(name, _)| *name)) {
            return Err(Failure::internal("measuring kernels", "what ran is not what was planned"));
        }
        let mut by_name: BTreeMap<&str, KernelRun> = BTreeMap::new();
        for (i, (kernel, (_, limit))) in kernels.zip(limits).enumerate() {
            let took: f64 = calls.iter().map(|c| (c.clock[i + 1] - c.clock[i]).as_secs_f64()).sum();
            let run = by_name.entry(&kernel.name).or_insert_with(|| KernelRun {
                name: kernel.name.clone(),
                place: kernel.origin.split(", ").next().unwrap_or_default().to_owned(),
                ..KernelRun::default()
            });
            run.seconds += took / calls.len() as f64;
            run.limit = [run.limit, limit].into_iter().sum();
        }
        let mut all: Vec<KernelRun> = by_name.into_values().collect();
        all.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Ok(all)
    }

    /// Seconds of one call with random tokens.
    fn call(&self, session: &mut Session, entry: usize, tokens: usize) -> Result<f64, Failure> {
        let m = self.program.manifest();
        let mut rng = Rng::new(session.held(entry));
        let input: Vec<i32> = (0..tokens).map(|_| (rng.next_u64() % m.model.vocab) as i32).collect();
        let sizes = [(Sym::T, tokens as i64)].into();
        // Held as u64 so that any element is aligned.
        let room = |p: &hadal_artifact::Port| {
            let bytes = hadal_artifact::tensor_bytes(&p.ty, &sizes).unwrap_or(0) as usize;
            (vec![0u64; bytes.div_ceil(8)], bytes)
        };
        let mut outputs: Vec<(Vec<u64>, usize)> = m.entries[entry].outputs.iter().map(room).collect();
        let mut outputs: Vec<&mut [u8]> =
            outputs.iter_mut().map(|(b, n)| &mut bytemuck::cast_slice_mut(b)[..*n]).collect();
        let begun = Instant::now();
        session.run(entry, tokens, &[bytemuck::cast_slice(&input)], &mut outputs)?;
        Ok(begun.elapsed().as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{Options, compile};
    use crate::input::Input;

    #[test]
    fn kernels_make_up_the_call() {
        let input = Input::demo().unwrap();
        let compiled = compile(&input, &Options { cache: None, ..Options::default() }.here()).unwrap();
        let (_file, path) = compiled.in_memory(&input).unwrap();
        let s = |x: f64| Sample::new(vec![x]);
        let machine = Probe {
            threads: 2,
            processor: "a processor".into(),
            level: compiled.levels[0].cpu.name,
            flops: s(1e11),
            bf16: None,
            i8: None,
            bandwidth: s(1e10),
            bandwidth_of_one: s(1e10),
            cache_bandwidth: s(1e11),
            launch: s(1e-6),
            cache_bytes: 1 << 21,
            // The model fits, so that memory is not read between calls.
            all_cache_bytes: 1 << 30,
            memory_bytes: 1 << 34,
        };
        let limits = Limits { compiled: &compiled, rates: Rates::Measured(&machine) };
        let meter = Meter::open(&path, 2, 1).unwrap();
        assert!(meter.decode(32, 1, &limits).unwrap().kernels.is_empty());
        let meter = meter.by_kernel(true);
        for measured in [meter.prompt(48, 32, &limits).unwrap().unwrap(), meter.decode(128, 3, &limits).unwrap()] {
            let (all, kernels) = (measured.runs[0].limit, &measured.kernels);
            let sum: Step = kernels.iter().map(|k| k.limit).sum();
            assert_eq!(sum.launches, all.launches);
            let same = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b;
            assert!(same(sum.bytes(), all.bytes()) && same(sum.flops, all.flops), "{sum:?} {all:?}");
            assert!(same(sum.seconds(), all.seconds()));
            assert!(kernels.len() > 3 && kernels.iter().all(|k| k.seconds > 0.0 && !k.name.is_empty()));
            assert!(kernels.is_sorted_by(|a, b| a.seconds >= b.seconds));
            assert!(kernels.iter().any(|k| !k.place.is_empty()));
        }
        // What ran must be what was planned.
        let mut other = limits.launches("decode", (128, 1), None).unwrap();
        other.pop();
        let mut session = Session::new(meter.program.clone(), meter.pool.clone()).unwrap();
        session.watch();
        session.pretend(127).unwrap();
        let entry = session.entry("decode").unwrap();
        meter.call(&mut session, entry, 1).unwrap();
        assert!(meter.kernels(session.watched().unwrap().calls(), other).is_err());
    }
}
