//! The frame of a decoder: embedding, layers, head, and the entries into them.
//!
//! ```text
//! x = E[tokens];   x = layer_l(x) for every l;   hidden = norm(x);   logits = hidden Wᵀ
//! ```
//!
//! Layers that are the same computation on weights of the same formats become one function, called once per layer.

use super::Block;
use super::rope::{Angles, Rope};
use crate::config_reader::Object;
use crate::error::Result;
use crate::formats::{Formats, Plan};
use hadal_ir::builder::BuildError;
use hadal_ir::module::{Entry, Func, Module, Range, ValueId};
use hadal_ir::ops::Gather;
use hadal_types::{DType, Dim, Sym, TensorType};

/// What every decoder of these families has.
#[derive(Clone, PartialEq, Debug)]
pub struct Frame {
    /// Vocabulary `V`.
    pub vocab: usize,
    /// Hidden size `d`.
    pub hidden: usize,
    /// Layers `L`.
    pub layers: usize,
    /// Epsilon of the norms on the hidden state.
    pub eps: f64,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Longest context it was made for.
    pub max_position: usize,
    /// Token that begins a text.
    pub bos: Option<usize>,
    /// Tokens that end one.
    pub eos: Vec<usize>,
    /// Announced formats.
    pub plan: Plan,
}

impl Frame {
    /// Reads the keys common to all these families, and refuses what none of them computes.
    pub fn read(o: &Object<'_>) -> Result<Frame> {
        // The same function under its two names.
        o.str_in_or("hidden_act", &["silu", "swish"], "silu")?;
        if o.bool_or("use_sliding_window", false)? {
            return Err(o.error("use_sliding_window", "false, as attention windows are not supported"));
        }
        if let Some(kinds) = o.str_list("layer_types")?
            && kinds.iter().any(|k| *k != "full_attention")
        {
            return Err(o.error("layer_types", "a list of \"full_attention\" only"));
        }
        o.ignore(IGNORED);
        let vocab = o.require_usize_in("vocab_size", 1..=1 << 24)?;
        Ok(Frame {
            vocab,
            hidden: o.require_usize_in("hidden_size", 1..=1 << 18)?,
            layers: o.require_usize_in("num_hidden_layers", 1..=1024)?,
            eps: o.positive_or("rms_norm_eps", 1e-6)?,
            tied: o.bool_or("tie_word_embeddings", false)?,
            max_position: o.require_usize_in("max_position_embeddings", 1..=1 << 30)?,
            bos: o.token_ids("bos_token_id", vocab)?.and_then(|ids| ids.first().copied()),
            eos: o.token_ids("eos_token_id", vocab)?.unwrap_or_default(),
            plan: Plan::read(o)?,
        })
    }
}

/// Keys that say how a model was trained, is sampled or was saved, but not what it computes.
const IGNORED: &[&str] = &[
    "_attn_implementation",
    "_name_or_path",
    "attention_dropout",
    "auto_map",
    "aux_loss_alpha",
    "ep_size",
    "initializer_range",
    "max_window_layers",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "router_aux_loss_coef",
    "seq_aux",
    "sliding_window",
    "transformers_version",
    "use_cache",
    "use_mrope",
];

/// A decoder-only model: what varies between families, inside the frame.
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

/// Bounds and choices that the graph depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct Bounds {
    /// Most tokens in the states.
    pub max_context: usize,
    /// Most tokens of one call.
    pub max_chunk: usize,
    /// Format of the states.
    pub state_dtype: DType,
    /// Which hidden states multi-token prediction is given.
    pub mtp_input: MtpInput,
}

/// Which hidden states the entry `logits` gives out, for multi-token prediction to take in. The technical report does not
/// say (sheet `deepseek-v3`, "MTP layer"); engines give those after the final norm.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MtpInput {
    /// After the final norm.
    #[default]
    Normed,
    /// Before it.
    Raw,
}

/// Builds the module of `decoder`, with the entries
///
/// - `logits`: tokens to the logits of every position and the hidden states for `mtp` ([`MtpInput`]);
/// - `prefill`: tokens to the logits of the last one; `decode`: the same of one token;
/// - `mtp` (and `mtp1`, …): tokens and hidden states to the logits of the tokens after the next ones.
pub fn assemble(decoder: &dyn Decoder, formats: &Formats<'_>, bounds: &Bounds) -> Result<Module, Box<BuildError>> {
    let frame = decoder.frame();
    let chunk = Range { min: 1, max: bounds.max_chunk as i64 };
    let mut module = Module::default();
    module.symbols.insert(Sym::T, chunk);
    module.symbols.insert(Sym::P, Range { min: 0, max: bounds.max_context as i64 });
    let mut a = Assembly { decoder, formats, bounds, module };

    let layers = (0..frame.layers).map(|l| a.layer(l)).collect::<Result<Vec<_>, _>>()?;
    let logits = a.main("main_all", &layers, Rows::All)?;
    a.entry("logits", logits, chunk);
    let last = a.main("main", &layers, Rows::Last)?;
    a.entry("prefill", last.clone(), chunk);
    a.entry("decode", last, Range { min: 1, max: 1 });
    for depth in 0..decoder.mtp_layers() {
        let name = if depth == 0 { "mtp".to_owned() } else { format!("mtp{depth}") };
        let prefix = layer_prefix(frame.layers + depth);
        if formats.has(&format!("{prefix}eh_proj.weight")) {
            let func = a.mtp(&name, frame.layers + depth)?;
            a.entry(&name, func, chunk);
        }
    }
    Ok(a.module)
}

/// What a layer's weights' and states' names begin with.
pub fn layer_prefix(layer: usize) -> String {
    format!("model.layers.{layer}.")
}

