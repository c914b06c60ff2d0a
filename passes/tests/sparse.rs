//! Sparse attention from its masked-dense definition: attention over the rows that an indexer chose is found, and
//! chosen where the numbers say so. Where a context never has more rows than are chosen, there is no indexer at all.

use crate::common::*;
use hadal_ir::ops::attention::Visible;
use hadal_ir::target::Target;
use hadal_ir::{Inst, InstKind, Module, Op};
use hadal_passes::{LawSet, Options, optimise};

/// Sizes of latent attention with an indexer.
struct Sizes {
    heads: usize,
    nope: usize,
    rope: usize,
    latent: usize,
    index_heads: usize,
    index_dim: usize,
    kept: usize,
}

const SMALL: Sizes = Sizes { heads: 2, nope: 3, rope: 2, latent: 4, index_heads: 2, index_dim: 2, kept: 3 };
/// As published: 2048 rows are kept.
const LARGE: Sizes =
    Sizes { heads: 128, nope: 128, rope: 64, latent: 512, index_heads: 64, index_dim: 128, kept: 2048 };

/// Scores of an indexer, their largest as a mask, and latent attention over all keys under that mask.
fn masked_dense(s: &Sizes, entries: &str) -> Module {
    let text = r#"symbols P in 0..131071, T in 1..4096
func @core(%qn: f32[T, H, N], %qr: f32[T, H, R], %c1: f32[T, C], %r1: f32[T, R], %qi: f32[T, I, D], %ki1: f32[T, D],
    %wi: f32[T, I]) -> (o: f32[T, H, N]) {
  weight %up = "up" : bf16[H, N, C]
  weight %down = "down" : bf16[H, N, C]
  state %c0 = "c" : bf16[P, C]
  state %r0 = "r" : bf16[P, R]
  state %ki0 = "ki" : bf16[P, D]
  %c2 = append %c0, %c1 : bf16[P+T, C]
  %c = cast %c2 {to = f32} : f32[P+T, C]
  %r2 = append %r0, %r1 : bf16[P+T, R]
  %r = cast %r2 {to = f32} : f32[P+T, R]
  %ki2 = append %ki0, %ki1 : bf16[P+T, D]
  %ki = cast %ki2 {to = f32} : f32[P+T, D]
  %m0 = contract %qi, %ki {spec = "thd,sd->ths"} : f32[T, I, P+T]
  %zero = constant {value = 0.0, dtype = f32} : f32[]
  %zeros = broadcast %zero {shape = [T, I, P+T], dims = []} : f32[T, I, P+T]
  %m1 = max %m0, %zeros : f32[T, I, P+T]
  %i0 = contract %m1, %wi {spec = "ths,th->ts"} : f32[T, P+T]
  %i1 = causal_mask %i0 {query = 0, key = 1} : f32[T, P+T]
  %i2 = top_k %i1 {k = KEPT} : i32[T, KEPT]
  %seen = member %i2 {len = P+T} : bool[T, P+T]
  %q = concat %qn, %qr {axis = 2} : f32[T, H, W]
  %kn = contract %c, %up {spec = "sc,hnc->shn"} : f32[P+T, H, N]
  %v = contract %c, %down {spec = "sc,hnc->shn"} : f32[P+T, H, N]
  %kr = broadcast %r {shape = [P+T, H, R], dims = [0, 2]} : f32[P+T, H, R]
  %k = concat %kn, %kr {axis = 2} : f32[P+T, H, W]
  %s0 = contract %q, %k {spec = "thd,shd->hts"} : f32[H, T, P+T]
  %f = constant {value = 0.3, dtype = f32} : f32[]
  %fb = broadcast %f {shape = [H, T, P+T], dims = []} : f32[H, T, P+T]
  %s1 = mul %s0, %fb : f32[H, T, P+T]
  %s2 = causal_mask %s1 {query = 1, key = 2} : f32[H, T, P+T]
  %all = broadcast %seen {shape = [H, T, P+T], dims = [1, 2]} : bool[H, T, P+T]
  %no = constant {value = -inf, dtype = f32} : f32[]
  %nos = broadcast %no {shape = [H, T, P+T], dims = []} : f32[H, T, P+T]
  %s3 = select %all, %s2, %nos : f32[H, T, P+T]
  %p = softmax %s3 : f32[H, T, P+T]
  %o = contract %p, %v {spec = "hts,shv->thv"} : f32[T, H, N]
  next %c0 = %c2
  next %r0 = %r2
  next %ki0 = %ki2
  return %o
}
"#;
    let wide = s.nope + s.rope;
    let words = [
        ("KEPT", s.kept),
        ("H", s.heads),
        ("N", s.nope),
        ("R", s.rope),
        ("C", s.latent),
        ("I", s.index_heads),
        ("D", s.index_dim),
        ("W", wide),
    ];
    let replaced = text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()).map(|word| {
        let (name, end) = word.split_at(word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).len());
        match words.iter().find(|(n, _)| *n == name) {
            Some((_, size)) => format!("{size}{end}"),
            None => word.to_owned(),
        }
    });
    parse(&(replaced.collect::<String>() + entries))
}

