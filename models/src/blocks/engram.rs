//! Engram: a table whose rows are chosen by hashes of the last few tokens, and a gate that says how much of them is
//! added to each stream (sheet `engram`; [`crate::ngram`] has the constants).
//!
//! ```text
//! u_k = class of the token k before, or of the pad where there is none
//! R_k = u_0 M_0 ⊕ … ⊕ u_k M_k                           rows = R_k mod prime + offset, for k ≥ 1 and every head
//! e   = the rows, joined                                key_j = W_j e,   value = V e
//! gate_j = σ(±√|a_j|),  a_j = ⟨norm(key_j), norm(h_j)⟩ / √D          out_j = gate_j · value
//! ```
//!
//! Rows follow from token ids alone, so they are computed before the first layer. Two forms are public: the
//! demonstration ([`mixed`]) passes what is gated through a short convolution, DeepSeek-V4.1 ([`gated`]) does not.

use super::Block;
use super::assembly::Frame;
use super::mlp::silu;
use crate::config_reader::{Object, Spelling};
use crate::error::{Error, Result};
use crate::ngram::{Hashing, Vocabulary};
use crate::weights::Made;
use hadal_ir::Tensor;
use hadal_ir::attr::Real;
use hadal_ir::module::ValueId;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::reduce::ReduceKind;
use hadal_ir::ops::{Constant, Dequantize};
use hadal_types::{DType, Dim, Sym, TensorType};

/// The class of every token: a weight that the model makes from its tokenizer.
pub const CLASSES: &str = "engram.classes";

/// The multipliers of a layer: another one, as they depend on how many classes there are.
pub fn multipliers(layer: usize) -> String {
    format!("engram.{layer}.multipliers")
}

/// What the graph reads and no checkpoint holds, for a model of `vocab` tokens. Without a tokenizer, only the names.
pub fn made(h: &Hashing, vocab: usize, vocabulary: Option<&Vocabulary>) -> Result<Made> {
    let classes = vocabulary.map(Vocabulary::classes).transpose()?;
    let classes = classes.as_ref();
    if let (Some(classes), Some(expected)) = (classes, h.classes)
        && classes.count() != expected
    {
        let reason = format!("its tokens make {} classes, but the model's tables are for {expected}", classes.count());
        return Err(Error::Tokenizer { reason });
    }
    let table = classes.map(|c| Tensor::int(DType::I32, &[vocab], c.table(vocab)));
    let layer = |l: &usize| {
        let drawn = classes.map(|c| Tensor::int(DType::I64, &[h.longest()], h.multipliers(*l, c.count())));
        (multipliers(*l), drawn)
    };
    Ok(h.layers.iter().map(layer).chain([(CLASSES.to_owned(), table)]).collect())
}

/// The classes `u_k` of the tokens 0, 1, … before each new one, `i64 [T]` each. State: `engram.tokens`, a window of
/// classes.
pub fn ngrams(f: &mut Block<'_>, h: &Hashing, vocab: usize, tokens: ValueId) -> Vec<ValueId> {
    let (t, before) = (Dim::from(Sym::T), h.longest() - 1);
    let table = f.weight(CLASSES, TensorType::new(DType::I32, [vocab]));
    let new = f.gather(table, tokens, 0, 0);
    let all = f.append_to("engram.tokens", before, new, DType::I32);
    let at = f.iota(t.clone() + before, Dim::from(Sym::P) - before);
    let first = f.scalar_like(at, 0.0);
    let there = f.map(MapFn::Le, &[first, at]);
    let pad = f.op(Constant::scalar(h.pad as f64, DType::I32), &[]);
    let pad = f.gather(table, pad, 0, 0);
    let pad = f.broadcast(pad, &[t.clone() + before], &[]);
    let all = f.map(MapFn::Select, &[there, all, pad]);
    let all = f.cast(all, DType::I64);
    (0..=before).map(|k| f.slice(all, 0, before - k, t.clone(), 1)).collect()
}

/// What a token reads from a layer's table.
#[derive(Clone, Copy, Debug)]
pub struct Chosen {
    /// The number within each head's part of the table, `i64 [T, C]`.
    pub hashes: ValueId,
    /// The rows of the whole table.
    pub rows: ValueId,
    /// Rows that the table has.
    pub of: usize,
}

