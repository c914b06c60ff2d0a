//! Drafts change no token: at no temperature, at no depth, wherever a text is interrupted.
//!
//! That is more than the same distribution, and easier to test: plain decoding with the same seed says what must come
//! out. That the comparison means something is tested too: drafts are accepted as well as refused, and other seeds give
//! other text.

use hadal::{Input, Options};
use hadal_models::Activations;
use hadal_runtime::{Drafts, Generator, Program, Sampling, Stop};
use hadal_tests::{Numbers, load, open, session};
use std::sync::Arc;

const CONTEXT: usize = 128;

fn program(input: &Input, activations: Activations) -> Arc<Program> {
    let options = Options { max_context: Some(CONTEXT), max_chunk: 32, activations, ..Options::default() };
    load(input, &options).expect("compiles")
}

fn demo() -> Arc<Program> {
    program(&Input::demo().expect("embedded"), Activations::F32)
}

/// Models that predict several tokens: with random weights, where drafts are hardly ever right, with states that are
/// rounded, which are taken back like others, and the trained one.
fn programs() -> Vec<(String, Arc<Program>)> {
    let plain = ["v3", "v3-fp8", "variant-v3-mtp2", "v32", "v4-flash-like", "v4-fp4", "v41-like", "v41-fp8fp4-like"];
    let plain = [&plain[..], &["variant-v4-dspark"]].concat();
    let rounded = ["variant-v32-fp8", "v4-fp4", "variant-v4-dspark-fp4", "v41-fp8fp4-like"];
    let plain = plain.into_iter().map(|name| (name.to_owned(), program(&open(name), Activations::F32)));
    let rounded = rounded.map(|name| (format!("{name} with rounded states"), program(&open(name), Activations::Cache)));
    plain.chain(rounded).chain([("demo".to_owned(), demo())]).collect()
}

fn generator(program: &Arc<Program>, sampling: Sampling, drafts: Drafts) -> Generator {
    let mut g = Generator::new(session(program, 2), sampling).expect("a language model");
    g.draft(drafts).expect("a drafter that fits");
    g
}

fn sampled(seed: u64) -> Sampling {
    Sampling { temperature: 0.9, top_k: 40, top_p: 0.95, min_p: 0.01, seed }
}

fn prompt(program: &Program, count: usize) -> Vec<u32> {
    let mut numbers = Numbers(9);
    (0..count).map(|_| numbers.below(program.manifest().model.vocab as usize) as u32).collect()
}

fn take(g: &mut Generator, count: usize) -> Vec<u32> {
    (0..count).map_while(|_| g.next_token().expect("runs")).collect()
}

/// How often drafts were right, and how often there were any.
fn accepted(g: &Generator) -> (u64, u64) {
    let a = g.acceptance().expect("drafts");
    (a.accepted.iter().sum(), a.offered.iter().sum())
}

#[test]
fn the_text_is_the_same_up_to_the_end_of_the_context() {
    for (name, program) in programs() {
        let ids = prompt(&program, 37);
        for sampling in [Sampling::greedy(), sampled(1), sampled(2)] {
            let run = |drafts| {
                let mut g = generator(&program, sampling, drafts);
                g.ignore_stop_tokens();
                g.prompt(&ids).expect("runs");
                let text = take(&mut g, CONTEXT);
                assert_eq!(g.stopped(), Some(Stop::Context), "{name}");
                let logits: Vec<u32> = g.logits().iter().map(|x| x.to_bits()).collect();
                (text, logits, g)
            };
            let (text, logits, _) = run(Drafts::Count(0));
            assert_eq!(text.len(), CONTEXT - ids.len() + 1);
            for drafts in [Drafts::Count(1), Drafts::Count(3), Drafts::Count(7), Drafts::Auto] {
                let (found, same, g) = run(drafts);
                assert_eq!(found, text, "{name}, {drafts:?}, {sampling:?}");
                assert!(same == logits, "{name}, {drafts:?}: other bits");
                let (right, offered) = accepted(&g);
                // Whether all that was worth a try was right is a matter of time.
                assert!(
                    offered > 0 && (right < offered || drafts == Drafts::Auto),
                    "{name}, {drafts:?}: {right} of {offered}"
                );
            }
        }
    }
}

