//! No law is there for nothing: each fires in a published model, or at least in a program of these tests.

use crate::common::{law, parse, releases};
use hadal_ir::Module;
use hadal_ir::target::Target;
use hadal_passes::{Options, rules, run_passes};
use std::collections::{BTreeMap, BTreeSet};

/// Laws that fire where a module goes through the pipeline.
fn fired(module: &Module) -> BTreeMap<&'static str, usize> {
    let mut out = BTreeMap::new();
    for target in ["cpu", "h200"] {
        let target = Target::by_name(target).unwrap();
        // What no entry reaches would be dropped: examples have none.
        let specialise = (!module.entries.is_empty()).then_some("specialise");
        let steps = specialise.into_iter().chain(["canonicalise", "elide", "canonicalise", "rewrite", "canonicalise"]);
        let (_, reports) = run_passes(module, steps, &target, &Options::default()).unwrap();
        for (name, n) in reports.iter().flat_map(|r| &r.details.fired) {
            *out.entry(*name).or_default() += n;
        }
    }
    out.retain(|_, n| *n > 0);
    out
}

#[test]
fn every_law_fires_somewhere() {
    let mut by_models: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (name, module) in releases::all().0 {
        for law in fired(&module).into_keys() {
            by_models.entry(law).or_default().insert(name.clone());
        }
    }
    // Without the law's own example, which proves that it can fire but not that anything needs it.
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hir");
    let files = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path());
    let programs: Vec<Module> = files.map(|f| parse(&std::fs::read_to_string(f).unwrap())).collect();
    let by_programs: BTreeSet<&str> = programs.iter().flat_map(|m| fired(m).into_keys()).collect();
    let (mut only_example, mut never) = (Vec::new(), Vec::new());
    for rule in rules::all() {
        let name = rule.name;
        if let Some(models) = by_models.get(name) {
            println!("{name}: {} models", models.len());
        } else if by_programs.contains(name) {
            println!("{name}: a program of the tests");
        } else if fired(&law::example(rule)).contains_key(name) {
            println!("{name}: its own example");
            only_example.push(name);
        } else {
            never.push(name);
        }
    }
    println!("laws that only their own example needs: {}", only_example.join(", "));
    assert!(never.is_empty(), "laws that nothing fires, not even their examples in the pipeline: {never:?}");
}