impl Chosen {
    /// Rows of a table of `of` that the caller passes as `name`.
    pub fn param(f: &mut Block<'_>, name: &str, h: &Hashing, of: usize) -> Chosen {
        let rows = f.param(name, TensorType::new(DType::I64, [Dim::from(Sym::T), h.columns().into()]));
        Chosen { hashes: rows, rows, of }
    }
}

/// The rows of the table of `h.layers[index]`, from the classes that [`ngrams`] gives.
pub fn choose(f: &mut Block<'_>, h: &Hashing, index: usize, ngrams: &[ValueId]) -> Chosen {
    let t = Dim::from(Sym::T);
    let drawn = f.weight(&multipliers(h.layers[index]), TensorType::new(DType::I64, [h.longest()]));
    let term = |f: &mut Block<'_>, k: usize| {
        let m = f.slice(drawn, 0, k, 1, 1);
        let m = f.reshape(m, &[]);
        let m = f.broadcast(m, std::slice::from_ref(&t), &[]);
        f.mul(ngrams[k], m)
    };
    let mut mixed = term(f, 0);
    let mut columns = Vec::new();
    for k in 1..h.longest() {
        let more = term(f, k);
        mixed = f.map(MapFn::Xor, &[mixed, more]);
        columns.push(f.broadcast(mixed, &[t.clone(), h.heads.into()], &[0]));
    }
    let mixed = f.concat(&columns, 1);
    let shape = f.shape(mixed).to_vec();
    let primes = h.primes().swap_remove(index);
    let vector = |f: &mut Block<'_>, values: Vec<u64>| {
        let values = values.into_iter().map(|v| Real(v as f64)).collect();
        let vector = f.op(Constant { values, scalar: false, dtype: DType::I64 }, &[]);
        f.broadcast(vector, &shape, &[1])
    };
    let offsets = primes.iter().scan(0, |sum, p| Some(std::mem::replace(sum, *sum + p))).collect();
    let of = primes.iter().sum::<u64>() as usize;
    let primes = vector(f, primes);
    let hashes = f.map(MapFn::Rem, &[mixed, primes]);
    let offsets = vector(f, offsets);
    let rows = f.add(hashes, offsets);
    Chosen { hashes, rows, of }
}

/// The demonstration's sizes.
#[derive(Clone, PartialEq, Debug)]
pub struct Mixed {
    /// Width of a row.
    pub width: usize,
    /// Taps of the convolution.
    pub taps: usize,
    /// Tokens from one tap to the next.
    pub dilation: usize,
}

/// `torch.nn.RMSNorm` where no epsilon is given: the place of the last bit of 1.
const UNIT_EPS: f64 = f32::EPSILON as f64;
const CONVOLUTION_EPS: f64 = 1e-5;

/// What is added to the streams `[T, n, D]`: `out_j = v_j + SiLU(conv(norm_j(v)))` with `v_j = gate_j · value`, where
/// the convolution is causal, one for each channel of each stream. State: `conv`, a window of what it reads.
pub fn mixed(f: &mut Block<'_>, e: &Mixed, streams: ValueId, chosen: Chosen) -> ValueId {
    let [n, d] = [1, 2].map(|axis| f.size(streams, axis));
    let t = Dim::from(Sym::T);
    let whole = f.shape(streams).to_vec();
    let each = |f: &mut Block<'_>, x: ValueId, j: usize| {
        let x = f.slice(x, 1, j, 1, 1);
        f.reshape(x, &[Dim::from(Sym::T), d.into()])
    };
    let table = f.tensor("multi_head_embedding.embedding.weight", &[chosen.of, e.width]);
    let rows = f.gather(table, chosen.rows, 0, 0);
    let memory = joined(f, rows);

    let mut gates = Vec::new();
    for j in 0..n {
        let key = f.linear(memory, &format!("key_projs.{j}"), d, true);
        let key = f.norm(key, &format!("norm1.{j}"), UNIT_EPS);
        let query = each(f, streams, j);
        let query = f.norm(query, &format!("norm2.{j}"), UNIT_EPS);
        let product = f.mul(key, query);
        let a = f.reduce(ReduceKind::Sum, &[1], product);
        let a = f.mul_scalar(a, (d as f64).powf(-0.5));
        // The sign of zero is zero: such a gate is half open.
        let zero = f.scalar_like(a, 0.0);
        let signs = [[zero, a], [a, zero]].map(|pair| {
            let holds = f.map(MapFn::Lt, &pair);
            f.cast(holds, DType::F32)
        });
        let sign = f.map(MapFn::Sub, &signs);
        let size = root(f, a);
        let a = f.mul(size, sign);
        let gate = f.map(MapFn::Sigmoid, &[a]);
        gates.push(f.reshape(gate, &[t.clone(), 1.into()]));
    }
    let gate = f.concat(&gates, 1);
    let gate = f.broadcast(gate, &whole, &[0, 1]);
    let value = f.linear(memory, "value_proj", d, true);
    let value = f.broadcast(value, &whole, &[0, 2]);
    let value = f.mul(gate, value);

    let mixed = f.within("short_conv", |f| {
        let normed: Vec<ValueId> = (0..n)
            .map(|j| {
                let x = each(f, value, j);
                f.norm(x, &format!("norms.{j}"), CONVOLUTION_EPS)
            })
            .collect();
        let normed = f.concat(&normed, 1);
        convolution(f, e, normed)
    });
    let mixed = silu(f, mixed);
    let mixed = f.reshape(mixed, &whole);
    f.add(value, mixed)
}

