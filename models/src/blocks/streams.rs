//! The frame of decoders with several residual streams (sheets `mhc`, `deepseek-v4`, `deepseek-v41`): layers that
//! attend to a window beside compressed rows and pass through experts, perhaps tables of n-grams before some, and a
//! head that reads the streams together.
//!
//! ```text
//! h = E[tokens] in every stream
//! h = h + memory(h)                       before layers that have a table
//! h = site(h, attention);   h = site(h, experts)
//! logits = norm(joined h) Wᵀ              what a site and `joined` are, says [`mhc`](super::mhc)
//! ```
//!
//! Values go between functions by names: a parameter of a layer is the last result of that name of the layers before,
//! so a layer takes whatever others left for it. What a layer attends to beside its window is the model's to say
//! ([`Streamed::far`]).

use super::Block;
use super::assembly::{Assembly, Built, Frame, Gives, Named, Rows};
use super::drafts::Drafter;
use super::engram::{Chosen, Tables, gated};
use super::mhc::{Hyper, Streams};
use super::moe::{Choice, Moe, moe};
use super::selection::Compressed;
use super::shared_kv::{Set, SharedKv, Turn};
use hadal_ir::builder::BuildError;
use hadal_ir::module::{Func, ValueId};
use hadal_types::Sym;
use std::collections::BTreeMap;

/// What such models have in common.
#[derive(Clone, PartialEq, Debug)]
pub struct Trunk {
    /// The frame.
    pub frame: Frame,
    /// The streams.
    pub hyper: Hyper,
    /// Attention to windows, and how rows turn.
    pub attention: SharedKv,
    /// Tokens in a compressed row of each layer, 0 where there are none; those of layers behind the last one follow.
    pub ratios: Vec<usize>,
    /// The experts.
    pub moe: Moe,
    /// The first layers, whose experts a table chooses by token.
    pub hashed: usize,
    /// The tables of n-grams.
    pub memory: Option<Tables>,
    /// The draft head.
    pub drafter: Option<Drafter>,
}

/// Where the attention of a layer to compressed rows is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The layer's number.
    pub layer: usize,
    /// The rows.
    pub rows: Compressed,
    /// How new tokens turn.
    pub turn: Turn<'a>,
}

impl<'a> Place<'a> {
    /// How the rows turn that a call adds, which are at the positions of their first tokens.
    pub fn turn_of_rows(&self, f: &mut Block<'_>) -> Turn<'a> {
        match self.rows.ratio {
            1 => self.turn,
            _ => Turn::param(f, &side(self.rows), self.turn.rope, self.rows.counter.new),
        }
    }
}

/// What the angles of compressed rows are called.
fn side(rows: Compressed) -> String {
    format!("rows{}", rows.ratio)
}

/// A decoder with several residual streams: what varies between models, inside the frame.
pub trait Streamed {
    /// What is the same.
    fn trunk(&self) -> &Trunk;

    /// What the functions of layers with compressed rows like `layer` are called.
    fn kind(&self, layer: usize) -> String;

    /// The compressed rows, and which of them queries see. `latent` is the query's latent row.
    fn far(&self, a: &mut Assembly<'_>, f: &mut Block<'_>, at: Place<'_>, x: ValueId, latent: ValueId) -> Set;

    /// Gives out, for comparison with other code, what `layer` computed on the way and left in `named`.
    fn show(&self, _a: &mut Assembly<'_>, _f: &mut Block<'_>, _layer: usize, _named: &Named) {}
}

/// The functions of a model's layers and tables, from which main functions are made.
pub struct Body<'d, D> {
    decoder: &'d D,
    layers: Vec<Func>,
    /// By the numbers of the layers that tables stand before.
    tables: BTreeMap<usize, Func>,
}

impl<'d, D: Streamed> Body<'d, D> {
    /// Adds the functions of layers and tables.
    pub fn new(decoder: &'d D, a: &mut Assembly<'_>) -> Result<Body<'d, D>, Box<BuildError>> {
        let t = decoder.trunk();
        let layers = (0..t.frame.layers).map(|l| layer(decoder, a, l)).collect::<Result<_, _>>()?;
        let mut tables = BTreeMap::new();
        if let Some(m) = &t.memory {
            for (index, l) in m.hashing.layers.iter().enumerate() {
                tables.insert(*l, t.table(a, m, index)?);
            }
        }
        Ok(Body { decoder, layers, tables })
    }

