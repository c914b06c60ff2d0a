//! However a prompt is cut into calls, the bits of its logits are the same.
//!
//! What may differ, and nothing else: another entry, or *version* of an entry, may compute another form of the same
//! sums (absorbed latent attention for few tokens, expanded for many), and an entry for steps adds in another order
//! than one for chunks, since reading weights decides in one and multiply-adds in the other. So bits agree
//!
//! - among all splits of calls of an entry, as long as they fall into the same versions;
//! - in entries for steps between one token a call and several, which is how drafts are verified;
//!
//! and everything agrees up to rounding: where states keep rounded numbers, up to that of these numbers.

use hadal::{Input, Options};
use hadal_models::Activations;
use hadal_runtime::{Program, Session};
use hadal_tests::{KINDS, Numbers, ROUNDED, call, load, open, session};
use hadal_types::{Bindings, Sym};
use std::sync::{Arc, LazyLock};

/// What another order or form makes of the largest logit.
const ROUNDING: f32 = 3e-5;

/// Tokens of a prompt: more than one block of keys, and an end within the second.
const TOKENS: usize = 61;

/// A compiled model, and how far the largest logit may be off where bits may differ.
struct Case {
    name: String,
    program: Arc<Program>,
    rounding: f32,
}

static CASES: LazyLock<Vec<Case>> = LazyLock::new(cases);

fn cases() -> Vec<Case> {
    let case = |name: &str, input: &Input| {
        let program = program(input, Activations::F32);
        Case { name: name.into(), program, rounding: ROUNDING }
    };
    let mut all: Vec<_> = KINDS.into_iter().map(|name| case(name, &open(name))).collect();
    all.push(case("demo", &Input::demo().expect("embedded")));
    all.extend(ROUNDED.map(rounded));
    all
}

/// A model that rounds what its states keep. Where another order of summation moves a number across the middle between
/// two of its format, a whole step of that format shows, and perhaps another selection of rows: at most what rounding
/// makes of the logits altogether.
fn rounded(name: &str) -> Case {
    let input = open(name);
    let [plain, program] = [Activations::F32, Activations::Cache].map(|a| program(&input, a));
    let ids = tokens(&program, TOKENS);
    let [exact, found] = [&plain, &program].map(|p| run(&mut session(p, 2), "logits", &ids, &[TOKENS]).logits);
    let off = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        let largest = a.iter().fold(1f32, |m, v| m.max(v.abs()));
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / largest
    };
    let rounding = exact.iter().zip(&found).map(off).fold(0f32, f32::max);
    assert!(rounding > 10.0 * ROUNDING, "{name}: rounding states makes {rounding:e} of the largest logit");
    Case { name: format!("{name} with rounded states"), program, rounding }
}

fn program(input: &Input, activations: Activations) -> Arc<Program> {
    let options = Options { max_context: Some(256), max_chunk: 64, activations, ..Options::default() };
    load(input, &options).expect("compiles")
}

/// The version of `entry` that the next call for `new` tokens runs.
fn version(s: &Session, entry: &str, new: usize) -> usize {
    let manifest = s.program().manifest();
    let index = s.entry(entry).expect("an entry");
    let entry = &manifest.entries[index];
    let at = Bindings::from([(Sym::P, s.held(index) as i64), (Sym::T, new as i64)]);
    let at = manifest.definitions.complete(&at);
    let values: Vec<i64> = entry.symbols.iter().map(|r| at[&r.sym]).collect();
    entry.version_for(&values).expect("a version")
}

/// Sizes of calls that together take `total`, each at most `most`.
fn cuts(numbers: &mut Numbers, total: usize, most: usize) -> Vec<usize> {
    let (mut out, mut left) = (Vec::new(), total);
    while left > 0 {
        let wide = if numbers.below(2) == 0 { most } else { 4 };
        let n = (1 + numbers.below(wide)).min(left).min(most);
        out.push(n);
        left -= n;
    }
    out
}

/// Logits of every token, and the versions that computed them.
struct Rows {
    logits: Vec<Vec<f32>>,
    versions: Vec<usize>,
}

