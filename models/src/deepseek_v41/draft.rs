//! The draft head (sheet `deepseek-v41`, "DSpark"): stages with windows of their own, which hold what a few layers of the
//! main model made of its tokens, and a chain that lets each drafted token depend on the one before it.
//!
//! ```text
//! main = norm(hidden Wmain);   every stage's window gets norm(main Wkv)                  draft_fill
//! h = E[newest, noise, …];   every stage sees its window, and all rows of the block      draft
//! y = p h;   logits = norm(y) Wᵀ
//! logits_i + E'[token before] W'ᵀ;   confidence_i = [y_i ; E'[token before]] Wc          markov
//! ```

use super::attention::WINDOW;
use super::config::{Config, Draft};
use crate::blocks::Block;
use crate::blocks::assembly::{Assembly, Built, Named};
use crate::blocks::kept::Kept;
use crate::blocks::shared_kv::{Set, Turn};
use hadal_ir::builder::BuildError;
use hadal_ir::module::{Range, ValueId};
use hadal_ir::ops::Constant;
use hadal_ir::ops::map::MapFn;
use hadal_types::{DType, Dim, Sym, TensorType};

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

    fn draft_fill(&self, a: &mut Assembly<'_>, d: &Draft) -> Built {
        let hidden = self.frame.hidden;
        let stages = (0..d.stages).map(|k| self.stage_fill(a, k)).collect::<Result<Vec<_>, _>>()?;
        let mut f = a.block("draft_fill", "");
        let x = f.rows("hidden", &[d.targets.len() * hidden]);
        let x = f.linear(x, "mtp.0.main_proj", hidden, false);
        let x = f.norm(x, "mtp.0.main_norm", self.frame.eps);
        let mut named = Named::from([("main".into(), x)]);
        let positions = f.iota(Sym::T, Sym::P);
        Turn::give(&mut f, "near", &self.attention.near, positions, &mut named);
        for (k, stage) in stages.iter().enumerate() {
            f.call_named(stage, &prefix(k), &mut named);
        }
        a.add(f)
    }

    fn stage_fill(&self, a: &mut Assembly<'_>, stage: usize) -> Built {
        let mut f = a.block("stage_fill", &prefix(stage));
        let x = f.rows("main", &[self.frame.hidden]);
        let turn = Turn::param(&mut f, "near", &self.attention.near, Sym::T);
        f.within("attn", |f| {
            let row = self.attention.row(f, x, turn);
            Kept::append(f, "window", self.attention.window, row, f.kept(WINDOW));
        });
        a.share(f)
    }

    fn draft(&self, a: &mut Assembly<'_>, d: &Draft) -> Built {
        let stages = (0..d.stages).map(|k| self.stage(a, d, k)).collect::<Result<Vec<_>, _>>()?;
        let mut f = a.block("draft", "");
        let newest = f.param("tokens", TensorType::new(DType::I32, [1]));
        let noise = f.op(Constant::scalar(d.noise as f64, DType::I32), &[]);
        let noise = f.broadcast(noise, &[(d.block - 1).into()], &[]);
        let tokens = f.concat(&[newest, noise], 0);
        let mut named = self.begin(&mut f, tokens, false);
        for (k, stage) in stages.iter().enumerate() {
            f.call_named(stage, &prefix(k), &mut named);
        }
        let y = self.hyper.collapse(&mut f, named["streams"], named["pre"]);
        let logits = self.logits(&mut f, y, &format!("{}norm", prefix(d.stages - 1)));
        f.result("logits", logits);
        f.result("states", y);
        a.add(f)
    }

    /// A stage for the rows of a block, each of which sees all of them.
    fn stage(&self, a: &mut Assembly<'_>, d: &Draft, stage: usize) -> Built {
        let mut f = a.block("stage", &prefix(stage));
        let turn = Turn::param(&mut f, "near", &self.attention.near, d.block);
        let n = self.hyper.streams;
        let mut of = |name: &str, sizes: &[usize]| {
            f.param(name, TensorType::new(DType::F32, [d.block].iter().chain(sizes).copied()))
        };
        let (streams, pre) = (of("streams", &[n, self.frame.hidden]), of("pre", &[n]));
        self.sites(&mut f, streams, pre, &d.experts, |f, x| f.within("attn", |f| self.draft_attention(f, d, x, turn)));
        a.share(f)
    }

    fn draft_attention(&self, f: &mut Block<'_>, d: &Draft, x: ValueId, turn: Turn<'_>) -> ValueId {
        let (a, to) = (&self.attention, f.kept(WINDOW));
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
        let positions = f.iota(window, Dim::from(Sym::P) - window as i64);
        let positions = f.broadcast(positions, &shape, &[1]);
        let first = f.scalar_like(positions, 0.0);
        let seen = f.map(MapFn::Le, &[first, positions]);
        let sets = [Set { rows: main, seen: Some(seen) }, Set { rows: own, seen: None }];
        let o = a.attend(f, q, &sets);
        a.project(f, o, turn, self.frame.hidden)
    }

    fn markov(&self, a: &mut Assembly<'_>, d: &Draft) -> Built {
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