    /// Adds the entries of a model that has a draft head, or none.
    pub fn entries(&self, a: &mut Assembly<'_>) -> Result<(), Box<BuildError>> {
        let drafter = self.decoder.trunk().drafter(a);
        let hidden = drafter.is_some();
        let all = self.main(a, "main_all", Gives { logits: Rows::All, hidden }, false)?;
        let last = self.main(a, "main", Gives { logits: Rows::Last, hidden }, false)?;
        match drafter {
            None => a.main_entries(&all, &last),
            Some(d) => {
                a.drafted_entries(&all, &last, None);
                d.entries(self.decoder.trunk(), a)?;
            }
        }
        if a.bounds.inner {
            let shown = self.main(a, "main_shown", Gives { logits: Rows::All, hidden }, true)?;
            let entries = a.module.entries.iter_mut().filter(|e| e.func == all.name && e.name == "logits");
            entries.for_each(|e| e.func = shown.name.clone());
        }
        Ok(())
    }

    /// Adds a main function. Drafts are made from the means of the streams before some layers, one behind the other,
    /// where there is a draft head, else from the streams at the end. With `shown` it also gives what layers compute on
    /// the way.
    pub fn main(&self, a: &mut Assembly<'_>, name: &str, gives: Gives, shown: bool) -> Built {
        let t = self.decoder.trunk();
        let mut f = a.block(name, "");
        let tokens = f.tokens();
        let mut named = Named::from([("tokens".into(), tokens)]);
        t.begin(&mut f, tokens).name(&mut named);
        t.turns(a, &mut f, 0..self.layers.len(), &mut named);
        let memory = t.memory.as_ref().map_or(Vec::new(), |m| m.choose(&mut f, t.frame.vocab, tokens));
        let mut memory = memory.into_iter();
        let drafter = t.drafter(a);
        let mut targets = Vec::new();
        let mut target = |f: &mut Block<'_>, layer: usize, named: &Named| {
            if drafter.is_some_and(|d| d.before.contains(&layer)) {
                targets.push(t.hyper.mean(f, Streams::named(named)));
            }
        };
        for (l, layer) in self.layers.iter().enumerate() {
            if let Some((table, chosen)) = self.tables.get(&l).and_then(|table| Some((table, memory.next()?))) {
                named.insert("rows_of_table".into(), chosen.rows);
                f.call_named(table, &t.prefix(l), &mut named);
                if shown {
                    f.result(&format!("hash_{l}"), chosen.hashes);
                    f.result(&format!("engram_{l}"), named["memory"]);
                }
            }
            target(&mut f, l, &named);
            f.call_named(layer, &t.prefix(l), &mut named);
            if shown {
                self.decoder.show(a, &mut f, l, &named);
            }
        }
        target(&mut f, self.layers.len(), &named);
        let streams = Streams::named(&named);
        let read = if gives.logits == Rows::Last { streams.last_row(&mut f) } else { streams };
        let y = t.hyper.joined(&mut f, "", read);
        let logits = t.logits(&mut f, y, "norm", "head");
        f.result("logits", logits);
        if gives.hidden {
            let hidden = if targets.is_empty() { streams.all } else { f.concat(&targets, 1) };
            f.result("hidden", hidden);
        }
        a.add(f)
    }
}

