//! Persistent threads that run a list of steps, sharing out the grid of each.
//!
//! A step is cut into *pieces*, contiguous ranges of its grid, and pieces are shared out to groups of threads
//! ([`Topology`]). A group's 64-bit word says which step is current, how many pieces of it the group has and how many
//! are taken; a thread takes a piece by adding one to its group's word, or to another's where there is none left.
//! Whoever finishes the last piece of a step opens the next one by writing the words anew. So there is no barrier that
//! waits for threads, only for work: a thread that the system has put aside between pieces (a busy neighbour on a
//! shared machine) delays nobody, and a run of small one-piece steps stays on the thread that began it, with no
//! hand-over in between. Up to eight threads are one group; with more, few take from the same word, and those near the
//! same memory take neighbouring pieces.
//!
//! Steps that do not depend on each other may be run *together*: then their pieces are taken like those of one step.
//!
//! Threads without work spin briefly, then yield, then sleep. Which thread runs which piece is left to chance, which is
//! harmless because kernels promise that grid indices are independent and each is computed in the same way wherever it
//! runs.

use crate::program::KernelFn;
use crate::topology::{self, Topology};
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Pieces per thread a large step is cut into: enough to even out threads of different speed, few enough that taking
/// them costs nothing.
const PIECES_PER_THREAD: usize = 4;
/// Rounds of spinning (each a few nanoseconds) before a waiting thread begins to yield.
const SPINS: u32 = 2_000;
/// Yields before it goes to sleep.
const YIELDS: u32 = 200;

/// One launch, ready to run.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    pub kernel: KernelFn,
    pub args: *const *mut u8,
    pub symbols: *const i64,
    /// Grid indices.
    pub grid: i64,
    /// Whether there is enough work to be worth sharing; of steps that run together the first says it for all.
    pub large: bool,
    /// How many of the steps behind it run together with it.
    pub more: u16,
}

/// Where every worker finds scratch memory of its own: worker `i` at `start + i * stride`.
#[derive(Clone, Copy)]
pub(crate) struct Scratch {
    pub start: *mut u8,
    pub stride: usize,
}

/// A set of threads, the calling one included. Shared by sessions, which take turns.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    turn: Mutex<()>,
}

struct Shared {
    groups: Box<[Line]>,
    /// By thread: its group.
    group_of: Box<[usize]>,
    /// Pieces of the current step, of all groups. Written only while no step is open; read only by holders of a piece.
    pieces: AtomicU32,
    /// Pieces of the current step that are finished.
    done: AtomicU32,
    /// Written only while no step is open; read only by holders of a piece.
    job: UnsafeCell<Job>,
    threads: usize,
    stop: AtomicBool,
    /// Threads asleep on `changed`.
    sleepers: AtomicU32,
    /// Whether the calling thread is one of them.
    caller_sleeps: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

struct Job {
    /// Number of the first step.
    base: u32,
    steps: *const Step,
    len: usize,
    scratch: Scratch,
    /// Null, or room for the time of the beginning and of each step's end.
    clock: *mut Instant,
}

/// What the threads of a group take pieces from, with no other data near it.
#[repr(align(128))]
struct Line {
    /// [`Word`].
    word: AtomicU64,
    threads: Range<usize>,
}

impl Line {
    fn load(&self, order: Ordering) -> Word {
        Word(self.word.load(order))
    }
}

// SAFETY: `job` and what it points to are written by the caller before it opens the first step (a release store of
// `word`) and read by threads that took a piece of an open step (an acquire of the same word); the caller does not
// return, and so nothing moves, until all pieces are finished.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// Step number (32 bits, wrapping), the group's pieces (16), pieces taken (16). A stale word could be mistaken for a
/// new one only if a thread were stopped between two instructions for exactly 2^32 steps.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Word(u64);

impl Word {
    fn new(step: u32, pieces: u16, taken: u16) -> Word {
        Word((step as u64) << 32 | (pieces as u64) << 16 | taken as u64)
    }
    fn step(self) -> u32 {
        (self.0 >> 32) as u32
    }
    fn pieces(self) -> u16 {
        (self.0 >> 16) as u16
    }
    fn taken(self) -> u16 {
        self.0 as u16
    }
    fn has_pieces(self) -> bool {
        self.taken() < self.pieces()
    }
}

impl Pool {
    /// A pool of `threads` threads, the calling one included; 0 takes one for each core that this process may use.
    pub fn new(threads: usize) -> Arc<Pool> {
        Pool::on(&Topology::here(), threads)
    }