fn ops(module: &Module) -> impl Iterator<Item = (&Inst, &Op)> {
    module.funcs.iter().flat_map(|f| &f.insts).filter_map(|i| match &i.kind {
        InstKind::Op(op) => Some((i, op)),
        InstKind::Call(_) => None,
    })
}

/// What the only set of the only attention of each function shows.
fn seen(module: &Module) -> Vec<Visible> {
    let attention = ops(module).filter_map(|(_, op)| match op {
        Op::Attention(a) => Some(a.sets[..].to_vec()),
        _ => None,
    });
    attention.map(|sets| if let [only] = &sets[..] { only.rows.clone() } else { panic!("{sets:?}") }).collect()
}

fn selects(module: &Module) -> bool {
    seen(module).iter().all(|v| matches!(v, Visible::Selected(_)))
}

/// The chosen form for `t` new tokens and `s` rows, and what it costs.
fn chosen(t: i64, s: i64, target: &Target, laws: LawSet) -> (Module, f64) {
    let module = masked_dense(&LARGE, &format!("entry e = @core where P in 0..131071, T = {t}"));
    let options = Options { typical_context: s, laws, versions: false, ..Options::default() };
    let fused = optimise(&module, target, &options).unwrap();
    let search = fused.reports.iter().find_map(|r| r.details.searches.first()).unwrap().clone();
    (fused.optimised, search.after)
}

#[test]
fn the_gathered_form_is_found_and_equal() {
    let entries = "entry prefill = @core where T in 1..6\nentry decode = @core where T = 1";
    let module = masked_dense(&SMALL, entries);
    let fused = optimise(&module, &cpu(), &Options { versions: false, ..Options::default() }).unwrap();
    assert!(selects(&fused.optimised), "{:?}", seen(&fused.optimised));
    assert!(!ops(&fused.optimised).any(|(_, op)| matches!(op, Op::Softmax(_) | Op::Member(_))));
    for (inst, op) in ops(&fused.optimised) {
        if let Op::Attention(_) = op {
            println!("{}: {}", op.mnemonic(), inst.laws.join(" → "));
            for law in ["select-attention", "mask-by-selection"] {
                assert!(inst.laws.iter().any(|l| l == law), "no `{law}` in {:?}", inst.laws);
            }
        }
    }
    let expected = sequence(&module);
    assert_all_close(&sequence(&fused.optimised), &expected, 1e-9, "optimised");
    assert_all_close(&sequence(&fused.module), &expected, 1e-9, "fused");
}

#[test]
fn a_short_context_has_no_indexer() {
    let entries = "entry prefill = @core where P in 0..1, T in 1..2\nentry decode = @core where P in 0..2, T = 1";
    let module = masked_dense(&SMALL, entries);
    let fused = optimise(&module, &cpu(), &Options { versions: false, ..Options::default() }).unwrap();
    assert!(!ops(&fused.optimised).any(|(_, op)| matches!(op, Op::TopK(_) | Op::Member(_))));
    // Prompts of one token have a version of their own, in the form of those of two.
    assert_eq!(seen(&fused.optimised), [Visible::Causal, Visible::All, Visible::Causal]);
    let run = |module: &Module, laws: &str| {
        let mut run = hadal_ir::interpret::Interpreter::new(module, &Made);
        let mut out = Vec::new();
        for (entry, p, t) in [("prefill", 0, 1), ("prefill", 1, 1), ("decode", 2, 1)] {
            let b = bindings(p, t);
            let func = &module.entry(entry).unwrap().func;
            out.extend(run.run(func, "", &inputs(module, entry, &b, p as u64), &b).expect(laws));
        }
        out
    };
    assert_all_close(&run(&fused.optimised, "optimised"), &run(&module, "written"), 1e-9, "short");
    // One row more than are chosen, and it stays.
    let entries = "entry decode = @core where P in 0..3, T = 1";
    let longer = optimise(&masked_dense(&SMALL, entries), &cpu(), &Options::default()).unwrap();
    assert!(ops(&longer.optimised).any(|(_, op)| matches!(op, Op::TopK(_))));
}

#[test]
fn published_sizes_select_where_it_costs_less() {
    let dense = || LawSet::default().without(["mask-by-selection"]).unwrap();
    for name in ["cpu", "h200"] {
        let target = Target::by_name(name).unwrap();
        for t in [1, 4, 512] {
            let mut gains = Vec::new();
            for s in [2304, 4096, 8192, 16384, 65536, 131072] {
                let (module, cost) = chosen(t, s, &target, LawSet::default());
                let (_, without) = chosen(t, s, &target, dense());
                let gain = without / cost;
                println!("{name}, {t} new of {s}: {:?}, {gain:.3} times cheaper than dense", seen(&module));
                assert_eq!(selects(&module), gain > 1.0 + 1e-6, "{t} of {s}");
                gains.push(gain);
            }
            assert!(gains.is_sorted(), "the longer the context, the more is gained: {gains:?}");
            assert!(gains.last().is_some_and(|g| *g > 1.5), "{gains:?}");
        }
    }
}
