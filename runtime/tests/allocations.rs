//! Decoding allocates nothing, on any thread. Alone in its file, so that every allocation of the process counts.

mod toy;

use hadal_runtime::{Generator, Sampling};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting.
struct Counting;

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn decoding_allocates_nothing() {
    for threads in [1, 3] {
        let sampling = Sampling { temperature: 0.9, top_k: 200, top_p: 0.95, min_p: 0.01, seed: 1 };
        let mut g = Generator::new(toy::session(threads), sampling).unwrap();
        g.ignore_stop_tokens();
        g.prompt(&[0, 5, 9, 2, 11, 3, 8]).unwrap();
        g.next_token().unwrap();
        // Threads allocate while they start.
        std::thread::sleep(std::time::Duration::from_millis(100));
        g.next_token().unwrap();
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        for _ in 0..50 {
            g.next_token().unwrap().unwrap();
        }
        assert_eq!(ALLOCATIONS.load(Ordering::SeqCst) - before, 0, "{threads} threads");
    }
}
