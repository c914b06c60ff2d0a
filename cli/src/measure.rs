//! How long calls of a compiled program take, in this process.

use crate::driver::Compiled;
use crate::failure::Failure;
use crate::probe::Sample;
use crate::roofline::{Call, Step};
use hadal_ir::Sym;
use hadal_ir::target::Target;
use hadal_runtime::{Pool, Program, Rng, Session};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

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

    /// Seconds of the last call of a prompt of `context` tokens, which has `tokens` of them or as many as a call can
    /// take: how many, and how long it took. `None` where the program reads no prompts.
    pub fn prompt(&self, context: usize, tokens: usize) -> Result<Option<(usize, Sample)>, Failure> {
        let mut session = Session::new(self.program.clone(), self.pool.clone())?;
        let Ok(entry) = session.entry("prefill") else { return Ok(None) };
        let most = self.program.manifest().entries[entry].range(Sym::T).map_or(1, |r| r.hi as usize);
        let tokens = tokens.clamp(1, most).min(context);
        let took = self.runs(|| {
            session.pretend((context - tokens) as u64)?;
            self.call(&mut session, entry, tokens)
        })?;
        Ok(Some((tokens, took)))
    }

    /// Seconds of a token that is generated, the first of `n` being the last of `context`.
    pub fn decode(&self, context: usize, n: u32) -> Result<Sample, Failure> {
        let mut session = Session::new(self.program.clone(), self.pool.clone())?;
        let entry = session.entry("decode")?;
        self.runs(|| {
            session.pretend(context as u64 - 1)?;
            let took = (0..n).map(|_| self.call(&mut session, entry, 1)).sum::<Result<f64, Failure>>()?;
            Ok(took / f64::from(n))
        })
    }

    fn runs(&self, mut once: impl FnMut() -> Result<f64, Failure>) -> Result<Sample, Failure> {
        once()?;
        let runs = (0..self.repeat).map(|_| once()).collect::<Result<Vec<f64>, Failure>>()?;
        Ok(Sample::new(runs))
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

/// What the machine would allow for a call of an entry, of `tokens` that are the last of `context`.
pub fn limit(
    compiled: &Compiled,
    target: &Target,
    entry: &str,
    context: usize,
    tokens: usize,
) -> Result<Step, Failure> {
    let program = &compiled.program;
    let call = [(Sym::T, tokens as i64), (Sym::P, (context - tokens) as i64)].into();
    let bindings = program.module.complete(&call);
    let plan = program.plan_for(entry, &bindings).ok_or_else(|| Failure::internal("no plan for", entry))?;
    Ok(Call { program, plan, target, bindings: &bindings, batch: 1 }.step())
}
