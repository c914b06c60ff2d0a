//! A model ready to be compiled: its graph, and what the graph reads from the checkpoint.

use crate::blocks::assembly::{Assembly, Bounds, MtpInput};
use crate::blocks::engram;
use crate::blocks::rope::AttnFactor;
use crate::checkpoint::{Checkpoint, Expected};
use crate::config_reader::Config;
use crate::error::{Error, Result};
use crate::formats::{Activations, DtypeOracle, Formats, PLAIN, SCALES};
use crate::ngram::{Hashing, Vocabulary};
use crate::registry;
use crate::weights::{CheckpointWeights, Made, ModelWeights};
use hadal_ir::module::{Func, Inst, InstKind, Module, ValueId, expand_weight_name, stack_range};
use hadal_ir::ops::Op;
use hadal_types::{Bindings, DType, TensorType};
use std::collections::{BTreeMap, BTreeSet};

/// What a graph is built for.
#[derive(Clone, PartialEq, Debug)]
pub struct BuildOptions {
    /// Most tokens in the states; the configuration's own limit where there is none.
    pub max_context: Option<usize>,
    /// Most tokens of one call.
    pub max_chunk: usize,
    /// Format of the states.
    pub state_dtype: DType,
    /// What to make of `rope_scaling.attn_factor`.
    pub attn_factor: AttnFactor,
    /// What products with block-scaled weights read.
    pub activations: Activations,
    /// Which hidden states multi-token prediction is given.
    pub mtp_input: MtpInput,
    /// Whether the entry `logits` also gives what some layers compute on the way, for comparison with other code.
    pub inner: bool,
    /// The tokenizer, for models that depend on it.
    pub vocabulary: Option<Vocabulary>,
}

impl Default for BuildOptions {
    fn default() -> Self {
        BuildOptions {
            max_context: None,
            max_chunk: 512,
            state_dtype: DType::F32,
            attn_factor: AttnFactor::default(),
            activations: Activations::default(),
            mtp_input: MtpInput::default(),
            inner: false,
            vocabulary: None,
        }
    }
}

/// A weight of a module, under its full name.
#[derive(Clone, PartialEq, Debug)]
pub struct Param {
    /// Its name; `{0..64}` in it stands for a stack of 64 tensors.
    pub name: String,
    /// Its type, the stacking axis first where there is one.
    pub ty: TensorType,
    /// Whether it holds the scales of another.
    pub scale: bool,
}

impl Param {
    /// The names of the tensors it is made of.
    pub fn tensors(&self) -> Vec<String> {
        expand_weight_name(&self.name)
    }
}

/// A model.
#[derive(Clone, Debug)]
pub struct Model {
    /// The family's name.
    pub name: &'static str,
    /// The keys of the configuration that decided it.
    pub why: String,
    /// The graph.
    pub module: Module,
    /// Vocabulary.
    pub vocab: usize,
    /// Hidden size.
    pub hidden: usize,
    /// Layers, without those for multi-token prediction.
    pub layers: usize,
    /// Longest context the model was made for.
    pub max_position: usize,
    /// Longest context the graph was built for.
    pub max_context: usize,
    /// Token that begins a text, if the configuration says.
    pub bos: Option<usize>,
    /// Tokens that end one.
    pub eos: Vec<usize>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Rows and columns that share a scale, where the configuration announces quantised weights.
    pub block: Option<[usize; 2]>,
    /// Every weight that some entry reads, once, by name.
    pub params: Vec<Param>,
    /// Those of them that no checkpoint holds.
    pub made: Made,
    /// Names of tensors that a checkpoint may hold for other uses; `*` in them stands for anything.
    pub passed_over: &'static [&'static str],
    /// How its n-gram tables are addressed, where it has any.
    pub hashing: Option<Hashing>,
    /// Keys of the configuration that nobody asked for: a newer release may mean something by them.
    pub unread: Vec<String>,
}

