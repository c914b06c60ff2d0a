//! Entries in versions: where they are split, that each version has its form, and that all mean the same.

use crate::common::*;
use hadal_ir::interpret::Interpreter;
use hadal_ir::module::STEP;
use hadal_ir::plan::Program;
use hadal_ir::target::{Peaks, Target};
use hadal_ir::{InstKind, Module, Op, Sym};
use hadal_passes::versions::{MOST, Split};
use hadal_passes::{Options, compile, optimise, run_passes, simulate};

/// Latent attention: heads, their rotated part, keys and values of each head, and the size of a latent row.
fn latent([h, r, n, v, c]: [i64; 5], entries: &str) -> String {
    let (d, f, rows) = (n + r, h * (n + v), n + v);
    format!(
        r#"func @core(%x: f32[T, {h}, {d}], %c1: f32[T, {c}], %r1: f32[T, {r}]) -> (o: f32[T, {h}, {v}]) {{
  weight %w = "kv_b" : bf16[{f}, {c}]
  state %c0 = "c" : f32[P, {c}]
  state %r0 = "r" : f32[P, {r}]
  %c = append %c0, %c1 : f32[P+T, {c}]
  %r = append %r0, %r1 : f32[P+T, {r}]
  %kv0 = contract %c, %w {{spec = "sc,fc->sf"}} : f32[P+T, {f}]
  %kv = reshape %kv0 {{shape = [P+T, {h}, {rows}]}} : f32[P+T, {h}, {rows}]
  %kn = slice %kv {{axis = 2, start = 0, len = {n}}} : f32[P+T, {h}, {n}]
  %v = slice %kv {{axis = 2, start = {n}, len = {v}}} : f32[P+T, {h}, {v}]
  %rb = broadcast %r {{shape = [P+T, {h}, {r}], dims = [0, 2]}} : f32[P+T, {h}, {r}]
  %k = concat %kn, %rb {{axis = 2}} : f32[P+T, {h}, {d}]
  %s0 = contract %x, %k {{spec = "thd,shd->hts"}} : f32[{h}, T, P+T]
  %s1 = causal_mask %s0 {{query = 1, key = 2}} : f32[{h}, T, P+T]
  %p = softmax %s1 : f32[{h}, T, P+T]
  %o = contract %p, %v {{spec = "hts,shv->thv"}} : f32[T, {h}, {v}]
  next %c0 = %c
  next %r0 = %r
  return %o
}}
{entries}"#
    )
}

/// The published sizes of the 671B model, and tiny ones for which the balance lies at three tokens of sixteen.
const LARGE: [i64; 5] = [128, 64, 128, 128, 512];
const TINY: [i64; 5] = [2, 2, 3, 3, 16];

/// A machine that only computes, and all but launches for nothing.
fn flops_only() -> Target {
    let (flops, never) = (Peaks::flat(1e12), 1e30);
    let cpu = Target::by_name("cpu").unwrap();
    Target { flops, bandwidth: never, cache_bandwidth: never, launch_seconds: 1e-13, ..cpu }
}

fn split(module: &Module, target: &Target, options: &Options) -> (Module, Vec<Split>) {
    let (out, reports) = run_passes(module, ["versions"], target, options).unwrap();
    (out, reports.into_iter().flat_map(|r| r.details.splits).collect())
}

fn ranges(module: &Module, entry: &str) -> Vec<String> {
    let one = |e: &hadal_ir::Entry| {
        let r = module.ranges(e);
        format!("P {}, T {}", r[&Sym::P], r[&Sym::T])
    };
    module.versions(entry).map(one).collect()
}

/// The rank of the keys of a function's attention: 2 where they are the latent rows.
fn keys(module: &Module, func: &str) -> usize {
    let func = module.func(func).unwrap();
    let attention = func.insts.iter().find(|i| matches!(i.kind, InstKind::Op(Op::Attention(_)))).expect("found");
    func.ty(attention.args[1]).rank()
}

#[test]
fn prefill_is_absorbed_for_few_tokens_and_expanded_for_many() {
    let text = latent(LARGE, "entry prefill = @core where T in 1..4096\nentry logits = @core where T in 1..4096");
    let module = parse(&format!("symbols P in 0..1048576, T in 1..4096\n{text}"));
    let options = Options { typical_context: 1 << 20, max_context: Some(1 << 20), ..Options::default() };
    let (out, splits) = split(&module, &flops_only(), &options);
    // T = S·M / (M + S·(C - A)) with M = 512·256, C - A = 768: 170.6 of a million rows.
    assert_eq!((splits[0].sym, splits[0].at), (Sym::T, 170), "{splits:?}");
    assert_eq!(splits[0].entries, ["prefill", "logits"]);
    assert_eq!(ranges(&out, "prefill"), ranges(&out, "logits"));
    let fused = optimise(&module, &flops_only(), &options).unwrap();
    for (t, rank) in [(1, 2), (16, 2), (170, 2), (171, 3), (512, 3), (4096, 3)] {
        let version = fused.optimised.version("prefill", &bindings((1 << 20) - t, t)).unwrap();
        assert_eq!(keys(&fused.optimised, &version.func), rank, "T = {t}");
    }
}

