//! Attention in which one row is key and value of all heads (sheet `deepseek-v4`, "Attention").
//!
//! ```text
//! r = norm(x Wqa);   q^h = turn(unit((r Wqb)_h))          a head's trailing channels turn; unit, in some models: root mean square 1
//! k = turn(norm(x Wkv))
//! o^h = Σ_s p_s k_s,   p = softmax over {q^h · k_s / √c} of all sets of rows, and the head's sink
//! y = (turned back o, in g groups) Woa Wob                 so a value depends on how far away its row is
//! ```
//!
//! What sets of rows there are, and which rows of each a query sees, is the model's to say. The last `W` rows are one.

use super::Block;
use super::assembly::Named;
use super::kept::{Kept, Narrow};
use super::rope::{Angles, Rope, Scaling};
use crate::config_reader::{Object, Spelling};
use crate::error::Result;
use hadal_ir::module::ValueId;
use hadal_ir::ops::Softmax;
use hadal_ir::ops::map::MapFn;
use hadal_types::{DType, Dim, Sym, TensorType};

/// Sizes of the attention.
#[derive(Clone, PartialEq, Debug)]
pub struct SharedKv {
    /// Heads `H`.
    pub heads: usize,
    /// Size `c` of a head and of a row.
    pub head_dim: usize,
    /// Rank of the query's latent row.
    pub q_rank: usize,
    /// Groups `g` that answers are projected in, and the rank of each.
    pub groups: [usize; 2],
    /// Tokens `W` whose rows a query sees directly, itself among them.
    pub window: usize,
    /// Whether the heads of queries are normalised.
    pub unit: bool,
    /// How rows are kept where states are narrow, if that is another way.
    pub narrow: Option<Narrow>,
    /// Epsilon of the norms.
    pub eps: f64,
    /// Rotation of trailing channels in layers with a window only.
    pub near: Rope,
    /// Rotation of as many in layers with compressed rows.
    pub far: Rope,
}

/// Rows, and which of them each query sees: `[S, c]` and truth values `[T, S]`; all where there are none.
#[derive(Clone, Copy, Debug)]
pub struct Set {
    /// The rows.
    pub rows: ValueId,
    /// Which are seen.
    pub seen: Option<ValueId>,
}

/// How heads and rows turn: the rotation of trailing channels, and its angles for the rows at hand.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// The rotation.
    pub rope: &'a Rope,
    /// Of each row.
    pub angles: Angles,
}

impl<'a> Turn<'a> {
    /// By the angles that the caller gives for `rows` rows as `{name}_cos` and `{name}_sin`.
    pub fn param(f: &mut Block<'_>, name: &str, rope: &'a Rope, rows: impl Into<Dim>) -> Turn<'a> {
        let ty = TensorType::new(DType::F32, [rows.into(), (rope.dim / 2).into()]);
        let mut of = |part: &str| f.param(&format!("{name}_{part}"), ty.clone());
        Turn { rope, angles: Angles { cos: of("cos"), sin: of("sin") } }
    }

    /// Makes these angles for `positions`, which are integers.
    pub fn give(f: &mut Block<'_>, name: &str, rope: &Rope, positions: ValueId, named: &mut Named) {
        let angles = rope.angles_at(f, positions);
        named.insert(format!("{name}_cos"), angles.cos);
        named.insert(format!("{name}_sin"), angles.sin);
    }

    /// `x` turned.
    pub fn there(&self, f: &mut Block<'_>, x: ValueId) -> ValueId {
        self.rope.turn_last(f, x, self.angles)
    }

    /// `x` turned back.
    pub fn back(&self, f: &mut Block<'_>, x: ValueId) -> ValueId {
        let sin = f.map(MapFn::Neg, &[self.angles.sin]);
        self.rope.turn_last(f, x, Angles { sin, ..self.angles })
    }
}

