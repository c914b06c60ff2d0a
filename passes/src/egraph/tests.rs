//! The search as a whole, on a small function with latent attention.

use super::*;
use crate::rules::PhaseLimits;
use hadal_ir::text::parse_module;
use hadal_ir::{InstKind, Sym, Tensor};

fn noise(ty: &TensorType, bindings: &Bindings, seed: usize) -> Tensor {
    let shape = ty.eval_shape(bindings).unwrap();
    let n: usize = shape.iter().product();
    let values = (0..n).map(|i| ((i * 7919 + seed * 104729 + 13) % 1009) as f64 / 500.0 - 1.0);
    Tensor::real(ty.dtype, &shape, values.map(|v| ty.dtype.round(v)).collect())
}

/// A context with nothing unusual about it.
fn with_context<R>(limits: Limits, run: impl FnOnce(&Context) -> R) -> R {
    let target = Target::by_name("cpu").unwrap();
    let (bounds, options) = (Bounds::default(), Options { limits, ..Options::default() });
    run(&Context::of(&target, &bounds, &options))
}

/// Evaluates all nodes of all classes, each over any values found for its operands: all must agree.
fn every_node_agrees(text: &str, bindings: &Bindings) -> usize {
    with_context(Limits::default(), |context| {
        let module = parse_module(text).unwrap();
        let mut space = Space::of(&module.funcs[0], context);
        let reports = space.saturate(rules::PHASES);
        assert!(reports.iter().all(|p| p.stop == Stop::Saturated && p.banned.is_empty()), "{reports:?}");
        agreeing(&space.graph, bindings)
    })
}

fn agreeing(graph: &Graph, bindings: &Bindings) -> usize {
    let mut values: BTreeMap<Id, Tensor> = BTreeMap::new();
    let mut checked: BTreeSet<Node> = BTreeSet::new();
    let mut changed = true;
    while std::mem::take(&mut changed) {
        for class in graph.classes() {
            for node in &class.nodes {
                let args: Option<Vec<&Tensor>> = node.args.iter().map(|a| values.get(&graph.find(*a))).collect();
                let Some(args) = args.filter(|_| !checked.contains(node)) else { continue };
                let value = match &node.head {
                    Head::Input(v) => noise(&class.data.ty, bindings, v.index()),
                    Head::Op(op) => op.eval(&args, &class.data.ty, bindings),
                };
                if let Some(known) = values.get(&class.id) {
                    assert_eq!(known.shape, value.shape);
                    for i in 0..known.len() {
                        let (x, y) = (known.at(i), value.at(i));
                        assert!(x == y || (x - y).abs() < 1e-9 * (1.0 + x.abs()), "{node:?}: {x} and {y}");
                    }
                } else {
                    values.insert(class.id, value);
                }
                checked.insert(node.clone());
                changed = true;
            }
        }
    }
    assert!(graph.classes().all(|c| c.nodes.iter().all(|n| checked.contains(n))));
    graph.total_number_of_nodes()
}

const LATENT: &str = r#"symbols P in 0..9, T in 1..9
    func @f(%x: f32[T, 5], %qr: f32[T, 2, 2], %c: f32[P+T, 3], %r: f32[P+T, 2]) -> (o: f32[T, 4]) {
      weight %wq = "q" : f32[6, 5]
      weight %w = "kv_b" : f32[8, 3]
      weight %wo = "o" : f32[4, 2]
      %q0 = contract %x, %wq {spec = "td,fd->tf"} : f32[T, 6]
      %q1 = reshape %q0 {shape = [T, 2, 3]} : f32[T, 2, 3]
      %q = concat %q1, %qr {axis = 2} : f32[T, 2, 5]
      %kv0 = contract %c, %w {spec = "sc,fc->sf"} : f32[P+T, 8]
      %kv = reshape %kv0 {shape = [P+T, 2, 4]} : f32[P+T, 2, 4]
      %kn = slice %kv {axis = 2, start = 0, len = 3} : f32[P+T, 2, 3]
      %v = slice %kv {axis = 2, start = 3, len = 1} : f32[P+T, 2, 1]
      %rb = broadcast %r {shape = [P+T, 2, 2], dims = [0, 2]} : f32[P+T, 2, 2]
      %k = concat %kn, %rb {axis = 2} : f32[P+T, 2, 5]
      %s0 = contract %q, %k {spec = "thd,shd->hts"} : f32[2, T, P+T]
      %f = constant {value = 0.4, dtype = f32} : f32[]
      %fb = broadcast %f {shape = [2, T, P+T], dims = []} : f32[2, T, P+T]
      %s1 = mul %s0, %fb : f32[2, T, P+T]
      %s2 = causal_mask %s1 {query = 1, key = 2} : f32[2, T, P+T]
      %p = softmax %s2 : f32[2, T, P+T]
      %o = contract %p, %v {spec = "hts,shv->thv"} : f32[T, 2, 1]
      %of = reshape %o {shape = [T, 2]} : f32[T, 2]
      %y = contract %of, %wo {spec = "td,fd->tf"} : f32[T, 4]
      return %y
    }"#;

