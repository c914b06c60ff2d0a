//! Drawing the next token from logits.
//!
//! Temperature, then top-k, then top-p, then min-p, each on what the one before left; then one draw. Everything is made
//! of basic IEEE operations in a fixed order (no library `exp`, no hash, no thread), and candidates are totally ordered
//! (larger logit first, then smaller id), so that one seed gives the same tokens on every machine. Nothing is
//! allocated after [`Sampler::new`].

use crate::Error;
use std::cmp::Ordering;

/// How to sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Softmax temperature; 0 takes the likeliest token (the smallest id among equals).
    pub temperature: f32,
    /// Keep this many likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the likeliest tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Sampling {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }

    /// Whether every setting is in its range.
    pub fn check(&self) -> Result<(), Error> {
        let require = |ok: bool, name, must, found| if ok { Ok(()) } else { Err(Error::Setting { name, must, found }) };
        let t = self.temperature;
        require(t.is_finite() && t >= 0.0, "temperature", "0 or more", t)?;
        require(self.top_p > 0.0 && self.top_p <= 1.0, "top-p", "above 0 and at most 1", self.top_p)?;
        require((0.0..=1.0).contains(&self.min_p), "min-p", "between 0 and 1", self.min_p)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): a counter through a mixing function. Small, well tested, any seed is good.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number in `0.0..1.0`, a multiple of 2^-53.
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

#[derive(Clone, Copy)]
struct Candidate {
    logit: f32,
    token: u32,
    /// Probability relative to the likeliest, once it is known who takes part.
    weight: f64,
}

/// Likelier first, then the smaller id.
fn rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Draws tokens.
pub struct Sampler {
    sampling: Sampling,
    pub(crate) rng: Rng,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler for `vocab` logits.
    pub fn new(sampling: Sampling, vocab: usize) -> Result<Sampler, Error> {
        sampling.check()?;
        Ok(Sampler { sampling, rng: Rng::new(sampling.seed), candidates: Vec::with_capacity(vocab) })
    }

    /// The token that [`Sampler::sample`] would draw from `logits` if it drew `ahead` tokens before.
    pub fn guess(&mut self, ahead: usize, logits: &[f32]) -> Result<u32, Error> {
        let now = self.rng.clone();
        (0..ahead).for_each(|_| _ = self.rng.next_u64());
        let token = self.sample(logits);
        self.rng = now;
        token
    }

    /// The token drawn from `logits`; logits that are not numbers are never drawn.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, Error> {
        let s = self.sampling;
        let all = logits.iter().enumerate().filter(|(_, l)| !l.is_nan() && **l != f32::NEG_INFINITY);
        let all = all.map(|(token, logit)| Candidate { logit: *logit + 0.0, token: token as u32, weight: 0.0 });
        let best = all.clone().min_by(rank).ok_or(Error::NotANumber)?;
        if s.temperature == 0.0 || best.logit == f32::INFINITY {
            return Ok(best.token);
        }
        self.candidates.clear();
        self.candidates.extend(all);
        let kept = &mut self.candidates[..];

        let kept = match s.top_k as usize {
            k if k > 0 && k < kept.len() => {
                let kept = front(kept, k);
                kept.sort_unstable_by(rank);
                kept
            }
            _ => kept,
        };
        for c in kept.iter_mut() {
            c.weight = exp((c.logit as f64 - best.logit as f64) / s.temperature as f64);
        }
        let kept = if s.top_p < 1.0 { reaching(kept, s.top_p as f64) } else { kept };
        // The order is by id or by rank, the same whatever way the cuts shuffled, so sums round alike everywhere.
        let likely = kept.iter().filter(|c| c.weight >= s.min_p as f64);
        let total: f64 = likely.clone().map(|c| c.weight).sum();

        let mut left = self.rng.next_f64() * total;
        let mut drawn = best.token;
        for c in likely {
            drawn = c.token;
            left -= c.weight;
            if left < 0.0 {
                break;
            }
        }
        Ok(drawn)
    }
}

/// The `n` first candidates by rank, in any order.
fn front(candidates: &mut [Candidate], n: usize) -> &mut [Candidate] {
    candidates.select_nth_unstable_by(n - 1, rank);
    &mut candidates[..n]
}

/// The fewest first candidates by rank whose weights reach `share` of all weights. Sorts only as many as it needs: a
/// front of 256, then eight times as many, and so on.
fn reaching(candidates: &mut [Candidate], share: f64) -> &mut [Candidate] {
    let wanted = share * candidates.iter().map(|c| c.weight).sum::<f64>();
    let mut sorted = 256.min(candidates.len());
    loop {
        let front = front(candidates, sorted);
        front.sort_unstable_by(rank);
        let mut sum = 0.0;
        let reached = front.iter().position(|c| {
            sum += c.weight;
            sum >= wanted
        });
        match reached {
            Some(last) => return &mut candidates[..last + 1],
            None if sorted == candidates.len() => return candidates,
            None => sorted = (sorted * 8).min(candidates.len()),
        }
    }
}

const INVERSE_FACTORIALS: [f64; 13] = {
    let mut c = [1.0; 13];
    let mut n = 1;
    while n < c.len() {
        c[n] = c[n - 1] / n as f64;
        n += 1;
    }
    c
};