impl SharedKv {
    /// Reads the sizes. `narrow` is how rows of which so many channels turn are kept, `stretch` that of layers with
    /// compressed rows.
    pub fn read(
        o: &Object<'_>,
        spelling: Spelling,
        eps: f64,
        unit: bool,
        narrow: fn(usize) -> Narrow,
        stretch: Scaling,
    ) -> Result<SharedKv> {
        if o.bool_or("attention_bias", false)? {
            return Err(o.error("attention_bias", "false"));
        }
        let key = |published, own| spelling.key(published, own);
        let head_dim = o.require_usize_in("head_dim", 2..=1 << 14)?;
        let turning_key = key("qk_rope_head_dim", "rope_head_dim");
        // Transformers may write the part of a head instead.
        let part = o.optional_f64("partial_rotary_factor")?.filter(|_| !o.has(turning_key));
        let dim = match part.map(|part| (part * head_dim as f64) as usize) {
            Some(turning @ 2..) if turning <= head_dim => turning,
            Some(_) => return Err(o.error("partial_rotary_factor", "a part of head_dim")),
            None => o.require_usize_in(turning_key, 2..=head_dim)?,
        };
        if !dim.is_multiple_of(2) {
            return Err(o.error(turning_key, "an even size, which rotation needs"));
        }
        let heads_key = key("num_attention_heads", "n_heads");
        let heads = o.require_usize_in(heads_key, 1..=1 << 12)?;
        if o.usize_or("num_key_value_heads", 1)? != 1 {
            return Err(o.error("num_key_value_heads", "1, as one row is key and value of all heads"));
        }
        let groups = o.require_usize_in("o_groups", 1..=heads)?;
        if !heads.is_multiple_of(groups) {
            return Err(o.error("o_groups", format!("a divisor of {heads_key} ({heads})")));
        }
        let far = o.positive_or("compress_rope_theta", 160_000.0)?;
        if far <= 1.0 {
            return Err(o.error("compress_rope_theta", "a number greater than 1, which yarn needs"));
        }
        let rope = |theta, scaling| Rope { dim, theta, scaling, interleaved: true };
        Ok(SharedKv {
            heads,
            head_dim,
            q_rank: o.require_usize_in("q_lora_rank", 1..=1 << 18)?,
            groups: [groups, o.require_usize_in("o_lora_rank", 1..=1 << 18)?],
            window: o.require_usize_in(key("sliding_window", "window_size"), 1..=1 << 20)?,
            unit,
            narrow: Some(narrow(dim)).filter(|to| to.rest < head_dim),
            eps,
            near: rope(o.positive_or("rope_theta", 10_000.0)?, Scaling::None),
            far: rope(far, stretch),
        })
    }

    /// Every new token's answer, of what its window says and what the rows that `far` gives say. State: `window`.
    pub fn attention<'b>(
        &self,
        f: &mut Block<'b>,
        x: ValueId,
        turn: Turn<'_>,
        far: impl FnOnce(&mut Block<'b>, ValueId) -> Option<Set>,
    ) -> ValueId {
        f.within("attn", |f| {
            let latent = self.latent(f, x);
            let q = self.query(f, latent, turn);
            let row = self.row(f, x, turn);
            let window = self.keep(f, "window", self.window, row);
            let mut sets = vec![self.recent(f, window)];
            sets.extend(far(f, latent));
            let o = self.attend(f, q, &sets);
            let d = f.size(x, 1);
            self.project(f, o, turn, d)
        })
    }

    /// The query's latent row.
    pub fn latent(&self, f: &mut Block<'_>, x: ValueId) -> ValueId {
        let latent = f.linear(x, "wq_a", self.q_rank, false);
        f.norm(latent, "q_norm", self.eps)
    }

    /// The query's heads, `[T, H, c]`.
    pub fn query(&self, f: &mut Block<'_>, latent: ValueId, turn: Turn<'_>) -> ValueId {
        let q = f.linear(latent, "wq_b", self.heads * self.head_dim, false);
        let tokens = f.shape(q)[0].clone();
        let q = f.reshape(q, &[tokens, self.heads.into(), self.head_dim.into()]);
        if !self.unit {
            return turn.there(f, q);
        }
        let ones = f.scalar(1.0);
        let ones = f.broadcast(ones, &[self.head_dim.into()], &[]);
        let q = f.rms_norm(q, ones, self.eps);
        turn.there(f, q)
    }