#[test]
fn all_that_is_found_is_equal() {
    for (p, t) in [(0, 1), (0, 4), (3, 2), (5, 1)] {
        let nodes = every_node_agrees(LATENT, &Bindings::from([(Sym::P, p), (Sym::T, t)]));
        assert!((60..300).contains(&nodes), "{nodes} nodes");
    }
}

#[test]
fn limits_are_kept() {
    let module = parse_module(LATENT).unwrap();
    let bindings = Bindings::from([(Sym::P, 5), (Sym::T, 1)]);
    let stop = |limits| {
        with_context(limits, |context| func(&module.funcs[0], context, &bindings, &mut Fired::new()).unwrap().1.stop)
    };
    assert_eq!(stop(Limits { nodes: 40, rounds: 12 }), Stop::Nodes);
    assert_eq!(stop(Limits { nodes: 20_000, rounds: 1 }), Stop::Rounds);
    assert_eq!(stop(Limits::default()), Stop::Saturated);
}

#[test]
fn ops_remember_the_laws_that_made_them() {
    let module = parse_module(LATENT).unwrap();
    let bindings = Bindings::from([(Sym::P, 4095), (Sym::T, 1)]);
    let new = with_context(Limits::default(), |context| {
        func(&module.funcs[0], context, &bindings, &mut Fired::new()).unwrap().0
    });
    let attention = new.insts.iter().find(|i| matches!(i.kind, InstKind::Op(Op::Attention(_)))).unwrap();
    assert!(attention.laws.contains(&"distribute-over-concat".to_owned()), "{:?}", attention.laws);
    assert_eq!(attention.laws.last().unwrap(), "select-attention");
    // What was written has no laws behind it.
    let first = new.insts.iter().find(|i| new.values[i.results[0].index()].name.as_deref() == Some("q0")).unwrap();
    assert!(first.laws.is_empty());
}

#[test]
fn eager_laws_are_banned() {
    let phase = &rules::PHASES.iter().find(|p| p.name == "algebra").unwrap();
    let few = Phase { limits: PhaseLimits { matches: 2, ..phase.limits }, ..**phase };
    let module = parse_module(LATENT).unwrap();
    let of = |phase: Phase| {
        let phases = Box::leak(Box::new([phase]));
        with_context(Limits::default(), |context| Space::of(&module.funcs[0], context).saturate(phases).remove(0))
    };
    let (free, report) = (of(**phase), of(few));
    assert!(free.banned.is_empty());
    // What is left still saturates, and the banned ones did less.
    assert_eq!(report.stop, Stop::Saturated);
    assert!(report.banned.contains(&"gather-contractions"), "{report:?}");
    assert!(report.fired["gather-contractions"] < free.fired["gather-contractions"], "{report:?} {free:?}");
}

#[test]
fn what_does_not_fit_is_not_chosen() {
    let module = parse_module(LATENT).unwrap();
    let bindings = Bindings::from([(Sym::P, 4095), (Sym::T, 1)]);
    let options = Options { max_context: Some(4096), ..Options::default() };
    let target = Target { memory_bytes: 1 << 30, ..Target::by_name("cpu").unwrap() };
    let bounds = Bounds::of(&parse_module(&LATENT.replace("P in 0..9", "P in 0..4095")).unwrap(), "f", &options);
    let run = |room: f64, laws: LawSet| {
        let options = Options { laws, ..options.clone() };
        let context = Context { room, ..Context::of(&target, &bounds, &options) };
        func(&module.funcs[0], &context, &bindings, &mut Fired::new())
    };
    let ample = run(1e9, LawSet::default()).unwrap();
    assert!(ample.1.too_large.is_empty());
    // Without attention as one op there are scores of two heads, nine queries and all rows.
    let without = LawSet::default().without(["select-attention"]).unwrap();
    assert!(run(1e9, without.clone()).is_ok());
    let error = run(100e3, without).unwrap_err();
    assert!(matches!(&error, Error::NoRoom { value, .. } if value.contains("P+T")), "{error}");
    // With it there is a way.
    let tight = run(100e3, LawSet::default()).unwrap();
    assert!(tight.0.insts.iter().any(|i| matches!(i.kind, InstKind::Op(Op::Attention(_)))));
}

