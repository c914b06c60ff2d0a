//! What laws are for, one by one: small programs in which a form is chosen because it costs less, or left because not.

use crate::common::*;
use hadal_ir::layout_fold::is_layout;
use hadal_ir::{Func, FuncKind, Inst, InstKind, Module, Op};
use hadal_passes::explain::LawUse;
use hadal_passes::pipeline::Fused;
use hadal_passes::{LawSet, Options, optimise};

/// A function `@f` of `x` for steps of one new token and of several.
fn program(body: &str) -> Module {
    prompted(body, 8)
}

/// The same for up to `most` new tokens.
fn prompted(body: &str, most: usize) -> Module {
    let entries = format!("entry prefill = @f where T in 1..{most}\nentry decode = @f where T = 1");
    parse(&format!("symbols P in 0..64, T in 1..{most}\n{body}\n{entries}"))
}

/// Optimised, with the same results.
fn optimised(module: &Module, laws: LawSet) -> Fused {
    let fused = optimise(module, &cpu(), &Options { laws, versions: false, ..Options::default() }).unwrap();
    let expected = sequence(module);
    assert_all_close(&sequence(&fused.optimised), &expected, 1e-9, "optimised");
    assert_all_close(&sequence(&fused.module), &expected, 1e-9, "fused");
    fused
}

fn ops(module: &Module) -> impl Iterator<Item = (&Func, &Inst, &Op)> {
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
    for entry in &fused.module.entries {
        let calls =
            fused.module.func(&entry.func).unwrap().insts.iter().filter(|i| matches!(i.kind, InstKind::Call(_)));
        assert_eq!(calls.count(), 2, "kernels of @{}", entry.func);
    }
}

