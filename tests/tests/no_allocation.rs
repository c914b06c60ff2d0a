//! Decoding allocates nothing, on any thread: the compiled demo in a process that counts every allocation. Alone in its
//! file, so that no other test allocates meanwhile.

use hadal::{Input, Options};
use hadal_runtime::{Batch, Drafts, Generator, Pool, Sampling, Session};
use hadal_tests::{call, load, session};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting.
struct Counting;

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// One test: others would be counted too.
#[test]
fn a_decoded_token_allocates_nothing() {
    let program = load(&Input::demo().expect("embedded"), &Options::default()).expect("compiles");
    for threads in [1, 2] {
        let pool = Pool::new(threads);
        let mut batch = Batch::new(&program, &pool).expect("it decodes in steps");
        let mut all: Vec<Session> = (0..10).map(|_| session(&program, 1)).collect();
        for (i, s) in all.iter_mut().enumerate() {
            call(s, "prefill", &[300; 9][..=i.min(8)], &[]);
        }
        let mut members: Vec<&mut Session> = all.iter_mut().collect();
        let mut logits = vec![0f32; 10 * program.manifest().model.vocab as usize];
        let vocab = logits.len() / 10;
        let mut step =
            |count: usize| batch.step(&mut members[..count], &[301; 10][..count], &mut logits[..count * vocab]);
        for _ in 0..4 {
            step(10).expect("runs");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        for count in (1..=10).cycle().take(60) {
            step(count).expect("runs");
        }
        let found = ALLOCATIONS.load(Ordering::SeqCst) - before;
        assert_eq!(found, 0, "{found} allocations in 60 steps by {threads} threads");
    }
    for threads in [1, 2] {
        for sampling in [Sampling::greedy(), Sampling { temperature: 0.8, top_k: 50, top_p: 0.9, min_p: 0.01, seed: 3 }]
        {
            for drafts in [Drafts::Count(0), Drafts::Count(3), Drafts::Auto] {
                let mut generator = Generator::new(session(&program, threads), sampling).expect("a language model");
                generator.ignore_stop_tokens();
                generator.draft(drafts).expect("it drafts");
                generator.prompt(&[0, 300, 301, 302, 303, 304, 305]).expect("runs");
                // Threads allocate while they start.
                for _ in 0..4 {
                    generator.next_token().expect("runs");
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                let before = ALLOCATIONS.load(Ordering::SeqCst);
                for _ in 0..100 {
                    generator.next_token().expect("runs").expect("goes on");
                }
                let found = ALLOCATIONS.load(Ordering::SeqCst) - before;
                assert_eq!(
                    found, 0,
                    "{found} allocations in 100 tokens by {threads} threads, {sampling:?}, {drafts:?}"
                );
            }
        }
    }
}
