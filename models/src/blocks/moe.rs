//! Mixture of experts: each token passes through the `K` experts that a router chooses for it, and a shared one.
//!
//! ```text
//! z = x Wgateᵀ;   p = softmax(z), σ(z) or √softplus(z)            one score per expert
//! e = the K best experts by p, or by p + bias, perhaps within the best groups only; or those that a table has for the token
//! w = p[e] (/ Σ p[e]) · factor                                    never biased
//! y = Σ_j w_j FFN_{e_j}(x) + FFN_shared(x)                        w_j may act inside, before the projection back
//! ```
//!
//! Experts are written as a gather of their weights by the chosen indices; nothing says how to schedule that.

use super::Block;
use super::mlp::{Gated, PROJECTIONS, mlp};
use super::rounding::rounded;
use crate::config_reader::{Object, Spelling};
use crate::error::Result;
use crate::formats::Code;
use hadal_ir::module::ValueId;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::reduce::ReduceKind;
use hadal_ir::ops::{Gather, Softmax, TopK};
use hadal_types::{DType, Dim, Sym};

/// Added to the sum that weights are divided by.
const SUM_EPS: f64 = 1e-20;

/// How the router scores experts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Score {
    /// Against each other.
    Softmax,
    /// Each on its own.
    Sigmoid,
    /// Each on its own, `√ln(1 + e^z)`.
    SqrtSoftplus,
}

/// How experts are chosen by their scores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// The best ones (`greedy`).
    Greedy,
    /// The best ones of the groups whose best expert is best (`group_limited_greedy`).
    BestOfGroups(Groups),
    /// By score plus a bias that balances load, among the groups whose two best experts have the largest sum
    /// (`noaux_tc`).
    Biased(Groups),
    /// Those that a table of so many tokens lists for the token, whatever the scores.
    Table(usize),
}

/// How the parts of a mixture of experts are called, and where the weights of its answers act.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Parts {
    /// All of it.
    pub whole: &'static str,
    /// Of the router: what is added to the scores to balance the load.
    pub bias: &'static str,
    /// An expert.
    pub expert: Gated,
    /// Whether an expert's weight acts on what it projects back rather than on its answer. The same function, but what
    /// is rounded before that product includes the weight.
    pub weighs_inner: bool,
}

/// The usual names.
pub const MLP: Parts =
    Parts { whole: "mlp", bias: "e_score_correction_bias", expert: PROJECTIONS, weighs_inner: false };

/// Experts in equal groups of neighbours, of which some are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Groups {
    /// How many there are.
    pub count: usize,
    /// How many stay open.
    pub kept: usize,
}

/// Sizes and variants of a mixture of experts.
#[derive(Clone, PartialEq, Debug)]
pub struct Moe {
    /// Experts `E`.
    pub experts: usize,
    /// Experts per token `K`.
    pub per_token: usize,
    /// Features inside an expert.
    pub width: usize,
    /// Features inside the shared expert; 0 where there is none.
    pub shared_width: usize,
    /// Names.
    pub parts: Parts,
    /// Scoring.
    pub score: Score,
    /// Selection.
    pub choice: Choice,
    /// Whether the chosen scores are divided by their sum.
    pub normalise: bool,
    /// Factor on the weights.
    pub factor: f64,
    /// The first layer that may have experts.
    pub first: usize,
    /// Of those, every how many-th has them.
    pub every: usize,
}

/// What a family's code does where its configuration is silent or cannot say.
#[derive(Clone, Copy, Debug)]
pub struct MoeRules {
    /// Scoring functions it has, the default first.
    pub scores: &'static [&'static str],
    /// Selections it has, the default first.
    pub choices: &'static [&'static str],
    /// Whether `routed_scaling_factor` also acts on weights divided by their sum.
    pub scale_normalised: bool,
    /// Whether routing keys have to be there.
    pub explicit: bool,
}

