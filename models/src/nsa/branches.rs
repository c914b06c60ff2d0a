//! The three branches of native sparse attention (arXiv 2502.11089, section 3.3).
//!
//! ```text
//! o = g_cmp · attention(q, φ_k(K), φ_v(V)) + g_slc · attention(q, K', V' | selected) + g_win · attention(q, K", V" | window)
//! ```
//!
//! with gates `g = σ(x Wg)`, one for every head and branch, and `φ` a small network over the rows of a block, whose
//! blocks may overlap. The compressed branch says which blocks the second one reads: the probabilities it gives to what
//! overlaps a block, summed over the heads that share keys.
//!
//! Everything is masked dense attention; that most of it need not be computed is for the optimiser to find.
//! In comments `R` is the number of compressed rows, `K` that of blocks to select from.

use super::config::Branches;
use crate::blocks::Block;
use crate::blocks::attention::Attention;
use crate::blocks::rope::Angles;
use hadal_ir::module::ValueId;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::reduce::ReduceKind;
use hadal_ir::ops::{Softmax, Transpose};
use hadal_types::{DType, Dim, Sym};

/// More than any sum of probabilities: blocks of such importance are selected first.
const ALWAYS: f64 = 1e30;

/// Native sparse attention and its output projection.
pub(super) fn attention(f: &mut Block<'_>, a: &Attention, b: &Branches, x: ValueId, angles: Angles) -> ValueId {
    let t = Dim::from(Sym::T);
    let (g, h, repeats) = (a.groups, a.head_dim, a.heads / a.groups);
    let grouped: [Dim; 4] = [t.clone(), g.into(), repeats.into(), h.into()];
    let q = f.linear(x, "q_proj", a.heads * h, false);
    let q = f.reshape(q, &[t.clone(), a.heads.into(), h.into()]);
    let q = a.rope.turn(f, q, angles);
    let q = f.reshape(q, &grouped);
    let gates = f.linear(x, "gate_proj", a.heads * 3, false);
    let gates = f.map(MapFn::Sigmoid, &[gates]);
    let gates = f.reshape(gates, &[t.clone(), g.into(), repeats.into(), 3.into()]);
    // The keys, which turn, and the values of a branch.
    let pair = |f: &mut Block<'_>, branch: &str| {
        let [k, v] = ["k", "v"].map(|kind| {
            let rows = f.linear(x, &format!("{kind}_proj_{branch}"), g * h, false);
            f.reshape(rows, &[Dim::from(Sym::T), g.into(), h.into()])
        });
        [a.rope.turn(f, k, angles), v]
    };
    let at = f.iota(t.clone(), Sym::P);

    // 3.3.1 Token compression
    let [k, v] = pair(f, "cmp");
    let (k, v) = (compress(f, b, "k", k), compress(f, b, "v", v));
    let seen = closed(f, b, at);
    let weights = weigh(f, q, k, seen, &[0, 3]);
    let compressed = f.contract("tgrs,sgd->tgrd", &[weights, v]);
    let chosen = select(f, b, weights, at);

    // 3.3.2 Token selection
    let [k, v] = pair(f, "slc");
    let (k, v) = (f.remember("k_slc", k), f.remember("v_slc", v));
    let selected = f.member(chosen, Dim::from(Sym::P) + Sym::T);
    let weights = weigh(f, q, k, selected, &[0, 1, 3]);
    let selected = f.contract("tgrs,sgd->tgrd", &[weights, v]);

    // 3.3.3 Sliding window
    let before = b.window - 1;
    let [k, v] = pair(f, "win");
    let (k, v) = (f.remember_last("k_win", before, k), f.remember_last("v_win", before, v));
    let seen = in_window(f, b, at);
    let weights = weigh(f, q, k, seen, &[0, 3]);
    let window = f.contract("tgrs,sgd->tgrd", &[weights, v]);

    let mut mixed = None;
    for (i, branch) in [compressed, selected, window].into_iter().enumerate() {
        let gate = f.slice(gates, 3, i, 1, 1);
        let gate = f.reshape(gate, &grouped[..3]);
        let gate = f.broadcast(gate, &grouped, &[0, 1, 2]);
        let branch = f.mul(gate, branch);
        mixed = Some(mixed.map_or(branch, |sum| f.add(sum, branch)));
    }
    let mixed = f.reshape(mixed.expect("three branches"), &[t, (a.heads * h).into()]);
    let d = f.size(x, 1);
    f.linear(mixed, "o_proj", d, false)
}

