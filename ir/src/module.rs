//! Modules, functions and entry points: the containers of the graph IR. See `docs/src/design/graph-ir.md`.

use crate::ops::Op;
use hadal_types::{Bindings, Definition, Definitions, Dim, Misdefined, Sym, TensorType};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A value of one function: an input, a weight, a state, or the result of an instruction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ValueId(pub u32);

impl ValueId {
    /// Position in [`Func::values`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The values a symbol may take, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// Smallest value.
    pub min: i64,
    /// Largest value.
    pub max: i64,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{}", self.min) } else { write!(f, "{}..{}", self.min, self.max) }
    }
}

/// What a value is, besides its type.
#[derive(Clone, PartialEq, Debug)]
pub struct Value {
    /// Element format and shape.
    pub ty: TensorType,
    /// Name in text, without `%`; `None` prints a number.
    pub name: Option<String>,
}

/// A tensor of the checkpoint that a function reads.
#[derive(Clone, PartialEq, Debug)]
pub struct Weight {
    /// The value that stands for it.
    pub value: ValueId,
    /// Name relative to the caller's prefix. `{0..64}` in it makes a stack: a new leading axis over those numbers.
    pub name: String,
}

/// What a function keeps between calls: rows along the first axis.
///
/// A state of `P` rows, or of a symbol that counts groups of tokens, grows as that does. A state of a fixed size is a
/// *window*: it keeps the last rows of its next value, and holds zeros before there were any.
#[derive(Clone, PartialEq, Debug)]
pub struct State {
    /// The rows held before this call.
    pub value: ValueId,
    /// Name relative to the caller's prefix.
    pub name: String,
    /// The value the state has afterwards.
    pub next: ValueId,
}

/// A call of another function of the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Call {
    /// The callee's name.
    pub func: String,
    /// Put before the names of the callee's weights and states.
    pub prefix: String,
}

/// What an instruction does.
#[derive(Clone, PartialEq, Debug)]
pub enum InstKind {
    /// An op; exactly one result.
    Op(Op),
    /// A call; as many results as the callee has.
    Call(Call),
}

/// One step of a function.
#[derive(Clone, PartialEq, Debug)]
pub struct Inst {
    /// What it does.
    pub kind: InstKind,
    /// Operands.
    pub args: Vec<ValueId>,
    /// Values it defines.
    pub results: Vec<ValueId>,
    /// Places in the model it came from, sorted; rewrites keep the union.
    pub origin: Vec<String>,
    /// Names of the laws that made it, in order; none for what the model wrote.
    pub laws: Vec<String>,
}

/// What a function is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FuncKind {
    /// Part of the model.
    #[default]
    Graph,
    /// One launch: only ops, no weights, states or calls of its own. Made by fusion.
    Kernel,
    /// Computed from weights alone, once, when compiling. Only ops. Made by passes.
    Fold,
}

impl FuncKind {
    /// The keyword in text.
    pub const fn keyword(self) -> &'static str {
        match self {
            FuncKind::Graph => "func",
            FuncKind::Kernel => "kernel",
            FuncKind::Fold => "fold",
        }
    }
}

/// A function: straight-line code over tensors.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Func {
    /// What it is for.
    pub kind: FuncKind,
    /// Name without `@`.
    pub name: String,
    /// Inputs, in order.
    pub params: Vec<ValueId>,
    /// Checkpoint tensors, in order.
    pub weights: Vec<Weight>,
    /// States, in order.
    pub states: Vec<State>,
    /// Every value.
    pub values: Vec<Value>,
    /// Steps, each after what it uses.
    pub insts: Vec<Inst>,
    /// Named results.
    pub results: Vec<(String, ValueId)>,
}

