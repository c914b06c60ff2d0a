//! The DeepSeek-V4 graph (sheet `deepseek-v4`, "Forward pass").
//!
//! ```text
//! x = E[tokens] in every stream
//! x = mixed(x, attention(norm(pre x)));   x = mixed(x, experts(norm(pre x)))       for every layer
//! logits = norm(pre x) Wᵀ
//! ```

use super::attention::{Compressed, attention};
use super::config::Config;
use crate::blocks::Block;
use crate::blocks::assembly::{Architecture, Assembly, Frame, Rows};
use crate::blocks::compressor::Compressor;
use crate::blocks::moe::{Choice, Moe, moe};
use crate::blocks::rope::Angles;
use crate::blocks::shared_kv::Turn;
use hadal_ir::builder::BuildError;
use hadal_ir::module::{Counter, Func, ValueId};
use hadal_types::{DType, Dim, TensorType};
use std::collections::BTreeMap;

impl Architecture for Config {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    /// `logits` also gives the streams of every token, `hidden`, from which `mtp` (`mtp1`, …) predicts further. Drafts are
    /// made by the first of these layers.
    fn assemble(&self, a: &mut Assembly<'_>) -> Result<(), Box<BuildError>> {
        let count = self.frame.layers;
        let layers = (0..count).map(|l| self.layer(a, l)).collect::<Result<Vec<_>, _>>()?;
        let all = self.main(a, "main_all", &layers, Gives { logits: Rows::All, hidden: true })?;
        let last = self.main(a, "main", &layers, Gives { logits: Rows::Last, hidden: false })?;
        let has = |depth: &usize| a.formats.has(&format!("mtp.{depth}.e_proj.weight"));
        let predicting: Vec<usize> = (0..self.ratios.len() - count).filter(has).collect();
        if predicting.first() == Some(&0) {
            let read = self.main(a, "main_hidden", &layers, Gives { logits: Rows::Last, hidden: true })?;
            a.drafted_entries(&all, &read, Some(&last));
        } else {
            a.main_entries(&all, &last);
        }
        for depth in predicting {
            let name = if depth == 0 { "mtp".to_owned() } else { format!("mtp{depth}") };
            let func = self.mtp(a, &name, depth, Some(Rows::All))?;
            a.chunk_entry(&name, &func);
            if depth == 0 {
                let fill = self.mtp(a, "draft_fill", depth, None)?;
                a.chunk_entry("draft_fill", &fill);
                let draft = self.mtp(a, "draft", depth, Some(Rows::Last))?;
                a.step_entry("draft", &draft);
            }
        }
        Ok(())
    }
}

/// What a main function gives out.
#[derive(Clone, Copy)]
struct Gives {
    logits: Rows,
    /// Whether the streams of all rows too.
    hidden: bool,
}

/// Angles of new tokens, and of the compressed rows that a call adds, by the ratio of layers.
struct Tables {
    tokens: Angles,
    rows: Option<Angles>,
}

impl Config {
    fn prefix(&self, layer: usize) -> String {
        match layer.checked_sub(self.frame.layers) {
            None => format!("layers.{layer}."),
            Some(depth) => format!("mtp.{depth}."),
        }
    }

    fn counter(&self, a: &mut Assembly<'_>, layer: usize) -> Option<Counter> {
        Some(self.ratios[layer]).filter(|m| *m > 0).map(|m| a.module.counter(m))
    }

    /// The function for `layer`, shared with every layer that is the same.
    fn layer(&self, a: &mut Assembly<'_>, layer: usize) -> Result<Func, Box<BuildError>> {
        let (ratio, hashed) = (self.ratios[layer], layer < self.hashed);
        let kind = match ratio {
            0 => "window_layer".to_owned(),
            m => format!("rows{m}_layer"),
        };
        let name = if hashed { format!("hashed_{kind}") } else { kind };
        let counter = self.counter(a, layer);
        let rope = if ratio == 0 { &self.near } else { &self.far };
        let mut f = a.block(&name, &self.prefix(layer));
        let pairs = rope.dim / 2;
        let x = f.rows("x", &[self.hyper.streams, self.frame.hidden]);
        let tokens = hashed.then(|| f.tokens());
        let turn = Turn { rope, angles: Angles { cos: f.rows("cos", &[pairs]), sin: f.rows("sin", &[pairs]) } };
        let compressed = counter.map(|counter| {
            let ty = TensorType::new(DType::F32, [Dim::from(counter.new), pairs.into()]);
            let angles = Angles { cos: f.param("row_cos", ty.clone()), sin: f.param("row_sin", ty) };
            Compressed { ratio, counter, turn: Turn { rope, angles } }
        });

        // 2.2 Hybrid attention, between manifold-constrained hyper-connections
        let x = self.site(&mut f, x, "attn", |f, y| attention(f, self, y, turn, compressed));
        // DeepSeekMoE, by token in the first layers
        let by_token = Moe { choice: Choice::Table(self.frame.vocab), ..self.moe.clone() };
        let experts = if hashed { &by_token } else { &self.moe };
        let x = self.site(&mut f, x, "ffn", |f, y| moe(f, experts, y, tokens));
        f.result("x", x);
        a.share(f)
    }

