//! States that are not one row per token: windows, groups of tokens, rows shared by functions, numbers beside reals.
//!
//! A small graph that uses all of them is compiled and run with its tokens cut at random places; the interpreter runs
//! it with all tokens in one call. Nothing of it may show where the cuts were.

use hadal::driver::{build_model, compile_model};
use hadal::{Input, Options};
use hadal_ir::interpret::Interpreter;
use hadal_ir::module::{Counter, Entry, Module, Range, ValueId};
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::reduce::ReduceKind;
use hadal_ir::ops::{Constant, Softmax};
use hadal_ir::{Bindings, Builder, DType, Definition, Dim, Sym, Tensor, TensorType};
use hadal_runtime::{Program, Session};
use hadal_tests::{Numbers, call, fixture, session};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const WIDTH: usize = 8;
/// Rows of the attention window.
const WINDOW: usize = 5;
/// Tokens in a group.
const GROUP: usize = 3;
/// Groups chosen.
const CHOSEN: usize = 4;
const CONTEXT: i64 = 96;
const CHUNK: i64 = 16;

fn t() -> Dim {
    Sym::T.into()
}

/// `[n]` to `[…, n, …]`.
fn along(f: &mut Builder, x: ValueId, shape: &[Dim], axis: usize) -> ValueId {
    f.broadcast(x, shape, &[axis])
}

fn hide(f: &mut Builder, seen: ValueId, scores: ValueId) -> ValueId {
    let nothing = f.scalar_like(scores, f64::NEG_INFINITY);
    f.map(MapFn::Select, &[seen, scores, nothing])
}

/// Rows of `[T, 8]` made of the last three token numbers, by a hash.
fn features(f: &mut Builder, tokens: ValueId) -> ValueId {
    let all = f.append_to("ids", 2, tokens, DType::I32);
    let part = |f: &mut Builder, back: i64, factor: i64| {
        let ids = f.slice(all, 0, 2 - back, t(), 1);
        let ids = f.cast(ids, DType::I64);
        let factor = f.scalar_like(ids, factor as f64);
        f.mul(ids, factor)
    };
    let parts = [(0, 1 << 33 | 5), (1, 77), (2, 1009)].map(|(back, factor)| part(f, back, factor));
    let hash = f.map(MapFn::Xor, &[parts[0], parts[1]]);
    let hash = f.map(MapFn::Xor, &[hash, parts[2]]);
    let modulus = f.scalar_like(hash, 251.0);
    let hash = f.map(MapFn::Rem, &[hash, modulus]);
    let hash = f.cast(hash, DType::F32);
    let shape = [t(), WIDTH.into()];
    let column = f.iota(WIDTH, 1);
    let column = f.cast(column, DType::F32);
    let (a, b) = (along(f, hash, &shape, 0), along(f, column, &shape, 1));
    let angle = f.mul(a, b);
    f.map(MapFn::Sin, &[angle])
}

/// One row for each group of tokens: their rows weighed by a softmax over the group and the group before it, channel by
/// channel.
fn groups(f: &mut Builder, x: ValueId, of: Counter) -> ValueId {
    let window = 2 * GROUP - 1;
    let all = f.append_to("open", window, x, DType::F32);
    let (c, n, m) = (Dim::from(of.held), Dim::from(of.new), GROUP as i64);
    let start = Dim::from(window) - Sym::P + c.clone() * m;
    let cut = |f: &mut Builder, start: Dim, n: &Dim| {
        let rows = f.slice(all, 0, start, n.clone() * m, 1);
        let rows = f.reshape(rows, &[n.clone(), GROUP.into(), WIDTH.into()]);
        f.op(hadal_ir::ops::Transpose { perm: vec![0, 2, 1] }, &[rows])
    };
    let (now, before) = (cut(f, start.clone(), &n), cut(f, start - m, &n));
    // The first group has none before it.
    let number = f.iota(n, c);
    let zero = f.scalar_like(number, 0.0);
    let first = f.map(MapFn::Lt, &[zero, number]);
    let shape = f.shape(before).to_vec();
    let seen = along(f, first, &shape, 0);
    let hidden = hide(f, seen, before);
    let values = f.concat(&[before, now], 2);
    let scores = f.concat(&[hidden, now], 2);
    let weights = f.op(Softmax, &[scores]);
    let y = f.mul(values, weights);
    let y = f.reduce(ReduceKind::Sum, &[2], y);
    f.append_to("groups", of.held, y, DType::F32)
}

