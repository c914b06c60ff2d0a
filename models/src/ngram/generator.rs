//! The random numbers of NumPy's `default_rng(seed)`, number for number.
//!
//! Released tables are addressed by multipliers drawn from it, so they must be the same ones. Three parts: a hash that
//! spreads the seed over a pool of words and draws the generator's state from that (`SeedSequence`; after M. O'Neill's
//! `seed_seq_fe128`), a linear congruence modulo 2^128 whose output is folded to 64 bits (PCG64, "XSL RR"), and
//! multiplication with rejection for a number below a bound (Lemire's method).

/// A generator in the middle of its sequence.
#[derive(Clone, Debug)]
pub(super) struct Generator {
    state: u128,
    increment: u128,
}

const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;

impl Generator {
    /// `default_rng(seed)`.
    pub(super) fn new(seed: u64) -> Generator {
        let mut words = Pool::new(seed).words(8).into_iter();
        let mut wide = || (0..2).fold(0u128, |high, _| high << 64 | u128::from(long(&mut words)));
        let (start, stream) = (wide(), wide());
        let mut g = Generator { state: 0, increment: stream << 1 | 1 };
        g.step();
        g.state = g.state.wrapping_add(start);
        g.step();
        g
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    fn next(&mut self) -> u64 {
        self.step();
        ((self.state >> 64) as u64 ^ self.state as u64).rotate_right((self.state >> 122) as u32)
    }

    /// A number from 0 to `most`, as `integers` draws 64-bit ones where there are more than 2^32 to draw from.
    pub(super) fn up_to(&mut self, most: u64) -> u64 {
        debug_assert!(most > u64::from(u32::MAX) && most < u64::MAX, "drawn in another way");
        let count = most + 1;
        // The first few products of each residue would come once too often.
        let surplus = (u64::MAX - most) % count;
        loop {
            let product = u128::from(self.next()) * u128::from(count);
            if product as u64 >= surplus {
                return (product >> 64) as u64;
            }
        }
    }
}

/// The next 64 bits, lower half first.
fn long(words: &mut impl Iterator<Item = u32>) -> u64 {
    let mut next = || u64::from(words.next().expect("as many as were asked for"));
    next() | next() << 32
}

/// Entropy spread over four words.
struct Pool([u32; 4]);

/// A hash of words whose constants change from word to word.
struct Mixer {
    constant: u32,
    growth: u32,
}

impl Mixer {
    fn hash(&mut self, value: u32) -> u32 {
        let value = value ^ self.constant;
        self.constant = self.constant.wrapping_mul(self.growth);
        let value = value.wrapping_mul(self.constant);
        value ^ value >> 16
    }
}

impl Pool {
    fn new(seed: u64) -> Pool {
        let mut mixer = Mixer { constant: 0x43b0_d7e5, growth: 0x931e_8875 };
        let mut pool = [seed as u32, (seed >> 32) as u32, 0, 0].map(|word| mixer.hash(word));
        for from in 0..4 {
            for to in (0..4).filter(|to| *to != from) {
                let hashed = mixer.hash(pool[from]).wrapping_mul(0x4973_f715);
                let mixed = pool[to].wrapping_mul(0xca01_f9dd).wrapping_sub(hashed);
                pool[to] = mixed ^ mixed >> 16;
            }
        }
        Pool(pool)
    }

    fn words(&self, count: usize) -> Vec<u32> {
        let mut mixer = Mixer { constant: 0x8b51_f9dd, growth: 0x58f3_8ded };
        self.0.iter().cycle().take(count).map(|word| mixer.hash(*word)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What NumPy 2.4 draws: seed, number drawn from, and the first numbers below it.
    #[test]
    fn draws_what_numpy_draws() {
        let many = 46539438283891;
        let cases: [(u64, u64, &[u64]); 6] = [
            (0, many, &[29643839136299, 12555722115027, 1906884788502]),
            (10007, many, &[38316048023122, 2419938046656, 17979836159674]),
            (140098, many, &[33858405369630, 25755403400457, 15460673601360]),
            ((1 << 40) + 17, many, &[15714026007460, 12292261077779, 24466035009696]),
            (1, (1 << 63) - 1, &[4720721261117928062, 8766480278738261042, 1329637740802083942]),
            // A quarter of what is drawn is rejected here.
            (
                42,
                3 * (1 << 61) + 5,
                &[
                    5353863432004267638,
                    3035954346590650346,
                    5939376034059241553,
                    4824063583966999352,
                    651474537759068344,
                    6748895937462714201,
                ],
            ),
        ];
        for (seed, below, expected) in cases {
            let mut g = Generator::new(seed);
            let drawn: Vec<u64> = expected.iter().map(|_| g.up_to(below - 1)).collect();
            assert_eq!(drawn, expected, "seed {seed}");
        }
    }
}
