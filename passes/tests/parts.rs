//! `elide` and `share`: what moves between callers and callees, and that values stay.

use crate::common::*;
use hadal_ir::{InstKind, Module, Op};
use hadal_passes::{LawSet, Options, compile, elide, share};

/// A model with one kind of layer, of which the last row is wanted at the end.
const LAYERS: &str = r#"symbols P in 0..15, T in 1..8
func @layer(%x: f32[T, 4]) -> (y: f32[T, 4], k: f32[T, 4]) {
  weight %g = "norm" : f32[4]
  weight %wq = "q" : f32[4, 4]
  weight %wk = "k" : f32[4, 4]
  weight %up = "up" : f32[8, 4]
  weight %down = "down" : f32[4, 8]
  state %s = "s" : f32[P, 4]
  %p0 = iota {len = T, start = P} : i32[T]
  %p1 = cast %p0 {to = f32} : f32[T]
  %p2 = broadcast %p1 {shape = [T, 2], dims = [0]} : f32[T, 2]
  %f0 = constant {values = [1, 0.01], dtype = f32} : f32[2]
  %f1 = broadcast %f0 {shape = [T, 2], dims = [1]} : f32[T, 2]
  %a = mul %p2, %f1 : f32[T, 2]
  %cos = cos %a : f32[T, 2]
  %sin = sin %a : f32[T, 2]
  %n = rms_norm %x, %g {eps = 0.001} : f32[T, 4]
  %q0 = contract %n, %wq {spec = "td,fd->tf"} : f32[T, 4]
  %q = rope %q0, %cos, %sin {interleaved = false} : f32[T, 4]
  %k0 = contract %n, %wk {spec = "td,fd->tf"} : f32[T, 4]
  %k = rope %k0, %cos, %sin {interleaved = false} : f32[T, 4]
  %all = append %s, %k : f32[P+T, 4]
  %s0 = contract %q, %all {spec = "td,sd->ts"} : f32[T, P+T]
  %s1 = causal_mask %s0 {query = 0, key = 1} : f32[T, P+T]
  %s2 = softmax %s1 : f32[T, P+T]
  %o = contract %s2, %all {spec = "ts,sd->td"} : f32[T, 4]
  %x1 = add %x, %o : f32[T, 4]
  %u0 = contract %x1, %up {spec = "td,fd->tf"} : f32[T, 8]
  %u1 = sigmoid %u0 : f32[T, 8]
  %d = contract %u1, %down {spec = "tf,df->td"} : f32[T, 4]
  %y = add %x1, %d : f32[T, 4]
  next %s = %all
  return %y, %k
}
func @main(%x: f32[T, 4]) -> (y: f32[1, 4]) {
  weight %g = "norm" : f32[4]
  %0, %k0 = call @layer(%x) at "0." : f32[T, 4], f32[T, 4]
  %1, %k1 = call @layer(%0) at "1." : f32[T, 4], f32[T, 4]
  %2, %k2 = call @layer(%1) at "2." : f32[T, 4], f32[T, 4]
  %n = rms_norm %2, %g {eps = 0.001} : f32[T, 4]
  %y = slice %n {axis = 0, start = T-1, len = 1} : f32[1, 4]
  return %y
}
func @every(%x: f32[T, 4]) -> (y: f32[T, 4]) {
  %0, %k0 = call @layer(%x) at "0." : f32[T, 4], f32[T, 4]
  %1, %k1 = call @layer(%0) at "1." : f32[T, 4], f32[T, 4]
  return %1
}
entry prefill = @main where T in 1..8
entry decode = @main where T = 1
entry all = @every where T in 1..8
"#;

fn calls<'a>(module: &'a Module, func: &str) -> Vec<&'a str> {
    let insts = &module.func(func).unwrap().insts;
    let name = |i: &'a hadal_ir::Inst| match &i.kind {
        InstKind::Call(call) => Some(call.func.as_str()),
        InstKind::Op(_) => None,
    };
    insts.iter().filter_map(name).collect()
}

fn count(module: &Module, func: &str, mnemonic: &str) -> usize {
    let insts = &module.func(func).unwrap().insts;
    insts.iter().filter(|i| matches!(&i.kind, InstKind::Op(op) if op.mnemonic() == mnemonic)).count()
}

