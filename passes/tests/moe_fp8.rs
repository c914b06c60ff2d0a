//! Experts in FP8 from their plain definition, which rounds the input once for every expert that a token goes to: the
//! form with one rounding per token is found by laws alone.

use crate::common::*;
use hadal_ir::{DType, Inst, InstKind, Module, Op};
use hadal_passes::{LawSet, Options, optimise};

/// `y = Σ_k w_k · round(x) Wᵀ_e` for the `K` experts `e` of a token, with `round` written for each expert.
const PLAIN: &str = r#"symbols P in 0..64, T in 1..8
func @experts(%x: f32[T, 8], %e: i32[T, 2], %w: f32[T, 2]) -> (y: f32[T, 6]) {
  weight %q = "q" : f8e4m3[4, 6, 8]
  weight %s = "s" : f32[4, 2, 2]
  %W = dequantize %q, %s {block = [1, 4, 4]} : f32[4, 6, 8]
  %We = gather %W, %e {axis = 0} : f32[T, 2, 6, 8]
  %xe = broadcast %x {shape = [T, 2, 8], dims = [0, 2]} : f32[T, 2, 8]
  %g = reshape %xe {shape = [T, 2, 2, 4]} : f32[T, 2, 2, 4]
  %a = abs %g : f32[T, 2, 2, 4]
  %m0 = reduce %a {kind = max, axes = [3]} : f32[T, 2, 2]
  %least = constant {value = 0.0001, dtype = f32} : f32[]
  %floor = broadcast %least {shape = [T, 2, 2], dims = []} : f32[T, 2, 2]
  %m = max %m0, %floor : f32[T, 2, 2]
  %limit = constant {value = 448.0, dtype = f32} : f32[]
  %limits = broadcast %limit {shape = [T, 2, 2], dims = []} : f32[T, 2, 2]
  %d0 = div %m, %limits : f32[T, 2, 2]
SCALE
  %db = broadcast %d {shape = [T, 2, 2, 4], dims = [0, 1, 2]} : f32[T, 2, 2, 4]
  %df = reshape %db {shape = [T, 2, 8]} : f32[T, 2, 8]
  %xs = div %xe, %df : f32[T, 2, 8]
  %xq = cast %xs {to = f8e4m3} : f8e4m3[T, 2, 8]
  %xr = dequantize %xq, %d {block = [1, 1, 4]} : f32[T, 2, 8]
  %h = contract %xr, %We {spec = "tkd,tkfd->tkf"} : f32[T, 2, 6]
  %y = contract %h, %w {spec = "tkf,tk->tf"} : f32[T, 6]
  return %y
}
entry prefill = @experts where T in 1..8
entry decode = @experts where T = 1
"#;

fn ops(module: &Module) -> impl Iterator<Item = (&Inst, &Op, &hadal_ir::Func)> {
    let of = |f: &'_ hadal_ir::Func| f.insts.len();
    let all = module.funcs.iter().filter(move |f| of(f) > 0);
    all.flat_map(|f| f.insts.iter().map(move |i| (i, f))).filter_map(|(i, f)| match &i.kind {
        InstKind::Op(op) => Some((i, op, f)),
        InstKind::Call(_) => None,
    })
}

/// Results of casts to e4m3, by the number of their axes.
fn roundings(module: &Module) -> Vec<usize> {
    let to_e4m3 = ops(module).filter(|(_, op, _)| matches!(op, Op::Cast(c) if c.to == DType::F8E4M3));
    to_e4m3.map(|(i, _, f)| f.ty(i.results[0]).rank()).collect()
}

#[test]
fn a_token_is_rounded_once() {
    for scale in ["  %d = max %d0, %d0 : f32[T, 2, 2]", "  %d = pow2_ceil %d0 : f32[T, 2, 2]"] {
        let module = parse(&PLAIN.replace("SCALE", scale));
        assert_eq!(roundings(&module), [3]);
        let fused = optimise(&module, &cpu(), &Options::default()).unwrap();
        // `[T, d]`, not `[T, K, d]`, in every version of both entries; and weights are read as they are stored.
        let all = roundings(&fused.optimised);
        assert!(all.len() >= 2 && all.iter().all(|n| *n == 2), "{all:?}");
        let folded = fused.module.funcs.iter().any(|f| f.kind == hadal_ir::FuncKind::Fold);
        assert!(!folded, "weights stay in FP8");
        for (inst, op, _) in ops(&fused.optimised).filter(|(_, op, _)| matches!(op, Op::Cast(_) | Op::Contract(_))) {
            println!("{}: {}", op.mnemonic(), inst.laws.join(" → "));
        }
        let chain = |law: &str| ops(&fused.optimised).any(|(i, _, _)| i.laws.iter().any(|l| l == law));
        assert!(chain("cast-of-broadcast") && chain("map-of-broadcast") && chain("reduce-of-broadcast"));
        let expected = sequence(&module);
        assert_all_close(&sequence(&fused.optimised), &expected, 1e-9, "optimised");
        assert_all_close(&sequence(&fused.module), &expected, 1e-9, "fused");
    }
}

#[test]
fn without_the_laws_every_copy_is_rounded() {
    let laws = LawSet::default().without(["cast-of-broadcast"]).unwrap();
    let module = parse(&PLAIN.replace("SCALE", "  %d = max %d0, %d0 : f32[T, 2, 2]"));
    let fused = optimise(&module, &cpu(), &Options { laws, ..Options::default() }).unwrap();
    let all = roundings(&fused.optimised);
    assert!(all.len() >= 2 && all.iter().all(|n| *n == 3), "{all:?}");
}

/// Rows dispatched by number are rounded before they are gathered, where there are fewer of them before.
#[test]
fn rows_are_rounded_before_they_are_gathered() {
    let text = r#"symbols P in 0..64, T in 1..8
func @dispatch(%x: f32[T, 8], %n: i32[16]) -> (y: f32[16, 6]) {
  weight %w = "w" : f32[6, 8]
  %xn = gather %x, %n {axis = 0} : f32[16, 8]
  %a = abs %xn : f32[16, 8]
  %m = reduce %a {kind = max, axes = [1]} : f32[16]
  %mb = broadcast %m {shape = [16, 8], dims = [0]} : f32[16, 8]
  %b = add %xn, %mb : f32[16, 8]
  %xq = cast %b {to = f8e4m3} : f8e4m3[16, 8]
  %xr = cast %xq {to = f32} : f32[16, 8]
  %y = contract %xr, %w {spec = "td,fd->tf"} : f32[16, 6]
  return %y
}
entry prefill = @dispatch where T in 1..8
entry decode = @dispatch where T = 1
"#;
    let module = parse(text);
    let fused = optimise(&module, &cpu(), &Options::default()).unwrap();
    let gathers = ops(&fused.optimised).filter(|(_, op, _)| matches!(op, Op::Gather(_)));
    for (inst, _, f) in gathers {
        let what = f.ty(inst.args[0]).dtype;
        println!("gathers {what}: {}", inst.laws.join(" → "));
        assert!(inst.laws.iter().any(|l| l == "function-before-gather"));
    }
    let expected = sequence(&module);
    assert_all_close(&sequence(&fused.optimised), &expected, 1e-9, "optimised");
}