#[test]
fn one_token_is_one_version_where_one_form_is_best() {
    let text = latent(LARGE, "entry decode = @core where T = 1");
    let module = parse(&format!("symbols P in 0..1048576, T in 1..4096\n{text}"));
    let (out, splits) = split(&module, &flops_only(), &Options::default());
    assert_eq!((out, splits), (module, vec![]));
}

/// New tokens of the calls of a sequence: all borders are crossed, in both directions.
const CALLS: [&[usize]; 5] = [&[1, 1, 8, 1, 2, 3], &[8, 8], &[3, 4, 5, 4], &[2, 2, 2, 8, 1, 1], &[4, 1, 3, 7, 1]];

fn by_interpreter(module: &Module, calls: &[usize]) -> Vec<hadal_ir::Tensor> {
    let mut run = Interpreter::new(module, &Made);
    let mut held = 0;
    let mut out = Vec::new();
    for t in calls {
        let b = bindings(held, *t);
        let entry = module.version("prefill", &b).unwrap();
        let func = module.func(&entry.func).unwrap();
        let of = |(i, p): (usize, &hadal_ir::ValueId)| {
            let ty = func.ty(*p);
            noise(ty.dtype, &ty.eval_shape(&b).unwrap(), (held * 7 + i) as u64)
        };
        let args: Vec<_> = func.params.iter().enumerate().map(of).collect();
        out.extend(run.run(&entry.func, "", &args, &b).unwrap());
        held += t;
    }
    out
}

fn by_plan(module: &Module, program: &Program, calls: &[usize]) -> Vec<hadal_ir::Tensor> {
    let mut memory = simulate::Memory::default();
    let mut held = 0;
    let mut out = Vec::new();
    let func = module.func(&module.entry("prefill").unwrap().func).unwrap();
    for t in calls {
        let b = bindings(held, *t);
        let of = |(i, p): (usize, &hadal_ir::ValueId)| {
            let ty = func.ty(*p);
            noise(ty.dtype, &ty.eval_shape(&b).unwrap(), (held * 7 + i) as u64)
        };
        let args: Vec<_> = func.params.iter().enumerate().map(of).collect();
        let plan = program.plan_for("prefill", &b).unwrap();
        out.extend(simulate::run(program, plan, &mut memory, &Made, &args, &b).unwrap());
        held += t;
    }
    out
}

#[test]
fn sequences_across_borders_are_those_of_the_graph() {
    // One more than a step has, which would have one form for all.
    let most = STEP + 1;
    let text = latent(TINY, &format!("entry prefill = @core where T in 1..{most}"));
    let module = parse(&format!("symbols P in 0..31, T in 1..{most}\n{text}"));
    let options = Options { max_context: Some(32), ..Options::default() };
    let (fused, program) = compile(&module, &flops_only(), &options).unwrap();
    let versions = ranges(&fused.optimised, "prefill");
    assert!(versions.len() >= 2, "{versions:?}");
    let forms: Vec<usize> = fused.optimised.entries.iter().map(|e| keys(&fused.optimised, &e.func)).collect();
    assert!(forms.contains(&2) && forms.contains(&3), "{forms:?}");
    assert_eq!(program.plans.len(), versions.len());
    assert_eq!(program.states.len(), 2);
    for calls in CALLS {
        let expected = by_interpreter(&module, calls);
        assert_all_close(&expected, &by_interpreter(&fused.optimised, calls), 1e-9, "optimised");
        assert_all_close(&expected, &by_plan(&module, &program, calls), 1e-5, "planned");
    }
    // Every size has the version that is cheapest there, or nearly: that of its own plan.
    let whole = Options { versions: false, ..options };
    let (fused, program) = compile(&module, &flops_only(), &whole).unwrap();
    assert_eq!((fused.optimised.entries.len(), program.plans.len()), (1, 1));
}