#[test]
fn the_last_layer_runs_for_the_rows_that_are_wanted() {
    let module = parse(LAYERS);
    let (out, fired) = elide::run(&module, &LawSet::default());
    hadal_ir::verify::module(&out).unwrap();
    assert_all_close(&sequence(&module), &sequence(&out), 1e-12, "elided");
    // Nobody wants the keys as a result.
    assert_eq!(calls(&out, "main"), ["layer.less", "layer.less", "layer.less.part"]);
    assert_eq!(calls(&out, "every"), ["layer.less", "layer.less"]);
    let part = out.func("layer.less.part").unwrap();
    assert_eq!(part.ty(part.results[0].1).to_string(), "f32[1, 4]");
    // Keys are needed of all rows, queries and what follows of one.
    assert_eq!(part.ty(part.states[0].next).to_string(), "f32[P+T, 4]");
    let wide = |op: &str| {
        let of = part.insts.iter().filter(|i| matches!(&i.kind, InstKind::Op(o) if o.mnemonic() == op));
        of.filter(|i| part.ty(i.results[0]).shape[0].as_const().is_none()).count()
    };
    assert_eq!((wide("rms_norm"), wide("contract"), wide("rope"), wide("softmax"), wide("sigmoid")), (1, 1, 1, 0, 0));
    assert_eq!((count(&out, "layer.less.part", "contract"), count(&out, "layer.less.part", "rms_norm")), (6, 1));
    for law in ["slice-of-map", "slice-of-norm", "slice-of-rope", "slice-of-softmax", "slice-of-mask"] {
        assert!(fired.contains_key(law), "{law}: {fired:?}");
    }
    // Nothing is left to do.
    assert_eq!(elide::run(&out, &LawSet::default()).0, out);
    // Without a law, what it would look through stays whole.
    let fewer = LawSet::default().without(["slice-of-softmax"]).unwrap();
    let (out, _) = elide::run(&module, &fewer);
    assert_all_close(&sequence(&module), &sequence(&out), 1e-12, "without a law");
    assert_eq!(count(&out, "layer.less.part", "softmax"), 1);
}

#[test]
fn what_is_wanted_in_two_parts_stays_whole() {
    let module = parse(
        "symbols P in 0..15, T in 1..8
        func @layer(%x: f32[T, 4]) -> (y: f32[T, 4], z: f32[T, 4]) {
          %y = exp %x : f32[T, 4]
          %z = neg %x : f32[T, 4]
          return %y, %z }
        func @main(%x: f32[T, 4]) -> (a: f32[1, 4], b: f32[1, 4], c: f32[T, 4], d: f32[T, 1]) {
          %0, %z = call @layer(%x) : f32[T, 4], f32[T, 4]
          %a = slice %0 {axis = 0, start = 0, len = 1} : f32[1, 4]
          %b = slice %0 {axis = 0, start = T-1, len = 1} : f32[1, 4]
          %1, %2 = call @layer(%z) : f32[T, 4], f32[T, 4]
          %3, %4 = call @layer(%2) : f32[T, 4], f32[T, 4]
          %d = slice %3 {axis = 1, start = 1, len = 1} : f32[T, 1]
          return %a, %b, %1, %d }
        entry prefill = @main where T in 1..8
        entry decode = @main where T = 1",
    );
    let (out, _) = elide::run(&module, &LawSet::default());
    assert_all_close(&sequence(&module), &sequence(&out), 0.0, "elided");
    assert_eq!(calls(&out, "main"), ["layer", "layer", "layer.less.part"]);
    let part = out.func("layer.less.part").unwrap();
    assert_eq!(part.ty(part.results[0].1).to_string(), "f32[T, 1]");
}

#[test]
fn a_long_function_is_elided_without_recursion() {
    let mut text =
        "symbols T in 1..8\nfunc @f(%x: f32[T, 4]) -> (y: f32[1, 4]) {\n%a0 = exp %x : f32[T, 4]\n".to_owned();
    let ops = 20_000;
    (1..ops).for_each(|i| text += &format!("%a{i} = neg %a{} : f32[T, 4]\n", i - 1));
    text += &format!("%y = slice %a{} {{axis = 0, start = T-1, len = 1}} : f32[1, 4]\nreturn %y }}", ops - 1);
    let (out, fired) = elide::run(&parse(&text), &LawSet::default());
    hadal_ir::verify::module(&out).unwrap();
    assert_eq!((fired["slice-of-map"], count(&out, "f", "slice")), (ops, 1));
}