/// `softmax(q kᵀ / √h)` over the keys that `seen`, whose axes are `of` those of the result, shows: `[T, G, H/G, S]`.
/// Zeros where it shows none.
fn weigh(f: &mut Block<'_>, q: ValueId, k: ValueId, seen: ValueId, of: &[usize]) -> ValueId {
    let scale = (f.size(q, 3) as f64).powf(-0.5);
    let scores = f.contract("tgrd,sgd->tgrs", &[q, k]);
    let scores = f.mul_scalar(scores, scale);
    let shape = f.shape(scores).to_vec();
    let seen = f.broadcast(seen, &shape, of);
    let scores = f.only(seen, scores);
    f.op(Softmax, &[scores])
}

/// The compressed rows of the keys or the values, `[R, G, h]`: `φ(rows + position)` for each block that has ended, with
/// `φ = fc2(gelu(fc1(·)))`. States: `KIND_raw`, a window of what open blocks read, and `KIND_cmp`, a row for each
/// block.
fn compress(f: &mut Block<'_>, b: &Branches, kind: &str, rows: ValueId) -> ValueId {
    let (g, h, l) = (f.size(rows, 1), f.size(rows, 2), b.block);
    let new = Dim::from(b.rows().new);
    let raw = f.remember_last(&format!("{kind}_raw"), l - 1, rows);
    // The tokens of the blocks that end in this call, counted from the first row at hand.
    let shape: [Dim; 2] = [new.clone(), l.into()];
    let blocks = f.iota(new.clone(), b.rows().held);
    let blocks = f.times(blocks, b.stride);
    let blocks = f.broadcast(blocks, &shape, &[0]);
    let inside = f.iota(l, Dim::from((l - 1) as i64) - Sym::P - (b.reach() - 1) * b.stride);
    let inside = f.broadcast(inside, &shape, &[1]);
    let tokens = f.add(blocks, inside);
    let z = f.gather(raw, tokens, 0, 0);
    let done = f.within(&format!("compress_{kind}"), |f| {
        let position = f.tensor("position", &[l, h]);
        let position = f.cast(position, DType::F32);
        let shape = f.shape(z).to_vec();
        let position = f.broadcast(position, &shape, &[1, 3]);
        let z = f.add(z, position);
        let z = f.op(Transpose { perm: vec![0, 2, 1, 3] }, &[z]);
        let z = f.reshape(z, &[new.clone() * g as i64, (l * h).into()]);
        let z = f.linear(z, "fc1", b.hidden, true);
        let z = gelu(f, z);
        f.linear(z, "fc2", h, true)
    });
    let done = f.reshape(done, &[new, g.into(), h.into()]);
    f.remember_groups(&format!("{kind}_cmp"), b.rows(), done)
}

/// `x/2 · (1 + erf(x / √2))`.
fn gelu(f: &mut Block<'_>, x: ValueId) -> ValueId {
    let y = f.mul_scalar(x, std::f64::consts::FRAC_1_SQRT_2);
    let y = f.map(MapFn::Erf, &[y]);
    let y = f.add_scalar(y, 1.0);
    let half = f.mul_scalar(x, 0.5);
    f.mul(half, y)
}

/// The blocks that have ended by each query, `bool [T, R]`: `m - 1 ≤ g < (t + 1 + short) / d`.
fn closed(f: &mut Block<'_>, b: &Branches, at: ValueId) -> ValueId {
    let shape: [Dim; 2] = [Sym::T.into(), b.rows().all()];
    let rows = f.iota(b.rows().all(), 0);
    let first = f.scalar_like(rows, (b.reach() - 1) as f64);
    let whole = f.map(MapFn::Le, &[first, rows]);
    let whole = f.broadcast(whole, &shape, &[1]);
    let ended = f.add_scalar(at, (1 + b.short()) as f64);
    let ended = f.over(ended, b.stride);
    let ended = compare(f, MapFn::Lt, [(rows, 1), (ended, 0)], &shape);
    f.map(MapFn::And, &[whole, ended])
}

