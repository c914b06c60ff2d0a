//! What the machine can do at most: bytes a second that can be read from memory, and multiplications with addition a second
//! in 128-bit vectors. Speeds are stated as shares of these, measured in the same run.

use std::arch::x86_64::*;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Bytes that all threads together read once in a measurement: far more than any cache holds.
const BYTES: usize = 1 << 30;

/// Bytes a second that `threads` threads read from memory, the best of `runs`.
pub fn read_bandwidth(threads: usize, runs: usize) -> f64 {
    assert!(is_x86_feature_detected!("avx2"), "this measurement needs AVX2");
    let each = BYTES / threads / 32;
    let best = on_all(threads, runs, || {
        // Written to, so that each page is one of its own and not the system's page of zeros.
        // SAFETY: AVX2 was found above.
        let words = vec![unsafe { _mm256_set1_epi64x(1) }; each];
        // SAFETY: AVX2 was found above.
        move || std::hint::black_box(unsafe { sum(&words) })
    });
    (each * 32 * threads) as f64 / best.as_secs_f64()
}

/// The sum of all words, sixteen at a time so that additions do not wait for each other.
#[target_feature(enable = "avx2")]
fn sum(words: &[__m256i]) -> [u64; 4] {
    let mut sums = [_mm256_setzero_si256(); 16];
    for chunk in words.chunks_exact(16) {
        for (s, w) in sums.iter_mut().zip(chunk) {
            *s = _mm256_add_epi64(*s, *w);
        }
    }
    let total = sums.into_iter().fold(_mm256_setzero_si256(), |a, b| _mm256_add_epi64(a, b));
    // SAFETY: the same size, and all bit patterns are numbers.
    unsafe { std::mem::transmute(total) }
}

/// Operations a second (two for each multiplication with addition) of `threads` threads in 128-bit vectors of f32, the best
/// of `runs`.
pub fn fma_peak(threads: usize, runs: usize) -> f64 {
    assert!(is_x86_feature_detected!("fma"), "this measurement needs FMA");
    const STEPS: usize = 4_000_000;
    let best = on_all(threads, runs, || {
        // SAFETY: FMA was found above.
        || std::hint::black_box(unsafe { multiply(std::hint::black_box(STEPS)) })
    });
    (STEPS * 12 * 4 * 2 * threads) as f64 / best.as_secs_f64()
}

/// Twelve chains of multiplications with addition, more than any core has in flight.
#[target_feature(enable = "fma")]
fn multiply(steps: usize) -> [f32; 4] {
    // Values that the compiler does not know, so that it can neither compute a chain nor merge two.
    let [a, b] = std::hint::black_box([0.999, 0.002]).map(|v| _mm_set1_ps(v));
    let mut sums: [__m128; 12] = std::array::from_fn(|i| _mm_set1_ps(std::hint::black_box(i as f32)));
    for _ in 0..steps {
        for s in &mut sums {
            *s = _mm_fmadd_ps(*s, a, b);
        }
    }
    let total = sums.into_iter().fold(_mm_setzero_ps(), |a, b| _mm_add_ps(a, b));
    // SAFETY: the same size, and all bit patterns are numbers.
    unsafe { std::mem::transmute(total) }
}

/// The shortest time in which `threads` threads all do what `prepare` made for them.
fn on_all<R, W: FnMut() -> R>(threads: usize, runs: usize, prepare: impl Fn() -> W + Sync) -> Duration {
    let gate = Barrier::new(threads);
    std::thread::scope(|scope| {
        let worker = || {
            let mut work = prepare();
            work();
            let mut best = Duration::MAX;
            for _ in 0..runs {
                gate.wait();
                let start = Instant::now();
                work();
                gate.wait();
                best = best.min(start.elapsed());
            }
            best
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|w| w.join().expect("measures")).max().expect("at least one thread")
    })
}