/// Attention over the last rows and the groups that a query chooses, in one softmax with a sink.
fn attend(f: &mut Builder, x: ValueId, groups: ValueId) -> ValueId {
    let positions = f.iota(t(), Sym::P);
    let recent = f.append_to("recent", WINDOW, x, DType::F32);
    let rows = f.iota(t() + WINDOW, Dim::from(Sym::P) - WINDOW);
    let scores = f.contract("td,sd->ts", &[x, recent]);
    // From the first token on, and of those before the query only the last ones.
    let zero = f.scalar_like(rows, -1.0);
    let exists = f.map(MapFn::Lt, &[zero, rows]);
    let shape = f.shape(scores).to_vec();
    let exists = along(f, exists, &shape, 1);
    let (row, position) = (along(f, rows, &shape, 1), along(f, positions, &shape, 0));
    let not_later = f.map(MapFn::Le, &[row, position]);
    let reach = f.add_scalar(row, WINDOW as f64);
    let near = f.map(MapFn::Lt, &[position, reach]);
    let seen = f.map(MapFn::And, &[exists, not_later]);
    let seen = f.map(MapFn::And, &[seen, near]);
    let scores = hide(f, seen, scores);
    // Groups that are complete at the query, the best of them.
    let of_groups = f.contract("td,sd->ts", &[x, groups]);
    let shape = f.shape(of_groups).to_vec();
    let number = f.iota(shape[1].clone(), 0);
    let (number, position) = (along(f, number, &shape, 1), along(f, positions, &shape, 0));
    let last = f.mul_scalar(number, GROUP as f64);
    let last = f.add_scalar(last, GROUP as f64 - 1.0);
    let complete = f.map(MapFn::Le, &[last, position]);
    let of_groups = hide(f, complete, of_groups);
    let best = f.top_k(of_groups, CHOSEN);
    let chosen = f.member(best, shape[1].clone());
    let of_groups = hide(f, chosen, of_groups);
    let sink = f.op(Constant::scalar(0.25, DType::F32), &[]);
    let sink = f.broadcast(sink, &[t(), 1.into()], &[]);
    let all = f.concat(&[scores, of_groups, sink], 1);
    let p = f.op(Softmax, &[all]);
    let near = f.slice(p, 1, 0, t() + WINDOW, 1);
    let far = f.slice(p, 1, t() + WINDOW, shape[1].clone(), 1);
    let (a, b) = (f.contract("ts,sd->td", &[near, recent]), f.contract("ts,sd->td", &[far, groups]));
    f.add(a, b)
}

/// The best row of each block of groups, as in a choice in two levels; blocks are counted by a symbol of their own.
fn blocks(f: &mut Builder, x: ValueId, groups: ValueId, blocks: Sym) -> ValueId {
    let scores = f.contract("td,sd->ts", &[x, groups]);
    let none = f.op(Constant::scalar(-2.0, DType::F32), &[]);
    let none = f.broadcast(none, &[t(), 1.into()], &[]);
    let scores = f.concat(&[scores, none], 1);
    let scores = f.slice(scores, 1, 0, Dim::from(blocks) * 2, 1);
    let scores = f.reshape(scores, &[t(), blocks.into(), 2.into()]);
    let best = f.reduce(ReduceKind::Max, &[2], scores);
    f.reduce(ReduceKind::Sum, &[1], best)
}

fn module() -> Module {
    let mut m = Module::default();
    m.symbols.insert(Sym::P, Range { min: 0, max: CONTEXT });
    m.symbols.insert(Sym::T, Range { min: 1, max: CHUNK });
    let counter = m.counter(GROUP);
    let pairs = Sym::new("K2").expect("a name");
    m.define(pairs, Definition::Quotient { of: counter.all() + 1, by: 2 }).expect("a definition");

    let rows = TensorType::new(DType::F32, [t(), WIDTH.into()]);
    // The source appends its rows; readers are given them.
    let mut f = Builder::new("source");
    let x = f.param("x", rows.clone());
    let all = groups(&mut f, x, counter);
    f.result("rows", all);
    let source = f.finish().expect("a source");
    let mut f = Builder::new("reader");
    let x = f.param("x", rows.clone());
    let shared = f.param("rows", source.ty(source.results[0].1).clone());
    let y = attend(&mut f, x, shared);
    f.result("y", y);
    let reader = f.finish().expect("a reader");

    let mut f = Builder::new("main");
    let tokens = f.param("tokens", TensorType::new(DType::I32, [t()]));
    let x = features(&mut f, tokens);
    let shared = f.call(&source, "source.", &[x])[0];
    let y = f.call(&reader, "a.", &[x, shared])[0];
    let z = f.call(&reader, "b.", &[y, shared])[0];
    let last = |f: &mut Builder, x: ValueId| f.slice(x, 0, t() - 1, 1, 1);
    let sums = blocks(&mut f, x, shared, pairs);
    let (y, z, sum) = (last(&mut f, y), last(&mut f, z), last(&mut f, sums));
    f.result("y", y);
    f.result("z", z);
    f.result("sum", sum);
    let main = f.finish().expect("the whole");
    m.funcs.extend([source, reader, main]);
    let entry = |name: &str, max| Entry {
        name: name.into(),
        func: "main".into(),
        ranges: BTreeMap::from([(Sym::T, Range { min: 1, max })]),
    };
    m.entries = vec![entry("prefill", CHUNK), entry("decode", 1)];
    hadal_ir::verify::module(&m).unwrap_or_else(|e| panic!("{e}"));
    m
}

