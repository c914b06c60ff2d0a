//! A head that drafts blocks of tokens (sheet `deepseek-v41`, "DSpark"): stages with windows of their own, which hold
//! what a few layers of the main model made of its tokens, and a chain that lets each drafted token depend on the one
//! before it.
//!
//! ```text
//! main = norm(hidden Wmain);   every stage's window gets norm(main Wkv)                  draft_fill
//! h = E[newest, noise, …];   every stage sees its window, and all rows of the block      draft
//! y = joined h;   logits = norm(y) Wᵀ
//! logits_i + E'[token before] W'ᵀ;   confidence_i = [y_i ; E'[token before]] Wc          markov
//! ```
//!
//! | entry | takes | gives |
//! |---|---|---|
//! | `draft_fill` | `hidden` `[T, n d]`, the means of the streams at `n` places, of every token | nothing; the stages' windows move on by `T` |
//! | `draft` | `tokens` `i32 [1]`: the newest one, which the main model has not seen yet | `logits` `[b, V]`, `states` `[b, d]` |
//! | `markov` | `tokens` `i32 [1]`; `drafted` `[1, V]` and `state` `[1, d]`, a row of what `draft` gave | `logits` `[1, V]`, `confidence` `[1, 1]` |
//!
//! A draft of `b` tokens follows `P` tokens that `draft_fill` has been given: `draft` says what it makes of the newest
//! token and of the places after it, all at once, and changes nothing. The tokens are then chosen one after the other:
//! `markov` adds to row `i` what the token before it (for row 0 the newest one) asks for, and says how sure the model
//! is of the row. Rejected tokens are taken back from the windows as from other states, by `truncate`.

use super::Block;
use super::assembly::{Assembly, Built, Frame, Named};
use super::kept::Kept;
use super::mhc::Streams;
use super::moe::{Moe, moe};
use super::shared_kv::{Set, Turn};
use super::streams::Trunk;
use crate::config_reader::{Object, Spelling};
use crate::error::Result;
use hadal_ir::builder::BuildError;
use hadal_ir::module::{Range, ValueId};
use hadal_ir::ops::Constant;
use hadal_ir::ops::map::MapFn;
use hadal_types::{DType, Dim, Sym, TensorType};

/// A draft head.
#[derive(Clone, PartialEq, Debug)]
pub struct Drafter {
    /// Its stages.
    pub stages: usize,
    /// Tokens of a draft.
    pub block: usize,
    /// Stands for tokens that are not chosen yet.
    pub noise: usize,
    /// The layers before which it reads the streams; their count stands for the end.
    pub before: Vec<usize>,
    /// Rank of what a token asks of the next.
    pub rank: usize,
    /// The experts of a stage.
    pub experts: Moe,
    /// What a token asks of the next: the names of its embedding and of its projection.
    pub markov: [&'static str; 2],
}

impl Drafter {
    /// Reads a head, with a stage for each of the ratios `behind` the last layer, which reads what the layers that the
    /// configuration lists are given. Where it says nothing of experts, they are the model's.
    pub fn read(o: &Object<'_>, frame: &Frame, moe: &Moe, behind: &[usize], spelling: Spelling) -> Result<Drafter> {
        if behind.iter().any(|m| *m != 0) {
            return Err(o.error("compress_ratios", "0 for the stages of the draft head, which have windows only"));
        }
        let key = |published, own| spelling.key(published, own);
        let targets = key("dspark_target_layer_ids", "dspark_target_layers");
        let before = o.rising(targets, frame.layers)?;
        if before.is_empty() {
            return Err(o.error(targets, format!("rising numbers of layers below {}", frame.layers)));
        }
        let experts = o.optional_usize_in("dspark_n_routed_experts", 1..=4096)?.unwrap_or(moe.experts);
        let per_token = key("dspark_num_experts_per_tok", "dspark_n_activated_experts");
        let per_token = o.optional_usize_in(per_token, 1..=experts)?.unwrap_or(moe.per_token);
        Ok(Drafter {
            stages: behind.len(),
            before,
            block: o.require_usize_in("dspark_block_size", 1..=256)?,
            noise: o.require_usize_in(key("dspark_noise_token_id", "dspark_noise_id"), 0..=frame.vocab - 1)?,
            rank: o.require_usize_in("dspark_markov_rank", 1..=1 << 18)?,
            experts: moe.among(experts, per_token),
            markov: ["embed", "head"],
        })
    }

    /// Adds the entries `draft_fill`, `draft` and `markov`.
    pub fn entries(&self, t: &Trunk, a: &mut Assembly<'_>) -> Result<(), Box<BuildError>> {
        let one = Range { min: 1, max: 1 };
        let fill = self.fill(t, a)?;
        a.chunk_entry("draft_fill", &fill);
        let draft = self.draft(t, a)?;
        a.entry("draft", &draft, one);
        let markov = self.markov(t, a)?;
        a.entry("markov", &markov, one);
        Ok(())
    }

    /// What names in the last stage begin with.
    fn last(&self, t: &Trunk) -> String {
        t.prefix(t.frame.layers + self.stages - 1)
    }