    /// The same on these cores.
    pub fn on(topology: &Topology, threads: usize) -> Arc<Pool> {
        let threads = if threads == 0 { topology.cores() } else { threads }.min(u16::MAX as usize / PIECES_PER_THREAD);
        let groups = topology.groups(threads);
        let scratch = Scratch { start: std::ptr::null_mut(), stride: 0 };
        let shared = Arc::new(Shared {
            group_of: groups.iter().enumerate().flat_map(|(i, g)| g.threads.clone().map(move |_| i)).collect(),
            groups: groups.iter().map(|g| Line { word: AtomicU64::new(0), threads: g.threads.clone() }).collect(),
            pieces: AtomicU32::new(0),
            done: AtomicU32::new(0),
            job: UnsafeCell::new(Job {
                base: 0,
                steps: std::ptr::null(),
                len: 0,
                scratch,
                clock: std::ptr::null_mut(),
            }),
            threads,
            stop: AtomicBool::new(false),
            sleepers: AtomicU32::new(0),
            caller_sleeps: AtomicBool::new(false),
            lock: Mutex::new(()),
            changed: Condvar::new(),
        });
        let start = |worker: usize| {
            let shared = Arc::clone(&shared);
            let cpus = groups[shared.group_of[worker]].cpus.clone();
            let work = move || {
                topology::stay_on(&cpus);
                shared.work_forever(worker);
            };
            // Fewer threads than asked for still give right results, so a refusal by the system is not an error.
            std::thread::Builder::new().name(format!("hadal-{worker}")).spawn(work).ok()
        };
        let workers = (1..threads).map_while(start).collect();
        Arc::new(Pool { shared, workers, turn: Mutex::new(()) })
    }

    /// Threads that may run pieces, the calling one included.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Seconds that handing one empty step to the threads and waiting for them takes, on average over some hundreds.
    pub fn launch_seconds(&self) -> f64 {
        extern "C" fn nothing(_: *const *mut u8, _: *const i64, _: i64, _: i64, _: *mut u8) {}
        const STEPS: usize = 500;
        let grid = (self.threads() * PIECES_PER_THREAD) as i64;
        let (args, symbols) = (std::ptr::null(), std::ptr::null());
        let step = Step { kernel: nothing, args, symbols, grid, large: true, more: 0 };
        let scratch = Scratch { start: std::ptr::null_mut(), stride: 0 };
        let start = std::time::Instant::now();
        // SAFETY: the kernel touches none of its arguments.
        unsafe { self.run(&[step; STEPS], scratch, None) };
        start.elapsed().as_secs_f64() / STEPS as f64
    }