#[test]
fn experts_are_weighed_before_their_last_product() {
    let fused = optimised(
        &prompted(
            "func @f(%h: f32[T, 2, 8], %e: i32[T, 2], %k: f32[T, 2]) -> (y: f32[T, 16]) {
              weight %d = \"d\" : bf16[4, 16, 8]
              %0 = gather %d, %e {axis = 0} : bf16[T, 2, 16, 8]
              %g = sigmoid %h : f32[T, 2, 8]
              %1 = contract %g, %0, %k {spec = \"tkf,tkdf,tk->td\"} : f32[T, 16]
              return %1 }",
            64,
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

/// `Σ_k w_k FFN_{e_k}(x) + FFN(x)` with two of `experts` experts for each token, `inner` wide, and a shared one that is
/// `shared` wide; with `scaled`, weights and what they are multiplied with are e4m3 with a scale for each block.
fn with_shared_expert(experts: usize, inner: usize, shared: usize, scaled: bool) -> Module {
    const D: usize = 8;
    let mut text = format!(
        "func @f(%x: f32[T, {D}]) -> (y: f32[T, {D}]) {{
           weight %r = \"r\" : f32[{experts}, {D}]\n"
    );
    let mut body = format!(
        "%z = contract %x, %r {{spec = \"td,ed->te\"}} : f32[T, {experts}]
         %p = softmax %z : f32[T, {experts}]
         %e = top_k %p {{k = 2}} : i32[T, 2]
         %k = gather %p, %e {{axis = 1, batch = 1}} : f32[T, 2]\n"
    );
    for (name, prefix, rows, columns) in [
        ("g", format!("{experts}, "), inner, D),
        ("u", format!("{experts}, "), inner, D),
        ("d", format!("{experts}, "), D, inner),
        ("vg", String::new(), shared, D),
        ("vu", String::new(), shared, D),
        ("vd", String::new(), D, shared),
    ] {
        match scaled {
            false => text += &format!("weight %{name} = \"{name}\" : bf16[{prefix}{rows}, {columns}]\n"),
            true => {
                let block = if prefix.is_empty() { "" } else { "1, " };
                text += &format!("weight %q{name} = \"q{name}\" : f8e4m3[{prefix}{rows}, {columns}]\n");
                text += &format!("weight %s{name} = \"s{name}\" : f32[{prefix}{}, {}]\n", rows / 2, columns / 4);
                body += &format!("%{name} = dequantize %q{name}, %s{name} {{block = [{block}2, 4]}} : ");
                body += &format!("f32[{prefix}{rows}, {columns}]\n");
            }
        }
    }
    // What a product reads, rounded in blocks of four where that is asked for.
    let rounded = |name: &str, lead: &str, width: usize| match scaled {
        false => String::new(),
        true => {
            let axes = lead.matches(',').count() + 2;
            let dims: Vec<String> = (0..axes).map(|a| a.to_string()).collect();
            let (blocks, last, dims) = (width / 4, dims.len(), dims.join(", "));
            let ones = "1, ".repeat(axes - 1);
            format!(
                "%{name}g = reshape %{name} {{shape = [{lead}, {blocks}, 4]}} : f32[{lead}, {blocks}, 4]
                 %{name}a = abs %{name}g : f32[{lead}, {blocks}, 4]
                 %{name}m = reduce %{name}a {{kind = max, axes = [{last}]}} : f32[{lead}, {blocks}]
                 %{name}l = constant {{value = 0.001, dtype = f32}} : f32[]
                 %{name}f = broadcast %{name}l {{shape = [{lead}, {blocks}], dims = []}} : f32[{lead}, {blocks}]
                 %{name}s = max %{name}m, %{name}f : f32[{lead}, {blocks}]
                 %{name}b = broadcast %{name}s {{shape = [{lead}, {blocks}, 4], dims = [{dims}]}} : f32[{lead}, {blocks}, 4]
                 %{name}w = reshape %{name}b {{shape = [{lead}, {width}]}} : f32[{lead}, {width}]
                 %{name}d = div %{name}, %{name}w : f32[{lead}, {width}]
                 %{name}c = cast %{name}d {{to = f8e4m3}} : f8e4m3[{lead}, {width}]
                 %{name}r = dequantize %{name}c, %{name}s {{block = [{ones}4]}} : f32[{lead}, {width}]\n"
            )
        }
    };
    let (r, ty) = if scaled { ("r", "f32") } else { ("", "bf16") };
    body += &rounded("x", "T", D);
    for name in ["g", "u"] {
        body += &format!(
            "%e{name} = gather %{name}, %e {{axis = 0}} : {ty}[T, 2, {inner}, {D}]
             %h{name} = contract %x{r}, %e{name} {{spec = \"td,tkfd->tkf\"}} : f32[T, 2, {inner}]
             %t{name} = contract %x{r}, %v{name} {{spec = \"td,fd->tf\"}} : f32[T, {shared}]\n"
        );
    }
    for (of, name, lead, width) in [("h", "i", "T, 2", inner), ("t", "j", "T", shared)] {
        body += &format!(
            "%{name}0 = sigmoid %{of}g : f32[{lead}, {width}]
             %{name}1 = mul %{of}g, %{name}0 : f32[{lead}, {width}]
             %{name} = mul %{name}1, %{of}u : f32[{lead}, {width}]\n"
        );
        body += &rounded(name, lead, width);
    }
    text += &body;
    text += &format!(
        "%ed = gather %d, %e {{axis = 0}} : {ty}[T, 2, {D}, {inner}]
         %o = contract %i{r}, %ed {{spec = \"tkf,tkdf->tkd\"}} : f32[T, 2, {D}]
         %m = contract %o, %k {{spec = \"tkd,tk->td\"}} : f32[T, {D}]
         %n = contract %j{r}, %vd {{spec = \"tf,df->td\"}} : f32[T, {D}]
         %y = add %m, %n : f32[T, {D}]
         return %y }}"
    );
    program(&text)
}

/// Optimised for a machine with slow launches, with the same results, and with what became of the law.
fn explained(module: &Module, launch_seconds: f64) -> (Fused, Vec<LawUse>) {
    let target = hadal_ir::target::Target { launch_seconds, ..cpu() };
    let options = Options { versions: false, explain: true, ..Options::default() };
    let fused = optimise(module, &target, &options).unwrap();
    let expected = sequence(module);
    assert_all_close(&sequence(&fused.optimised), &expected, 1e-9, "optimised");
    assert_all_close(&sequence(&fused.module), &expected, 1e-9, "fused");
    let uses = fused.reports.iter().flat_map(|r| &r.details.explanations).flat_map(|e| &e.laws);
    let uses = uses.filter(|l| l.law == "shared-expert-among-routed").cloned().collect();
    (fused, uses)
}

#[test]
fn a_shared_expert_is_one_of_the_routed_ones_where_launches_cost_more() {
    // As wide as a routed one, twice as wide, and in e4m3, inputs too.
    for (inner, shared, scaled) in [(4, 4, false), (4, 8, false), (8, 8, true)] {
        let module = with_shared_expert(4, inner, shared, scaled);
        let (fused, uses) = explained(&module, 1e-3);
        // The router's scores, two products into the experts, one out of them, and the sum.
        let found = products(&fused);
        assert_eq!(found.len(), 5, "{shared} {scaled}: {found:?}");
        assert!(uses.iter().all(|l| l.chosen > 0), "{uses:?}");
        // Joined as they are stored.
        assert!(!folds(&fused).is_empty() && folds(&fused).into_iter().all(is_layout));
        let law = "product-of-joined-rows";
        assert!(ops(&fused.optimised).any(|(_, i, _)| i.laws.iter().any(|l| l == law)));
    }
}

#[test]
fn a_shared_expert_stays_apart_where_joining_costs_more() {
    let (fused, uses) = explained(&with_shared_expert(64, 32, 32, false), 0.0);
    assert_eq!(products(&fused).len(), 8);
    assert!(folds(&fused).is_empty());
    assert!(!uses.is_empty() && uses.iter().all(|l| l.fired > 0 && l.chosen == 0 && l.lost.is_some()), "{uses:?}");
}

#[test]
fn a_shared_expert_that_is_no_multiple_is_said_to_be_none() {
    let (_, uses) = explained(&with_shared_expert(4, 4, 6, false), 1e-3);
    assert!(uses.iter().all(|l| l.fired == 0));
    let reasons: Vec<&str> = uses.iter().flat_map(|l| &l.misses).map(|m| m.reason.as_str()).collect();
    assert!(reasons.contains(&"the shared expert's width of 6 is no multiple of a routed one's, 4"), "{reasons:?}");
}