impl Moe {
    /// Reads the experts of a model, if it has any.
    pub fn read(o: &Object<'_>, rules: &MoeRules) -> Result<Option<Moe>> {
        let first = o.count_or("first_k_dense_replace", 0)?;
        let every = o.usize_or("moe_layer_freq", 1)?;
        let Some(experts) = o.optional_usize_in("n_routed_experts", 0..=4096)?.filter(|n| *n > 0) else {
            o.ignore(ROUTING);
            return Ok(None);
        };
        let per_token = o.require_usize_in("num_experts_per_tok", 1..=experts)?;
        let width = o.require_usize_in("moe_intermediate_size", 1..=1 << 20)?;
        let score = match o.str_in_or("scoring_func", rules.scores, rules.scores[0])? {
            "sigmoid" => Score::Sigmoid,
            _ => Score::Softmax,
        };
        let choice = match o.str_in_or("topk_method", rules.choices, rules.choices[0])? {
            "noaux_tc" => Choice::Biased(groups(o, experts, per_token, 2)?),
            "group_limited_greedy" => Choice::BestOfGroups(groups(o, experts, per_token, 1)?),
            _ => {
                o.ignore(&["n_group", "topk_group"]);
                Choice::Greedy
            }
        };
        let (norm, factor) = match rules.explicit {
            true => (o.require_bool("norm_topk_prob")?, o.require_f64("routed_scaling_factor")?),
            false => (o.bool_or("norm_topk_prob", false)?, o.f64_or("routed_scaling_factor", 1.0)?),
        };
        // One expert's weight is not divided by itself.
        let normalise = norm && per_token > 1;
        let scaled = !normalise || rules.scale_normalised || matches!(choice, Choice::Biased(_));
        Ok(Some(Moe {
            experts,
            per_token,
            width,
            shared_width: width * o.optional_usize_in("n_shared_experts", 0..=1024)?.unwrap_or(0),
            parts: MLP,
            score,
            choice,
            normalise,
            factor: if scaled { factor } else { 1.0 },
            first,
            every,
        }))
    }
}

impl Moe {
    /// Reads the experts of a model that has them in every layer, the best of all by a bias.
    pub fn read_everywhere(o: &Object<'_>, spelling: Spelling) -> Result<Moe> {
        let key = |published, own| spelling.key(published, own);
        let experts = o.require_usize_in("n_routed_experts", 1..=4096)?;
        let width = o.require_usize_in(key("moe_intermediate_size", "moe_inter_dim"), 1..=1 << 20)?;
        let scores = ["sqrtsoftplus", "sigmoid", "softmax"];
        o.optional_str_in("topk_method", &["noaux_tc"])?;
        Ok(Moe {
            experts,
            per_token: o.require_usize_in(key("num_experts_per_tok", "n_activated_experts"), 1..=experts)?,
            width,
            shared_width: width * o.optional_usize_in("n_shared_experts", 0..=1024)?.unwrap_or(1),
            parts: Parts {
                whole: "ffn",
                bias: "bias",
                expert: Gated { gate: "w1", up: "w3", down: "w2", limit: Gated::read_limit(o)? },
                weighs_inner: true,
            },
            score: match o.str_in_or(key("scoring_func", "score_func"), &scores, scores[0])? {
                "sigmoid" => Score::Sigmoid,
                "softmax" => Score::Softmax,
                _ => Score::SqrtSoftplus,
            },
            choice: Choice::Biased(Groups { count: 1, kept: 1 }),
            normalise: o.bool_or("norm_topk_prob", true)?,
            factor: o.f64_or(key("routed_scaling_factor", "route_scale"), 1.0)?,
            first: 0,
            every: 1,
        })
    }

    /// The same among so many experts. Where only one is chosen, its weight is not divided by itself.
    pub fn among(&self, experts: usize, per_token: usize) -> Moe {
        Moe { experts, per_token, normalise: self.normalise && per_token > 1, ..self.clone() }
    }
}

const ROUTING: &[&str] = &[
    "moe_intermediate_size",
    "n_group",
    "n_shared_experts",
    "norm_topk_prob",
    "num_experts_per_tok",
    "routed_scaling_factor",
    "scoring_func",
    "topk_group",
    "topk_method",
];

/// Reads the groups; each must have at least `least` experts, and those kept enough for a token.
fn groups(o: &Object<'_>, experts: usize, per_token: usize, least: usize) -> Result<Groups> {
    let count = o.usize_or("n_group", 1)?;
    let kept = o.usize_or("topk_group", 1)?;
    let size = experts / count;
    if !experts.is_multiple_of(count) || count > 1 && size < least {
        return Err(
            o.error("n_group", format!("a divisor of n_routed_experts ({experts}) that leaves {least} or more"))
        );
    }
    if kept > count || kept * size < per_token {
        let least = per_token.div_ceil(size);
        return Err(o.error("topk_group", format!("a whole number from {least} to n_group ({count})")));
    }
    Ok(Groups { count, kept })
}

