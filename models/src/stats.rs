//! What a model weighs and costs, counted on its graph.
//!
//! Nothing is a formula per architecture: parameters are the weights that entries read, a weight that is only read by
//! `gather` counts with the rows that one token chooses, and FLOPs are those of the ops as the graph has them. On a
//! model's own graph that is the plain form; [`cost`] counts an optimised module in the same way.

use crate::model::{Model, Param, params};
use hadal_ir::module::{Func, InstKind, Module, State};
use hadal_ir::ops::Op;
use hadal_types::{Bindings, DType, Sym};
use std::collections::{BTreeMap, BTreeSet};

/// Ends of the names of what a layer for multi-token prediction has copies of.
const COPIES: [&str; 3] = [".embed_tokens.weight", ".tok_emb.weight", ".head.weight"];

/// Sizes of a model.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Stats {
    /// Parameters of the main model, scales of quantised weights not counted.
    pub main: u64,
    /// Of those, read for one token: of embedding and experts only the rows chosen.
    pub active: u64,
    /// Of all, those in tables of n-grams.
    pub tables: u64,
    /// Parameters of the multi-token prediction layers that are their own.
    pub mtp: u64,
    /// Their copies of the embedding and the head.
    pub mtp_copies: u64,
    /// Scales of quantised weights.
    pub scales: u64,
    /// Tensors that all of it is stored in.
    pub tensors: u64,
    /// Bytes in each format, over everything.
    pub bytes: Vec<(DType, u64)>,
    /// Elements that the main model's states grow by with every token, on average and rounded down.
    pub state_elements: u64,
    /// The same for the multi-token prediction layers.
    pub mtp_state_elements: u64,
    /// Bytes that the main model's states grow by with every token, in the formats that the graph was built with.
    pub state_bytes: u64,
    /// Bytes of the main model's states that do not grow: windows of the last rows.
    pub window_bytes: u64,
}

impl Stats {
    /// Bytes that the main model's states grow by with every token, were they all in `dtype`.
    pub fn state_bytes_per_token(&self, dtype: DType) -> u64 {
        dtype.bytes(self.state_elements)
    }

    /// Elements of all stored tensors: parameters, copies and scales.
    pub fn stored_elements(&self) -> u64 {
        self.main + self.mtp + self.mtp_copies + self.scales
    }

    /// Bytes of all weights.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.iter().map(|(_, n)| n).sum()
    }
}

/// What one call of an entry costs.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Cost {
    /// Floating-point operations, a multiply-add counting two; what depends on weights alone is not counted.
    pub flops: f64,
    /// Bytes of weights read, of stacks only what is chosen (at most: tokens may choose the same).
    pub weight_bytes: f64,
    /// Bytes of states read.
    pub state_bytes_read: f64,
    /// Bytes of states written.
    pub state_bytes_written: f64,
}

impl Cost {
    /// All bytes moved.
    pub fn bytes(&self) -> f64 {
        self.weight_bytes + self.state_bytes_read + self.state_bytes_written
    }
}