#[test]
fn without_a_finite_cost_nothing_is_said_of_room() {
    let module = parse_module(LATENT).unwrap();
    let run = |context: &Context| func(&module.funcs[0], context, &Bindings::new(), &mut Fired::new()).map(|_| ());
    assert_eq!(with_context(Limits::default(), run), Err(Error::NoChoice { func: "f".into() }));
}

#[test]
fn explanations_name_what_lost() {
    let module = parse_module(LATENT).unwrap();
    let bindings = Bindings::from([(Sym::P, 4095), (Sym::T, 1)]);
    let explanation = with_context(Limits::default(), |context| {
        let context = Context { explain: true, ..*context };
        func(&module.funcs[0], &context, &bindings, &mut Fired::new()).unwrap().2.unwrap()
    });
    let attention = explanation.forms.iter().find(|f| f.text.starts_with("attention")).unwrap();
    let other = attention.runner_up.as_ref().unwrap();
    assert!(other.cost >= explanation.cost && other.text != attention.text, "{explanation:?}");
    let used = |name| explanation.laws.iter().find(|l| l.law == name).unwrap();
    assert!(used("select-attention").chosen > 0 && used("select-attention").fired > 0);
    assert!(explanation.laws.iter().filter_map(|l| l.lost.as_ref()).all(|l| l.cost >= explanation.cost * (1.0 - 1e-9)));
}

#[test]
fn preferences_change_with_the_sizes() {
    let module = parse_module(LATENT).unwrap();
    let at = |p, t| Bindings::from([(Sym::P, p), (Sym::T, t)]);
    with_context(Limits::default(), |context| {
        let all = Preferences::of(&module.funcs[0], context).unwrap();
        let (few, many) = (all.best(&at(4095, 1)).unwrap(), all.best(&at(0, 4096)).unwrap());
        assert_eq!(all.best(&at(4095, 1)).unwrap(), few);
        assert_eq!(all.cost(&few, &at(4095, 1)), few.cost);
        for (p, t) in [(4095, 1), (0, 4096), (100, 100)] {
            let best = all.best(&at(p, t)).unwrap().cost;
            for other in [&few, &many] {
                assert!(best <= all.cost(other, &at(p, t)) * (1.0 + 1e-9));
            }
        }
    });
}

/// Seconds of a function on a machine that reads a byte a second from memory and nothing else takes time.
fn bytes_read(text: &str, p: i64, t: i64) -> f64 {
    let module = parse_module(&format!("symbols P in 0..4096, T in 1..64\n{text}")).unwrap();
    let never = 1e30;
    let cpu = Target::by_name("cpu").unwrap();
    let flops = hadal_ir::target::Peaks::flat(never);
    let target = Target { flops, bandwidth: 1.0, cache_bandwidth: never, launch_seconds: 0.0, ..cpu };
    let (bounds, options) = (Bounds::default(), Options::default());
    let bindings = Bindings::from([(Sym::P, p), (Sym::T, t)]);
    func(&module.funcs[0], &Context::of(&target, &bounds, &options), &bindings, &mut Fired::new()).unwrap().1.before
}

#[test]
fn attention_costs_the_rows_that_are_seen() {
    let of = |rows: &str, more: &str, setup: &str| {
        format!(
            "func @f(%q: f32[T, 2, 8], %i: i32[T, 16]) -> (o: f32[T, 2, 8]) {{
              state %c = \"c\" : bf16[P, 8]
              {setup}
              %o = attention %q, %c, %c{more} {{sets = [\"tha,sa sa {rows}\"], output = \"tha\", scale = 1.0, \
               sink = false}} : f32[T, 2, 8]
              next %c = %c
              return %o }}"
        )
    };
    let row = 16.0;
    // Keys that are values too are read once.
    assert_eq!(bytes_read(&of("all", "", ""), 1000, 1), 1000.0 * row);
    // As many rows as there are places, for both heads together.
    assert_eq!(bytes_read(&of("selected:ts", ", %i", ""), 1000, 1), 16.0 * row);
    // What fits into the cache comes from memory once.
    assert_eq!(bytes_read(&of("selected:ts", ", %i", ""), 100, 64), 100.0 * row);
    // A window of eight rows, for three queries in a row.
    let window = "%lo = iota {len = T, start = P-10} : i32[T]
              %hi = iota {len = T, start = P-2} : i32[T]";
    assert_eq!(bytes_read(&of("interval:t,t", ", %lo, %hi", window), 1000, 3), 10.0 * row);
}