/// The feed-forward part of a model whose layers are dense or have experts.
#[derive(Clone, PartialEq, Debug)]
pub struct FeedForward {
    /// Features inside a dense layer.
    pub dense_width: usize,
    /// The experts.
    pub moe: Option<Moe>,
}

impl FeedForward {
    /// Reads both kinds.
    pub fn read(o: &Object<'_>, rules: &MoeRules) -> Result<FeedForward> {
        let dense_width = o.require_usize_in("intermediate_size", 1..=1 << 20)?;
        Ok(FeedForward { dense_width, moe: Moe::read(o, rules)? })
    }

    fn experts_at(&self, layer: usize) -> Option<&Moe> {
        self.moe.as_ref().filter(|m| layer >= m.first && layer.is_multiple_of(m.every))
    }

    /// The name for functions of layers like `layer`.
    pub fn kind(&self, layer: usize) -> &'static str {
        if self.experts_at(layer).is_some() { "moe_layer" } else { "dense_layer" }
    }
}

/// The feed-forward part of `layer`: experts where it has them, else one SwiGLU.
pub fn feed_forward(f: &mut Block<'_>, m: &FeedForward, layer: usize, x: ValueId) -> ValueId {
    match m.experts_at(layer) {
        Some(experts) => moe(f, experts, x, None),
        None => mlp(f, "mlp", x, m.dense_width, false),
    }
}

/// The experts' and the shared expert's answers, summed. `tokens` are the new tokens, where a table chooses by them.
pub fn moe(f: &mut Block<'_>, m: &Moe, x: ValueId, tokens: Option<ValueId>) -> ValueId {
    f.within(m.parts.whole, |f| {
        let (chosen, weights) = f.within("gate", |f| route(f, m, x, tokens));
        let y = f.within("experts", |f| experts(f, m, x, chosen, weights));
        if m.shared_width == 0 {
            return y;
        }
        let shared = m.parts.expert.block(f, "shared_experts", x, m.shared_width, false);
        f.add(y, shared)
    })
}

/// The chosen experts and their weights, `[T, K]` each.
fn route(f: &mut Block<'_>, m: &Moe, x: ValueId, tokens: Option<ValueId>) -> (ValueId, ValueId) {
    let d = f.size(x, 1);
    let w = f.tensor("weight", &[m.experts, d]);
    let z = f.contract("td,ed->te", &[x, w]);
    let p = match m.score {
        Score::Softmax => f.op(Softmax, &[z]),
        Score::Sigmoid => f.map(MapFn::Sigmoid, &[z]),
        Score::SqrtSoftplus => sqrt_softplus(f, z),
    };
    let best = |f: &mut Block<'_>, ranked| f.op(TopK { k: m.per_token }, &[ranked]);
    let chosen = match m.choice {
        Choice::Greedy => best(f, p),
        Choice::BestOfGroups(groups) => {
            let open = close_groups(f, p, groups, 1);
            best(f, open)
        }
        Choice::Table(tokens_known) => {
            let table = f.tensor("tid2eid", &[tokens_known, m.per_token]);
            let tokens = tokens.expect("layers that choose by tokens are given them");
            f.op(Gather { axis: 0, batch: 0 }, &[table, tokens])
        }
        Choice::Biased(groups) => {
            let bias = f.tensor(m.parts.bias, &[m.experts]);
            let bias = f.cast(bias, DType::F32);
            let shape = f.shape(p).to_vec();
            let bias = f.broadcast(bias, &shape, &[1]);
            let biased = f.add(p, bias);
            let open = close_groups(f, biased, groups, 2);
            best(f, open)
        }
    };
    let mut weights = f.op(Gather { axis: 1, batch: 1 }, &[p, chosen]);
    if m.normalise {
        let sum = f.reduce(ReduceKind::Sum, &[1], weights);
        let sum = f.add_scalar(sum, SUM_EPS);
        let shape = f.shape(weights).to_vec();
        let sum = f.broadcast(sum, &shape, &[0]);
        weights = f.map(MapFn::Div, &[weights, sum]);
    }
    if m.factor != 1.0 {
        weights = f.mul_scalar(weights, m.factor);
    }
    (chosen, weights)
}