/// `y[t, c] = Σ_i w[c, i] · x[t - (taps-1-i) · dilation, c]`, where nothing stands before the first token.
fn convolution(f: &mut Block<'_>, e: &Mixed, x: ValueId) -> ValueId {
    let (t, channels, before) = (Dim::from(Sym::T), f.size(x, 1), (e.taps - 1) * e.dilation);
    let mut all = f.remember_last("conv", before, x);
    if before > 0 {
        let shape = f.shape(all).to_vec();
        let at = f.iota(t.clone() + before, Dim::from(Sym::P) - before);
        let zero = f.scalar_like(at, 0.0);
        let there = f.map(MapFn::Le, &[zero, at]);
        let there = f.broadcast(there, &shape, &[0]);
        let zero = f.scalar_like(all, 0.0);
        all = f.map(MapFn::Select, &[there, all, zero]);
    }
    let w = f.tensor("conv.weight", &[channels, 1, e.taps]);
    let w = f.cast(w, DType::F32);
    let tap = |f: &mut Block<'_>, i: usize| {
        let w = f.slice(w, 2, i, 1, 1);
        let w = f.reshape(w, &[channels.into()]);
        let w = f.broadcast(w, &[t.clone(), channels.into()], &[1]);
        let x = f.slice(all, 0, i * e.dilation, t.clone(), 1);
        f.mul(w, x)
    };
    let first = tap(f, 0);
    (1..e.taps).fold(first, |sum, i| {
        let more = tap(f, i);
        f.add(sum, more)
    })
}

/// DeepSeek-V4.1's tables.
#[derive(Clone, PartialEq, Debug)]
pub struct Tables {
    /// How they are addressed, and the layers that have one.
    pub hashing: Hashing,
    /// Rows of each.
    pub rows: Vec<usize>,
    /// How a row is read.
    pub gate: Gated,
}

impl Tables {
    /// Reads the tables of a model with `frame`, if there are any.
    pub fn read(o: &Object<'_>, frame: &Frame, spelling: Spelling) -> Result<Option<Tables>> {
        let key = |published, own| spelling.key(published, own);
        let layers = o.rising(key("engram_layer_ids", "engram_layers"), frame.layers)?;
        if layers.is_empty() {
            return Ok(None);
        }
        let longest = o.require_usize_in("engram_max_ngram_size", 2..=16)?;
        let size = o.require_usize_in("engram_vocab_size", 1..=1 << 31)? as u64;
        let hashing = Hashing {
            layers,
            sizes: vec![size; longest - 1],
            heads: o.require_usize_in("engram_n_heads", 1..=256)?,
            pad: o.require_usize_in(key("engram_pad_token_id", "engram_pad_id"), 0..=frame.vocab - 1)?,
            seed: 0,
            classes: o.optional_usize("engram_compressed_vocab_size")?,
        };
        let rows: Vec<usize> = hashing.primes().iter().map(|p| p.iter().sum::<u64>() as usize).collect();
        if o.usize_list("engram_num_embeddings")?.is_some_and(|given| given != rows) {
            let expected = format!("{rows:?}, the sums of the primes that hashes are taken by");
            return Err(o.error("engram_num_embeddings", expected));
        }
        let width = o.require_usize_in("engram_head_dim", 1..=1 << 16)?;
        Ok(Some(Tables { hashing, rows, gate: Gated { width, block: 32, eps: frame.eps } }))
    }

