//! What architectures are built with: what every model of text has, and a module under construction.
//!
//! An [`Architecture`] says how a model's functions fit together; [`Assembly`] keeps those it has, one for every
//! distinct layer, and the entries. A plain residual stream is assembled by [`super::decoder`] alone; models with
//! another frame (several streams, values that cross layers, draft stages) implement [`Architecture`] themselves.

use super::Block;
use crate::config_reader::Object;
use crate::error::Result;
use crate::formats::{Formats, Own, Plan};
use crate::ngram::Hashing;
use hadal_ir::builder::BuildError;
use hadal_ir::module::{Entry, Func, Module, Range, STEP, ValueId};
use hadal_ir::ops::Gather;
use hadal_types::{DType, Dim, Sym, TensorType};
use std::collections::BTreeMap;

/// What every model of text has.
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
    /// Reads the keys common to models in which every layer sees all tokens, and refuses what none of them computes.
    pub fn read(o: &Object<'_>) -> Result<Frame> {
        if o.bool_or("use_sliding_window", false)? {
            return Err(o.error("use_sliding_window", "false, as attention windows are not supported"));
        }
        if let Some(kinds) = o.str_list("layer_types")?
            && kinds.iter().any(|k| *k != "full_attention")
        {
            return Err(o.error("layer_types", "a list of \"full_attention\" only"));
        }
        o.ignore(&["max_window_layers", "sliding_window"]);
        Frame::read_sizes(o)
    }

    /// Reads the keys common to all models, whatever their layers see.
    pub fn read_sizes(o: &Object<'_>) -> Result<Frame> {
        // The same function under its two names.
        o.str_in_or("hidden_act", &["silu", "swish"], "silu")?;
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

    /// The same in the spelling of the repositories' own code, which ties no head and says nothing of tokenizers.
    pub fn read_own(o: &Object<'_>, own: &Own) -> Result<Frame> {
        Ok(Frame {
            vocab: o.require_usize_in("vocab_size", 1..=1 << 24)?,
            hidden: o.require_usize_in("dim", 1..=1 << 18)?,
            layers: o.require_usize_in("n_layers", 1..=1024)?,
            eps: o.positive_or("norm_eps", own.eps)?,
            tied: false,
            max_position: o.usize_or("max_seq_len", own.max_position)?,
            bos: None,
            eos: Vec::new(),
            plan: Plan::read_own(o, own)?,
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
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "router_aux_loss_coef",
    "seq_aux",
    "transformers_version",
    "use_cache",
    "use_mrope",
];

/// A model as its configuration describes it.
pub trait Architecture {
    /// What it has in common with every other.
    fn frame(&self) -> &Frame;

    /// Adds its functions and entries:
    ///
    /// - `logits`: tokens to the logits of every position, and what drafts are made from;
    /// - `prefill`: tokens to the logits of the last one;
    /// - `decode`: the tokens of a step, at most [`STEP`], to the `logits` of each.
    ///
    /// A model that drafts ([`Assembly::drafted_entries`]) has more:
    ///
    /// - `decode` also gives a row of `hidden` for each;
    /// - `prefill_hidden`: as `prefill`, with such a row for every token, where `prefill` has none;
    /// - `draft_fill`: rows of `hidden`, with `tokens` those after them where it takes any, to nothing but what it
    ///   keeps;
    /// - `draft` of multi-token prediction: the same, for a step, to the `logits` of the token after the last one's,
    ///   and `next`, what stands for its row of `hidden`. Of blocks: the newest token, `tokens`, to `logits` and
    ///   `states` of a block, whose rows `markov` corrects one by one.
    fn assemble(&self, a: &mut Assembly<'_>) -> Result<(), Box<BuildError>>;

    /// Names of tensors that checkpoints hold for other uses than text; `*` stands for anything.
    fn passed_over(&self) -> &'static [&'static str] {
        &[]
    }

    /// How its n-gram tables are addressed, where it has any.
    fn hashing(&self) -> Option<&Hashing> {
        None
    }
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
    /// Whether the entry `logits` also gives what some layers compute on the way, for comparison with other code.
    pub inner: bool,
}

/// Which hidden states the entry `logits` gives out, for multi-token prediction to take in. The technical report does
/// not say (sheet `deepseek-v3`, "MTP layer"); engines give those after the final norm.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MtpInput {
    /// After the final norm.
    #[default]
    Normed,
    /// Before it.
    Raw,
}

/// For which rows logits are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rows {
    /// Every new token's.
    All,
    /// The last one's.
    Last,
}

/// What a main function gives out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gives {
    /// Logits of which rows.
    pub logits: Rows,
    /// Whether also what drafts are made from, of all rows.
    pub hidden: bool,
}

/// Values by the names under which functions take them and leave them.
pub type Named = BTreeMap<String, ValueId>;

/// A function, or the first constraint that it breaks.
pub type Built = Result<Func, Box<BuildError>>;

/// A module under construction.
pub struct Assembly<'a> {
    /// In which formats weights are stored.
    pub formats: &'a Formats<'a>,
    /// Bounds and choices.
    pub bounds: &'a Bounds,
    /// What there is so far. Its symbols `T` and `P` are declared.
    pub module: Module,
}

impl<'a> Assembly<'a> {
    /// An empty module within `bounds`.
    pub fn new(formats: &'a Formats<'a>, bounds: &'a Bounds) -> Assembly<'a> {
        let mut module = Module::default();
        module.symbols.insert(Sym::T, Range { min: 1, max: bounds.max_chunk as i64 });
        module.symbols.insert(Sym::P, Range { min: 0, max: bounds.max_context as i64 });
        Assembly { formats, bounds, module }
    }

    /// Starts the function `name`, for the instance whose weights' names begin with `at`.
    pub fn block(&self, name: &str, at: &str) -> Block<'a> {
        Block::new(name, self.formats, at, self.bounds.state_dtype)
    }

