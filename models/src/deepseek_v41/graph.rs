//! The DeepSeek-V4.1 graph (sheet `deepseek-v41`, "Forward pass").
//!
//! ```text
//! h = E[tokens] in every stream;   p = (1, 0, …)
//! h = h + memory(h)                                                    in few layers
//! (p', post, comb) = mixes(h);   h = post attention(norm(p h)) + comb h
//! (p, post, comb) = mixes(h);    h = post experts(norm(p' h)) + comb h
//! logits = norm(p h) Wᵀ
//! ```
//!
//! What the streams are joined by at a site was computed at the site before it.

use super::attention::{Place, attention};
use super::config::{Config, Engram};
use super::plan::{Candidates, Layer};
use crate::blocks::Block;
use crate::blocks::assembly::{Architecture, Assembly, Built, Frame, Named};
use crate::blocks::engram::{Chosen, choose, gated, ngrams};
use crate::blocks::moe::{Moe, moe};
use crate::blocks::selection::Compressed;
use crate::blocks::shared_kv::Turn;
use crate::ngram::Hashing;
use hadal_ir::builder::BuildError;
use hadal_ir::module::{Func, ValueId};
use hadal_ir::ops::Constant;
use hadal_ir::ops::reduce::ReduceKind;
use hadal_types::{DType, Dim, Sym, TensorType};

impl Architecture for Config {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn passed_over(&self) -> &'static [&'static str] {
        // The image tower, and the bias of the experts of images.
        &["vision.*", "aligner.*", "image_*", "*.gate.bias_vl"]
    }

    fn hashing(&self) -> Option<&Hashing> {
        self.engram.as_ref().map(|e| &e.hashing)
    }

    fn assemble(&self, a: &mut Assembly<'_>) -> Result<(), Box<BuildError>> {
        let layers = (0..self.frame.layers).map(|l| self.layer(a, l)).collect::<Result<Vec<_>, _>>()?;
        let tables = match &self.engram {
            None => Vec::new(),
            Some(e) => (0..e.rows.len()).map(|i| self.memory(a, e, i)).collect::<Result<Vec<_>, _>>()?,
        };
        let all = self.main(a, "main_all", &layers, &tables, Gives::All)?;
        let last = self.main(a, "main", &layers, &tables, Gives::Last)?;
        match &self.draft {
            None => a.main_entries(&all, &last),
            Some(draft) => {
                a.drafted_entries(&all, &last, None);
                self.drafts(a, draft)?;
            }
        }
        if a.bounds.inner {
            let shown = self.main(a, "main_shown", &layers, &tables, Gives::Inner)?;
            let entries = a.module.entries.iter_mut().filter(|e| e.func == all.name && e.name == "logits");
            entries.for_each(|e| e.func = shown.name.clone());
        }
        Ok(())
    }
}

/// What a main function gives out.
#[derive(Clone, Copy, PartialEq)]
enum Gives {
    /// Logits of the last row.
    Last,
    /// Those of every row.
    All,
    /// And what is computed on the way.
    Inner,
}

/// What the names of a layer's weights and states begin with.
fn prefix(layer: usize) -> String {
    format!("layers.{layer}.")
}

impl Config {
    /// The rows of layer `number`, where it has any, and how many blocks they make, where it chooses or keeps some.
    fn rows(&self, a: &mut Assembly<'_>, number: usize) -> (Compressed, Option<Dim>) {
        let layer = &self.layers[number];
        let ratio = layer.ratio().max(1);
        let rows = Compressed { ratio, counter: a.module.counter(ratio) };
        let blocks = match layer {
            Layer::Compressed { candidates, .. } if *candidates != Candidates::Apart => self.blocks,
            _ => None,
        };
        (rows, blocks.map(|b| b.count(&mut a.module, rows)))
    }

    /// The function for layer `number`, shared with every layer that is the same.
    fn layer(&self, a: &mut Assembly<'_>, number: usize) -> Built {
        let layer = &self.layers[number];
        let (rows, blocks) = self.rows(a, number);
        let mut f = a.block(&layer.kind(number), &prefix(number));
        let turn = match layer {
            Layer::Window => Turn::param(&mut f, "near", &self.attention.near, Sym::T),
            _ => Turn::param(&mut f, "far", &self.attention.far, Sym::T),
        };
        let place = Place { config: self, number, layer, turn, rows, blocks: blocks.as_ref() };
        let n = self.hyper.streams;
        let (streams, pre) = (f.rows("streams", &[n, self.frame.hidden]), f.rows("pre", &[n]));
        self.sites(&mut f, streams, pre, &self.moe, |f, x| attention(f, place, x));
        a.share(f)
    }

    /// The two sites of a layer, which leave `streams` and `pre`.
    pub(super) fn sites<'a>(
        &self,
        f: &mut Block<'a>,
        streams: ValueId,
        pre: ValueId,
        experts: &Moe,
        attend: impl FnOnce(&mut Block<'a>, ValueId) -> ValueId,
    ) {
        let eps = self.frame.eps;
        let mix = self.hyper.mix(f, "hc_attn", streams);
        let y = self.hyper.collapse(f, streams, pre);
        let x = f.norm(y, "attn_norm", eps);
        let y = attend(f, x);
        let streams = self.hyper.expand(f, streams, y, &mix);
        let pre = mix.pre;

        let mix = self.hyper.mix(f, "hc_ffn", streams);
        let y = self.hyper.collapse(f, streams, pre);
        let x = f.norm(y, "ffn_norm", eps);
        let y = moe(f, experts, x, None);
        let streams = self.hyper.expand(f, streams, y, &mix);
        f.result("streams", streams);
        f.result("pre", mix.pre);
    }

