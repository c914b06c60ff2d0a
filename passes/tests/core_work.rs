//! The work of latent attention at the size of a large model, from the query's low-rank row to the output projection,
//! without rotated channels: what is written, and what is chosen, in operations.
//!
//! By hand, with H = 128 heads, n = v = 128, latent rows of c = 512, queries from rows of 1536, outputs of 7168, and
//! two operations for a multiply-add:
//!
//! ```text
//! projections  2·T·(1536·H·n + H·v·7168)
//! expanded     2·S·c·H·(n + v)  +  2·T·S·H·(n + v)
//! absorbed     2·T·c·H·(n + v)  +  2·T·S·H·(c + c)
//! ```

use crate::common::*;
use hadal_ir::target::{Peaks, Target};
use hadal_passes::{Options, optimise};

const CORE: &str = r#"symbols P in 0..65536, T in 1..8192
func @core(%x: f32[T, 1536], %c: f32[P+T, 512]) -> (y: f32[T, 7168]) {
  weight %wq = "q_b" : bf16[16384, 1536]
  weight %w = "kv_b" : bf16[32768, 512]
  weight %wo = "o" : bf16[7168, 16384]
  %q0 = contract %x, %wq {spec = "td,fd->tf"} : f32[T, 16384]
  %q = reshape %q0 {shape = [T, 128, 128]} : f32[T, 128, 128]
  %kv0 = contract %c, %w {spec = "sc,fc->sf"} : f32[P+T, 32768]
  %kv = reshape %kv0 {shape = [P+T, 128, 256]} : f32[P+T, 128, 256]
  %k = slice %kv {axis = 2, start = 0, len = 128} : f32[P+T, 128, 128]
  %v = slice %kv {axis = 2, start = 128, len = 128} : f32[P+T, 128, 128]
  %s0 = contract %q, %k {spec = "thd,shd->hts"} : f32[128, T, P+T]
  %f = constant {value = 0.07, dtype = f32} : f32[]
  %fb = broadcast %f {shape = [128, T, P+T], dims = []} : f32[128, T, P+T]
  %s1 = mul %s0, %fb : f32[128, T, P+T]
  %s2 = causal_mask %s1 {query = 1, key = 2} : f32[128, T, P+T]
  %p = softmax %s2 : f32[128, T, P+T]
  %o0 = contract %p, %v {spec = "hts,shv->thv"} : f32[T, 128, 128]
  %o = reshape %o0 {shape = [T, 16384]} : f32[T, 16384]
  %y = contract %o, %wo {spec = "td,fd->tf"} : f32[T, 7168]
  return %y
}
"#;

/// GFLOP as written and as chosen, where only operations count.
fn work(t: i64, s: i64) -> (f64, f64) {
    let target = Target {
        flops: Peaks::flat(1e9),
        bandwidth: 1e30,
        cache_bandwidth: 1e30,
        memory_bytes: u64::MAX,
        launch_seconds: 0.0,
        ..Target::by_name("cpu").unwrap()
    };
    let text = format!("{CORE}entry e = @core where P in 0..{}, T = {t}", s - t);
    let options = Options { typical_context: s, versions: false, ..Options::default() };
    let fused = optimise(&parse(&text), &target, &options).unwrap();
    let search = fused.reports.iter().find_map(|r| r.details.searches.first()).unwrap();
    (search.before, search.after)
}

/// Within one percent: softmax adds seven operations a score, 15 GFLOP of the 2405.
#[track_caller]
fn about(found: f64, expected: f64) {
    assert!((found / expected - 1.0).abs() < 1e-2, "{found} GFLOP, about {expected} expected");
}

#[test]
fn decode_absorbs_and_prefill_does_not() {
    let (written, chosen) = work(1, 4096);
    about(written, 138.0);
    about(chosen, 1.39);
    let (written, chosen) = work(4096, 4096);
    about(written, 2405.0);
    about(chosen, 2405.0);
    let (written, chosen) = work(128, 32768);
    about(written, 1411.0);
    about(chosen, 1140.0);
}
