//! The DeepSeek-V4 graph (sheet `deepseek-v4`, "Forward pass").
//!
//! ```text
//! x = E[tokens] in every stream
//! x = mixed(x, attention(norm(pre x)));   x = mixed(x, experts(norm(pre x)))       for every layer
//! logits = norm(pre x) Wᵀ
//! ```

use super::attention::attention;
use super::config::Config;
use crate::blocks::Block;
use crate::blocks::assembly::{Architecture, Assembly, Built, Frame, Gives, Named, Rows};
use crate::blocks::moe::{Choice, Moe, moe};
use crate::blocks::selection::Compressed;
use crate::blocks::shared_kv::Turn;
use hadal_ir::builder::BuildError;
use hadal_ir::module::{Func, ValueId};
use hadal_types::Sym;
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
        let has = |depth: &usize| a.formats.has(&format!("mtp.{depth}.e_proj.weight"));
        let predicting: Vec<usize> = (0..self.ratios.len() - count).filter(has).collect();
        a.predicting_entries(
            &predicting,
            |a, name, gives| self.main(a, name, &layers, gives),
            |a, name, depth, rows| self.mtp(a, name, depth, rows),
        )
    }
}

/// What the angles of compressed rows are called.
fn side(of: Compressed) -> String {
    format!("rows{}", of.ratio)
}

impl Config {
    fn prefix(&self, layer: usize) -> String {
        match layer.checked_sub(self.frame.layers) {
            None => format!("layers.{layer}."),
            Some(depth) => format!("mtp.{depth}."),
        }
    }

    /// The compressed rows of `layer`.
    fn compressed(&self, a: &mut Assembly<'_>, layer: usize) -> Option<Compressed> {
        let ratio = Some(self.ratios[layer]).filter(|m| *m > 0)?;
        Some(Compressed { ratio, counter: a.module.counter(ratio) })
    }

    /// The function for `layer`, shared with every layer that is the same.
    fn layer(&self, a: &mut Assembly<'_>, layer: usize) -> Built {
        let (compressed, hashed) = (self.compressed(a, layer), layer < self.hashed);
        let kind = match compressed {
            None => "window_layer".to_owned(),
            Some(of) => format!("rows{}_layer", of.ratio),
        };
        let name = if hashed { format!("hashed_{kind}") } else { kind };
        let mut f = a.block(&name, &self.prefix(layer));
        let x = f.rows("x", &[self.hyper.streams, self.frame.hidden]);
        let tokens = hashed.then(|| f.tokens());
        let (near, far) = (&self.attention.near, &self.attention.far);
        let (turn, compressed) = match compressed {
            None => (Turn::param(&mut f, "near", near, Sym::T), None),
            Some(of) => {
                let turn = Turn::param(&mut f, "far", far, Sym::T);
                (turn, Some((of, Turn::param(&mut f, &side(of), far, of.counter.new))))
            }
        };

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

    fn main(&self, a: &mut Assembly<'_>, name: &str, layers: &[Func], gives: Gives) -> Built {
        let compressed: Vec<_> = (0..layers.len()).map(|l| self.compressed(a, l)).collect();
        let mut f = a.block(name, "");
        let tokens = f.tokens();
        let x = f.embed("embed", tokens, [self.frame.vocab, self.frame.hidden]);
        let x = self.hyper.streams(&mut f, x);
        let mut named = Named::from([("tokens".into(), tokens), ("x".into(), x)]);
        self.turns(&mut f, &compressed, &mut named);
        for (l, layer) in layers.iter().enumerate() {
            f.call_named(layer, &self.prefix(l), &mut named);
        }
        let x = named["x"];
        let read = if gives.logits == Rows::Last { f.last_row(x) } else { x };
        let logits = self.head(&mut f, "", read, "head");
        f.result("logits", logits);
        if gives.hidden {
            f.result("hidden", x);
        }
        a.add(f)
    }

    /// Makes the angles that layers with these rows turn by. New tokens turn by their positions, in layers with compressed rows
    /// by other angles than in those without.
    fn turns(&self, f: &mut Block<'_>, compressed: &[Option<Compressed>], named: &mut Named) {
        let sides = [("near", &self.attention.near, true), ("far", &self.attention.far, false)];
        for (side, rope, alone) in sides {
            if compressed.iter().any(|of| of.is_none() == alone) {
                let positions = f.iota(Sym::T, Sym::P);
                Turn::give(f, side, rope, positions, named);
            }
        }
        let by_ratio: BTreeMap<usize, Compressed> = compressed.iter().flatten().map(|of| (of.ratio, *of)).collect();
        for of in by_ratio.values() {
            let positions = of.positions(f);
            Turn::give(f, &side(*of), &self.attention.far, positions, named);
        }
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
    fn mtp(&self, a: &mut Assembly<'_>, name: &str, depth: usize, rows: Option<Rows>) -> Built {
        let (n, d, eps) = (self.hyper.streams, self.frame.hidden, self.frame.eps);
        let layer = self.frame.layers + depth;
        let (func, compressed) = (self.layer(a, layer)?, self.compressed(a, layer));
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
        let mut named = Named::from([("tokens".into(), tokens), ("x".into(), x)]);
        self.turns(&mut f, &[compressed], &mut named);
        f.call_named(&func, &prefix, &mut named);
        let x = named["x"];
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
