//! Weights as panels: what is asked for together is decided together, and results stay as they are.

use crate::common::*;
use hadal_ir::panels::Wish;
use hadal_ir::plan::{Place, Program, Weight};
use hadal_ir::{DType, Func, Range, Sym};
use hadal_passes::{Fused, Options, compile, panels};
use std::collections::{BTreeMap, BTreeSet};

/// Two layers of a gated product; the first matrix of layer 0 is read once more.
const MODULE: &str = "symbols P in 0..15, T in 1..8
func @layer(%x: bf16[T, 32]) -> (y: f32[T, 32]) {
  weight %a = \"a\" : bf16[64, 32]
  weight %b = \"b\" : bf16[32, 64]
  %0 = contract %x, %a {spec = \"td,fd->tf\"} : f32[T, 64]
  %1 = cast %0 {to = bf16} : bf16[T, 64]
  %2 = contract %1, %b {spec = \"tf,df->td\"} : f32[T, 32]
  return %2 }
func @main(%x: bf16[T, 32]) -> (y: f32[T, 32], n: f32[T, 64]) {
  weight %a = \"0.a\" : bf16[64, 32]
  %0 = call @layer(%x) at \"0.\" : f32[T, 32]
  %1 = cast %0 {to = bf16} : bf16[T, 32]
  %2 = call @layer(%1) at \"1.\" : f32[T, 32]
  %3 = cast %x {to = f32} : f32[T, 32]
  %4 = exp %3 : f32[T, 32]
  %5 = contract %4, %a {spec = \"td,fd->tf\"} : f32[T, 64]
  return %2, %5 }
entry prefill = @main where T in 1..8
entry decode = @main where T = 1
";

/// The program with what `wants` says laid out, which computes what it did.
fn laid_out(text: &str, wants: panels::Wants<'_>) -> Program {
    laid_out_but(text, wants, &[])
}

/// The same with these weights where they are.
fn laid_out_but(text: &str, wants: panels::Wants<'_>, fixed: &[&str]) -> Program {
    let module = parse(text);
    let (fused, program): (Fused, Program) = compile(&module, &cpu(), &Options::default()).unwrap();
    let before = planned_sequence(&module, &program);
    let fixed = |w: &Weight| fixed.contains(&w.name.as_str());
    let (fused, program) = panels::run(fused, program, Options::default().context(&module), wants, &fixed).unwrap();
    hadal_ir::verify::module(&fused.module).unwrap();
    assert_all_close(&before, &planned_sequence(&module, &program), 0.0, text);
    program
}

/// The matrices that are stored as panels, and those that launches read as they are.
fn stored(program: &Program) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let args = || program.plans.iter().flat_map(|p| &p.launches).flat_map(|l| &l.args);
    let name = |place: &Place| match place {
        Place::Weight(i) => Some(program.weights[*i].name.as_str()),
        _ => None,
    };
    let folds = args().filter_map(|a| match a {
        Place::Fold(i) if program.folds[*i].ty.shape.len() == 4 => Some(&program.folds[*i].args[0]),
        _ => None,
    });
    (folds.filter_map(name).collect(), args().filter_map(name).collect())
}

/// Panels that are read faster.
fn faster<const N: usize>(of: [(usize, i64); N]) -> Vec<Wish> {
    of.map(|(param, group)| Wish { param, group, pays: true }).to_vec()
}

fn products(func: &Func, _: &BTreeMap<Sym, Range>) -> Vec<Wish> {
    let halves = func.params.iter().all(|p| func.ty(*p).dtype == DType::BF16);
    if halves && func.params.len() == 2 { faster([(1, 2)]) } else { Vec::new() }
}

/// The text without lines that have one of these in them.
fn without(text: &str, parts: &[&str]) -> String {
    let lines = text.lines().filter(|line| !parts.iter().any(|part| line.contains(part)));
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn what_all_readers_want_is_laid_out_once() {
    let alone = without(MODULE, &["%3 =", "%4 =", "%5 =", "\"0.a\""]);
    let alone = alone.replace("return %2, %5", "return %2").replace(", n: f32[T, 64]", "");
    let program = laid_out(&alone, &products);
    let (laid, plain) = stored(&program);
    assert_eq!(laid, ["0.a", "0.b", "1.a", "1.b"].into());
    assert!(plain.is_empty(), "{program}");
    assert_eq!(program.folds.len(), 4, "once for both entries: {program}");
    // What stays where it is keeps others that the same kernel reads where they are.
    let program = laid_out_but(&alone, &products, &["1.b"]);
    assert_eq!(stored(&program), (["0.a", "1.a"].into(), ["0.b", "1.b"].into()));
}

#[test]
fn one_reader_that_does_not_leaves_all_that_share_its_kernels_as_they_are() {
    let program = laid_out(MODULE, &products);
    assert_eq!(stored(&program), (["0.b", "1.b"].into(), ["0.a", "1.a"].into()));
    // Nor do tensors of an entry whose kernels refuse.
    let steps = |func: &Func, ranges: &BTreeMap<Sym, Range>| match ranges.get(&Sym::T) {
        Some(t) if t.max > 1 => products(func, ranges),
        _ => Vec::new(),
    };
    assert!(stored(&laid_out(MODULE, &steps)).0.is_empty());
}

#[test]
fn parameters_that_go_together_are_laid_out_together() {
    let text = "symbols P in 0..15, T in 1..8
func @main(%x: f32[T, 64]) -> (y: f32[T, 32]) {
  weight %q = \"q\" : i8[32, 64]
  weight %s = \"s\" : f32[32, 2]
  %0 = dequantize %q, %s {block = [1, 32]} : f32[32, 64]
  %1 = contract %x, %0 {spec = \"td,fd->tf\"} : f32[T, 32]
  return %1 }
entry prefill = @main where T in 1..8
entry decode = @main where T = 1
";
    let both = |_: &Func, _: &BTreeMap<Sym, Range>| faster([(1, 4), (2, 1)]);
    let program = laid_out(text, &both);
    assert_eq!(stored(&program), (["q", "s"].into(), [].into()));
    // One that is no constant cannot be, so neither is.
    let other = |_: &Func, _: &BTreeMap<Sym, Range>| faster([(0, 1), (1, 4)]);
    assert!(stored(&laid_out(text, &other)).0.is_empty());
    // Nor where one of them has to stay.
    assert!(stored(&laid_out_but(text, &both, &["s"])).0.is_empty());
}

#[test]
fn what_nobody_reads_faster_stays_as_it_is() {
    let wants = |pays: bool| {
        move |func: &Func, _: &BTreeMap<Sym, Range>| {
            let product = func.name.contains("contract");
            vec![Wish { param: usize::from(product), group: 1, pays: product && pays }]
        }
    };
    let text = "symbols P in 0..15, T in 1..8
func @main(%t: i32[T]) -> (y: f32[T, 32]) {
  weight %w = \"w\" : f32[32, 64]
  %0 = gather %w, %t {axis = 0} : f32[T, 64]
  %1 = exp %0 : f32[T, 64]
  %2 = contract %1, %w {spec = \"td,fd->tf\"} : f32[T, 32]
  return %2 }
entry prefill = @main where T in 1..8
entry decode = @main where T = 1
";
    assert_eq!(stored(&laid_out(text, &wants(true))), (["w"].into(), [].into()));
    assert!(stored(&laid_out(text, &wants(false))).0.is_empty());
}