    /// Runs `steps` in order and returns when all are finished. A `clock`, one longer than `steps`, is given the time
    /// of the beginning and of each step's end.
    ///
    /// # Safety
    ///
    /// No step may have more steps together with it than there are behind it. Every step's kernel must be sound to call
    /// with its arguments and symbols for any part of `0..grid`, on any thread, different parts, and those of steps
    /// that run together, at the same time; `scratch` must have room for [`Pool::threads`] workers.
    pub(crate) unsafe fn run(&self, steps: &[Step], scratch: Scratch, mut clock: Option<&mut [Instant]>) {
        assert!(clock.as_ref().is_none_or(|c| c.len() == steps.len() + 1), "a clock with room for each step");
        if self.workers.is_empty() {
            let mut tell = |i: usize| clock.iter_mut().for_each(|c| c[i] = Instant::now());
            tell(0);
            for (i, s) in steps.iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { (s.kernel)(s.args, s.symbols, 0, s.grid, scratch.start) };
                tell(i + 1);
            }
            return;
        }
        let clock = clock.map_or(std::ptr::null_mut(), <[Instant]>::as_mut_ptr);
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        let base = shared.groups[0].load(Ordering::Relaxed).step();
        // SAFETY: no step is open, so no other thread looks at the job.
        unsafe { *shared.job.get() = Job { base, steps: steps.as_ptr(), len: steps.len(), scratch, clock } };
        shared.open(base, 1);
        let end = base.wrapping_add(steps.len() as u32);
        let mut idle = 0;
        // The word that is written last when a job ends.
        while shared.groups[0].load(Ordering::Acquire).step() != end {
            if shared.work_on(0) {
                idle = 0;
            } else {
                shared.wait(&mut idle, || shared.caller_sleep(end));
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work_forever(&self, worker: usize) {
        let mut idle = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.work_on(worker) {
                idle = 0;
            } else {
                self.wait(&mut idle, || self.sleep(|| self.has_pieces() || self.stop.load(Ordering::SeqCst)));
            }
        }
    }

    fn has_pieces(&self) -> bool {
        self.groups.iter().any(|g| g.load(Ordering::SeqCst).has_pieces())
    }

    /// Where a group's pieces begin, of so many of all groups; they end where the next one's begin. The first group has
    /// the only one.
    fn share(&self, pieces: usize, threads: usize) -> usize {
        (pieces * threads).div_ceil(self.threads)
    }

    /// Takes and runs one piece of the current step, if one is left: of its own group, or else of the next ones. Opens
    /// the next step where it was the last.
    fn work_on(&self, worker: usize) -> bool {
        let own = self.group_of[worker];
        let found = (0..self.groups.len()).find_map(|i| {
            let group = &self.groups[(own + i) % self.groups.len()];
            Some((group, group.load(Ordering::Acquire))).filter(|(_, word)| word.has_pieces())
        });
        let Some((group, word)) = found else { return false };
        let next = Word::new(word.step(), word.pieces(), word.taken() + 1);
        if group.word.compare_exchange(word.0, next.0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return true;
        }
        let pieces = self.pieces.load(Ordering::Relaxed) as usize;
        // SAFETY: we hold a piece, so the job stays as it is until we have finished it; steps that run together are
        // inside.
        let (steps, scratch) = unsafe {
            let job = &*self.job.get();
            let first = job.steps.add(word.step().wrapping_sub(job.base) as usize);
            (std::slice::from_raw_parts(first, 1 + (*first).more as usize), job.scratch)
        };
        let run = |step: &Step, part: usize, parts: usize| {
            let cut = |part: usize| (step.grid as i128 * part as i128 / parts as i128) as i64;
            let scratch = scratch.start.wrapping_add(worker * scratch.stride);
            // SAFETY: the promise made to `run`; the pieces of steps are disjoint and no two workers share scratch.
            unsafe { (step.kernel)(step.args, step.symbols, cut(part), cut(part + 1), scratch) };
        };
        let (taken, parts) = (self.share(pieces, group.threads.start) + word.taken() as usize, pieces / steps.len());
        match parts {
            0 => steps.iter().for_each(|s| run(s, 0, 1)),
            _ => run(&steps[taken / parts], taken % parts, parts),
        }
        if self.done.fetch_add(1, Ordering::AcqRel) + 1 == pieces as u32 {
            self.done.store(0, Ordering::Relaxed);
            self.open(word.step().wrapping_add(steps.len() as u32), steps.len());
        }
        true
    }

    /// Makes step number `step` the current one. Only for the thread that finished the `ended` steps before, or starts
    /// a job.
    fn open(&self, step: u32, ended: usize) {
        // SAFETY: the job was written by this thread, or before the piece it just finished was opened.
        let (index, len, steps, clock) = unsafe {
            let job = &*self.job.get();
            (step.wrapping_sub(job.base) as usize, job.len, job.steps, job.clock)
        };
        if !clock.is_null() {
            let now = Instant::now();
            for i in (index + 1).saturating_sub(ended)..=index {
                // SAFETY: one longer than the steps, as was checked, and only who opens a step writes.
                unsafe { clock.add(i).write(now) };
            }
        }
        if index == len {
            // The first one last: then the caller goes on, and may begin another job.
            self.groups.iter().rev().for_each(|g| g.word.store(Word::new(step, 0, 0).0, Ordering::SeqCst));
            if self.caller_sleeps.load(Ordering::SeqCst) {
                self.wake_all();
            }
            return;
        }
        // SAFETY: the index is inside the job.
        let s = unsafe { *steps.add(index) };
        let most = (self.threads * PIECES_PER_THREAD) as i64;
        let together = 1 + s.more as i64;
        // Each step is cut into as many, or all are one piece. Those that are there for each sequence have grids much
        // alike.
        let parts = (most / together).max(1).min(s.grid.max(1));
        let pieces = if s.large { (together * parts) as usize } else { 1 };
        self.pieces.store(pieces as u32, Ordering::Relaxed);
        // Groups without pieces first: once the last word with pieces is written, others may finish all of them and
        // open the step behind, while this thread must write no more.
        let of = |g: &Line| self.share(pieces, g.threads.end) - self.share(pieces, g.threads.start);
        for some in [false, true] {
            for group in self.groups.iter().filter(|g| (of(g) > 0) == some) {
                group.word.store(Word::new(step, of(group) as u16, 0).0, Ordering::SeqCst);
            }
        }
        if pieces > 1 && self.sleepers.load(Ordering::SeqCst) > 0 {
            self.wake_all();
        }
    }

    fn wait(&self, idle: &mut u32, sleep: impl FnOnce()) {
        *idle += 1;
        match *idle {
            n if n < SPINS => spin_loop(),
            n if n < SPINS + YIELDS => std::thread::yield_now(),
            _ => {
                sleep();
                *idle = 0;
            }
        }
    }

    /// Sleeps until `wanted`. Registering before looking (here) and looking after storing (in `open`), both
    /// sequentially consistent, means that one of the two sees the other.
    fn sleep(&self, wanted: impl Fn() -> bool) {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !wanted() {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// The calling thread's sleep: until the job is finished or there is a piece to take.
    fn caller_sleep(&self, end: u32) {
        self.caller_sleeps.store(true, Ordering::SeqCst);
        self.sleep(|| self.has_pieces() || self.groups[0].load(Ordering::SeqCst).step() == end);
        self.caller_sleeps.store(false, Ordering::SeqCst);
    }

    /// Taking the lock first makes sure that whoever is about to sleep already does.
    fn wake_all(&self) {
        drop(self.lock.lock());
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `y[i] += i + symbols[0]` for i64 y.
    unsafe extern "C" fn add(args: *const *mut u8, symbols: *const i64, lo: i64, hi: i64, scratch: *mut u8) {
        // SAFETY: the tests pass a buffer of as many i64 as the grid, one symbol, and 8 bytes of scratch a worker.
        unsafe {
            let y = (*args).cast::<i64>();
            scratch.cast::<i64>().write(lo);
            for i in lo..hi {
                *y.add(i as usize) += i + *symbols;
            }
            assert_eq!(scratch.cast::<i64>().read(), lo, "another worker used our scratch");
        }
    }

    fn run(pool: &Pool, grid: usize, steps: usize) -> Vec<i64> {
        let mut y = vec![0i64; grid];
        let args = [y.as_mut_ptr().cast::<u8>()];
        let symbols = [5i64];
        let step = |i: usize| Step {
            kernel: add,
            args: args.as_ptr(),
            symbols: symbols.as_ptr(),
            grid: grid as i64,
            large: !i.is_multiple_of(3),
            more: 0,
        };
        let steps: Vec<Step> = (0..steps).map(step).collect();
        let mut scratch = vec![0i64; 8 * pool.threads()];
        let mut clock = vec![Instant::now(); steps.len() + 1];
        // SAFETY: `add` does what it says, and every buffer is as large as it needs.
        unsafe { pool.run(&steps, Scratch { start: scratch.as_mut_ptr().cast(), stride: 64 }, Some(&mut clock)) };
        assert!(clock.is_sorted());
        y
    }

    #[test]
    fn every_index_runs_once_per_step_in_any_pool() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads);
            for grid in [0, 1, 2, 5, 1000] {
                for steps in [0, 1, 2, 300] {
                    let expected: Vec<i64> = (0..grid as i64).map(|i| (i + 5) * steps as i64).collect();
                    assert_eq!(run(&pool, grid, steps), expected, "{threads} threads, {steps} steps of {grid}");
                }
            }
        }
    }

    #[test]
    fn groups_of_many_threads_share_the_pieces() {
        for (nodes, threads) in [(&[9][..], 9), (&[4, 4], 8), (&[2, 1, 20], 23), (&[16, 16], 5), (&[1, 1, 1, 1], 4)] {
            let pool = Pool::on(&topology::tests::fake(nodes), threads);
            assert_eq!(pool.threads(), threads);
            for grid in [0, 1, 3, 40, 1000] {
                let expected: Vec<i64> = (0..grid as i64).map(|i| (i + 5) * 200).collect();
                assert_eq!(run(&pool, grid, 200), expected, "{nodes:?}, {threads} threads, {grid}");
            }
        }
    }

    #[test]
    fn steps_that_run_together_each_run_once_before_what_is_behind_them() {
        let pools = [1, 2, 3, 7].map(Pool::new).into_iter().chain([Pool::on(&topology::tests::fake(&[3, 9]), 12)]);
        for pool in pools {
            let threads = pool.threads();
            for (together, large) in [(1, true), (2, false), (2, true), (5, true), (40, true), (40, false)] {
                // Each works on numbers of its own, of another size; then one works on all of them.
                let sizes: Vec<usize> = (0..together).map(|i| 7 * i % 60).collect();
                let mut y = vec![0i64; sizes.iter().sum()];
                let starts: Vec<usize> = (0..together).map(|i| sizes[..i].iter().sum()).collect();
                let args: Vec<*mut u8> = starts.iter().map(|s| y.as_mut_ptr().wrapping_add(*s).cast()).collect();
                let symbols: Vec<i64> = (0..together as i64).collect();
                let member = |i: usize| Step {
                    kernel: add,
                    args: args.as_ptr().wrapping_add(i),
                    symbols: symbols.as_ptr().wrapping_add(i),
                    grid: sizes[i] as i64,
                    large,
                    more: if i == 0 { together as u16 - 1 } else { 0 },
                };
                let all = Step { kernel: double, grid: y.len() as i64, more: 0, ..member(0) };
                let round: Vec<Step> = (0..together).map(member).chain([all]).collect();
                let steps: Vec<Step> = (0..20).flat_map(|_| round.iter().copied()).collect();
                let mut scratch = vec![0i64; 8 * threads];
                let mut clock = vec![Instant::now(); steps.len() + 1];
                let place = Scratch { start: scratch.as_mut_ptr().cast(), stride: 64 };
                // SAFETY: as in `run`; members work on different numbers.
                unsafe { pool.run(&steps, place, Some(&mut clock)) };
                assert!(clock.is_sorted());
                for (i, (start, size)) in starts.iter().zip(&sizes).enumerate() {
                    let each = |j: usize| (0..20).fold(0i64, |y, _| 2 * (y + j as i64 + i as i64));
                    let expected: Vec<i64> = (0..*size).map(each).collect();
                    assert_eq!(y[*start..][..*size], expected, "{threads} threads, {together} together, {large}");
                }
            }
        }
    }

    /// `y[i] *= 2`
    unsafe extern "C" fn double(args: *const *mut u8, _: *const i64, lo: i64, hi: i64, _: *mut u8) {
        // SAFETY: a buffer of as many i64 as the grid.
        unsafe { (lo..hi).for_each(|i| *(*args).cast::<i64>().add(i as usize) *= 2) };
    }

    #[test]
    fn sleeping_threads_wake_up() {
        let pool = Pool::new(4);
        for _ in 0..20 {
            std::thread::sleep(std::time::Duration::from_millis(3));
            assert_eq!(run(&pool, 64, 10)[63], 680);
        }
    }

    #[test]
    fn sessions_take_turns() {
        let pool = Pool::new(3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| assert_eq!(run(&pool, 40, 20)[39], 880)));
            }
        });
    }

    #[test]
    fn word_parts_are_kept_apart() {
        let w = Word::new(u32::MAX, 3, 2);
        assert_eq!((w.step(), w.pieces(), w.taken()), (u32::MAX, 3, 2));
    }
}