/// One new token of a context of 1024, over `k` of the rows that an indexer scores.
fn selection_of(k: usize) -> Module {
    parse(
        &"symbols P in 0..1023, T in 1..8
        func @f(%q: f32[T, 4], %i: f32[T, 64], %x: f32[T, 64]) -> (y: f32[T, 4]) {
          state %k0 = \"k\" : f32[P, 4]
          state %j0 = \"j\" : f32[P, 64]
          %k1 = slice %x {axis = 1, start = 0, len = 4} : f32[T, 4]
          %k = append %k0, %k1 : f32[P+T, 4]
          %j = append %j0, %x : f32[P+T, 64]
          %s0 = contract %i, %j {spec = \"td,sd->ts\"} : f32[T, P+T]
          %s1 = causal_mask %s0 {query = 0, key = 1} : f32[T, P+T]
          %n = top_k %s1 {k = 128} : i32[T, 128]
          %m = member %n {len = P+T} : bool[T, P+T]
          %a0 = contract %q, %k {spec = \"td,sd->ts\"} : f32[T, P+T]
          %a1 = causal_mask %a0 {query = 0, key = 1} : f32[T, P+T]
          %inf = constant {value = -inf, dtype = f32} : f32[]
          %never = broadcast %inf {shape = [T, P+T], dims = []} : f32[T, P+T]
          %a2 = select %m, %a1, %never : f32[T, P+T]
          %p = softmax %a2 : f32[T, P+T]
          %y = contract %p, %k {spec = \"ts,sd->td\"} : f32[T, 4]
          next %k0 = %k
          next %j0 = %j
          return %y }
        entry decode = @f where T = 1"
            .replace("128", &k.to_string()),
    )
}

#[test]
fn a_choice_of_rows_is_made_where_there_are_more() {
    let module = selection_of(128);
    let options = Options { max_context: Some(1024), ..Options::default() };
    let (out, splits) = split(&module, &flops_only(), &options);
    assert!(splits.iter().any(|s| (s.sym, s.at) == (Sym::P, 127)), "{splits:?}");
    let fused = optimise(&module, &flops_only(), &options).unwrap().optimised;
    let short = fused.version("decode", &bindings(100, 1)).unwrap();
    let choices = |f: &str| {
        let insts = &fused.func(f).unwrap().insts;
        insts.iter().filter(|i| matches!(i.kind, InstKind::Op(Op::TopK(_)))).count()
    };
    assert_eq!(choices(&short.func), 0);
    assert_eq!(choices(&fused.version("decode", &bindings(900, 1)).unwrap().func), 1);
    assert!(ranges(&out, "decode").len() <= 3);
}

#[test]
fn published_models_have_few_versions_and_the_same_in_every_run() {
    let (known, _) = releases::all();
    let few = |target: &str| {
        let target = Target::by_name(target).unwrap();
        for (name, module) in &known {
            let start = std::time::Instant::now();
            let (out, splits) = split(module, &target, &Options::default());
            println!("{name} on {}: {:?}", target.name, start.elapsed());
            splits.iter().for_each(|s| println!("  {s}"));
            for entry in &module.entries {
                let n = out.versions(&entry.name).count();
                assert!((1..=MOST.iter().map(|(_, n)| n).product()).contains(&n), "{name}: {n} versions");
            }
            assert!(splits.iter().all(|s| s.gain >= 0.01));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| few("h200"));
        few("cpu");
    });
    let (name, module) = known.iter().find(|(n, _)| n == "deepseek-r1").expect("there");
    let h200 = Target::by_name("h200").unwrap();
    let twice = [(); 2].map(|()| split(module, &h200, &Options::default()));
    assert_eq!(twice[0], twice[1], "{name}");
}

/// A state of a single size could not be told from one that keeps its size: the borders that a choice of nearly all
/// rows asks for are not taken.
#[test]
fn no_version_holds_a_single_number_of_rows() {
    for k in [2, 3, 1021, 1022, 1023, 1024] {
        let module = selection_of(k);
        let options = Options { max_context: Some(1024), ..Options::default() };
        let (_, splits) = split(&module, &flops_only(), &options);
        // One row further would be one too far.
        assert!(k != 1022 || splits.iter().any(|s| s.at == 1021), "{splits:?}");
        let (out, _) = run_passes(&module, ["versions", "specialise"], &flops_only(), &options).unwrap();
        for entry in &out.entries {
            let held = out.ranges(entry)[&Sym::P];
            assert!(held.max > held.min, "k = {k}: {} for P in {held}", entry.name);
        }
    }
}

#[test]
fn usual_sizes_of_huge_ranges_do_not_overflow() {
    let most = i64::MAX;
    let module = parse(&format!(
        "symbols P in {most}..{most}, T in 1..8
        func @f(%x: f32[T, 4]) -> (y: f32[T, 4]) {{ return %x }}
        entry prefill = @f"
    ));
    assert_eq!(Options::default().typical(&module, "f")[&Sym::P], most);
}