/// `√ln(1 + e^z)`; above 20 the logarithm is `z` itself.
fn sqrt_softplus(f: &mut Block<'_>, z: ValueId) -> ValueId {
    let e = f.map(MapFn::Exp, &[z]);
    let small = f.map(MapFn::Log1p, &[e]);
    let limit = f.scalar_like(z, 20.0);
    let large = f.map(MapFn::Lt, &[limit, z]);
    let y = f.map(MapFn::Select, &[large, z, small]);
    f.map(MapFn::Sqrt, &[y])
}

/// Scores with -∞ for the experts outside the `kept` groups whose `best` best experts have the largest sum.
fn close_groups(f: &mut Block<'_>, scores: ValueId, groups: Groups, best: usize) -> ValueId {
    if groups.kept == groups.count {
        return scores;
    }
    let shape = f.shape(scores).to_vec();
    let t = Dim::from(Sym::T);
    let size = f.size(scores, 1) / groups.count;
    let grouped_shape: [Dim; 3] = [t.clone(), groups.count.into(), size.into()];
    let grouped = f.reshape(scores, &grouped_shape);
    let merit = match best {
        1 => f.reduce(ReduceKind::Max, &[2], grouped),
        _ => {
            let top = f.op(TopK { k: best }, &[grouped]);
            let top = f.op(Gather { axis: 2, batch: 2 }, &[grouped, top]);
            f.reduce(ReduceKind::Sum, &[2], top)
        }
    };
    let kept = f.op(TopK { k: groups.kept }, &[merit]);
    // A group is open if it is one of those kept.
    let pairs: [Dim; 3] = [t, groups.kept.into(), groups.count.into()];
    let all = f.iota(groups.count, 0);
    let all = f.broadcast(all, &pairs, &[2]);
    let kept = f.broadcast(kept, &pairs, &[0, 1]);
    let same = f.map(MapFn::Eq, &[kept, all]);
    let open = f.reduce(ReduceKind::Max, &[1], same);
    let open = f.broadcast(open, &grouped_shape, &[0, 1]);
    let closed = f.scalar_like(grouped, f64::NEG_INFINITY);
    let masked = f.map(MapFn::Select, &[open, grouped, closed]);
    f.reshape(masked, &shape)
}

/// `Σ_j w_j inner(x Wg_eᵀ, x Wu_eᵀ) Wd_eᵀ` over the chosen experts `e`.
fn experts(f: &mut Block<'_>, m: &Moe, x: ValueId, chosen: ValueId, weights: ValueId) -> ValueId {
    let d = f.size(x, 1);
    let (e, inner) = (m.experts, m.width);
    let stack = |name: &str| format!("{{0..{e}}}.{name}");
    let of = |f: &mut Block<'_>, name: &str, shape: [usize; 2]| {
        let stack = f.matrix(&stack(name), &[e, shape[0], shape[1]]);
        f.op(Gather { axis: 0, batch: 0 }, &[stack, chosen])
    };
    let into = |f: &mut Block<'_>, name: &str| {
        let w = of(f, name, [inner, d]);
        match f.rounding(&stack(name)) {
            // Every expert rounds what it is given.
            Some(to) if to.to != Code::I8 => {
                let tokens = f.shape(x)[0].clone();
                let given = f.broadcast(x, &[tokens, m.per_token.into(), d.into()], &[0, 2]);
                let given = rounded(f, given, to);
                f.contract("tkd,tkfd->tkf", &[given, w])
            }
            _ => {
                let x = f.operand(x, &stack(name));
                f.contract("td,tkfd->tkf", &[x, w])
            }
        }
    };
    let parts = &m.parts;
    let gate = into(f, parts.expert.gate);
    let up = into(f, parts.expert.up);
    let mut inner_rows = parts.expert.inner(f, gate, up);
    if parts.weighs_inner {
        let shape = f.shape(inner_rows).to_vec();
        let weights = f.broadcast(weights, &shape, &[0, 1]);
        inner_rows = f.mul(inner_rows, weights);
    }
    let inner_rows = f.operand(inner_rows, &stack(parts.expert.down));
    let down = of(f, parts.expert.down, [d, inner]);
    let y = f.contract("tkf,tkdf->tkd", &[inner_rows, down]);
    match parts.weighs_inner {
        true => f.reduce(ReduceKind::Sum, &[1], y),
        false => f.contract("tkd,tk->td", &[y, weights]),
    }
}
