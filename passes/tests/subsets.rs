//! Any set of laws keeps the meaning: laws do not lean on each other to be right.

use crate::common::*;
use hadal_ir::Module;
use hadal_passes::{LawSet, Options, compile, rules};
use proptest::prelude::*;
use std::path::Path;

/// The programs of these tests that have a prefill and a decode.
fn programs() -> Vec<Module> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hir");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let modules = files.iter().map(|f| parse(&std::fs::read_to_string(f).unwrap()));
    modules.filter(|m| ["prefill", "decode"].iter().all(|e| m.entry(e).is_some())).collect()
}

/// Laws by a bit each, approximate ones never.
fn subset(bits: &[bool]) -> LawSet {
    let usual = LawSet::default();
    let names: Vec<&str> = rules::all().filter(|r| usual.allows(r)).map(|r| r.name).collect();
    let kept = names.iter().zip(bits.iter().cycle()).filter(|(_, keep)| **keep);
    LawSet::only(kept.map(|(name, _)| *name)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_set_of_laws_keeps_the_meaning(bits in prop::collection::vec(any::<bool>(), 97)) {
        let programs = programs();
        prop_assert!(!programs.is_empty());
        let options = Options { laws: subset(&bits), ..Options::default() };
        for target in ["cpu", "h200"] {
            let target = hadal_ir::target::Target::by_name(target).unwrap();
            for module in &programs {
                let (fused, program) = compile(module, &target, &options).unwrap();
                let before = sequence(module);
                assert_all_close(&before, &sequence(&fused.optimised), 1e-8, "optimised");
                assert_all_close(&before, &planned_sequence(module, &program), 1e-3, "planned");
                // No law is used that was not allowed.
                let used = fused.module.funcs.iter().flat_map(|f| &f.insts).flat_map(|i| &i.laws);
                for law in used {
                    prop_assert!(options.laws.names().any(|n| n == law), "{law}");
                }
            }
        }
    }
}

#[test]
fn no_laws_at_all_is_a_set_too() {
    for module in programs() {
        let options = Options { laws: LawSet::only([]).unwrap(), ..Options::default() };
        let (fused, _) = compile(&module, &cpu(), &options).unwrap();
        assert!(fused.module.funcs.iter().flat_map(|f| &f.insts).all(|i| i.laws.is_empty()));
        assert_all_close(&sequence(&module), &sequence(&fused.module), 1e-8, "fused");
    }
}