/// The tokens up to its own that each query selects, `i32 [T, G, k·s]`; negative where there are fewer.
///
/// A block's importance is `Σ p · overlap / d`, over the heads of a group and the compressed blocks that share tokens
/// with it: no more than `⌈(s+l)/d⌉` from the first such row on, so that no matrix of all pairs is needed.
fn select(f: &mut Block<'_>, b: &Branches, weights: ValueId, at: ValueId) -> ValueId {
    let (t, blocks) = (Dim::from(Sym::T), b.blocks());
    let width = (b.selected + b.block).div_ceil(b.stride);
    let near: [Dim; 2] = [blocks.clone(), width.into()];
    let numbers = f.iota(blocks.clone(), 0);
    let begins = f.times(numbers, b.selected);
    let first = f.add_scalar(begins, b.short() as f64);
    let first = f.over(first, b.stride);
    let first = f.broadcast(first, &near, &[0]);
    let next = f.iota(width, 0);
    let next = f.broadcast(next, &near, &[1]);
    let rows = f.add(first, next);
    // Where what row g is made of begins and ends, within the block.
    let from = f.add_scalar(rows, 1.0 - b.reach() as f64);
    let from = f.times(from, b.stride);
    let until = f.add_scalar(from, b.block as f64);
    let begins = f.broadcast(begins, &near, &[0]);
    let ends = f.add_scalar(begins, b.selected as f64);
    let from = f.map(MapFn::Max, &[from, begins]);
    let until = f.map(MapFn::Min, &[until, ends]);
    let shared = f.map(MapFn::Sub, &[until, from]);
    let none = f.scalar_like(shared, 0.0);
    let shared = f.map(MapFn::Max, &[shared, none]);
    let shared = f.cast(shared, DType::F32);
    let shared = f.over(shared, b.stride);
    let weights = f.reduce(ReduceKind::Sum, &[2], weights);
    let weights = f.gather(weights, rows, 2, 0);
    let importance = f.contract("tgkn,kn->tgk", &[weights, shared]);

    // Blocks from the query's own on back may be selected; the first and the newest ones always are.
    let pairs: [Dim; 2] = [t, blocks];
    let own = f.over(at, b.selected);
    let open = compare(f, MapFn::Le, [(numbers, 1), (own, 0)], &pairs);
    let initial = f.scalar_like(numbers, b.initial as f64);
    let initial = f.map(MapFn::Lt, &[numbers, initial]);
    let initial = f.broadcast(initial, &pairs, &[1]);
    let oldest = f.add_scalar(own, -(b.local as f64));
    let local = compare(f, MapFn::Lt, [(oldest, 0), (numbers, 1)], &pairs);
    let always = f.map(MapFn::Or, &[initial, local]);
    let shape = f.shape(importance).to_vec();
    let [open, always] = [open, always].map(|m| f.broadcast(m, &shape, &[0, 2]));
    let most = f.scalar_like(importance, ALWAYS);
    let importance = f.map(MapFn::Select, &[always, most, importance]);
    let importance = f.only(open, importance);
    let chosen = f.top_k(importance, b.count);

    // Their tokens. Of -1, which stands for no block, they are negative.
    let t = Dim::from(Sym::T);
    let g = f.shape(chosen)[1].clone();
    let shape = [t.clone(), g.clone(), b.count.into(), b.selected.into()];
    let chosen = f.times(chosen, b.selected);
    let chosen = f.broadcast(chosen, &shape, &[0, 1, 2]);
    let inside = f.iota(b.selected, 0);
    let inside = f.broadcast(inside, &shape, &[3]);
    let tokens = f.add(chosen, inside);
    let at = f.broadcast(at, &shape, &[0]);
    let past = f.map(MapFn::Le, &[tokens, at]);
    let none = f.scalar_like(tokens, -1.0);
    let tokens = f.map(MapFn::Select, &[past, tokens, none]);
    f.reshape(tokens, &[t, g, (b.count * b.selected).into()])
}

/// The last tokens before each query, and its own: `bool [T, W-1+T]`.
fn in_window(f: &mut Block<'_>, b: &Branches, at: ValueId) -> ValueId {
    let before = b.window - 1;
    let shape: [Dim; 2] = [Sym::T.into(), Dim::from(Sym::T) + before];
    let keys = f.iota(shape[1].clone(), Dim::from(Sym::P) - before);
    let first = f.iota(Sym::T, Dim::from(Sym::P) - before);
    let zero = f.scalar_like(first, 0.0);
    let first = f.map(MapFn::Max, &[first, zero]);
    let begun = compare(f, MapFn::Le, [(first, 0), (keys, 1)], &shape);
    let past = compare(f, MapFn::Le, [(keys, 1), (at, 0)], &shape);
    f.map(MapFn::And, &[begun, past])
}

/// A comparison of two vectors, each along its axis of `shape`.
fn compare(f: &mut Block<'_>, how: MapFn, of: [(ValueId, usize); 2], shape: &[Dim]) -> ValueId {
    let of = of.map(|(vector, axis)| f.broadcast(vector, shape, &[axis]));
    f.map(how, &of)
}