impl Func {
    /// The type of `value`.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        &self.values[value.index()].ty
    }

    /// Adds a value.
    pub fn add_value(&mut self, ty: TensorType, name: Option<String>) -> ValueId {
        self.values.push(Value { ty, name });
        ValueId(self.values.len() as u32 - 1)
    }

    /// The instruction that defines each value, by value; `None` for inputs, weights and states.
    pub fn definitions(&self) -> Vec<Option<usize>> {
        let mut defs = vec![None; self.values.len()];
        for (i, inst) in self.insts.iter().enumerate() {
            for r in &inst.results {
                defs[r.index()] = Some(i);
            }
        }
        defs
    }

    /// How often each value is used by instructions, results and states.
    pub fn use_counts(&self) -> Vec<usize> {
        let mut uses = vec![0; self.values.len()];
        let all = self.insts.iter().flat_map(|i| &i.args);
        for v in all.chain(self.results.iter().map(|(_, v)| v)).chain(self.states.iter().map(|s| &s.next)) {
            uses[v.index()] += 1;
        }
        uses
    }
}

/// Most new tokens of a *step*. An entry whose calls never have more is one for steps: all its sizes are computed in
/// one form and in one order, so that a token has the same bits alone and among others. Drafts are verified in such
/// calls, and tokens of several sequences computed together: then what is not apart for each token runs for one
/// sequence after the other, with one new token. So a version for several tokens must be right for any number of them
/// from one on, whatever its range: see [`sizes`].
pub const STEP: i64 = 16;

/// A way into a module: a function with ranges for its symbols.
///
/// Several entries of one name are *versions*: each is for part of the values, together they are for all of a box, and
/// no two are for the same ones.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// Name (`prefill`, `decode`, …).
    pub name: String,
    /// The function it runs.
    pub func: String,
    /// Values the symbols may take here; narrower than the module's.
    pub ranges: BTreeMap<Sym, Range>,
}

/// Functions and the entries into them.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Module {
    /// Values each symbol may take; of defined ones, those that follow.
    pub symbols: BTreeMap<Sym, Range>,
    /// Symbols that follow from others, so that callers do not give them.
    pub definitions: Definitions,
    /// Functions; callees before callers.
    pub funcs: Vec<Func>,
    /// Entries.
    pub entries: Vec<Entry>,
}

impl Module {
    /// The function called `name`.
    pub fn func(&self, name: &str) -> Option<&Func> {
        self.funcs.iter().find(|f| f.name == name)
    }

    /// The entry called `name`, in its first version.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.versions(name).next()
    }

    /// The functions that some entries reach.
    pub fn reached<'m>(&'m self, entries: impl IntoIterator<Item = &'m Entry>) -> BTreeSet<&'m str> {
        let mut open: Vec<&str> = entries.into_iter().map(|e| e.func.as_str()).collect();
        let mut seen = BTreeSet::new();
        while let Some(name) = open.pop() {
            if seen.insert(name) {
                let insts = self.func(name).map(|f| f.insts.as_slice()).unwrap_or_default();
                open.extend(insts.iter().filter_map(|i| match &i.kind {
                    InstKind::Call(c) => Some(c.func.as_str()),
                    InstKind::Op(_) => None,
                }));
            }
        }
        seen
    }

    /// Every version of the entry called `name`, in order.
    pub fn versions(&self, name: &str) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |e| e.name == name)
    }

    /// The version of the entry called `name` for these values of its symbols, if it has one.
    pub fn version(&self, name: &str, values: &Bindings) -> Option<&Entry> {
        self.versions(name).find(|e| within(&e.ranges, values))
    }

    /// The values of every symbol in `entry`: the module's, narrowed by its own, and what follows from them.
    pub fn ranges(&self, entry: &Entry) -> BTreeMap<Sym, Range> {
        let mut ranges = self.symbols.clone();
        ranges.extend(entry.ranges.clone());
        follow(&self.definitions, &mut ranges);
        ranges
    }

    /// Defines a symbol, with the values it takes.
    pub fn define(&mut self, sym: Sym, definition: Definition) -> Result<(), Misdefined> {
        self.definitions.add(sym, definition)?;
        follow(&self.definitions, &mut self.symbols);
        Ok(())
    }

    /// The groups of `m` tokens that are complete before this call, and how many more this call completes: `⌊P/m⌋` and
    /// its growth. Every token is a group where `m` is 1.
    pub fn counter(&mut self, m: usize) -> Counter {
        if m == 1 {
            return Counter { held: Sym::P, new: Sym::T };
        }
        let sym = |letter: char| Sym::new(&format!("{letter}{m}"));
        let (held, new) = sym('C').zip(sym('N')).expect("groups of less than 10^7 tokens");
        let by = m as i64;
        let quotient = self.define(held, Definition::Quotient { of: Sym::P.into(), by });
        quotient
            .and_then(|()| self.define(new, Definition::Growth { of: held }))
            .expect("only counters have these names");
        Counter { held, new }
    }

    /// `values` with those that follow from them.
    pub fn complete(&self, values: &Bindings) -> Bindings {
        self.definitions.complete(values)
    }

    /// Whether `entry` is one for steps: see [`STEP`].
    pub fn is_step(&self, entry: &Entry) -> bool {
        self.ranges(entry).get(&Sym::T).is_some_and(|t| t.max <= STEP)
    }

    /// The largest value of every symbol in `entry`.
    pub fn largest(&self, entry: &Entry) -> Bindings {
        self.ranges(entry).into_iter().map(|(s, r)| (s, r.max)).collect()
    }
}

