//! Several sequences in one step have the bits they have alone: whatever their lengths, whoever is with them, on any
//! number of threads.

use hadal::{Input, Options};
use hadal_models::Activations;
use hadal_runtime::{Batch, Error, Pool, Program, Session};
use hadal_tests::{KINDS, Numbers, ROUNDED, call, load, open, session};
use std::sync::Arc;

/// Models of every kind; those that keep rounded rows too, where any other bit would show.
fn programs() -> Vec<(String, Arc<Program>)> {
    let plain = KINDS.map(|name| (name.to_owned(), program(&open(name), Activations::F32)));
    let rounded = ROUNDED.map(|name| (format!("{name} with rounded states"), program(&open(name), Activations::Cache)));
    let demo = ("demo".to_owned(), program(&Input::demo().expect("embedded"), Activations::F32));
    plain.into_iter().chain(rounded).chain([demo]).collect()
}

fn program(input: &Input, activations: Activations) -> Arc<Program> {
    let options = Options { max_context: Some(192), max_chunk: 48, activations, ..Options::default() };
    load(input, &options).expect("compiles")
}

/// A sequence: its tokens, and what `decode` makes of each after the prompt when it is alone.
struct Text {
    tokens: Vec<u32>,
    prompt: usize,
    /// By token after the prompt.
    alone: Vec<Vec<f32>>,
}

/// Steps of each sequence after its prompt.
const STEPS: usize = 14;

fn texts(program: &Arc<Program>, numbers: &mut Numbers, count: usize) -> Vec<Text> {
    let vocab = program.manifest().model.vocab as usize;
    let mut text = |i: usize| {
        // Some begin where windows and groups begin, some late in the context.
        let prompt = if i.is_multiple_of(3) { 1 + numbers.below(6) } else { 1 + numbers.below(140) };
        let tokens: Vec<u32> = (0..prompt + STEPS).map(|_| numbers.below(vocab) as u32).collect();
        let mut s = started(program, 1, &tokens[..prompt]);
        let alone = tokens[prompt..].iter().map(|t| call(&mut s, "decode", &[*t], &[]).swap_remove(0)).collect();
        Text { tokens, prompt, alone }
    };
    (0..count).map(&mut text).collect()
}

/// A sequence that has read its prompt.
fn started(program: &Arc<Program>, threads: usize, prompt: &[u32]) -> Session {
    let mut s = session(program, threads);
    prompt.chunks(48).for_each(|chunk| drop(call(&mut s, "prefill", chunk, &[])));
    s
}

#[test]
fn every_sequence_has_the_bits_it_has_alone() {
    for (name, program) in programs() {
        let mut numbers = Numbers(7);
        let texts = texts(&program, &mut numbers, 19);
        let vocab = program.manifest().model.vocab as usize;
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads);
            let mut batch = Batch::new(&program, &pool).unwrap_or_else(|e| panic!("{name}: {e}"));
            let mut sessions: Vec<Session> =
                texts.iter().map(|t| started(&program, threads, &t.tokens[..t.prompt])).collect();
            let mut done = vec![0; texts.len()];
            let mut largest = 0;
            while done.iter().any(|n| *n < STEPS) {
                // Who takes part is left to chance: sequences join and leave at every step, in any order of lengths.
                let most = 1 + numbers.below(texts.len());
                let mut chosen: Vec<usize> = (0..texts.len()).filter(|i| done[*i] < STEPS).collect();
                while chosen.len() > most {
                    chosen.remove(numbers.below(chosen.len()));
                }
                largest = largest.max(chosen.len());
                let tokens: Vec<u32> = chosen.iter().map(|i| texts[*i].tokens[texts[*i].prompt + done[*i]]).collect();
                let mut logits = vec![0f32; chosen.len() * vocab];
                let members = sessions.iter_mut().enumerate().filter(|(i, _)| chosen.contains(i));
                let mut members: Vec<&mut Session> = members.map(|(_, s)| s).collect();
                batch.step(&mut members, &tokens, &mut logits).unwrap_or_else(|e| panic!("{name}: {e}"));
                for (i, row) in chosen.iter().zip(logits.chunks(vocab)) {
                    let alone = &texts[*i].alone[done[*i]];
                    let same = row.iter().zip(alone).all(|(a, b)| a.to_bits() == b.to_bits());
                    let worst = row.iter().zip(alone).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                    assert!(
                        same,
                        "{name}, {threads} threads, {} together: other bits in sequence {i} at token {} of it, off by {worst:e}",
                        chosen.len(),
                        done[*i]
                    );
                    done[*i] += 1;
                }
            }
            assert!(largest > 16, "{name}: at most {largest} together");
            let decode = sessions[0].entry("decode").expect("an entry");
            for (s, t) in sessions.iter().zip(&texts) {
                assert_eq!(s.held(decode) as usize, t.tokens.len());
            }
        }
    }
}

/// Weights are read once for all only where launches are shared: most products of a layer are.
#[test]
fn products_with_weights_are_shared() {
    for name in ["v3", "v32", "v4-flash-like", "v41-like", "llama-dense"] {
        let program = program(&open(name), Activations::F32);
        let m = program.manifest();
        let decode = m.entry("decode").expect("an entry");
        let mut bytes = [0u64; 2];
        let mut launches = [0usize; 2];
        for version in decode.versions.iter().filter(|v| v.batches) {
            for l in &version.launches {
                launches[usize::from(l.each)] += 1;
                for arg in &l.args {
                    if let hadal_artifact::Space::Weight(i) = arg.space {
                        bytes[usize::from(l.each)] += m.weights[i as usize].bytes;
                    }
                }
            }
        }
        println!("{name}: launches {launches:?}, bytes {bytes:?}");
        assert!(bytes[0] > 9 * bytes[1], "{name}: {bytes:?} bytes of weights are read once and for each");
    }
}

#[test]
fn what_cannot_be_a_step_is_refused_and_changes_nothing() {
    let program = program(&open("v3"), Activations::F32);
    let pool = Pool::new(1);
    let mut batch = Batch::new(&program, &pool).expect("steps");
    let vocab = program.manifest().model.vocab as usize;
    let mut logits = vec![0f32; 2 * vocab];
    let mut a = started(&program, 1, &[1, 2, 3]);
    let mut b = started(&program, 1, &[4]);
    let decode = a.entry("decode").expect("an entry");
    let said = |r: Result<(), Error>| r.unwrap_err().to_string();
    let few = said(batch.step(&mut [&mut a, &mut b], &[1], &mut logits));
    assert!(few.starts_with("2 sequences with 1 tokens"), "{few}");
    let outside = said(batch.step(&mut [&mut a, &mut b], &[1, vocab as u32], &mut logits));
    assert!(outside.contains("not below the vocabulary"), "{outside}");
    let mut full = started(&program, 1, &[5; 192]);
    let refused = said(batch.step(&mut [&mut a, &mut full], &[1, 1], &mut logits));
    assert!(refused.starts_with("192 tokens held and 1 new"), "{refused}");
    let other = self::program(&open("v3"), Activations::F32);
    let mut foreign = started(&other, 1, &[1]);
    let refused = said(batch.step(&mut [&mut a, &mut foreign], &[1, 1], &mut logits));
    assert!(refused.contains("sequence 1 of the batch is of another program"), "{refused}");
    assert_eq!((a.held(decode), b.held(decode)), (3, 1));
    batch.step(&mut [], &[], &mut []).expect("nothing to do");
    batch.step(&mut [&mut b, &mut a], &[6, 7], &mut logits).expect("runs");
    assert_eq!((a.held(decode), b.held(decode)), (4, 2));
}