#[test]
fn parts_of_calls_of_calls_do_not_multiply() {
    let mut text = "func @f0(%x: f32[256]) -> (y: f32[256]) { %0 = exp %x : f32[256]\nreturn %0 }\n".to_owned();
    let (mut size, depth) = (256, 6);
    for i in 1..=depth {
        let (last, step) = (i - 1, 1 << i);
        let part = size - step;
        text += &format!(
            "func @f{i}(%x: f32[256]) -> (y: f32[{part}]) {{
              %0 = call @f{last}(%x) : f32[{size}]
              %1 = call @f{last}(%x) : f32[{size}]
              %2 = slice %0 {{axis = 0, start = 0, len = {part}}} : f32[{part}]
              %3 = slice %1 {{axis = 0, start = {step}, len = {part}}} : f32[{part}]
              %4 = add %2, %3 : f32[{part}]
              return %4 }}\n"
        );
        size = part;
    }
    let module = parse(&format!("{text}entry prefill = @f{depth}\nentry decode = @f{depth}"));
    let (out, _) = elide::run(&module, &LawSet::default());
    hadal_ir::verify::module(&out).unwrap();
    let copies = |f: &str| out.funcs.iter().filter(|o| o.name.starts_with(&format!("{f}.part"))).count();
    assert_eq!((copies("f5"), copies("f4"), copies("f0")), (2, 4, 4));
    assert_eq!(out.funcs.len(), 1 + 2 + 4 + 4 * 5);
    assert_all_close(&sequence(&module), &sequence(&out), 0.0, "elided");
}

#[test]
fn tables_of_all_layers_are_made_once() {
    let module = parse(LAYERS);
    let out = share::run(&module);
    hadal_ir::verify::module(&out).unwrap();
    assert_all_close(&sequence(&module), &sequence(&out), 0.0, "shared");
    assert_eq!((count(&out, "layer", "cos"), count(&out, "layer", "mul")), (0, 0));
    for caller in ["main", "every"] {
        assert_eq!((count(&out, caller, "cos"), count(&out, caller, "sin")), (1, 1));
        // Layers stay one template.
        assert!(calls(&out, caller).iter().all(|f| *f == "layer"));
    }
    assert_eq!(share::run(&out), out);
    let launches = |shared: bool| {
        let steps = ["specialise", "canonicalise", "share", "fuse"].into_iter().filter(|s| shared || *s != "share");
        let (fused, _) = hadal_passes::run_passes(&module, steps, &cpu(), &Options::default()).unwrap();
        let program = hadal_passes::plan::run(&fused, 24).unwrap();
        program.plan("prefill").unwrap().launches.len()
    };
    // One launch makes both tables, once instead of in each of three layers.
    assert_eq!(launches(false) - launches(true), 2);
}