    fn fill(&self, t: &Trunk, a: &mut Assembly<'_>) -> Built {
        let (first, hidden) = (t.frame.layers, t.frame.hidden);
        let stages = (0..self.stages).map(|k| stage_fill(t, a, first + k)).collect::<Result<Vec<_>, _>>()?;
        let mut f = a.block("draft_fill", "");
        let x = f.rows("hidden", &[self.before.len() * hidden]);
        let prefix = t.prefix(first);
        let x = f.linear(x, &format!("{prefix}main_proj"), hidden, false);
        let x = f.norm(x, &format!("{prefix}main_norm"), t.frame.eps);
        let mut named = Named::from([("main".into(), x)]);
        let positions = f.iota(Sym::T, Sym::P);
        Turn::give(&mut f, "near", &t.attention.near, positions, &mut named);
        for (k, stage) in stages.iter().enumerate() {
            f.call_named(stage, &t.prefix(first + k), &mut named);
        }
        a.add(f)
    }

    fn draft(&self, t: &Trunk, a: &mut Assembly<'_>) -> Built {
        let first = t.frame.layers;
        let stages = (0..self.stages).map(|k| self.stage(t, a, first + k)).collect::<Result<Vec<_>, _>>()?;
        let mut f = a.block("draft", "");
        let newest = f.param("tokens", TensorType::new(DType::I32, [1]));
        let noise = f.op(Constant::scalar(self.noise as f64, DType::I32), &[]);
        let noise = f.broadcast(noise, &[(self.block - 1).into()], &[]);
        let tokens = f.concat(&[newest, noise], 0);
        let mut named = Named::new();
        t.begin(&mut f, tokens).name(&mut named);
        let positions = f.iota(self.block, Sym::P);
        Turn::give(&mut f, "near", &t.attention.near, positions, &mut named);
        for (k, stage) in stages.iter().enumerate() {
            f.call_named(stage, &t.prefix(first + k), &mut named);
        }
        let last = self.last(t);
        let y = t.hyper.joined(&mut f, &last, Streams::named(&named));
        let logits = t.logits(&mut f, y, &format!("{last}norm"), "head");
        f.result("logits", logits);
        f.result("states", y);
        a.add(f)
    }

    /// A stage for the rows of a block, each of which sees all of them.
    fn stage(&self, t: &Trunk, a: &mut Assembly<'_>, layer: usize) -> Built {
        let mut f = a.block("stage", &t.prefix(layer));
        let turn = Turn::param(&mut f, "near", &t.attention.near, self.block);
        let streams = t.hyper.param(&mut f, self.block, t.frame.hidden);
        let streams = t.hyper.site(&mut f, "attn", streams, |f, x| self.attention(f, t, x, turn));
        let streams = t.hyper.site(&mut f, "ffn", streams, |f, x| moe(f, &self.experts, x, None));
        streams.result(&mut f);
        a.share(f)
    }

    fn attention(&self, f: &mut Block<'_>, t: &Trunk, x: ValueId, turn: Turn<'_>) -> ValueId {
        let a = &t.attention;
        f.within("attn", |f| {
            let latent = a.latent(f, x);
            let q = a.query(f, latent, turn);
            let own = a.row(f, x, turn);
            let to = a.kept(f);
            let own = to.map_or(own, |to| Kept::round(f, own, to).read(f));
            let main = Kept::held(f, "window", a.window, a.head_dim, to).read(f);
            // Rows of the window before the first token are none.
            let shape = [self.block.into(), a.window.into()];
            let positions = f.iota(a.window, Dim::from(Sym::P) - a.window as i64);
            let positions = f.broadcast(positions, &shape, &[1]);
            let first = f.scalar_like(positions, 0.0);
            let seen = f.map(MapFn::Le, &[first, positions]);
            let sets = [Set { rows: main, seen: Some(seen) }, Set { rows: own, seen: None }];
            let o = a.attend(f, q, &sets);
            a.project(f, o, turn, t.frame.hidden)
        })
    }

    fn markov(&self, t: &Trunk, a: &mut Assembly<'_>) -> Built {
        let (vocab, last) = (t.frame.vocab, self.last(t));
        let [embedding, projection] = self.markov.map(|name| format!("{last}markov_head.{name}"));
        let mut f = a.block("markov", "");
        let token = f.param("tokens", TensorType::new(DType::I32, [1]));
        let logits = f.param("drafted", TensorType::new(DType::F32, [1, vocab]));
        let state = f.param("state", TensorType::new(DType::F32, [1, t.frame.hidden]));
        let before = f.embed(&embedding, token, [vocab, self.rank]);
        let more = f.linear(before, &projection, vocab, false);
        let logits = f.add(logits, more);
        let both = f.concat(&[state, before], 1);
        let confidence = f.linear(both, &format!("{last}confidence_head.proj"), 1, false);
        f.result("logits", logits);
        f.result("confidence", confidence);
        a.add(f)
    }
}

/// What the window of stage `layer` takes in.
fn stage_fill(t: &Trunk, a: &mut Assembly<'_>, layer: usize) -> Built {
    let mut f = a.block("stage_fill", &t.prefix(layer));
    let x = f.rows("main", &[t.frame.hidden]);
    let turn = Turn::param(&mut f, "near", &t.attention.near, Sym::T);
    f.within("attn", |f| {
        let row = t.attention.row(f, x, turn);
        t.attention.keep(f, "window", t.attention.window, row);
    });
    a.share(f)
}