/// How many rows a state holds before a call, and how many are added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counter {
    /// Rows held.
    pub held: Sym,
    /// Rows added.
    pub new: Sym,
}

impl Counter {
    /// Rows held afterwards.
    pub fn all(self) -> Dim {
        Dim::from(self.held) + self.new
    }
}

/// Sets the ranges of defined symbols to what follows from those of the others.
pub fn follow(definitions: &Definitions, ranges: &mut BTreeMap<Sym, Range>) {
    for (sym, definition) in definitions.iter() {
        let range = definitions.range(definition, |s| ranges.get(&s).map(|r| (r.min, r.max)));
        if let Some((min, max)) = range {
            ranges.insert(*sym, Range { min, max });
        }
    }
}

/// The values of symbols for which code and memory of a version with these `ranges` must do: one new token too, where
/// it is for several of a step. What is concluded from a size is concluded from these.
pub fn sizes(definitions: &Definitions, ranges: &BTreeMap<Sym, Range>) -> BTreeMap<Sym, Range> {
    let mut out = ranges.clone();
    if let Some(tokens) = out.get_mut(&Sym::T).filter(|t| 1 < t.min && t.min < t.max && t.max <= STEP) {
        tokens.min = 1;
        follow(definitions, &mut out);
    }
    out
}

/// Whether every value that is given is in its range.
pub fn within(ranges: &BTreeMap<Sym, Range>, values: &Bindings) -> bool {
    ranges.iter().all(|(s, r)| values.get(s).is_none_or(|v| r.min <= *v && *v <= r.max))
}

/// The checkpoint names a weight name stands for: one, or as many as its `{a..b}` counts.
///
/// A name with more than one counter, or a malformed one, is taken literally.
pub fn expand_weight_name(name: &str) -> Vec<String> {
    match stack_range(name) {
        Some((head, range, tail)) => range.map(|i| format!("{head}{i}{tail}")).collect(),
        None => vec![name.to_owned()],
    }
}

/// Splits `head{a..b}tail`.
pub fn stack_range(name: &str) -> Option<(&str, std::ops::Range<usize>, &str)> {
    let (head, rest) = name.split_once('{')?;
    let (counter, tail) = rest.split_once('}')?;
    let (a, b) = counter.split_once("..")?;
    Some((head, a.parse().ok()?..b.parse().ok()?, tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacked_names_expand() {
        assert_eq!(expand_weight_name("a.{1..3}.b"), ["a.1.b", "a.2.b"]);
        assert_eq!(expand_weight_name("a.b"), ["a.b"]);
    }
}
