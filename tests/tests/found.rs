//! The forms that give large models their speed, found in published configurations from the plain definitions that
//! model files write: attention over selected rows from attention under a mask, and one rounding per token for all of
//! its experts from a rounding for each. No model file holds a fused op; the laws that led there are in the program.

use hadal::driver::pass_options;
use hadal::{Input, Options};
use hadal_ir::module::{Func, Inst, InstKind};
use hadal_ir::ops::attention::Visible;
use hadal_ir::ops::{Op, Tier};
use hadal_ir::target::Target;
use hadal_ir::{DType, Module, Range, Sym};
use hadal_models::Activations;
use hadal_passes::optimise;
use hadal_tests::root;

fn ops(func: &Func) -> impl Iterator<Item = (&Inst, &Op)> {
    func.insts.iter().filter_map(|i| match &i.kind {
        InstKind::Op(op) => Some((i, op)),
        InstKind::Call(_) => None,
    })
}

/// The graph as written, and as chosen for `target`.
fn chosen(config: &str, target: &str, activations: Activations) -> (Module, Module) {
    let input = Input::open(&root().join("tests/fixtures/configs").join(config)).expect("a configuration");
    let options = Options { max_context: Some(131_072), activations, ..Options::default() };
    let model = hadal::driver::build_model(&input, &options).expect("a model");
    let fused_already = model.module.funcs.iter().flat_map(ops).any(|(_, op)| op.tier() == Tier::Fused);
    assert!(!fused_already, "a model file holds a fused op");
    let target = Target::by_name(target).expect("a target");
    let fused = optimise(&model.module, &target, &pass_options(&model)).expect("optimises");
    (model.module, fused.optimised)
}

/// Ranges of each version of an entry, with the layer functions that it reaches.
fn layers<'m>(module: &'m Module, entry: &str) -> Vec<(Range, Range, Vec<&'m Func>)> {
    let versions = module.entries.iter().filter(|e| e.name == entry);
    let reached = |from: &str| -> Vec<&'m Func> {
        let main = module.func(from).expect("an entry's function");
        let mut names: Vec<&str> = main
            .insts
            .iter()
            .filter_map(|i| match &i.kind {
                InstKind::Call(c) => Some(c.func.as_str()),
                InstKind::Op(_) => None,
            })
            .collect();
        names.dedup();
        names.sort_unstable();
        names.dedup();
        names.into_iter().map(|n| module.func(n).expect("a called function")).collect()
    };
    versions
        .map(|e| {
            let ranges = module.ranges(e);
            (ranges[&Sym::P], ranges[&Sym::T], reached(&e.func))
        })
        .collect()
}

