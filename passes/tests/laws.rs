//! What laws are for, one by one: small programs in which a form is chosen because it costs less, or left because not.

mod common;

use common::*;
use hadal_ir::layout_fold::is_layout;
use hadal_ir::{Func, FuncKind, Inst, InstKind, Module, Op};
use hadal_passes::pipeline::Fused;
use hadal_passes::{LawSet, Options, optimise};

/// A function `@f` of `x` for one new token or several.
fn program(body: &str) -> Module {
    let entries = "entry prefill = @f where T in 1..8\nentry decode = @f where T = 1";
    parse(&format!("symbols P in 0..64, T in 1..8\n{body}\n{entries}"))
}

/// Optimised, with the same results.
fn optimised(module: &Module, laws: LawSet) -> Fused {
    let fused = optimise(module, &cpu(), &Options { laws, versions: false, ..Options::default() }).unwrap();
    let expected = sequence(module);
    assert_all_close(&sequence(&fused.optimised), &expected, 1e-9, "optimised");
    assert_all_close(&sequence(&fused.module), &expected, 1e-9, "fused");
    fused
}

fn ops<'m>(module: &'m Module) -> impl Iterator<Item = (&'m Func, &'m Inst, &'m Op)> {
    module.funcs.iter().flat_map(|f| f.insts.iter().map(move |i| (f, i))).filter_map(|(f, i)| match &i.kind {
        InstKind::Op(op) => Some((f, i, op)),
        InstKind::Call(_) => None,
    })
}

/// Contractions of the function for one token.
fn products(fused: &Fused) -> Vec<&hadal_ir::ops::Contract> {
    let decode = &fused.optimised.entry("decode").unwrap().func;
    let all = ops(&fused.optimised).filter(|(f, _, _)| f.name == *decode);
    all.filter_map(|(_, _, op)| if let Op::Contract(c) = op { Some(c) } else { None }).collect()
}

fn folds(fused: &Fused) -> Vec<&Func> {
    fused.module.funcs.iter().filter(|f| f.kind == FuncKind::Fold).collect()
}

