//! The draft head (sheet `deepseek-v41`, "DSpark"): stages with windows of their own, which hold what a few layers of the
//! main model made of its tokens, and a chain that lets each drafted token depend on the one before it.
//!
//! ```text
//! main = norm(hidden Wmain);   every stage's window gets norm(main Wkv)                  draft_fill
//! h = E[newest, noise, …];   every stage sees its window, and all rows of the block      draft
//! y = p h;   logits = norm(y) Wᵀ
//! logits_i + E'[token before] W'ᵀ;   confidence_i = [y_i ; E'[token before]] Wc          markov
//! ```

use super::attention::{WINDOW, kept};
use super::config::{Config, Draft};
use super::graph::{Named, call};
use crate::blocks::Block;
use crate::blocks::assembly::Assembly;
use crate::blocks::kept::Kept;
use crate::blocks::moe::Moe;
use crate::blocks::rope::Angles;
use crate::blocks::shared_kv::{Set, Turn};
use hadal_ir::builder::BuildError;
use hadal_ir::module::{Func, Range, ValueId};
use hadal_ir::ops::Constant;
use hadal_ir::ops::map::MapFn;
use hadal_types::{DType, Sym, TensorType};

fn prefix(stage: usize) -> String {
    format!("mtp.{stage}.")
}

impl Config {
    /// Adds the entries `draft_fill`, `draft` and `markov`.
    pub(super) fn drafts(&self, a: &mut Assembly<'_>, d: &Draft) -> Result<(), Box<BuildError>> {
        let one = Range { min: 1, max: 1 };
        let fill = self.draft_fill(a, d)?;
        a.chunk_entry("draft_fill", &fill);
        let draft = self.draft(a, d)?;
        a.entry("draft", &draft, one);
        let markov = self.markov(a, d)?;
        a.entry("markov", &markov, one);
        Ok(())
    }

    fn draft_fill(&self, a: &mut Assembly<'_>, d: &Draft) -> Result<Func, Box<BuildError>> {
        let hidden = self.frame.hidden;
        let stages = (0..d.stages).map(|k| self.stage_fill(a, k)).collect::<Result<Vec<_>, _>>()?;
        let mut f = a.block("draft_fill", "");
        let x = f.rows("hidden", &[d.targets.len() * hidden]);
        let x = f.linear(x, "mtp.0.main_proj", hidden, false);
        let x = f.norm(x, "mtp.0.main_norm", self.frame.eps);
        let angles = self.near.angles(&mut f);
        let mut named =
            Named::from([("main".into(), x), ("near_cos".into(), angles.cos), ("near_sin".into(), angles.sin)]);
        for (k, stage) in stages.iter().enumerate() {
            call(&mut f, stage, &prefix(k), &mut named);
        }
        a.add(f)
    }

    fn stage_fill(&self, a: &mut Assembly<'_>, stage: usize) -> Result<Func, Box<BuildError>> {
        let mut f = a.block("stage_fill", &prefix(stage));
        let x = f.rows("main", &[self.frame.hidden]);
        let pairs = self.near.dim / 2;
        let angles = Angles { cos: f.rows("near_cos", &[pairs]), sin: f.rows("near_sin", &[pairs]) };
        f.within("attn", |f| {
            let row = self.attention.row(f, x, Turn { rope: &self.near, angles });
            let to = kept(f, WINDOW);
            Kept::append(f, "window", self.attention.window, row, to);
        });
        a.share(f)
    }

    fn draft(&self, a: &mut Assembly<'_>, d: &Draft) -> Result<Func, Box<BuildError>> {
        let stages = (0..d.stages).map(|k| self.stage(a, d, k)).collect::<Result<Vec<_>, _>>()?;
        let mut f = a.block("draft", "");
        let newest = f.param("tokens", TensorType::new(DType::I32, [1]));
        let noise = f.op(Constant::scalar(d.noise as f64, DType::I32), &[]);
        let noise = f.broadcast(noise, &[(d.block - 1).into()], &[]);
        let tokens = f.concat(&[newest, noise], 0);
        let mut named = self.begin(&mut f, tokens, false);
        for (k, stage) in stages.iter().enumerate() {
            call(&mut f, stage, &prefix(k), &mut named);
        }
        let y = self.hyper.collapse(&mut f, named["streams"], named["pre"]);
        let logits = self.logits(&mut f, y, &format!("{}norm", prefix(d.stages - 1)));
        f.result("logits", logits);
        f.result("states", y);
        a.add(f)
    }

    /// A stage for the rows of a block, each of which sees all of them.
    fn stage(&self, a: &mut Assembly<'_>, d: &Draft, stage: usize) -> Result<Func, Box<BuildError>> {
        let mut f = a.block("stage", &prefix(stage));
        let mut of = |name: &str, sizes: &[usize]| {
            f.param(name, TensorType::new(DType::F32, [d.block].iter().chain(sizes).copied()))
        };
        let pairs = self.near.dim / 2;
        let angles = Angles { cos: of("near_cos", &[pairs]), sin: of("near_sin", &[pairs]) };
        let n = self.hyper.streams;
        let (streams, pre) = (of("streams", &[n, self.frame.hidden]), of("pre", &[n]));
        let [experts, per_token] = d.experts;
        let normalise = self.moe.normalise && per_token > 1;
        let experts = Moe { experts, per_token, normalise, ..self.moe.clone() };
        self.sites(&mut f, streams, pre, &experts, |f, x| f.within("attn", |f| self.draft_attention(f, d, x, angles)));
        a.share(f)
    }

    fn draft_attention(&self, f: &mut Block<'_>, d: &Draft, x: ValueId, angles: Angles) -> ValueId {
        let (a, turn, to) = (&self.attention, Turn { rope: &self.near, angles }, kept(f, WINDOW));
        let (window, latent) = (a.window, a.latent(f, x));
        let q = a.query(f, latent, turn);
        let own = a.row(f, x, turn);
        let own = match to {
            Some(to) => Kept::round(f, own, to).read(f),
            None => own,
        };
        let main = Kept::held(f, "window", window, a.head_dim, to).read(f);
        // Rows of the window before the first token are none.
        let shape = [d.block.into(), window.into()];
        let positions = f.iota(window, hadal_types::Dim::from(Sym::P) - window as i64);
        let positions = f.broadcast(positions, &shape, &[1]);
        let first = f.scalar_like(positions, 0.0);
        let seen = f.map(MapFn::Le, &[first, positions]);
        let sets = [Set { rows: main, seen: Some(seen) }, Set { rows: own, seen: None }];
        let o = a.attend(f, q, &sets);
        a.project(f, o, turn, self.frame.hidden)
    }

    fn markov(&self, a: &mut Assembly<'_>, d: &Draft) -> Result<Func, Box<BuildError>> {
        let (vocab, hidden) = (self.frame.vocab, self.frame.hidden);
        let mut f = a.block("markov", "");
        let token = f.param("tokens", TensorType::new(DType::I32, [1]));
        let logits = f.param("drafted", TensorType::new(DType::F32, [1, vocab]));
        let state = f.param("state", TensorType::new(DType::F32, [1, hidden]));
        let last = prefix(d.stages - 1);
        let before = f.embed(&format!("{last}markov_head.embed"), token, [vocab, d.rank]);
        let more = f.linear(before, &format!("{last}markov_head.head"), vocab, false);
        let logits = f.add(logits, more);
        let both = f.concat(&[state, before], 1);
        let confidence = f.linear(both, &format!("{last}confidence_head.proj"), 1, false);
        f.result("logits", logits);
        f.result("confidence", confidence);
        a.add(f)
    }
}