    /// One part of a layer, between the streams.
    fn site(
        &self,
        f: &mut Block<'_>,
        x: ValueId,
        name: &str,
        part: impl FnOnce(&mut Block<'_>, ValueId) -> ValueId,
    ) -> ValueId {
        let mix = self.hyper.mix(f, &format!("hc_{name}"), x);
        let y = self.hyper.collapse(f, x, mix.pre);
        let y = f.norm(y, &format!("{name}_norm"), self.frame.eps);
        let y = part(f, y);
        self.hyper.expand(f, x, y, &mix)
    }

    fn main(&self, a: &mut Assembly<'_>, name: &str, layers: &[Func], gives: Gives) -> Result<Func, Box<BuildError>> {
        let counters: Vec<_> = (0..layers.len()).map(|l| self.counter(a, l)).collect();
        let mut f = a.block(name, "");
        let tokens = f.tokens();
        let x = f.embed("embed", tokens, [self.frame.vocab, self.frame.hidden]);
        let mut x = self.hyper.streams(&mut f, x);
        let mut tables = BTreeMap::new();
        for (l, layer) in layers.iter().enumerate() {
            let table = self.table(&mut f, &mut tables, self.ratios[l], counters[l]);
            x = self.call(&mut f, l, layer, x, tokens, &table);
        }
        let read = if gives.logits == Rows::Last { f.last_row(x) } else { x };
        let logits = self.head(&mut f, "", read, "head");
        f.result("logits", logits);
        if gives.hidden {
            f.result("hidden", x);
        }
        a.add(f)
    }

    /// The angles that layers of `ratio` turn by, made once.
    fn table(
        &self,
        f: &mut Block<'_>,
        known: &mut BTreeMap<usize, Angles>,
        ratio: usize,
        counter: Option<Counter>,
    ) -> Tables {
        // New tokens turn by their positions (ratio 1) in all layers with compressed rows.
        let Some(counter) = counter else {
            let tokens = *known.entry(0).or_insert_with(|| self.near.angles(f));
            return Tables { tokens, rows: None };
        };
        let tokens = *known.entry(1).or_insert_with(|| self.far.angles(f));
        let rows = *known.entry(ratio).or_insert_with(|| {
            let positions = Compressor::positions(f, ratio, counter);
            self.far.angles_at(f, positions)
        });
        Tables { tokens, rows: Some(rows) }
    }

    fn call(
        &self,
        f: &mut Block<'_>,
        layer: usize,
        func: &Func,
        x: ValueId,
        tokens: ValueId,
        tables: &Tables,
    ) -> ValueId {
        let by_token = (layer < self.hashed).then_some(tokens);
        let angles = |a: Angles| [a.cos, a.sin];
        let args = [x].into_iter().chain(by_token).chain(angles(tables.tokens));
        let args: Vec<ValueId> = args.chain(tables.rows.into_iter().flat_map(angles)).collect();
        f.call(func, &self.prefix(layer), &args)[0]
    }

    /// The streams read together, normalised, and the logits; weights other than the head begin with `prefix`.
    fn head(&self, f: &mut Block<'_>, prefix: &str, x: ValueId, head: &str) -> ValueId {
        let pre = self.hyper.last(f, &format!("{prefix}hc_head"), x);
        let y = self.hyper.collapse(f, x, pre);
        let y = f.norm(y, &format!("{prefix}norm"), self.frame.eps);
        f.linear(y, head, self.frame.vocab, false)
    }

    /// Row `i` joins the streams of token `i` with the embedding of token `i + 1`, passes one more layer, and predicts token
    /// `i + 2`: `x_j = e_proj enorm(E[t]) + h_proj hnorm(h_j)`.
    ///
    /// With `rows` of the last one alone it also gives the streams that the next draft goes on from, in the place of the main
    /// model's; without any it only keeps what it has seen.
    fn mtp(&self, a: &mut Assembly<'_>, name: &str, depth: usize, rows: Option<Rows>) -> Result<Func, Box<BuildError>> {
        let (n, d, eps) = (self.hyper.streams, self.frame.hidden, self.frame.eps);
        let layer = self.frame.layers + depth;
        let (func, counter) = (self.layer(a, layer)?, self.counter(a, layer));
        let prefix = self.prefix(layer);
        let mut f = a.block(name, "");
        let tokens = f.tokens();
        let hidden = f.rows("hidden", &[n, d]);
        // The releases leave the layer's copies of embedding and head out; some conversions have them.
        let copy = |part: &str, main: &str| match format!("{prefix}{part}") {
            own if a.formats.oracle.dtype(&format!("{own}.weight")).is_some() => own,
            _ => main.to_owned(),
        };
        let e = f.embed(&copy("emb.tok_emb", "embed"), tokens, [self.frame.vocab, d]);
        let e = f.norm(e, &format!("{prefix}enorm"), eps);
        let e = f.linear(e, &format!("{prefix}e_proj"), d, false);
        let h = f.norm(hidden, &format!("{prefix}hnorm"), eps);
        let shape = f.shape(h).to_vec();
        let h = f.reshape(h, &[shape[0].clone() * n as i64, d.into()]);
        let h = f.linear(h, &format!("{prefix}h_proj"), d, false);
        let h = f.reshape(h, &shape);
        let e = f.broadcast(e, &shape, &[0, 2]);
        let x = f.add(e, h);
        let table = self.table(&mut f, &mut BTreeMap::new(), self.ratios[layer], counter);
        let x = self.call(&mut f, layer, &func, x, tokens, &table);
        let Some(rows) = rows else { return a.add(f) };
        let x = if rows == Rows::Last { f.last_row(x) } else { x };
        let logits = self.head(&mut f, &prefix, x, &copy("head", "head"));
        f.result("logits", logits);
        if rows == Rows::Last {
            f.result("next", x);
        }
        a.add(f)
    }
}
