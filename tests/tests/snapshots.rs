//! What each stage makes of a tiny DeepSeek-V3 (one dense layer, one of experts), kept as text: the graph, the
//! optimised graph, kernel functions, the kernel IR of two, and the plan. A change of any of them shows as a diff to be
//! read; `INSTA_UPDATE=always cargo test -p hadal-tests --test all snapshots::` accepts it.

use hadal::commands::dump::{Stage, stage_text};
use hadal::{Compiled, Input, Options, compile};
use hadal_ir::Sym;
use hadal_ir::module::{Func, InstKind, STEP};
use hadal_ir::ops::Op;
use hadal_tests::root;
use std::sync::LazyLock;

static TINY: LazyLock<Compiled> = LazyLock::new(|| {
    let input = Input::open(&root().join("tests/tests/data/tiny-v3/config.json")).expect("a configuration");
    let options = Options { max_context: Some(1024), max_chunk: 512, ..Options::default() };
    compile(&input, &options).expect("compiles")
});

fn text(stage: Stage, entry: &str) -> String {
    stage_text(&TINY, stage, Some(entry)).expect("a text")
}

#[test]
fn graph() {
    // Steps begin as the function of calls that want the logits of every token.
    let body = |entry: &str| text(Stage::Graph, entry).replace(&format!("entry {entry} ="), "entry");
    let without_entry = |t: String| t.lines().filter(|l| !l.starts_with("entry")).collect::<Vec<_>>().join("\n");
    assert_eq!(without_entry(body("logits")), without_entry(body("decode")));
    insta::assert_snapshot!("graph", text(Stage::Graph, "decode"));
}

#[test]
fn optimized() {
    insta::assert_snapshot!("optimized-prefill", text(Stage::Optimized, "prefill"));
    insta::assert_snapshot!("optimized-decode", text(Stage::Optimized, "decode"));
}

/// Attention ops that the functions of an entry hold, with the function.
fn attentions(entry: &str) -> Vec<(&'static Func, &'static hadal_ir::module::Inst)> {
    let printed = text(Stage::Optimized, entry);
    let all = TINY.optimised.funcs.iter().filter(|f| printed.contains(&format!("func @{}(", f.name)));
    all.flat_map(|f| f.insts.iter().map(move |i| (f, i)))
        .filter(|(_, i)| matches!(i.kind, InstKind::Op(Op::Attention(_))))
        .collect()
}

/// In decode the keys and values of attention are the latent rows themselves, `[P+T, 32]`; in prefill, where a layer
/// has queries of many rows, they have been expanded to heads. For few new tokens prefill does as decode.
#[test]
fn absorption_is_found_in_decode_only() {
    let most =
        |name: &str| TINY.optimised.versions(name).map(|e| TINY.optimised.ranges(e)[&Sym::T].max).collect::<Vec<_>>();
    assert_eq!((most("decode"), most("prefill").len()), (vec![1, 2, STEP], 2), "{:?}", most("prefill"));
    for (entry, layers) in [("decode", 6), ("prefill", 4)] {
        let found = attentions(entry);
        assert_eq!(found.len(), layers, "{entry}: one attention in each kind of layer, and version");
        for (func, inst) in found {
            // Queries and keys of the first term, and at the end the values.
            let key = func.ty(inst.args[1]);
            let value = func.ty(*inst.args.last().expect("operands"));
            let many = func.name.ends_with(".2");
            let rank = if many { 3 } else { 2 };
            assert_eq!((key.rank(), value.rank()), (rank, rank), "{entry}, @{}: keys {key}, values {value}", func.name);
        }
    }
    for entry in ["decode", "prefill"] {
        assert!(!text(Stage::Graph, entry).contains("attention {"), "no model holds the fused form");
    }
}

#[test]
fn kernels() {
    let functions = |entry: &str| {
        let all = text(Stage::Kernels, entry);
        all.split("\n// ").next().expect("text").to_owned()
    };
    insta::assert_snapshot!("kernels-prefill", functions("prefill"));
    insta::assert_snapshot!("kernels-decode", functions("decode"));
}

#[test]
fn kernel_ir() {
    let decode = TINY.program.plan("decode").expect("an entry");
    let of = |generator: &str| {
        let used = |name: &str| decode.launches.iter().any(|l| l.kernel == name);
        let all = TINY.kernels().iter().filter(|k| k.generated.generator == generator && used(&k.func));
        let text = all.map(|k| format!("// {}\n{}", k.generated.schedule, k.generated.kernel));
        text.min_by_key(|t| t.lines().count()).unwrap_or_else(|| panic!("no kernel of `{generator}`"))
    };
    insta::assert_snapshot!("kernel-ir-loops", of("loops"));
    insta::assert_snapshot!("kernel-ir-contract", of("contract"));
}

#[test]
fn plan() {
    insta::assert_snapshot!("plan-prefill", text(Stage::Plan, "prefill"));
    insta::assert_snapshot!("plan-decode", text(Stage::Plan, "decode"));
}