/// `e^x` for `x <= 0` by basic operations alone, within 1e-14: `x = k ln 2 + r`, a polynomial in `r`, and `k` into the
/// exponent. The library's may differ in the last bit between machines.
fn exp(x: f64) -> f64 {
    if x < -700.0 {
        return 0.0;
    }
    let k = (x * std::f64::consts::LOG2_E).round();
    let r = x - k * std::f64::consts::LN_2;
    let p = INVERSE_FACTORIALS.iter().rev().fold(0.0, |p, c| p * r + c);
    p * f64::from_bits(((1023 + k as i64) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut Sampling)) -> Sampling {
        let mut s = Sampling { temperature: 1.0, ..Sampling::greedy() };
        change(&mut s);
        s
    }

    /// Shares of `n` draws.
    fn draws(sampling: Sampling, logits: &[f32], n: usize) -> Vec<f64> {
        let mut sampler = Sampler::new(sampling, logits.len()).unwrap();
        let mut counts = vec![0.0; logits.len()];
        (0..n).for_each(|_| counts[sampler.sample(logits).unwrap() as usize] += 1.0 / n as f64);
        counts
    }

    /// Probabilities 0.5, 0.25, 0.125, 0.125, in another order.
    const LOGITS: [f32; 4] = [std::f32::consts::LN_2, 0.0, 2.0 * std::f32::consts::LN_2, 0.0];

    fn close(found: &[f64], expected: &[f64]) {
        // Four standard deviations of 20000 draws.
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.0142), "{found:?} is not {expected:?}");
    }

    #[test]
    fn exp_is_the_exponential() {
        for i in 0..200_000 {
            let x = -700.0 * i as f64 / 200_000.0;
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-13, "{x}");
        }
        assert_eq!((exp(0.0), exp(-1e9), exp(f64::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let mut s = Sampler::new(Sampling::greedy(), 4).unwrap();
        assert_eq!(s.sample(&[0.0, 2.0, 2.0, -1.0]).unwrap(), 1);
        assert_eq!(s.sample(&[f32::NAN, -0.0, 0.0, f32::NEG_INFINITY]).unwrap(), 1);
        assert!(matches!(s.sample(&[f32::NAN; 4]), Err(Error::NotANumber)));
    }

    #[test]
    fn shares_are_the_softmax() {
        close(&draws(with(|_| {}), &LOGITS, 20_000), &[0.25, 0.125, 0.5, 0.125]);
        // At temperature 1/2 probabilities are squared: 16:4:1:1.
        close(
            &draws(with(|s| s.temperature = 0.5), &LOGITS, 20_000),
            &[4.0 / 22.0, 1.0 / 22.0, 16.0 / 22.0, 1.0 / 22.0],
        );
    }

    #[test]
    fn cuts_keep_what_they_say() {
        close(&draws(with(|s| s.top_k = 3), &LOGITS, 20_000), &[2.0 / 7.0, 1.0 / 7.0, 4.0 / 7.0, 0.0]);
        close(&draws(with(|s| s.top_p = 0.7), &LOGITS, 20_000), &[1.0 / 3.0, 0.0, 2.0 / 3.0, 0.0]);
        close(&draws(with(|s| s.top_p = 0.3), &LOGITS, 100), &[0.0, 0.0, 1.0, 0.0]);
        close(&draws(with(|s| s.min_p = 0.4), &LOGITS, 20_000), &[1.0 / 3.0, 0.0, 2.0 / 3.0, 0.0]);
        // top-p is a share of what top-k left: 2/3 >= 0.6.
        let both = with(|s| (s.top_k, s.top_p) = (2, 0.6));
        close(&draws(both, &LOGITS, 100), &[0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn seeds_reproduce_and_differ() {
        let logits: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 5000) as f32 / 1000.0).collect();
        let sequence = |seed: u64, top_p: f32| -> Vec<u32> {
            let sampling = with(|s| (s.seed, s.top_p, s.temperature) = (seed, top_p, 0.8));
            let mut s = Sampler::new(sampling, logits.len()).unwrap();
            (0..20).map(|_| s.sample(&logits).unwrap()).collect()
        };
        assert_eq!(sequence(7, 0.95), sequence(7, 0.95));
        assert_ne!(sequence(7, 0.95), sequence(8, 0.95));
        // Pinned: the same on every machine, for good.
        assert_eq!(Rng::new(0).next_u64(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(sequence(7, 0.95)[..4], PINNED);
    }

    const PINNED: [u32; 4] = [3770, 173, 4340, 4724];

    #[test]
    fn the_nucleus_is_found_beyond_the_first_front() {
        let flat = vec![0.0; 10_000];
        let mut s = Sampler::new(with(|s| s.top_p = 0.5), flat.len()).unwrap();
        let drawn: Vec<u32> = (0..100).map(|_| s.sample(&flat).unwrap()).collect();
        assert!(drawn.iter().all(|t| *t < 5000), "of equals the smaller ids are kept");
        assert!(drawn.iter().any(|t| *t > 4000));
    }

    #[test]
    fn settings_are_checked() {
        for bad in [
            with(|s| s.temperature = -1.0),
            with(|s| s.temperature = f32::NAN),
            with(|s| s.top_p = 0.0),
            with(|s| s.top_p = 1.5),
            with(|s| s.min_p = 2.0),
        ] {
            assert!(matches!(Sampler::new(bad, 4), Err(Error::Setting { .. })), "{bad:?}");
        }
    }
}