/// Counts a model's sizes.
pub fn stats(model: &Model) -> Stats {
    let module = &model.module;
    let drafts = |name: &str| ["mtp", "draft", "markov"].iter().any(|start| name.starts_with(start));
    let roots = |wanted: bool| {
        let chosen = module.entries.iter().filter(move |e| drafts(&e.name) == wanted);
        chosen.map(|e| e.func.as_str())
    };
    let stored = |p: &Param| !model.made.contains_key(&p.name);
    let mut main = params(module, roots(false));
    main.retain(stored);
    let main_names: BTreeSet<&str> = main.iter().map(|p| p.name.as_str()).collect();
    let (copies, own): (Vec<_>, Vec<_>) = params(module, roots(true))
        .into_iter()
        .filter(|p| stored(p) && !main_names.contains(p.name.as_str()))
        .partition(|p| COPIES.iter().any(|end| p.name.ends_with(end)));
    let is_scale = |p: &&Param| p.scale;
    let sum = |all: &[Param]| all.iter().filter(|p| !is_scale(p)).map(elements).sum();
    let mut bytes: Vec<(DType, u64)> = Vec::new();
    for p in model.params.iter().filter(|p| stored(p)) {
        let n = p.ty.dtype.bytes(elements(p));
        match bytes.iter_mut().find(|(d, _)| *d == p.ty.dtype) {
            Some((_, sum)) => *sum += n,
            None => bytes.push((p.ty.dtype, n)),
        }
    }
    bytes.sort_by_key(|(_, n)| std::cmp::Reverse(*n));

    let one = module.complete(&[(Sym::T, 1), (Sym::P, 0)].into());
    let mut active = BTreeMap::new();
    if let Some(entry) = module.entry("decode") {
        visit(module, &entry.func, "", &mut |prefix, func| {
            for (w, part) in func.weights.iter().zip(parts_read(func, &one)) {
                let known = active.entry(format!("{prefix}{}", w.name)).or_insert(0.0_f64);
                *known = known.max(part);
            }
        });
    }
    let read = |p: &Param| (elements(p) as f64 * active.get(&p.name).copied().unwrap_or(0.0)).round() as u64;

    Stats {
        main: sum(&main),
        active: main.iter().filter(|p| !is_scale(p)).map(read).sum(),
        mtp: sum(&own),
        mtp_copies: sum(&copies),
        scales: model.params.iter().filter(is_scale).map(elements).sum(),
        tensors: model.params.iter().filter(|p| stored(p)).map(|p| p.tensors().len() as u64).sum(),
        bytes,
        tables: main.iter().filter(|p| is_table(model, p)).map(elements).sum(),
        state_elements: state_growth(module, roots(false), |_| 1.0),
        mtp_state_elements: state_growth(module, roots(true), |_| 1.0),
        state_bytes: state_growth(module, roots(false), bytes_each),
        window_bytes: roots(false).next().map_or(0, |root| windows(module, root)),
    }
}

/// Counts one call of `entry` with `tokens` new tokens after `past` others; `None` if there is no such entry.
pub fn cost(module: &Module, entry: &str, tokens: usize, past: usize) -> Option<Cost> {
    let bindings = module.complete(&[(Sym::T, tokens as i64), (Sym::P, past as i64)].into());
    let mut total = Cost::default();
    visit(module, &module.version(entry, &bindings)?.func, "", &mut |_, func| {
        let count = |v| func.ty(v).count(&bindings).unwrap_or(0.0);
        let bytes = |v, n: f64| func.ty(v).dtype.bytes(n as u64) as f64;
        total.flops += flops(func, &bindings);
        for (w, part) in func.weights.iter().zip(parts_read(func, &bindings)) {
            total.weight_bytes += bytes(w.value, count(w.value) * part);
        }
        for s in &func.states {
            total.state_bytes_read += bytes(s.value, count(s.value));
            total.state_bytes_written += bytes(s.next, count(s.next) - count(s.value));
        }
    });
    Some(total)
}

fn elements(p: &Param) -> u64 {
    p.ty.count(&Bindings::new()).map_or(0, |n| n as u64)
}

/// Calls `f` with every instance of every function that `root` reaches.
fn visit(module: &Module, root: &str, prefix: &str, f: &mut impl FnMut(&str, &Func)) {
    let Some(func) = module.func(root) else { return };
    f(prefix, func);
    for inst in &func.insts {
        if let InstKind::Call(call) = &inst.kind {
            visit(module, &call.func, &format!("{prefix}{}", call.prefix), f);
        }
    }
}

fn bytes_each(dtype: DType) -> f64 {
    dtype.bits() as f64 / 8.0
}

/// Whether `p` is a table of n-grams: it has as many rows as the primes of a layer make together.
fn is_table(model: &Model, p: &Param) -> bool {
    let rows = p.ty.shape[0].as_const().and_then(|n| u64::try_from(n).ok());
    let tables = model.hashing.iter().flat_map(|h| h.primes());
    !p.scale && p.ty.rank() == 2 && tables.into_iter().any(|primes| Some(primes.iter().sum()) == rows)
}