/// The function for layer `l`, shared with every layer that is the same.
pub fn layer(d: &impl Streamed, a: &mut Assembly<'_>, l: usize) -> Built {
    let t = d.trunk();
    let (rows, hashed) = (t.rows(a, l), l < t.hashed);
    let kind = if rows.is_some() { d.kind(l) } else { "window_layer".to_owned() };
    let mut f = a.block(&if hashed { format!("hashed_{kind}") } else { kind }, &t.prefix(l));
    let streams = t.hyper.param(&mut f, Sym::T, t.frame.hidden);
    let tokens = hashed.then(|| f.tokens());
    let turn = match rows {
        None => Turn::param(&mut f, "near", &t.attention.near, Sym::T),
        Some(_) => Turn::param(&mut f, "far", &t.attention.far, Sym::T),
    };
    let streams = t.hyper.site(&mut f, "attn", streams, |f, x| {
        t.attention
            .attention(f, x, turn, |f, latent| rows.map(|rows| d.far(a, f, Place { layer: l, rows, turn }, x, latent)))
    });
    let by_token = Moe { choice: Choice::Table(t.frame.vocab), ..t.moe.clone() };
    let experts = if hashed { &by_token } else { &t.moe };
    let streams = t.hyper.site(&mut f, "ffn", streams, |f, x| moe(f, experts, x, tokens));
    streams.result(&mut f);
    a.share(f)
}

impl Trunk {
    /// What names of weights and states of `layer` begin with; behind the last one are those that look ahead.
    pub fn prefix(&self, layer: usize) -> String {
        match layer.checked_sub(self.frame.layers) {
            None => format!("layers.{layer}."),
            Some(depth) => format!("mtp.{depth}."),
        }
    }

    /// The compressed rows of `layer`.
    pub fn rows(&self, a: &mut Assembly<'_>, layer: usize) -> Option<Compressed> {
        let ratio = Some(self.ratios[layer]).filter(|m| *m > 0)?;
        Some(Compressed { ratio, counter: a.module.counter(ratio) })
    }

    /// The draft head, unless the checkpoint has been saved without.
    pub fn drafter(&self, a: &Assembly<'_>) -> Option<&Drafter> {
        let stored = || a.formats.has(&format!("{}main_proj.weight", self.prefix(self.frame.layers)));
        self.drafter.as_ref().filter(|_| stored())
    }

    /// The streams that the first layer is given for `tokens`.
    pub fn begin(&self, f: &mut Block<'_>, tokens: ValueId) -> Streams {
        let x = f.embed("embed", tokens, [self.frame.vocab, self.frame.hidden]);
        self.hyper.streams(f, x)
    }

    /// Makes the angles that `layers` turn by. New tokens turn by their positions, in layers with compressed rows by
    /// other angles than in those without.
    pub fn turns(
        &self,
        a: &mut Assembly<'_>,
        f: &mut Block<'_>,
        layers: impl IntoIterator<Item = usize>,
        named: &mut Named,
    ) {
        let rows: Vec<Option<Compressed>> = layers.into_iter().map(|l| self.rows(a, l)).collect();
        for (side, rope, alone) in [("near", &self.attention.near, true), ("far", &self.attention.far, false)] {
            if rows.iter().any(|of| of.is_none() == alone) {
                let positions = f.iota(Sym::T, Sym::P);
                Turn::give(f, side, rope, positions, named);
            }
        }
        // A row for every token turns as the token does.
        let by_ratio: BTreeMap<usize, Compressed> = rows.into_iter().flatten().map(|of| (of.ratio, of)).collect();
        for of in by_ratio.values().filter(|of| of.ratio > 1) {
            let positions = of.positions(f);
            Turn::give(f, &side(*of), &self.attention.far, positions, named);
        }
    }

    /// The logits that `head` makes of rows after the norm `norm`.
    pub fn logits(&self, f: &mut Block<'_>, y: ValueId, norm: &str, head: &str) -> ValueId {
        let x = f.norm(y, norm, self.frame.eps);
        f.linear(x, head, self.frame.vocab, false)
    }

    /// What table number `index` adds to the streams before its layer.
    fn table(&self, a: &mut Assembly<'_>, m: &Tables, index: usize) -> Built {
        let mut f = a.block("memory", &self.prefix(m.hashing.layers[index]));
        let streams = self.hyper.param(&mut f, Sym::T, self.frame.hidden);
        let chosen = Chosen::param(&mut f, "rows_of_table", &m.hashing, m.rows[index]);
        let more = f.within("engram", |f| gated(f, &m.gate, streams.all, chosen));
        let all = f.add(streams.all, more);
        f.result("streams", all);
        if a.bounds.inner {
            f.result("memory", more);
        }
        a.share(f)
    }
}
