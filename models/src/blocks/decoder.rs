//! The classical frame of a decoder: embedding, layers on one residual stream, head, and the entries into them.
//!
//! ```text
//! x = E[tokens];   x = layer_l(x) for every l;   hidden = norm(x);   logits = hidden Wᵀ
//! ```
//!
//! Layers that are the same computation on weights of the same formats become one function, called once per layer.

use super::Block;
use super::assembly::{Architecture, Assembly, Built, Frame, Gives, MtpInput, Rows};
use super::rope::{Angles, Rope};
use hadal_ir::builder::BuildError;
use hadal_ir::module::{Func, ValueId};
use hadal_types::{Definition, Sym};

/// A decoder with one residual stream: what varies between families, inside the frame.
pub trait Decoder {
    /// The frame.
    fn frame(&self) -> &Frame;

    /// The rotation of its heads.
    fn rope(&self) -> &Rope;

    /// Layers after the last one that predict further tokens.
    fn mtp_layers(&self) -> usize {
        0
    }

    /// Symbols that its layers use, and how they follow from `P` and `T`.
    fn definitions(&self) -> Vec<(Sym, Definition)> {
        Vec::new()
    }

    /// What a layer's function is called.
    fn kind(&self, layer: usize) -> &'static str;

    /// One layer: `[T, d]` to `[T, d]`.
    fn layer(&self, f: &mut Block<'_>, layer: usize, x: ValueId, angles: Angles) -> ValueId;
}

/// What a layer's weights' and states' names begin with.
pub fn layer_prefix(layer: usize) -> String {
    format!("model.layers.{layer}.")
}

/// The entries are those of every model, with the hidden states for `mtp` ([`MtpInput`]) as a second result of
/// `logits`. `mtp` (`mtp1`, …) takes tokens and hidden states to the logits of the tokens after the next ones, and
/// drafts are made by the first of these layers.
impl<D: Decoder> Architecture for D {
    fn frame(&self) -> &Frame {
        Decoder::frame(self)
    }

    fn assemble(&self, a: &mut Assembly<'_>) -> Result<(), Box<BuildError>> {
        for (sym, definition) in self.definitions() {
            a.module.define(sym, definition).expect("a model's own symbols are defined once and in order");
        }
        let count = Decoder::frame(self).layers;
        let layers = (0..count).map(|l| layer(self, a, l)).collect::<Result<Vec<_>, _>>()?;
        let has = |l: &usize| a.formats.has(&format!("{}eh_proj.weight", layer_prefix(count + l)));
        let predicting: Vec<usize> = (0..self.mtp_layers()).filter(has).collect();
        a.predicting_entries(
            &predicting,
            |a, name, gives| main(self, a, name, &layers, gives),
            |a, name, depth, rows| mtp(self, a, name, count + depth, rows),
        )
    }
}

/// The function for layer `l`, shared with every layer that is the same.
fn layer(d: &impl Decoder, a: &mut Assembly<'_>, l: usize) -> Built {
    let mut f = a.block(d.kind(l), &layer_prefix(l));
    let x = f.rows("x", &[d.frame().hidden]);
    let pairs = d.rope().dim / 2;
    let (cos, sin) = (f.rows("cos", &[pairs]), f.rows("sin", &[pairs]));
    let y = d.layer(&mut f, l, x, Angles { cos, sin });
    f.result("y", y);
    a.share(f)
}

fn main(d: &impl Decoder, a: &mut Assembly<'_>, name: &str, layers: &[Func], gives: Gives) -> Built {
    let frame = d.frame();
    let mut f = a.block(name, "");
    let tokens = f.tokens();
    let angles = d.rope().angles(&mut f);
    let mut x = f.embed("model.embed_tokens", tokens, [frame.vocab, frame.hidden]);
    for (l, layer) in layers.iter().enumerate() {
        x = f.call(layer, &layer_prefix(l), &[x, angles.cos, angles.sin])[0];
    }
    let last = gives.logits == Rows::Last;
    if last && !gives.hidden {
        x = f.last_row(x);
    }
    let normed = f.norm(x, "model.norm", frame.eps);
    let rows = if last && gives.hidden { f.last_row(normed) } else { normed };
    let logits = f.linear(rows, head(frame, "lm_head"), frame.vocab, false);
    f.result("logits", logits);
    if gives.hidden {
        f.result("hidden", if a.bounds.mtp_input == MtpInput::Raw { x } else { normed });
    }
    a.add(f)
}

/// Multi-token prediction (sheet `deepseek-v3`, "MTP layer"): row `i` joins the hidden state of token `i` with the
/// embedding of token `i + 1`, passes one more layer, and predicts token `i + 2`.
///
/// `z = eh_proj [enorm(E[t]) ; hnorm(h)]`, `logits = shared_head(norm(layer(z)))`. Row `i` stands at position `P + i`.
///
/// With `rows` of the last one alone it also gives the hidden state that the next draft goes on from, in the place of
/// the main model's; without any it only keeps what it has seen.
fn mtp(d: &impl Decoder, a: &mut Assembly<'_>, name: &str, l: usize, rows: Option<Rows>) -> Built {
    let frame = d.frame();
    let func = layer(d, a, l)?;
    let prefix = layer_prefix(l);
    let mut f = a.block(name, "");
    let tokens = f.tokens();
    let hidden = f.rows("hidden", &[frame.hidden]);
    let angles = d.rope().angles(&mut f);
    // The layer's copies of embedding and head are left out of some conversions.
    let copy = |part: &str, main: &'static str| match format!("{prefix}{part}") {
        own if a.formats.has(&format!("{own}.weight")) => own,
        _ => main.to_owned(),
    };
    let table = copy("embed_tokens", "model.embed_tokens");
    let e = f.embed(&table, tokens, [frame.vocab, frame.hidden]);
    let e = f.norm(e, &format!("{prefix}enorm"), frame.eps);
    let h = f.norm(hidden, &format!("{prefix}hnorm"), frame.eps);
    let joined = f.concat(&[e, h], 1);
    let z = f.linear(joined, &format!("{prefix}eh_proj"), frame.hidden, false);
    let y = f.call(&func, &prefix, &[z, angles.cos, angles.sin])[0];
    let Some(rows) = rows else { return a.add(f) };
    let y = if rows == Rows::Last { f.last_row(y) } else { y };
    let normed = f.norm(y, &format!("{prefix}shared_head.norm"), frame.eps);
    let head = copy("shared_head.head", head(frame, "lm_head"));
    let logits = f.linear(normed, &head, frame.vocab, false);
    f.result("logits", logits);
    if rows == Rows::Last {
        f.result("next", if a.bounds.mtp_input == MtpInput::Raw { y } else { normed });
    }
    a.add(f)
}

fn head(frame: &Frame, own: &'static str) -> &'static str {
    if frame.tied { "model.embed_tokens" } else { own }
}
