//! The classical frame of a decoder: embedding, layers on one residual stream, head, and the entries into them.
//!
//! ```text
//! x = E[tokens];   x = layer_l(x) for every l;   hidden = norm(x);   logits = hidden Wᵀ
//! ```
//!
//! Layers that are the same computation on weights of the same formats become one function, called once per layer.

use super::Block;
use super::assembly::{Architecture, Assembly, Frame, MtpInput, Rows};
use super::rope::{Angles, Rope};
use hadal_ir::builder::BuildError;
use hadal_ir::module::{Func, ValueId};

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

    /// What a layer's function is called.
    fn kind(&self, layer: usize) -> &'static str;

    /// One layer: `[T, d]` to `[T, d]`.
    fn layer(&self, f: &mut Block<'_>, layer: usize, x: ValueId, angles: Angles) -> ValueId;
}

/// What a layer's weights' and states' names begin with.
pub fn layer_prefix(layer: usize) -> String {
    format!("model.layers.{layer}.")
}

/// The entries are those of every model, with the hidden states for `mtp` ([`MtpInput`]) as a second result of `logits`,
/// and `mtp` (`mtp1`, …): tokens and hidden states to the logits of the tokens after the next ones.
impl<D: Decoder> Architecture for D {
    fn frame(&self) -> &Frame {
        Decoder::frame(self)
    }

    fn assemble(&self, a: &mut Assembly<'_>) -> Result<(), Box<BuildError>> {
        let layers = (0..Decoder::frame(self).layers).map(|l| layer(self, a, l)).collect::<Result<Vec<_>, _>>()?;
        let all = main(self, a, "main_all", &layers, Rows::All)?;
        let last = main(self, a, "main", &layers, Rows::Last)?;
        a.main_entries(&all, &last);
        for depth in 0..self.mtp_layers() {
            let name = if depth == 0 { "mtp".to_owned() } else { format!("mtp{depth}") };
            let at = Decoder::frame(self).layers + depth;
            if a.formats.has(&format!("{}eh_proj.weight", layer_prefix(at))) {
                let func = mtp(self, a, &name, at)?;
                a.chunk_entry(&name, &func);
            }
        }
        Ok(())
    }
}

/// The function for layer `l`, shared with every layer that is the same.
fn layer(d: &impl Decoder, a: &mut Assembly<'_>, l: usize) -> Result<Func, Box<BuildError>> {
    let mut f = a.block(d.kind(l), &layer_prefix(l));
    let x = f.rows("x", &[d.frame().hidden]);
    let pairs = d.rope().dim / 2;
    let (cos, sin) = (f.rows("cos", &[pairs]), f.rows("sin", &[pairs]));
    let y = d.layer(&mut f, l, x, Angles { cos, sin });
    f.result("y", y);
    a.share(f)
}

fn main(
    d: &impl Decoder,
    a: &mut Assembly<'_>,
    name: &str,
    layers: &[Func],
    rows: Rows,
) -> Result<Func, Box<BuildError>> {
    let frame = d.frame();
    let mut f = a.block(name, "");
    let tokens = f.tokens();
    let angles = d.rope().angles(&mut f);
    let mut x = f.embed("model.embed_tokens", tokens, [frame.vocab, frame.hidden]);
    for (l, layer) in layers.iter().enumerate() {
        x = f.call(layer, &layer_prefix(l), &[x, angles.cos, angles.sin])[0];
    }
    if rows == Rows::Last {
        x = f.last_row(x);
    }
    let hidden = f.norm(x, "model.norm", frame.eps);
    let logits = f.linear(hidden, head(frame, "lm_head"), frame.vocab, false);
    f.result("logits", logits);
    if rows == Rows::All {
        f.result("hidden", if a.bounds.mtp_input == MtpInput::Raw { x } else { hidden });
    }
    a.add(f)
}

/// Multi-token prediction (sheet `deepseek-v3`, "MTP layer"): row `i` joins the hidden state of token `i` with the
/// embedding of token `i + 1`, passes one more layer, and predicts token `i + 2`.
///
/// `z = eh_proj [enorm(E[t]) ; hnorm(h)]`, `logits = shared_head(norm(layer(z)))`. Row `i` stands at position `P + i`.
fn mtp(d: &impl Decoder, a: &mut Assembly<'_>, name: &str, l: usize) -> Result<Func, Box<BuildError>> {
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
    let y = f.norm(y, &format!("{prefix}shared_head.norm"), frame.eps);
    let head = copy("shared_head.head", head(frame, "lm_head"));
    let logits = f.linear(y, &head, frame.vocab, false);
    f.result("logits", logits);
    a.add(f)
}

fn head(frame: &Frame, own: &'static str) -> &'static str {
    if frame.tied { "model.embed_tokens" } else { own }
}