    /// What table number `index` adds to the streams before its layer.
    fn memory(&self, a: &mut Assembly<'_>, e: &Engram, index: usize) -> Built {
        let mut f = a.block("memory", &prefix(e.hashing.layers[index]));
        let streams = f.rows("streams", &[self.hyper.streams, self.frame.hidden]);
        let rows =
            f.param("rows_of_table", TensorType::new(DType::I64, [Sym::T.into(), Dim::from(e.hashing.columns())]));
        let chosen = Chosen { hashes: rows, rows, of: e.rows[index] };
        let more = f.within("engram", |f| gated(f, &e.gate, streams, chosen));
        let streams = f.add(streams, more);
        f.result("streams", streams);
        if a.bounds.inner {
            f.result("memory", more);
        }
        a.share(f)
    }

    fn main(&self, a: &mut Assembly<'_>, name: &str, layers: &[Func], tables: &[Func], gives: Gives) -> Built {
        let mut f = a.block(name, "");
        let tokens = f.tokens();
        let mut named = self.begin(&mut f, tokens, true);
        let table = |l: usize| self.engram.as_ref().and_then(|e| e.hashing.layers.iter().position(|t| *t == l));
        let memory: Vec<Chosen> = match &self.engram {
            None => Vec::new(),
            Some(e) => {
                let ngrams = ngrams(&mut f, &e.hashing, self.frame.vocab, tokens);
                (0..tables.len()).map(|i| choose(&mut f, &e.hashing, i, &ngrams)).collect()
            }
        };
        let inner = gives == Gives::Inner;
        let mut targets = Vec::new();
        for (l, layer) in layers.iter().enumerate() {
            if let Some(i) = table(l) {
                named.insert("rows_of_table".into(), memory[i].rows);
                f.call_named(&tables[i], &prefix(l), &mut named);
                if inner {
                    f.result(&format!("hash_{l}"), memory[i].hashes);
                    f.result(&format!("engram_{l}"), named["memory"]);
                }
            }
            if self.draft.as_ref().is_some_and(|draft| draft.targets.contains(&l)) {
                let sum = f.reduce(ReduceKind::Sum, &[1], named["streams"]);
                targets.push(f.mul_scalar(sum, 1.0 / self.hyper.streams as f64));
            }
            f.call_named(layer, &prefix(l), &mut named);
            if inner {
                self.show_selection(&mut f, a, l, &named);
            }
        }
        let (mut streams, mut pre) = (named["streams"], named["pre"]);
        if gives == Gives::Last {
            (streams, pre) = (f.last_row(streams), f.last_row(pre));
        }
        let y = self.hyper.collapse(&mut f, streams, pre);
        let logits = self.logits(&mut f, y, "norm");
        f.result("logits", logits);
        if let [_, ..] = targets[..] {
            let hidden = f.concat(&targets, 1);
            f.result("hidden", hidden);
        }
        a.add(f)
    }

    /// Gives out which rows layer `l` selects (`kept_l`), and the rows of the blocks that it chooses (`candidates`).
    fn show_selection(&self, f: &mut Block<'_>, a: &mut Assembly<'_>, l: usize, named: &Named) {
        let Layer::Compressed { selection, candidates, .. } = &self.layers[l] else { return };
        let (rows, count) = self.rows(a, l);
        if *selection == l {
            let kept = f.member(named["selection"], rows.counter.all());
            let kept = f.cast(kept, DType::U8);
            f.result(&format!("kept_{l}"), kept);
        }
        if let (Candidates::Chosen, Some((blocks, count))) = (candidates, self.blocks.zip(count)) {
            let shown = blocks.rows(f, named["candidates"], &count, rows);
            let shown = f.cast(shown, DType::U8);
            f.result("candidates", shown);
        }
    }

    /// What the first layer is given for `tokens` at the positions from `P` on: every stream is the embedding, of which
    /// the first is taken; angles for windows, and for compressed rows where there are any.
    pub(super) fn begin(&self, f: &mut Block<'_>, tokens: ValueId, compressed: bool) -> Named {
        let (n, count) = (self.hyper.streams, f.shape(tokens)[0].clone());
        let x = f.embed("embed", tokens, [self.frame.vocab, self.frame.hidden]);
        let streams = self.hyper.streams(f, x);
        let first = f.op(Constant::vector((0..n).map(|j| if j == 0 { 1.0 } else { 0.0 })), &[]);
        let pre = f.broadcast(first, &[count.clone(), n.into()], &[1]);
        let mut named = Named::from([("streams".into(), streams), ("pre".into(), pre)]);
        let sides = [("near", &self.attention.near), ("far", &self.attention.far)];
        for (side, rope) in &sides[..if compressed { 2 } else { 1 }] {
            let positions = f.iota(count.clone(), Sym::P);
            Turn::give(f, side, rope, positions, &mut named);
        }
        named
    }

    /// The logits of rows before the norm `name`.
    pub(super) fn logits(&self, f: &mut Block<'_>, y: ValueId, name: &str) -> ValueId {
        let x = f.norm(y, name, self.frame.eps);
        f.linear(x, "head", self.frame.vocab, false)
    }
}