fn low_rank(rank: usize) -> Fused {
    optimised(
        &program(&format!(
            "func @f(%x: f32[T, 64]) -> (y: f32[T, 64]) {{
              weight %a = \"a\" : f32[{rank}, 64]
              weight %b = \"b\" : f32[64, {rank}]
              %0 = contract %x, %a {{spec = \"td,rd->tr\"}} : f32[T, {rank}]
              %1 = contract %0, %b {{spec = \"tr,fr->tf\"}} : f32[T, 64]
              return %1 }}"
        )),
        LawSet::default(),
    )
}

#[test]
fn low_rank_products_are_folded_where_that_is_smaller() {
    // Through 1000 channels: one product of 64 × 64 weights, computed when compiling, instead of two of 64 × 1000.
    assert_eq!(folds(&low_rank(1000)).len(), 1);
    // Through 8, two small products are kept.
    assert_eq!(folds(&low_rank(8)).len(), 0);
}

const PROJECTIONS: &str = "func @f(%x: f32[T, 8]) -> (a: f32[T, 8], b: f32[T, 6]) {
  weight %g = \"g\" : f32[8]
  weight %u = \"u\" : f32[8]
  weight %v = \"v\" : f32[6]
WEIGHTS
  %n = rms_norm %x, %g {eps = 1e-6} : f32[T, 8]
  %0 = contract %n, %wa {spec = \"td,fd->tf\"} : f32[T, 8]
  %1 = contract %n, %wb {spec = \"td,fd->tf\"} : f32[T, 6]
  %2 = rms_norm %0, %u {eps = 1e-6} : f32[T, 8]
  %3 = rms_norm %1, %v {eps = 1e-6} : f32[T, 6]
  return %2, %3 }";

#[test]
fn projections_of_one_input_are_merged() {
    let plain = "  weight %wa = \"a\" : bf16[8, 8]\n  weight %wb = \"b\" : bf16[6, 8]";
    // Blocks of four rows: the six rows of the second have half a block at their end, so they come last.
    let scaled = "  weight %qa = \"a\" : f8e4m3[8, 8]\n  weight %sa = \"sa\" : f32[2, 2]
  weight %qb = \"b\" : f8e4m3[6, 8]\n  weight %sb = \"sb\" : f32[2, 2]
  %wb = dequantize %qb, %sb {block = [4, 4]} : f32[6, 8]
  %wa = dequantize %qa, %sa {block = [4, 4]} : f32[8, 8]";
    for (weights, stored) in [(plain, 1), (scaled, 2)] {
        let fused = optimised(&program(&PROJECTIONS.replace("WEIGHTS", weights)), LawSet::default());
        assert_eq!(products(&fused).len(), 1);
        // Joined as they are stored.
        assert_eq!(folds(&fused).len(), stored);
        for fold in folds(&fused) {
            assert!(is_layout(fold));
        }
        let merged = |i: &Inst| i.laws.iter().any(|l| l == "merge-products");
        assert!(ops(&fused.optimised).any(|(_, i, op)| matches!(op, Op::Contract(_)) && merged(i)));
        let laws = LawSet::default().without(["merge-products"]).unwrap();
        let apart = optimised(&program(&PROJECTIONS.replace("WEIGHTS", weights)), laws);
        assert_eq!((products(&apart).len(), folds(&apart).len()), (2, 0));
    }
}

#[test]
fn a_gate_stays_by_itself() {
    // The second product is multiplied with what the first makes on its way out; merged, that would be a third kernel.
    let fused = optimised(
        &program(
            "func @f(%x: f32[T, 64]) -> (y: f32[T, 96]) {
              weight %g = \"g\" : bf16[96, 64]
              weight %u = \"u\" : bf16[96, 64]
              %0 = contract %x, %g {spec = \"td,fd->tf\"} : f32[T, 96]
              %1 = contract %x, %u {spec = \"td,fd->tf\"} : f32[T, 96]
              %2 = sigmoid %0 : f32[T, 96]
              %3 = mul %0, %2 : f32[T, 96]
              %4 = mul %3, %1 : f32[T, 96]
              return %4 }",
        ),
        LawSet::default(),
    );
    assert_eq!(products(&fused).len(), 2);
    let kernels = fused.module.funcs.iter().filter(|f| f.kind == FuncKind::Kernel).count();
    assert!(kernels <= 4, "{kernels} kernels for two entries");
}

#[test]
fn experts_are_weighed_before_their_last_product() {
    let fused = optimised(
        &program(
            "func @f(%h: f32[T, 2, 8], %e: i32[T, 2], %k: f32[T, 2]) -> (y: f32[T, 16]) {
              weight %d = \"d\" : bf16[4, 16, 8]
              %0 = gather %d, %e {axis = 0} : bf16[T, 2, 16, 8]
              %g = sigmoid %h : f32[T, 2, 8]
              %1 = contract %g, %0, %k {spec = \"tkf,tkdf,tk->td\"} : f32[T, 16]
              return %1 }",
        ),
        LawSet::default(),
    );
    let weighed = |i: &Inst| i.laws.iter().any(|l| l == "weigh-before-product");
    assert!(ops(&fused.optimised).any(|(_, i, op)| matches!(op, Op::Contract(_)) && weighed(i)));
    assert_eq!(products(&fused).len(), 1);
}

#[test]
fn a_choice_needs_no_scores_but_its_own() {
    let fused = optimised(
        &program(
            "func @f(%x: f32[T, 8]) -> (e: i32[T, 2]) {
              weight %w = \"w\" : f32[4, 8]
              %0 = contract %x, %w {spec = \"td,ed->te\"} : f32[T, 4]
              %1 = softmax %0 : f32[T, 4]
              %2 = top_k %1 {k = 2} : i32[T, 2]
              return %2 }",
        ),
        LawSet::default(),
    );
    assert!(!ops(&fused.optimised).any(|(_, _, op)| matches!(op, Op::Softmax(_))));
}