fn compiled(module: &Module) -> Arc<Program> {
    let options = Options { max_context: Some(CONTEXT as usize), max_chunk: CHUNK as usize, ..Options::default() };
    let input = Input::open(&fixture("llama-dense")).expect("a checkpoint, of which nothing is read");
    let mut model = build_model(&input, &options).expect("its model");
    model.module = module.clone();
    let compiled = compile_model(&input, model, ("graph", Duration::ZERO), &options).unwrap_or_else(|e| panic!("{e}"));
    let (_file, path) = compiled.in_memory(&input).expect("a file in memory");
    Program::open(&path).expect("a program")
}

fn tokens(n: usize) -> Vec<u32> {
    let mut numbers = Numbers::of("states", 1);
    (0..n).map(|_| numbers.below(1000) as u32).collect()
}

/// What the interpreter gives for the last of `tokens`, all in calls of at most [`CHUNK`].
fn expected(module: &Module, tokens: &[u32]) -> Vec<Vec<f64>> {
    let weights = BTreeMap::<String, Tensor>::new();
    let mut interpreter = Interpreter::new(module, &weights);
    let mut past = 0i64;
    let mut out = Vec::new();
    for chunk in tokens.chunks(CHUNK as usize) {
        let ids = Tensor::int(DType::I32, &[chunk.len()], chunk.iter().map(|t| *t as i64).collect());
        let bindings = Bindings::from([(Sym::P, past), (Sym::T, chunk.len() as i64)]);
        out = interpreter.run("main", "", &[ids], &bindings).unwrap_or_else(|e| panic!("{e}"));
        past += chunk.len() as i64;
    }
    out.iter().map(|t| t.reals().to_vec()).collect()
}

#[track_caller]
fn close(found: &[Vec<f32>], expected: &[Vec<f64>], what: &str) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        let off = f.iter().zip(e).map(|(f, e)| (*f as f64 - e).abs()).fold(0.0, f64::max);
        assert!(off < 2e-5, "{what}: {off}");
    }
}

fn run(s: &mut Session, tokens: &[u32]) -> Vec<Vec<f32>> {
    call(s, if tokens.len() == 1 { "decode" } else { "prefill" }, tokens, &[])
}

#[test]
fn nothing_shows_where_a_prompt_was_cut() {
    let module = module();
    let program = compiled(&module);
    for n in [1, 2, 3, 4, 7, 20, 61] {
        let tokens = tokens(n);
        let expected = expected(&module, &tokens);
        for seed in 0..6 {
            let mut numbers = Numbers::of("cuts", seed);
            let mut s = session(&program, 1 + seed as usize % 2);
            let (mut at, mut cuts, mut out) = (0, vec![], vec![]);
            while at < n {
                let largest = [1, 4, CHUNK as usize][seed as usize % 3].min(n - at);
                let len = 1 + numbers.below(largest);
                out = run(&mut s, &tokens[at..at + len]);
                (at, cuts) = (at + len, [&cuts[..], &[len]].concat());
            }
            close(&out, &expected, &format!("{cuts:?}"));
        }
    }
}

#[test]
fn tokens_taken_back_were_never_there() {
    let module = module();
    let program = compiled(&module);
    let tokens = tokens(61);
    let mut s = session(&program, 2);
    let mut numbers = Numbers::of("drafts", 2);
    let mut at = 0;
    while at < tokens.len() {
        // A few wrong ones, as a draft that is refused.
        let wrong: Vec<u32> = (0..1 + numbers.below(9)).map(|_| numbers.below(1000) as u32).collect();
        run(&mut s, &wrong);
        s.truncate(at as u64).expect("what was just added");
        let len = (1 + numbers.below(3)).min(tokens.len() - at);
        let out = run(&mut s, &tokens[at..at + len]);
        at += len;
        close(&out, &expected(&module, &tokens[..at]), &format!("at {at}"));
    }
    let mark = s.mark().expect("it can be read");
    run(&mut s, &tokens[..16]);
    run(&mut s, &tokens[..16]);
    s.rewind(&mark).expect("it can be written");
    let out = run(&mut s, &tokens[..7]);
    close(&out, &expected(&module, &[&tokens[..], &tokens[..7]].concat()), "after a mark");
    let refused = s.truncate(3).expect_err("the windows are gone").to_string();
    assert!(refused.contains("keeps its last rows only"), "{refused}");
    s.truncate(0).expect("all can go");
    let out = run(&mut s, &tokens[..9]);
    close(&out, &expected(&module, &tokens[..9]), "anew");
}