    /// The row of every new token.
    pub fn row(&self, f: &mut Block<'_>, x: ValueId, turn: Turn<'_>) -> ValueId {
        let row = f.linear(x, "wkv", self.head_dim, false);
        let row = f.norm(row, "kv_norm", self.eps);
        turn.there(f, row)
    }

    /// All rows of the state `name`, `rows` behind those before; it holds `held` rows.
    pub fn keep(&self, f: &mut Block<'_>, name: &str, held: impl Into<Dim>, rows: ValueId) -> ValueId {
        let to = self.kept(f);
        Kept::append(f, name, held, rows, to).read(f)
    }

    /// How rows are kept: so, or as they are.
    pub fn kept(&self, f: &Block<'_>) -> Option<Narrow> {
        self.narrow.and_then(|to| f.kept(to))
    }

    /// What every query sees of its window: of `rows`, the last `W` before this call and those of new tokens.
    pub fn recent(&self, f: &mut Block<'_>, rows: ValueId) -> Set {
        let w = self.window as i64;
        let shape = [Dim::from(Sym::T), f.shape(rows)[0].clone()];
        // Row 0 stands at position P - W. A query sees W positions up to its own, and none before 0.
        let positions = f.iota(shape[1].clone(), Dim::from(Sym::P) - w);
        let positions = f.broadcast(positions, &shape, &[1]);
        let last = f.iota(Sym::T, Sym::P);
        let first = f.iota(Sym::T, Dim::from(Sym::P) - (w - 1));
        let zero = f.scalar_like(first, 0.0);
        let first = f.map(MapFn::Max, &[first, zero]);
        let (first, last) = (f.broadcast(first, &shape, &[0]), f.broadcast(last, &shape, &[0]));
        let (begun, there) = (f.map(MapFn::Le, &[first, positions]), f.map(MapFn::Le, &[positions, last]));
        Set { rows, seen: Some(f.map(MapFn::And, &[begun, there])) }
    }

    /// One softmax over all that a query sees, and the rows so weighted: `[T, H, c]`.
    pub fn attend(&self, f: &mut Block<'_>, q: ValueId, sets: &[Set]) -> ValueId {
        let tokens = f.shape(q)[0].clone();
        let mut columns = Vec::new();
        for set in sets {
            let scores = f.contract("thd,sd->ths", &[q, set.rows]);
            let scores = f.mul_scalar(scores, (self.head_dim as f64).powf(-0.5));
            let Some(seen) = set.seen else {
                columns.push(scores);
                continue;
            };
            let shape = f.shape(scores).to_vec();
            let seen = f.broadcast(seen, &shape, &[0, 2]);
            columns.push(f.only(seen, scores));
        }
        let sink = f.tensor("attn_sink", &[self.heads]);
        let sink = f.cast(sink, DType::F32);
        columns.push(f.broadcast(sink, &[tokens, self.heads.into(), 1.into()], &[1]));
        let scores = f.concat(&columns, 2);
        let weights = f.op(Softmax, &[scores]);
        let rows: Vec<ValueId> = sets.iter().map(|s| s.rows).collect();
        let rows = if let [one] = rows[..] { one } else { f.concat(&rows, 0) };
        let all = f.shape(rows)[0].clone();
        let weights = f.slice(weights, 2, 0, all, 1);
        f.contract("ths,sd->thd", &[weights, rows])
    }

    /// Turns `o` back at the query's position, and projects it to `outputs`: group by group, then all together.
    pub fn project(&self, f: &mut Block<'_>, o: ValueId, turn: Turn<'_>, outputs: usize) -> ValueId {
        let [groups, rank] = self.groups;
        let o = turn.back(f, o);
        let tokens = f.shape(o)[0].clone();
        let width = self.heads * self.head_dim / groups;
        let o = f.reshape(o, &[tokens.clone(), groups.into(), width.into()]);
        f.enter("wo_a");
        let o = f.halved(o, "wo_a");
        let w = f.matrix("wo_a", &[groups * rank, width]);
        let w = f.reshape(w, &[groups.into(), rank.into(), width.into()]);
        let y = f.contract("tgi,gri->tgr", &[o, w]);
        f.leave();
        let y = f.reshape(y, &[tokens, (groups * rank).into()]);
        f.linear(y, "wo_b", outputs, false)
    }
}