fn attention(func: &Func) -> (&Inst, &hadal_ir::ops::Attention) {
    let found = ops(func).find_map(|(i, op)| match op {
        Op::Attention(a) => Some((i, a)),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("@{} has no attention", func.name))
}

fn selects(func: &Func) -> bool {
    attention(func).1.sets.iter().any(|s| matches!(s.rows, Visible::Selected(_)))
}

fn looks_under_a_mask(func: &Func) -> bool {
    attention(func).1.sets.iter().any(|s| matches!(s.rows, Visible::Masked(_)))
}

/// Whether so many are chosen anywhere.
fn chooses(func: &Func, k: usize) -> bool {
    ops(func).any(|(_, op)| matches!(op, Op::TopK(t) if t.k == k))
}

#[test]
fn rows_are_selected_where_the_context_is_long() {
    const CHOSEN: i64 = 2048;
    for target in ["cpu", "h200"] {
        let (written, module) = chosen("deepseek-v3.2.json", target, Activations::F32);
        assert!(written.funcs.iter().flat_map(ops).any(|(_, op)| matches!(op, Op::Member(_))));
        let decode = layers(&module, "decode");
        assert!(decode.len() >= 2, "{target}: one form for all contexts");
        for (past, _, funcs) in &decode {
            for func in funcs {
                let (inst, _) = attention(func);
                let what = format!("{target}: @{} with {past:?} rows before", func.name);
                // Where no context exceeds what is chosen, all rows are, and nobody asks which.
                let indexed =
                    ops(func).any(|(i, op)| matches!(op, Op::TopK(t) if t.k as i64 == CHOSEN) && !i.results.is_empty());
                assert_eq!(indexed, past.max >= CHOSEN, "{what}");
                if past.max >= 100_000 {
                    assert!(selects(func), "{what}");
                    for law in ["select-attention", "mask-by-selection"] {
                        assert!(inst.laws.iter().any(|l| l == law), "{what}: {law} is not among {:?}", inst.laws);
                    }
                }
            }
        }
        // Long chunks over short contexts look at all rows under the mask.
        let prefill = layers(&module, "prefill");
        let dense = |(past, new, _): &&(Range, Range, Vec<&Func>)| past.max < 2 * CHOSEN && new.max >= 512;
        for (_, _, funcs) in prefill.iter().filter(dense) {
            assert!(funcs.iter().all(|f| !selects(f)), "{target}: selects where fewer rows would be saved than read");
        }
        let long = prefill.iter().find(|(past, new, _)| past.max >= 100_000 && new.max >= 512).expect("a version");
        for func in &long.2 {
            assert!(selects(func), "{target}: @{}", func.name);
            // Of several queries, each has rows that it must not see: a selection among the others has none of them.
            let laws = &attention(func).0.laws;
            assert!(laws.iter().any(|l| l == "selection-implies-causal"), "{target}: @{}: {laws:?}", func.name);
        }
    }
}

#[test]
fn compressed_rows_are_not_chosen_where_all_are() {
    const CHOSEN: i64 = 512;
    for target in ["cpu", "h200"] {
        let (_, module) = chosen("deepseek-v4-flash.json", target, Activations::F32);
        let (mut all, mut some) = (0, 0);
        for entry in ["decode", "prefill"] {
            for (past, new, funcs) in layers(&module, entry) {
                let rows = (past.max + new.max).min(131_072) / 4;
                let indexing = |f: &&&Func| f.states.iter().any(|s| s.name.ends_with("indexer.keys"));
                let funcs: Vec<&&Func> = funcs.iter().filter(indexing).collect();
                assert!(!funcs.is_empty(), "{target}: {entry}");
                for func in funcs {
                    let what = format!("{target}: @{} with {past:?} before {new:?}", func.name);
                    // Keys are kept all the same, since the text may grow.
                    assert!(func.states.iter().all(|s| s.next != s.value), "{what}");
                    assert_eq!(chooses(func, CHOSEN as usize), rows > CHOSEN, "{what}");
                    if rows <= CHOSEN {
                        assert!(!selects(func) && !looks_under_a_mask(func), "{what}");
                        let laws = &attention(func).0.laws;
                        assert!(laws.iter().any(|l| l == "selection-of-everything"), "{what}: {laws:?}");
                    }
                    *(if rows > CHOSEN { &mut some } else { &mut all }) += 1;
                }
            }
        }
        assert!(all > 0 && some > 0, "{target}: {all} without a choice, {some} with one");
    }
}

#[test]
fn layers_that_did_not_choose_the_rows_read_them_by_number() {
    let target = "h200";
    let (_, module) = chosen("deepseek-v4.1-flash.json", target, Activations::F32);
    for entry in ["decode", "prefill"] {
        let mut read = 0;
        for (past, new, funcs) in layers(&module, entry).into_iter().filter(|(past, _, _)| past.max >= 100_000) {
            let given = |f: &&Func| f.params.iter().any(|p| f.values[p.index()].name.as_deref() == Some("selection"));
            for func in funcs.into_iter().filter(given) {
                assert!(selects(func), "{target}: @{} with {past:?} before {new:?}", func.name);
                let laws = &attention(func).0.laws;
                assert!(laws.iter().any(|l| l == "mask-by-selection"), "{target}: @{}: {laws:?}", func.name);
                read += 1;
            }
        }
        assert!(read >= 2, "{target}: {read} functions of {entry} are given rows");
    }
}

#[test]
fn a_token_is_rounded_once_for_all_its_experts() {
    let narrow = |func: &Func| -> Vec<Vec<hadal_ir::Dim>> {
        let casts = ops(func).filter(|(_, op)| matches!(op, Op::Cast(c) if c.to == DType::F8E4M3));
        casts.map(|(i, _)| func.ty(i.results[0]).shape.clone()).collect()
    };
    const HIDDEN: i64 = 7168;
    let rows = |shapes: &[Vec<hadal_ir::Dim>], rank: usize| {
        shapes.iter().filter(|s| s.len() == rank && s.last().is_some_and(|n| n.is(HIDDEN))).count()
    };
    let (written, module) = chosen("deepseek-r1.json", "h200", Activations::Fp8);
    let as_written = written.funcs.iter().find(|f| f.name.starts_with("moe_layer")).expect("a layer with experts");
    assert!(rows(&narrow(as_written), 3) >= 1, "the definition rounds for every expert: {:?}", narrow(as_written));
    for entry in ["decode", "prefill"] {
        for (past, new, funcs) in layers(&module, entry) {
            for func in funcs.iter().filter(|f| f.name.starts_with("moe_layer")) {
                let shapes = narrow(func);
                assert_eq!(rows(&shapes, 3), 0, "{entry} {past:?} {new:?}: {shapes:?}");
                // One for the projections of attention, one for all experts, routed and shared.
                assert_eq!(rows(&shapes, 2), 2, "{entry} {past:?} {new:?}: {shapes:?}");
                // For few queries the rows in the state are keys and values as they are. Of the last layer only the
                // last row is wanted.
                let (inst, _) = attention(func);
                let few = new.max < 512 || func.ty(inst.args[0]).shape.iter().any(|n| n.is(1));
                assert_eq!(
                    func.ty(inst.args[1]).rank() == 2,
                    few,
                    "{entry} {past:?} {new:?}: @{} {:?}",
                    func.name,
                    func.ty(inst.args[0])
                );
            }
        }
    }
}
