//! The same input gives the same bytes: compiled files, and logits whatever the number of threads and however a prompt
//! is cut.

use hadal::{Input, Options, compile};
use hadal_runtime::Program;
use hadal_tests::{Numbers, call, fixture, load, session};
use std::path::Path;
use std::sync::Arc;

fn program(input: &Input) -> Arc<Program> {
    load(input, &Options { max_context: Some(256), max_chunk: 64, ..Options::default() }).expect("compiles")
}

fn prompt(program: &Program, len: usize) -> Vec<u32> {
    let mut numbers = Numbers(7);
    (0..len).map(|_| numbers.below(program.manifest().model.vocab as usize) as u32).collect()
}

fn inputs() -> Vec<(String, Input)> {
    let named = |name: &str| (name.to_owned(), Input::open(&fixture(name)).expect("a fixture"));
    let mut all: Vec<_> = ["llama-dense", "r1-distill-qwen", "v2", "v3-fp8"].into_iter().map(named).collect();
    all.push(("demo".into(), Input::demo().expect("embedded")));
    all
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn compiling_twice_gives_the_same_file() {
    let dir = tempfile::tempdir().expect("a folder");
    // Kept code would be the same whatever the code generators do.
    let options = Options { cache: None, ..Options::default() };
    let write = |input: &Input, path: &Path| {
        compile(input, &options).expect("compiles").write(input, path, &mut |_| {}).expect("written");
        std::fs::read(path).expect("there")
    };
    for (name, input) in inputs() {
        let first = write(&input, &dir.path().join("first"));
        let second = write(&input, &dir.path().join("second"));
        assert!(first == second, "{name}: the files differ");
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for (name, input) in inputs() {
        let program = program(&input);
        let ids = prompt(&program, 70);
        let run = |threads| {
            let mut s = session(&program, threads);
            let mut rows = vec![call(&mut s, "prefill", &ids[..50], &[])[0].clone()];
            rows.push(call(&mut s, "prefill", &ids[50..67], &[])[0].clone());
            rows.extend(ids[67..].iter().map(|t| call(&mut s, "decode", &[*t], &[])[0].clone()));
            rows.iter().map(|r| bits(r)).collect::<Vec<_>>()
        };
        let one = run(1);
        for threads in [2, 3] {
            assert!(run(threads) == one, "{name}: {threads} threads give other bits than one");
        }
    }
}

/// Prefill and decode use different forms of attention where absorption pays, so cuts agree up to rounding.
#[test]
fn a_prompt_may_be_cut_anywhere() {
    for (name, input) in inputs() {
        let program = program(&input);
        let ids = prompt(&program, 60);
        let vocab = program.manifest().model.vocab as usize;
        let whole = call(&mut session(&program, 1), "logits", &ids, &[])[0].clone();
        let largest = whole.iter().fold(0f32, |m, v| m.max(v.abs()));
        for cuts in [&[60][..], &[1, 59], &[59, 1], &[17, 1, 1, 30, 11], &[1; 60]] {
            let mut s = session(&program, 1);
            let mut at = 0;
            for n in cuts {
                let entry = if *n == 1 { "decode" } else { "prefill" };
                let row = call(&mut s, entry, &ids[at..at + n], &[])[0].clone();
                at += n;
                let expected = &whole[(at - 1) * vocab..at * vocab];
                let worst = row.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                assert!(worst <= 3e-5 * largest.max(1.0), "{name}, {cuts:?}, token {at}: off by {worst:e}");
            }
        }
    }
}

/// Rewinding leaves nothing behind.
#[test]
fn truncated_states_are_as_if_never_longer() {
    for (name, input) in inputs() {
        let program = program(&input);
        let ids = prompt(&program, 40);
        let mut fresh = session(&program, 2);
        call(&mut fresh, "prefill", &ids[..20], &[]);
        let expected = call(&mut fresh, "prefill", &ids[20..30], &[]);
        let mut used = session(&program, 2);
        call(&mut used, "prefill", &ids[..20], &[]);
        call(&mut used, "prefill", &ids[30..], &[]);
        used.truncate(20).expect("rows are still there");
        let found = call(&mut used, "prefill", &ids[20..30], &[]);
        assert!(bits(&found[0]) == bits(&expected[0]), "{name}");
    }
}