/// What the states reached from `roots` grow by with every token, where `each` says what an element counts.
fn state_growth<'a>(module: &Module, roots: impl Iterator<Item = &'a str>, each: impl Fn(DType) -> f64) -> u64 {
    let mut grows = BTreeMap::new();
    for root in roots {
        visit(module, root, "", &mut |prefix, func| {
            for s in &func.states {
                let (rate, elements) = rows(module, func, s);
                grows.insert(format!("{prefix}{}", s.name), rate * elements * each(func.ty(s.value).dtype));
            }
        });
    }
    let sum: f64 = grows.values().sum();
    // Rates are sums of fractions such as 1/3, which should not lose a byte.
    (sum + 1e-6) as u64
}

/// Bytes of the states reached from `root` that do not grow.
fn windows(module: &Module, root: &str) -> u64 {
    let mut sum = 0.0;
    visit(module, root, "", &mut |_, func| {
        for s in &func.states {
            let kept = func.ty(s.value).shape.first().and_then(|d| d.as_const()).unwrap_or(0);
            sum += kept as f64 * rows(module, func, s).1 * bytes_each(func.ty(s.value).dtype);
        }
    });
    sum as u64
}

/// Rows of a state for each token, and elements of a row.
fn rows(module: &Module, func: &Func, state: &State) -> (f64, f64) {
    let ty = func.ty(state.value);
    let rate = ty.shape.first().map_or(0.0, |d| module.definitions.per_token(d));
    (rate, ty.shape.iter().skip(1).map(|d| d.as_const().unwrap_or(0) as f64).product())
}

/// For every value, the weights it is made of, where it is made of weights alone.
fn made_of_weights(func: &Func) -> Vec<Option<Vec<usize>>> {
    let mut made: Vec<Option<Vec<usize>>> = vec![None; func.values.len()];
    for (i, w) in func.weights.iter().enumerate() {
        made[w.value.index()] = Some(vec![i]);
    }
    for inst in &func.insts {
        let parts: Option<Vec<&Vec<usize>>> = inst.args.iter().map(|a| made[a.index()].as_ref()).collect();
        if let (InstKind::Op(_), Some(parts)) = (&inst.kind, parts)
            && !parts.is_empty()
        {
            let all = parts.into_iter().flatten().copied().collect();
            made[inst.results[0].index()] = Some(all);
        }
    }
    made
}

/// The part of each weight that a call reads: all of it, or only what `gather` chooses.
fn parts_read(func: &Func, bindings: &Bindings) -> Vec<f64> {
    let made = made_of_weights(func);
    let mut parts = vec![0.0_f64; func.weights.len()];
    let mut read = |value: usize, part: f64| {
        for w in made[value].iter().flatten() {
            parts[*w] = parts[*w].max(part);
        }
    };
    for inst in func.insts.iter().filter(|i| !i.results.iter().all(|r| made[r.index()].is_some())) {
        for (n, arg) in inst.args.iter().enumerate() {
            let part = match (&inst.kind, n) {
                (InstKind::Op(Op::Gather(g)), 0) => {
                    let chosen = func.ty(inst.args[1]).count(bindings).unwrap_or(0.0);
                    let rows = func.ty(*arg).shape[g.axis].eval(bindings).unwrap_or(1) as f64;
                    (chosen / rows.max(1.0)).min(1.0)
                }
                _ => 1.0,
            };
            read(arg.index(), part);
        }
    }
    func.results.iter().for_each(|(_, v)| read(v.index(), 1.0));
    parts
}

fn flops(func: &Func, bindings: &Bindings) -> f64 {
    let made = made_of_weights(func);
    let cost = |inst: &hadal_ir::Inst| match &inst.kind {
        InstKind::Op(op) if !inst.args.is_empty() && made[inst.results[0].index()].is_none() => {
            let args: Vec<_> = inst.args.iter().map(|a| func.ty(*a).clone()).collect();
            op.flops(&args, func.ty(inst.results[0]), bindings)
        }
        _ => 0.0,
    };
    func.insts.iter().map(cost).sum()
}