fn run(s: &mut Session, entry: &str, tokens: &[u32], cuts: &[usize]) -> Rows {
    let (mut logits, mut versions, mut at) = (Vec::new(), Vec::new(), 0);
    for n in cuts {
        versions.extend(std::iter::repeat_n(version(s, entry, *n), *n));
        let all = call(s, entry, &tokens[at..at + n], &[]).swap_remove(0);
        logits.extend(all.chunks(all.len() / n).map(<[f32]>::to_vec));
        at += n;
    }
    Rows { logits, versions }
}

/// Bits agree until versions differ, and all of it up to `rounding`; how many rows agreed to the bit.
#[track_caller]
fn agree(what: &str, rounding: f32, a: &Rows, b: &Rows) -> usize {
    let same = a.versions.iter().zip(&b.versions).take_while(|(a, b)| a == b).count();
    for (i, (x, y)) in a.logits.iter().zip(&b.logits).enumerate() {
        let worst = x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max);
        let largest = x.iter().fold(1f32, |m, v| m.max(v.abs()));
        let bits = x.iter().zip(y).all(|(x, y)| x.to_bits() == y.to_bits());
        assert!(bits || i >= same, "{what}: other bits at token {i}, off by {worst:e}");
        assert!(worst <= rounding * largest, "{what}: token {i} off by {worst:e}");
    }
    same
}

fn tokens(program: &Program, count: usize) -> Vec<u32> {
    let mut numbers = Numbers(11);
    (0..count).map(|_| numbers.below(program.manifest().model.vocab as usize) as u32).collect()
}

#[test]
fn a_prompt_cut_anywhere_has_the_same_bits() {
    for Case { name, program, rounding } in CASES.iter() {
        let ids = tokens(program, TOKENS);
        let whole = run(&mut session(program, 2), "logits", &ids, &[TOKENS]);
        let single = run(&mut session(program, 1), "logits", &ids, &[1; TOKENS]);
        let (mut numbers, mut same) = (Numbers(3), 0);
        for i in 0..8 {
            let cuts = cuts(&mut numbers, TOKENS, TOKENS);
            let rows = run(&mut session(program, 1 + i % 2), "logits", &ids, &cuts);
            same += agree(&format!("{name}, {cuts:?} and one call"), *rounding, &rows, &whole);
            same += agree(&format!("{name}, {cuts:?} and single tokens"), *rounding, &rows, &single);
        }
        assert!(same >= 4 * TOKENS, "{name}: {same} rows were compared to the bit");
        // Where only the last row is wanted less is computed, for which another form may be the best.
        for entry in ["prefill", "prefill_hidden"] {
            if program.manifest().entry(entry).is_some() {
                let logits = vec![call(&mut session(program, 2), entry, &ids, &[]).swap_remove(0)];
                let last = Rows { logits: whole.logits[TOKENS - 1..].to_vec(), versions: vec![0] };
                agree(&format!("{name}, {entry} and `logits`"), *rounding, &Rows { logits, versions: vec![1] }, &last);
            }
        }
    }
}

#[test]
fn a_token_of_a_step_has_the_bits_it_has_alone() {
    let mut drafting = 0;
    for Case { name, program, rounding } in CASES.iter() {
        let ids = tokens(program, TOKENS + 32);
        let range = program.manifest().entry("decode").and_then(|e| e.range(Sym::T)).expect("tokens");
        if range.hi == 1 {
            continue;
        }
        drafting += 1;
        let start = || {
            let mut s = session(program, 2);
            call(&mut s, "prefill", &ids[..29], &[]);
            s
        };
        let rest = &ids[29..];
        let single = run(&mut start(), "decode", rest, &vec![1; rest.len()]);
        let mut numbers = Numbers(5);
        for _ in 0..6 {
            let cuts = cuts(&mut numbers, rest.len(), range.hi as usize);
            // The version for several tokens stands behind that for one: only where rows differ must there be another.
            let mut rows = run(&mut start(), "decode", rest, &cuts);
            rows.versions = single.versions.clone();
            let same = agree(&format!("{name}, steps of {cuts:?}"), *rounding, &rows, &single);
            assert_eq!(same, rest.len());
        }
    }
    assert!(drafting >= 11, "{drafting} programs draft");
}