#[test]
fn a_choice_of_rows_serves_different_functions() {
    let module = parse(
        "symbols P in 0..15, T in 1..8
        func @first(%x: f32[T, 4], %s: f32[T, 6]) -> (y: f32[T, 2]) {
          weight %w = \"w\" : f32[6, 4]
          %i = top_k %s {k = 2} : i32[T, 2]
          %v = contract %x, %w {spec = \"td,fd->tf\"} : f32[T, 6]
          %y = gather %v, %i {axis = 1, batch = 1} : f32[T, 2]
          return %y }
        func @second(%s: f32[T, 6], %x: f32[T, 6]) -> (y: f32[T, 2], i: i32[T, 2]) {
          %i = top_k %s {k = 2} : i32[T, 2]
          %y = gather %x, %i {axis = 1, batch = 1} : f32[T, 2]
          return %y, %i }
        func @other(%s: f32[T, 6]) -> (i: i32[T, 2]) {
          %i = top_k %s {k = 2} : i32[T, 2]
          return %i }
        func @main(%x: f32[T, 4], %s: f32[T, 6], %t: f32[T, 6]) -> (a: f32[T, 2], b: f32[T, 2], c: i32[T, 2], d: i32[T, 2]) {
          %a = call @first(%x, %s) at \"a.\" : f32[T, 2]
          %b, %i = call @second(%s, %t) at \"b.\" : f32[T, 2], i32[T, 2]
          %d = call @other(%t) at \"c.\" : i32[T, 2]
          return %a, %b, %i, %d }
        entry prefill = @main where T in 1..8
        entry decode = @main where T = 1",
    );
    let out = share::run(&module);
    assert_all_close(&sequence(&module), &sequence(&out), 0.0, "shared");
    let top_k = |f| count(&out, f, "top_k");
    assert_eq!((top_k("main"), top_k("first"), top_k("second"), top_k("other")), (1, 0, 0, 1));
    // A result that is an input needs no call.
    let main = out.func("main").unwrap();
    let defined =
        |v| main.insts.iter().find(|i| i.results.contains(&v)).map(|i| matches!(i.kind, InstKind::Op(Op::TopK(_))));
    assert_eq!(defined(main.results[2].1), Some(true));
}

#[test]
fn equal_calls_without_states_are_one() {
    let module = parse(
        "symbols P in 0..15, T in 1..8
        func @plain(%x: f32[T, 4]) -> (y: f32[T, 4]) {
          weight %w = \"w\" : f32[4, 4]
          %y = contract %x, %w {spec = \"td,fd->tf\"} : f32[T, 4]
          return %y }
        func @kept(%x: f32[T, 4]) -> (y: f32[P+T, 4]) {
          state %s = \"s\" : f32[P, 4]
          %y = append %s, %x : f32[P+T, 4]
          next %s = %y
          return %y }
        func @main(%x: f32[T, 4]) -> (a: f32[T, 4], b: f32[T, 4], c: f32[T, 4], d: f32[P+T, 4], e: f32[P+T, 4]) {
          %a = call @plain(%x) at \"a.\" : f32[T, 4]
          %b = call @plain(%x) at \"a.\" : f32[T, 4]
          %c = call @plain(%x) at \"b.\" : f32[T, 4]
          %d = call @kept(%x) at \"d.\" : f32[P+T, 4]
          %e = call @kept(%x) at \"e.\" : f32[P+T, 4]
          return %a, %b, %c, %d, %e }
        entry prefill = @main where T in 1..8
        entry decode = @main where T = 1",
    );
    let out = share::run(&module);
    assert_all_close(&sequence(&module), &sequence(&out), 0.0, "shared");
    assert_eq!(calls(&out, "main"), ["plain", "plain", "kept", "kept"]);
}

#[test]
fn the_whole_pipeline_does_both() {
    let module = parse(LAYERS);
    let (fused, program) = compile(&module, &cpu(), &Options::default()).unwrap();
    assert_all_close(&sequence(&module), &sequence(&fused.optimised), 1e-9, "optimised");
    assert_all_close(&sequence(&module), &planned_sequence(&module, &program), 1e-5, "planned");
    let part_of =
        |entry: &str| fused.optimised.funcs.iter().any(|f| f.name.contains(entry) && f.name.contains(".part"));
    assert!(part_of(".prefill"));
    // One token has no other part.
    assert!(!part_of(".decode"));
}

/// The last layer's part of a prompt's work, but for its keys and values.
#[test]
fn prompts_cost_one_layer_less() {
    let (known, _) = releases::all();
    for (name, layers) in [("deepseek-llm-7b-chat", 30.0), ("deepseek-v2-lite", 27.0), ("deepseek-r1", 61.0)] {
        let module = &known.iter().find(|(n, _)| n == name).unwrap().1;
        let (out, _) = elide::run(module, &LawSet::default());
        let flops = |m: &Module, entry: &str| hadal_models::stats::cost(m, entry, 512, 0).unwrap().flops;
        let saved = 1.0 - flops(&out, "prefill") / flops(module, "prefill");
        assert!((0.75..1.15).contains(&(saved * layers)), "{name}: {saved}");
        // Entries that return all rows stay.
        assert_eq!(flops(&out, "logits"), flops(module, "logits"));
        let ops = |m: &Module| m.funcs.iter().map(|f| f.insts.len()).sum::<usize>();
        println!("{name}: {saved:.4} of the work saved; {} -> {} ops", ops(module), ops(&out));
    }
}