/// Builds the graph that `config` describes, with weights in the formats that `oracle` knows.
pub fn build(config: &Config, oracle: &dyn DtypeOracle, options: &BuildOptions) -> Result<Model> {
    let (recognised, architecture) = registry::read(config, options.attn_factor)?;
    let frame = architecture.frame();
    let max_context = options.max_context.unwrap_or(frame.max_position).max(1);
    let max_chunk = options.max_chunk.clamp(1, max_context);
    let bounds = Bounds {
        max_context,
        max_chunk,
        state_dtype: options.state_dtype,
        mtp_input: options.mtp_input,
        inner: options.inner,
    };
    let formats = Formats { oracle, plan: frame.plan, activations: options.activations };
    let mut assembly = Assembly::new(&formats, &bounds);
    architecture.assemble(&mut assembly).map_err(|e| registry::graph_error(config, e))?;
    let module = assembly.module;
    let hashing = architecture.hashing().cloned();
    let made =
        hashing.as_ref().map_or(Ok(Made::new()), |h| engram::made(h, frame.vocab, options.vocabulary.as_ref()))?;
    let params = params(&module, module.entries.iter().map(|e| e.func.as_str()));
    if options.activations == Activations::Fp8 && !params.iter().any(|p| p.scale) {
        let expected = "block-scaled fp8 weights, as it is their inputs that are rounded";
        return Err(config.object().error("quantization_config", expected));
    }
    Ok(Model {
        name: recognised.name,
        why: recognised.why,
        params,
        made,
        passed_over: architecture.passed_over(),
        hashing,
        module,
        vocab: frame.vocab,
        hidden: frame.hidden,
        layers: frame.layers,
        max_position: frame.max_position,
        max_context,
        bos: frame.bos,
        eos: frame.eos.clone(),
        tied: frame.tied,
        block: frame.plan.block,
        unread: config.unread(),
    })
}

impl Model {
    /// The values of its weights: those in `checkpoint`, and those that it makes itself.
    pub fn weights<'a>(&'a self, checkpoint: &'a Checkpoint) -> ModelWeights<'a> {
        ModelWeights { made: &self.made, stored: CheckpointWeights(checkpoint) }
    }

    /// Fails where a weight that the model makes has no value, for want of a tokenizer. What is only looked at needs
    /// none.
    pub fn check_made(&self) -> Result<()> {
        match self.made.iter().find(|(_, value)| value.is_none()) {
            Some((weight, _)) => Err(Error::NoTokenizer { weight: weight.clone() }),
            None => Ok(()),
        }
    }

    /// Every tensor that a checkpoint of this model holds, for [`crate::checkpoint::check`].
    pub fn expected_tensors(&self) -> Vec<Expected> {
        let mut out: Vec<Expected> = self.passed_over.iter().map(|name| Expected::passed_over(*name)).collect();
        for p in self.params.iter().filter(|p| !self.made.contains_key(&p.name)) {
            let shape = p.ty.eval_shape(&Bindings::new()).expect("weights have constant sizes");
            let shape = if stack_range(&p.name).is_some() { &shape[1..] } else { &shape[..] };
            let formats: &[DType] = match p.ty.dtype {
                d if p.scale && SCALES.contains(&d) => &SCALES,
                d if PLAIN.contains(&d) => &PLAIN,
                other => &[other],
            };
            out.extend(p.tensors().into_iter().map(|name| Expected::required(name, shape, formats)));
        }
        if self.tied && !out.iter().any(|e| e.name == "lm_head.weight") {
            out.push(Expected::optional("lm_head.weight", &[self.vocab, self.hidden], &PLAIN));
        }
        out
    }
}

/// The weights that the functions `roots` read, with those of the functions they call, once each and by name.
pub fn params<'a>(module: &Module, roots: impl IntoIterator<Item = &'a str>) -> Vec<Param> {
    fn visit(
        module: &Module,
        func: &Func,
        prefix: &str,
        seen: &mut BTreeSet<(String, String)>,
        out: &mut BTreeMap<String, (TensorType, bool)>,
    ) {
        if !seen.insert((func.name.clone(), prefix.to_owned())) {
            return;
        }
        let scales = scales(func);
        for w in &func.weights {
            out.insert(format!("{prefix}{}", w.name), (func.ty(w.value).clone(), scales.contains(&w.value)));
        }
        for inst in &func.insts {
            if let InstKind::Call(call) = &inst.kind
                && let Some(callee) = module.func(&call.func)
            {
                visit(module, callee, &format!("{prefix}{}", call.prefix), seen, out);
            }
        }
    }
    let mut out = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for root in roots {
        if let Some(func) = module.func(root) {
            visit(module, func, "", &mut seen, &mut out);
        }
    }
    out.into_iter().map(|(name, (ty, scale))| Param { name, ty, scale }).collect()
}

/// The weights of `func` that others are scaled by, or that are added then; perhaps those of chosen rows.
fn scales(func: &Func) -> BTreeSet<ValueId> {
    let definitions = func.definitions();
    let made = |v: ValueId| definitions[v.index()].map(|i| &func.insts[i]);
    let scaling = |i: &&Inst| matches!(i.kind, InstKind::Op(Op::Dequantize(_)));
    let chosen = |v: ValueId| match made(v) {
        Some(Inst { kind: InstKind::Op(Op::Gather(_)), args, .. }) => args[0],
        _ => v,
    };
    let mut out = BTreeSet::new();
    for inst in func.insts.iter().rev().filter(scaling) {
        // Scales that are scaled themselves.
        if out.contains(&inst.results[0]) {
            out.insert(chosen(inst.args[0]));
        }
        out.extend(inst.args[1..].iter().map(|a| chosen(*a)));
    }
    out
}