    /// Adds a function.
    pub fn add(&mut self, f: Block<'_>) -> Built {
        let func = f.finish()?;
        self.module.funcs.push(func.clone());
        Ok(func)
    }

    /// Adds a function of a layer, or finds the one that is the same. Layers of one kind that differ, say in the
    /// formats that their weights are stored in, get names with numbers.
    pub fn share(&mut self, f: Block<'_>) -> Built {
        let mut func = f.finish()?;
        let kind = func.name.clone();
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

    /// Adds the entry `name` for calls of `func` with `tokens` new tokens.
    pub fn entry(&mut self, name: &str, func: &Func, tokens: Range) {
        let entry = Entry { name: name.into(), func: func.name.clone(), ranges: [(Sym::T, tokens)].into() };
        self.module.entries.push(entry);
    }

    /// Adds an entry for calls with any number of new tokens.
    pub fn chunk_entry(&mut self, name: &str, func: &Func) {
        self.entry(name, func, self.module.symbols[&Sym::T]);
    }

    /// Adds the functions and entries of a model with layers for multi-token prediction at `depths`, which may be none.
    /// Drafts are made by the first layer, where there is one. `main` makes the main function of a name; `further` that
    /// of a layer, given the rows whose logits are wanted: with none it only keeps what it has seen.
    pub fn predicting_entries(
        &mut self,
        depths: &[usize],
        main: impl Fn(&mut Self, &str, Gives) -> Built,
        further: impl Fn(&mut Self, &str, usize, Option<Rows>) -> Built,
    ) -> Result<(), Box<BuildError>> {
        let all = main(self, "main_all", Gives { logits: Rows::All, hidden: true })?;
        let last = main(self, "main", Gives { logits: Rows::Last, hidden: false })?;
        if depths.first() == Some(&0) {
            let read = main(self, "main_hidden", Gives { logits: Rows::Last, hidden: true })?;
            self.drafted_entries(&all, &read, Some(&last));
        } else {
            self.main_entries(&all, &last);
        }
        for depth in depths.iter().copied() {
            let name = if depth == 0 { "mtp".to_owned() } else { format!("mtp{depth}") };
            let func = further(self, &name, depth, Some(Rows::All))?;
            self.chunk_entry(&name, &func);
            if depth == 0 {
                let fill = further(self, "draft_fill", depth, None)?;
                self.chunk_entry("draft_fill", &fill);
                let draft = further(self, "draft", depth, Some(Rows::Last))?;
                self.step_entry("draft", &draft);
            }
        }
        Ok(())
    }

    /// Adds the entries of a model that drafts from what `all` gives for every token; `read` gives the same, and the
    /// logits of the last one. `prefill` is `last`, or `read` where there is none.
    pub fn drafted_entries(&mut self, all: &Func, read: &Func, last: Option<&Func>) {
        self.chunk_entry("logits", all);
        self.chunk_entry("prefill", last.unwrap_or(read));
        if last.is_some() {
            self.chunk_entry("prefill_hidden", read);
        }
        self.step_entry("decode", all);
    }

    /// Adds an entry for steps.
    pub fn step_entry(&mut self, name: &str, func: &Func) {
        let most = self.module.symbols[&Sym::T].max;
        self.entry(name, func, Range { min: 1, max: STEP.min(most) });
    }

    /// Adds the entries that every model has: `logits` and `decode`, which call `all`, and `prefill`, which calls
    /// `last`.
    pub fn main_entries(&mut self, all: &Func, last: &Func) {
        self.chunk_entry("logits", all);
        self.chunk_entry("prefill", last);
        self.step_entry("decode", all);
    }
}

impl Block<'_> {
    /// The parameter `tokens`.
    pub fn tokens(&mut self) -> ValueId {
        self.param("tokens", TensorType::new(DType::I32, [Sym::T]))
    }

    /// The parameter `name`, in f32, with a row for every new token.
    pub fn rows(&mut self, name: &str, of: &[usize]) -> ValueId {
        let shape = [Dim::from(Sym::T)].into_iter().chain(of.iter().map(|n| Dim::from(*n)));
        self.param(name, TensorType::new(DType::F32, shape))
    }

    /// `E[tokens]`, with `E = name.weight` of `vocab` rows.
    pub fn embed(&mut self, name: &str, tokens: ValueId, [vocab, hidden]: [usize; 2]) -> ValueId {
        let table = self.matrix(name, &[vocab, hidden]);
        let rows = self.op(Gather { axis: 0, batch: 0 }, &[table, tokens]);
        self.cast(rows, DType::F32)
    }

    /// Calls `func` with the values that its parameters name, and names its results.
    pub fn call_named(&mut self, func: &Func, prefix: &str, named: &mut Named) {
        let name = |v: &ValueId| func.values[v.index()].name.as_deref().expect("parameters have names");
        let args: Vec<ValueId> = func.params.iter().map(|p| named[name(p)]).collect();
        let results = self.call(func, prefix, &args);
        named.extend(func.results.iter().map(|(n, _)| n.clone()).zip(results));
    }

    /// The row of the last new token alone.
    pub fn last_row(&mut self, x: ValueId) -> ValueId {
        self.slice(x, 0, Dim::from(Sym::T) - 1, 1, 1)
    }
}
