//! Choices for several sequences at once: weights are read once for all of them, everything else is there for each.

use crate::common::*;
use hadal_ir::target::Target;
use hadal_ir::{InstKind, Module, Op};
use hadal_passes::{Error, Options, optimise};

/// Two products in a row, of one new token.
const TWO: &str = r#"symbols P in 0..4096, T in 1..16
func @f(%x: bf16[T, 2048]) -> (y: f32[T, 2048]) {
  weight %down = "down" : bf16[2048, 2048]
  weight %up = "up" : bf16[2048, 2048]
  %0 = contract %x, %down {spec = "td,rd->tr"} : f32[T, 2048]
  %1 = contract %0, %up {spec = "tr,er->te"} : f32[T, 2048]
  return %1 }
entry decode = @f where T = 1"#;

/// Queries of 32 heads against the rows of a state, over two sums that can be nested either way.
const ABSORBED: &str = r#"symbols P in 0..4096, T in 1..16
func @f(%q: bf16[T, 32, 128], %c1: bf16[T, 512]) -> (s: f32[32, T, P+T]) {
  weight %up = "up" : bf16[32, 128, 512]
  state %c0 = "c" : bf16[P, 512]
  %c = append %c0, %c1 : bf16[P+T, 512]
  %k = contract %c, %up {spec = "sc,hnc->shn"} : f32[P+T, 32, 128]
  %s = contract %q, %k {spec = "thn,shn->hts"} : f32[32, T, P+T]
  next %c0 = %c
  return %s }
entry decode = @f where T = 1"#;

fn for_batch(text: &str, batch: u64, target: &Target) -> Result<(Module, f64), Error> {
    let options = Options { batch, ..Options::default() };
    let fused = optimise(&parse(text), target, &options)?;
    let search = fused.reports.iter().find_map(|r| r.details.searches.first()).unwrap().clone();
    Ok((fused.optimised, search.after))
}

/// Whether a product of two weights is computed when compiling.
fn folded(module: &Module) -> bool {
    let func = &module.funcs[0];
    let weight = |v: &hadal_ir::ValueId| func.weights.iter().any(|w| w.value == *v);
    let products = func.insts.iter().filter(|i| matches!(i.kind, InstKind::Op(Op::Contract(_))));
    products.filter(|i| i.args.iter().all(weight)).count() > 0
}

#[test]
fn two_products_are_kept_for_one_sequence_and_folded_for_many() {
    let target = Target::by_name("h200").unwrap();
    let of = |batch| for_batch(TWO, batch, &target).unwrap();
    // One product of f32 is as many bytes as two of bf16, and has to be stored; but it is half the work.
    let (one, many) = (of(1), of(16_384));
    assert!(!folded(&one.0) && folded(&many.0));
    assert!(one.1 < many.1 && many.1 < 16_384.0 * one.1);
}

#[test]
fn states_and_work_are_there_for_each_sequence_and_weights_once() {
    // So that only traffic or only work is left.
    let cpu = Target::by_name("cpu").unwrap();
    let idle = Target { launch_seconds: 0.0, ..cpu };
    let work = Target { bandwidth: 1e30, cache_bandwidth: 1e30, ..idle.clone() };
    let cost = |text: &str, batch, target: &Target| for_batch(text, batch, target).unwrap().1;
    #[track_caller]
    fn near(x: f64, y: f64) {
        assert!((x / y - 1.0).abs() < 1e-6, "{x} and {y}");
    }
    for text in [TWO, ABSORBED] {
        near(cost(text, 64, &work), 64.0 * cost(text, 1, &work));
    }
    // The weights are most of what is read.
    let flops = hadal_ir::target::Peaks::flat(1e30);
    let traffic = Target { flops, cache_bandwidth: 1e30, cache_bytes: u64::MAX, ..idle };
    near(cost(TWO, 2, &traffic), cost(TWO, 1, &traffic));
    let states = cost(ABSORBED, 3, &traffic) - cost(ABSORBED, 2, &traffic);
    near(states, cost(ABSORBED, 2, &traffic) - cost(ABSORBED, 1, &traffic));
    // 4096 rows are read and one is written.
    near(states, (4096.0 * 512.0 * 2.0 + 512.0 * 2.0) / traffic.bandwidth);
}

#[test]
fn values_of_all_sequences_need_memory() {
    // Scores of 4096 rows in 32 heads, for each of so many sequences.
    let target = Target { memory_bytes: 8 << 30, ..Target::by_name("h200").unwrap() };
    assert!(for_batch(ABSORBED, 64, &target).is_ok());
    let Err(Error::NoRoom { room, .. }) = for_batch(ABSORBED, 1 << 20, &target) else { panic!("it fits") };
    assert_eq!(room, 8 << 30);
}
