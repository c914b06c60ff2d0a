//! Latent attention at the size of a large model: which form is chosen, for how many new tokens.

use crate::common::*;
use hadal_ir::target::{Peaks, Target};
use hadal_ir::{InstKind, Module, Op};
use hadal_passes::{Options, optimise};

/// Attention over `S` latent rows for `T` queries: 128 heads of 128 + 64, values of 128, latent rows of 512.
const CORE: &str = r#"symbols P in 0..1048576, T in 1..8192
func @core(%qn: f32[T, 128, 128], %qr: f32[T, 128, 64], %c1: f32[T, 512], %r1: f32[T, 64]) -> (o: f32[T, 128, 128]) {
  weight %w = "kv_b" : bf16[32768, 512]
  state %c0 = "c" : bf16[P, 512]
  state %r0 = "r" : bf16[P, 64]
  %c = append %c0, %c1 : bf16[P+T, 512]
  %r = append %r0, %r1 : bf16[P+T, 64]
  %q = concat %qn, %qr {axis = 2} : f32[T, 128, 192]
KEYS
  %rb0 = cast %r {to = f32} : f32[P+T, 64]
  %rb = broadcast %rb0 {shape = [P+T, 128, 64], dims = [0, 2]} : f32[P+T, 128, 64]
  %k = concat %kn, %rb {axis = 2} : f32[P+T, 128, 192]
  %s0 = contract %q, %k {spec = "thd,shd->hts"} : f32[128, T, P+T]
  %f = constant {value = 0.07, dtype = f32} : f32[]
  %fb = broadcast %f {shape = [128, T, P+T], dims = []} : f32[128, T, P+T]
  %s1 = mul %s0, %fb : f32[128, T, P+T]
  %s2 = causal_mask %s1 {query = 1, key = 2} : f32[128, T, P+T]
  %p = softmax %s2 : f32[128, T, P+T]
  %o = contract %p, %v {spec = "hts,shv->thv"} : f32[T, 128, 128]
  next %c0 = %c
  next %r0 = %r
  return %o
}
"#;

/// Keys and values from two parts of the weight, and as parts of one expansion.
const FORMS: [&str; 2] = [
    r#"  %w1 = reshape %w {shape = [128, 256, 512]} : bf16[128, 256, 512]
  %up = slice %w1 {axis = 1, start = 0, len = 128} : bf16[128, 128, 512]
  %down = slice %w1 {axis = 1, start = 128, len = 128} : bf16[128, 128, 512]
  %kn = contract %c, %up {spec = "sc,hnc->shn"} : f32[P+T, 128, 128]
  %v = contract %c, %down {spec = "sc,hnc->shn"} : f32[P+T, 128, 128]"#,
    r#"  %kv0 = contract %c, %w {spec = "sc,fc->sf"} : f32[P+T, 32768]
  %kv = reshape %kv0 {shape = [P+T, 128, 256]} : f32[P+T, 128, 256]
  %kn = slice %kv {axis = 2, start = 0, len = 128} : f32[P+T, 128, 128]
  %v = slice %kv {axis = 2, start = 128, len = 128} : f32[P+T, 128, 128]"#,
];

/// A machine that only computes.
fn flops_only() -> Target {
    let (flops, never) = (Peaks::flat(1e12), 1e30);
    let cpu = Target::by_name("cpu").unwrap();
    Target { flops, bandwidth: never, cache_bandwidth: never, launch_seconds: 0.0, ..cpu }
}

fn chosen(form: &str, t: i64, s: i64, target: &Target) -> (Module, f64, f64) {
    let entry = format!("entry e = @core where P in 0..{}, T in {t}", (s - t).max(1));
    let text = CORE.replace("KEYS", form) + &entry.replace(&format!("T in {t}"), &format!("T = {t}"));
    // Costs are taken at the largest sizes.
    let options = Options { typical_context: s, versions: false, ..Options::default() };
    let fused = optimise(&parse(&text), target, &options).unwrap();
    let search = fused.reports.iter().find_map(|r| r.details.searches.first()).unwrap().clone();
    (fused.optimised, search.before, search.after)
}

/// Operands of the attention and their rows: (keys are latent, values are latent).
fn absorbed(module: &Module) -> (bool, bool) {
    let func = &module.funcs[0];
    let is = |inst: &&hadal_ir::Inst| matches!(inst.kind, InstKind::Op(Op::Attention(_)));
    let inst = func.insts.iter().find(is).expect("attention is found");
    assert!(!func.insts.iter().any(|i| matches!(i.kind, InstKind::Op(Op::Softmax(_)))));
    (func.ty(inst.args[1]).rank() == 2, func.ty(*inst.args.last().unwrap()).rank() == 2)
}

#[test]
fn the_break_even_is_where_the_closed_form_has_it() {
    // T = S·M / (M + S·(C - A)) with M = 512·256, C - A = 768: 170.6 of a million keys.
    for form in FORMS {
        for t in [1, 2, 64, 128, 160, 169, 170] {
            assert_eq!(absorbed(&chosen(form, t, 1 << 20, &flops_only()).0), (true, true), "T = {t}");
        }
        for t in [171, 172, 192, 512, 4096] {
            assert_eq!(absorbed(&chosen(form, t, 1 << 20, &flops_only()).0), (false, false), "T = {t}");
        }
    }
}

#[test]
fn work_is_that_of_the_closed_form() {
    let (h, m, a, c) = (128.0, 131072.0, 320.0, 1088.0);
    let near = |x: f64, y: f64| assert!((x / y - 1.0).abs() < 0.02, "{x} and {y}");
    // Per score, softmax and scaling are counted with a few operations.
    let few = 8.0;
    for form in FORMS {
        let (_, before, after) = chosen(form, 1, 4096, &flops_only());
        near(before * 1e12, 2.0 * 4096.0 * h * m + 4096.0 * h * (2.0 * a + few));
        near(after * 1e12, 2.0 * h * m + 4096.0 * h * (2.0 * c + few));
        let (_, before, after) = chosen(form, 4096, 4096, &flops_only());
        near(before * 1e12, 2.0 * 4096.0 * h * m + 4096.0 * 4096.0 * h * (2.0 * a + few));
        near(after, before);
    }
}

#[test]
fn real_machines_absorb_in_decode_and_expand_in_long_chunks() {
    for name in ["cpu", "a100", "l40s", "h100", "h200", "h800", "b200"] {
        let target = Target::by_name(name).unwrap();
        for form in FORMS {
            assert_eq!(absorbed(&chosen(form, 1, 4096, &target).0), (true, true), "{name}");
            assert_eq!(absorbed(&chosen(form, 512, 4096, &target).0), (false, false), "{name}");
        }
    }
}

#[test]
fn the_same_input_gives_the_same_text() {
    let print = || hadal_ir::text::print_module(&chosen(FORMS[1], 1, 4096, &cpu()).0);
    assert_eq!(print(), print());
}
