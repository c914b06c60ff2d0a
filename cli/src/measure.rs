//! How long calls of a compiled program take, in this process.

use crate::driver::Compiled;
use crate::failure::Failure;
use crate::probe::{Probe, Reader, Sample};
use crate::roofline::{Call, Step};
use hadal_ir::Sym;
use hadal_runtime::{Pool, Program, Rng, Session};
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
    pub machine: &'a Probe,
}

impl Limits<'_> {
    /// For a call of an entry, of `tokens` that are the last of `context`.
    fn of(&self, entry: &str, context: usize, tokens: usize, bandwidth: Option<f64>) -> Result<Step, Failure> {
        let program = &self.compiled.program;
        let call = [(Sym::T, tokens as i64), (Sym::P, (context - tokens) as i64)].into();
        let bindings = program.module.complete(&call);
        let plan = program.plan_for(entry, &bindings).ok_or_else(|| Failure::internal("no plan for", entry))?;
        let mut target = self.machine.target("here");
        target.bandwidth = bandwidth.unwrap_or(target.bandwidth);
        Ok(Call { program, plan, target: &target, bindings: &bindings, batch: 1 }.step())
    }
}

/// A program and the threads that run it.
pub struct Meter {
    program: Arc<Program>,
    pool: Arc<Pool>,
    repeat: u32,
}

impl Meter {
    /// For a compiled file, so many threads, and so many runs of each measurement besides one to warm up.
    pub fn open(file: &Path, threads: usize, repeat: u32) -> Result<Meter, Failure> {
        Ok(Meter::new(Program::open(file)?, threads, repeat))
    }

    /// The same for a program that is open.
    pub fn new(program: Arc<Program>, threads: usize, repeat: u32) -> Meter {
        Meter { program, pool: Pool::new(threads), repeat }
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
        let mut session = Session::new(self.program.clone(), self.pool.clone())?;
        let Ok(entry) = session.entry("prefill") else { return Ok(None) };
        let most = self.program.manifest().entries[entry].range(Sym::T).map_or(1, |r| r.hi as usize);
        let tokens = tokens.clamp(1, most).min(context);
        let limit = |bandwidth| limits.of("prefill", context, tokens, bandwidth);
        let runs = self.runs(limits, limit, |between| {
            session.pretend((context - tokens) as u64)?;
            between()?;
            let took = self.call(&mut session, entry, tokens)?;
            between()?;
            Ok(took)
        })?;
        Ok(Some(Measured { tokens, runs }))
    }

    /// A token that is generated, the first of `n` being the last of `context`.
    pub fn decode(&self, context: usize, n: u32, limits: &Limits) -> Result<Measured, Failure> {
        let mut session = Session::new(self.program.clone(), self.pool.clone())?;
        let entry = session.entry("decode")?;
        let limit = |bandwidth| limits.of("decode", context, 1, bandwidth);
        let runs = self.runs(limits, limit, |between| {
            session.pretend(context as u64 - 1)?;
            let mut took = 0.0;
            for _ in 0..n {
                between()?;
                took += self.call(&mut session, entry, 1)?;
            }
            Ok(took / f64::from(n))
        })?;
        Ok(Measured { tokens: 1, runs })
    }

    /// Runs after one to warm up, each beside the limit at the bandwidth that memory had between its calls.
    fn runs(
        &self,
        limits: &Limits,
        limit: impl Fn(Option<f64>) -> Result<Step, Failure>,
        mut once: impl FnMut(&mut dyn FnMut() -> Result<(), Failure>) -> Result<f64, Failure>,
    ) -> Result<Vec<Run>, Failure> {
        once(&mut || Ok(()))?;
        let reader = Reader::beside(limits.machine, limit(None)?.bytes())?;
        let one = |_| {
            let mut read = Vec::new();
            let seconds = once(&mut || {
                read.extend(reader.as_ref().map(Reader::seconds_of_byte).transpose()?);
                Ok(())
            })?;
            let bandwidth = (!read.is_empty()).then(|| read.len() as f64 / read.iter().sum::<f64>());
            Ok(Run { seconds, limit: limit(bandwidth)? })
        };
        (0..self.repeat).map(one).collect()
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