#[test]
fn other_seeds_give_other_text() {
    let program = demo();
    let ids = prompt(&program, 12);
    let run = |seed| {
        let mut g = generator(&program, sampled(seed), Drafts::Count(3));
        g.prompt(&ids).expect("runs");
        take(&mut g, 40)
    };
    assert_ne!(run(1), run(2));
}

#[test]
fn the_trained_model_is_often_right() {
    let program = demo();
    let ids = prompt(&program, 12);
    let mut g = generator(&program, Sampling::greedy(), Drafts::Count(2));
    g.ignore_stop_tokens();
    g.prompt(&ids).expect("runs");
    take(&mut g, 100);
    let a = *g.acceptance().expect("drafts");
    let rates: Vec<f64> = a.rates().collect();
    assert!(rates.len() == 2 && rates[0] > 0.4 && rates[1] < rates[0], "{rates:?}");
    assert!(a.tokens_per_step() > 1.4, "{a:?}");
}

/// A conversation: answers are broken off with drafts verified but not handed out, and go on after more was said.
#[test]
fn an_interrupted_text_goes_on_as_without_drafts() {
    for (name, program) in programs() {
        let ids = prompt(&program, 60);
        let run = |drafts| {
            let mut g = generator(&program, sampled(3), drafts);
            g.ignore_stop_tokens();
            let mut all = Vec::new();
            for (turn, count) in [(&ids[..20], 7), (&ids[20..21], 4), (&ids[21..60], 9)] {
                g.prompt(turn).expect("runs");
                all.extend(take(&mut g, count));
            }
            // Windows cannot go back so far.
            if g.rewind(30).is_ok() {
                g.prompt(&ids[30..33]).expect("runs");
            } else {
                g.prompt(&ids[..3]).expect("runs");
            }
            all.extend(take(&mut g, 12));
            g.rewind(0).expect("everything is kept");
            g.prompt(&ids[..5]).expect("runs");
            all.extend(take(&mut g, 12));
            all
        };
        let text = run(Drafts::Count(0));
        for drafts in [Drafts::Count(2), Drafts::Count(5), Drafts::Auto] {
            assert_eq!(run(drafts), text, "{name}, {drafts:?}");
        }
    }
}

#[test]
fn stop_tokens_end_it_at_the_same_place() {
    let program = demo();
    let ids = prompt(&program, 12);
    let run = |seed, stop: Option<u32>, drafts| {
        let mut g = generator(&program, sampled(seed), drafts);
        stop.into_iter().for_each(|t| g.also_stop_at(t));
        g.prompt(&ids).expect("runs");
        let mut all = take(&mut g, 60);
        let stopped = g.stopped();
        // What comes after a stop token follows the text before it.
        g.prompt(&ids[..3]).expect("runs");
        all.extend(take(&mut g, 10));
        (all, stopped)
    };
    for seed in 0..4 {
        let (text, _) = run(seed, None, Drafts::Count(0));
        let stop = text[20];
        let plain = run(seed, Some(stop), Drafts::Count(0));
        assert_eq!(plain.1, Some(Stop::Token(stop)));
        for depth in [1, 4] {
            assert_eq!(run(seed, Some(stop), Drafts::Count(depth)), plain, "seed {seed}, {depth} drafted");
        }
    }
}

#[test]
fn a_model_without_drafts_goes_on_without_them() {
    let program = program(&open("llama-dense"), Activations::F32);
    let mut g = generator(&program, Sampling::greedy(), Drafts::Auto);
    assert!(!g.can_draft() && g.acceptance().is_none());
    g.prompt(&prompt(&program, 5)).expect("runs");
    assert!(!take(&mut g, 5).is_empty());
}