/// For which rows logits are wanted.
#[derive(Clone, Copy, PartialEq)]
enum Rows {
    All,
    Last,
}

struct Assembly<'a> {
    decoder: &'a dyn Decoder,
    formats: &'a Formats<'a>,
    bounds: &'a Bounds,
    module: Module,
}

impl<'a> Assembly<'a> {
    fn block(&self, name: &str, at: &str) -> Block<'a> {
        Block::new(name, self.formats, at, self.bounds.state_dtype)
    }

    fn rows(&self, n: usize) -> TensorType {
        TensorType::new(DType::F32, [Sym::T.into(), Dim::from(n)])
    }

    fn tokens(&self, f: &mut Block<'_>) -> ValueId {
        f.param("tokens", TensorType::new(DType::I32, [Sym::T]))
    }

    /// The function for `layer`, shared with every layer that is the same.
    fn layer(&mut self, layer: usize) -> Result<Func, Box<BuildError>> {
        let kind = self.decoder.kind(layer);
        let mut f = self.block(kind, &layer_prefix(layer));
        let x = f.param("x", self.rows(self.decoder.frame().hidden));
        let pairs = self.decoder.rope().dim / 2;
        let cos = f.param("cos", self.rows(pairs));
        let sin = f.param("sin", self.rows(pairs));
        let y = self.decoder.layer(&mut f, layer, x, Angles { cos, sin });
        f.result("y", y);
        let mut func = f.finish()?;
        // Layers of one kind may still be stored in different formats.
        let mut variant = 1;
        while let Some(known) = self.module.func(&func.name)
            && *known != func
        {
            variant += 1;
            func.name = format!("{kind}_{variant}");
        }
        if self.module.func(&func.name).is_none() {
            self.module.funcs.push(func.clone());
        }
        Ok(func)
    }

    fn entry(&mut self, name: &str, func: String, tokens: Range) {
        self.module.entries.push(Entry { name: name.into(), func, ranges: [(Sym::T, tokens)].into() });
    }

    fn add(&mut self, f: Block<'_>) -> Result<String, Box<BuildError>> {
        let func = f.finish()?;
        let name = func.name.clone();
        self.module.funcs.push(func);
        Ok(name)
    }

    fn main(&mut self, name: &str, layers: &[Func], rows: Rows) -> Result<String, Box<BuildError>> {
        let frame = self.decoder.frame();
        let mut f = self.block(name, "");
        let tokens = self.tokens(&mut f);
        let angles = self.decoder.rope().angles(&mut f);
        let mut x = embed(&mut f, "model.embed_tokens", tokens, frame);
        for (l, layer) in layers.iter().enumerate() {
            x = f.call(layer, &layer_prefix(l), &[x, angles.cos, angles.sin])[0];
        }
        if rows == Rows::Last {
            x = f.slice(x, 0, Dim::from(Sym::T) - 1, 1, 1);
        }
        let hidden = f.norm(x, "model.norm", frame.eps);
        let logits = f.linear(hidden, head(frame, "lm_head"), frame.vocab, false);
        f.result("logits", logits);
        if rows == Rows::All {
            f.result("hidden", if self.bounds.mtp_input == MtpInput::Raw { x } else { hidden });
        }
        self.add(f)
    }

    /// Multi-token prediction (sheet `deepseek-v3`, "MTP layer"): row `i` joins the hidden state of token `i` with the
    /// embedding of token `i + 1`, passes one more layer, and predicts token `i + 2`.
    ///
    /// `z = eh_proj [enorm(E[t]) ; hnorm(h)]`, `logits = shared_head(norm(layer(z)))`. Row `i` stands at position `P + i`.
    fn mtp(&mut self, name: &str, layer: usize) -> Result<String, Box<BuildError>> {
        let frame = self.decoder.frame();
        let func = self.layer(layer)?;
        let prefix = layer_prefix(layer);
        let mut f = self.block(name, "");
        let tokens = self.tokens(&mut f);
        let hidden = f.param("hidden", self.rows(frame.hidden));
        let angles = self.decoder.rope().angles(&mut f);
        // The layer's copies of embedding and head are left out of some conversions.
        let copy = |part: &str, main: &'static str| match format!("{prefix}{part}") {
            own if self.formats.has(&format!("{own}.weight")) => own,
            _ => main.to_owned(),
        };
        let e = embed(&mut f, &copy("embed_tokens", "model.embed_tokens"), tokens, frame);
        let e = f.norm(e, &format!("{prefix}enorm"), frame.eps);
        let h = f.norm(hidden, &format!("{prefix}hnorm"), frame.eps);
        let joined = f.concat(&[e, h], 1);
        let z = f.linear(joined, &format!("{prefix}eh_proj"), frame.hidden, false);
        let y = f.call(&func, &prefix, &[z, angles.cos, angles.sin])[0];
        let y = f.norm(y, &format!("{prefix}shared_head.norm"), frame.eps);
        let head = copy("shared_head.head", head(frame, "lm_head"));
        let logits = f.linear(y, &head, frame.vocab, false);
        f.result("logits", logits);
        self.add(f)
    }
}

/// `E[tokens]`.
fn embed(f: &mut Block<'_>, name: &str, tokens: ValueId, frame: &Frame) -> ValueId {
    let table = f.tensor(&format!("{name}.weight"), &[frame.vocab, frame.hidden]);
    let rows = f.op(Gather { axis: 0, batch: 0 }, &[table, tokens]);
    f.cast(rows, DType::F32)
}

fn head(frame: &Frame, own: &'static str) -> &'static str {
    if frame.tied { "model.embed_tokens" } else { own }
}
