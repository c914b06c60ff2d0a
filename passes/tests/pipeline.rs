//! Whole pipeline: evaluation before and after each step agrees, and the plan runs.

use crate::common::*;
use hadal_ir::text::{parse_module, print_module};
use hadal_passes::{Options, compile};

const LATENT: &str = include_str!("hir/latent.hir");

#[test]
fn every_stage_computes_the_same() {
    let module = parse(LATENT);
    let before = sequence(&module);
    let (fused, program) = compile(&module, &cpu(), &Options::default()).unwrap();
    for r in &fused.reports {
        println!("{r}");
    }
    println!("{}", print_module(&fused.optimised));
    assert_all_close(&before, &sequence(&fused.optimised), 1e-9, "optimised");
    assert_all_close(&before, &sequence(&fused.module), 1e-9, "fused");
    assert_all_close(&before, &planned_sequence(&module, &program), 1e-4, "planned");
    for m in [&fused.optimised, &fused.module] {
        let text = print_module(m);
        assert_eq!(print_module(&parse_module(&text).unwrap()), text);
    }
}