    /// What `tokens` read from each.
    pub fn choose(&self, f: &mut Block<'_>, vocab: usize, tokens: ValueId) -> Vec<Chosen> {
        let ngrams = ngrams(f, &self.hashing, vocab, tokens);
        (0..self.rows.len()).map(|i| choose(f, &self.hashing, i, &ngrams)).collect()
    }
}

/// What is read from a row.
#[derive(Clone, PartialEq, Debug)]
pub struct Gated {
    /// Width of a row.
    pub width: usize,
    /// Neighbours in a row that share a scale.
    pub block: usize,
    /// Epsilon of both statistics.
    pub eps: f64,
}

/// What is added to the streams `[T, n, D]`: `gate_j · value`. The weights of both norms act together.
pub fn gated(f: &mut Block<'_>, e: &Gated, streams: ValueId, chosen: Chosen) -> ValueId {
    let [n, d] = [1, 2].map(|axis| f.size(streams, axis));
    let t = Dim::from(Sym::T);
    let whole = f.shape(streams).to_vec();
    // Rows are chosen before they are decoded: the table is far larger than what is read.
    let table = f.tensor("embed.weight", &[chosen.of, e.width]);
    let scales = f.tensor("embed.scale", &[chosen.of, e.width.div_ceil(e.block)]);
    let rows = f.gather(table, chosen.rows, 0, 0);
    let scales = f.gather(scales, chosen.rows, 0, 0);
    let rows = f.op(Dequantize { block: vec![1, 1, e.block] }, &[rows, scales]);
    let memory = joined(f, rows);

    let both = f.linear(memory, "wkv", (n + 1) * d, false);
    let key = f.slice(both, 1, 0, n * d, 1);
    let key = f.reshape(key, &whole);
    let value = f.slice(both, 1, n * d, d, 1);
    let weights = ["q_weight", "k_weight"].map(|name| {
        let w = f.tensor(name, &[n, d]);
        f.cast(w, DType::F32)
    });
    let weight = f.map(MapFn::Mul, &weights);
    let weight = f.broadcast(weight, &whole, &[1, 2]);
    let product = f.mul(streams, weight);
    let product = f.mul(product, key);
    let a = f.reduce(ReduceKind::Sum, &[2], product);
    let mut a = f.mul_scalar(a, (d as f64).powf(-0.5));
    for x in [streams, key] {
        let square = f.mul(x, x);
        let sum = f.reduce(ReduceKind::Sum, &[2], square);
        let mean = f.mul_scalar(sum, 1.0 / d as f64);
        let mean = f.add_scalar(mean, e.eps);
        let scale = f.map(MapFn::Rsqrt, &[mean]);
        a = f.mul(a, scale);
    }
    let zero = f.scalar_like(a, 0.0);
    let below = f.map(MapFn::Lt, &[a, zero]);
    let size = root(f, a);
    let minus = f.map(MapFn::Neg, &[size]);
    let a = f.map(MapFn::Select, &[below, minus, size]);
    let gate = f.map(MapFn::Sigmoid, &[a]);
    let gate = f.broadcast(gate, &[t, n.into(), d.into()], &[0, 1]);
    let value = f.broadcast(value, &whole, &[0, 2]);
    f.mul(gate, value)
}

/// `[T, C, w]` as `f32 [T, C·w]`.
fn joined(f: &mut Block<'_>, rows: ValueId) -> ValueId {
    let width = f.size(rows, 1) * f.size(rows, 2);
    let rows = f.cast(rows, DType::F32);
    f.reshape(rows, &[Sym::T.into(), width.into()])
}

/// `√max(|a|, 10⁻⁶)`.
fn root(f: &mut Block<'_>, a: ValueId) -> ValueId {
    let size = f.map(MapFn::Abs, &[a]);
    let least = f.scalar_like(size, 1e-6);
    let size = f.map(MapFn::Max, &[size, least]);
    f.map(MapFn::Sqrt, &[size])
}
