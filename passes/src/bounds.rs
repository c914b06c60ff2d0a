//! What is known of sizes: the values that symbols may take where a function runs.
//!
//! Laws ask for bounds where what they say depends on a size: choosing 2048 rows of at most 2048 chooses all of them.
//! What else is known of a function from outside comes along: which inputs hold a choice.

use crate::{Options, chosen};
use hadal_ir::module::{follow, sizes};
use hadal_ir::{Bindings, Definition, Definitions, Dim, Entry, Func, InstKind, Module, Range, Sym};
use std::collections::{BTreeMap, BTreeSet};

/// The values that symbols may take. The default knows nothing.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Bounds {
    ranges: BTreeMap<Sym, Range>,
    definitions: Definitions,
    context: Option<i64>,
    chosen: BTreeSet<usize>,
}

impl Bounds {
    /// What every entry that reaches `func` keeps to; the module's ranges where none does. For many functions of a
    /// module see [`Reached`].
    pub fn of(module: &Module, func: &str, options: &Options) -> Bounds {
        Reached::of(module).bounds(func, options)
    }

    fn hull(module: &Module, entries: &[&Entry], options: &Options) -> Bounds {
        let mut hull: Option<BTreeMap<Sym, Range>> = None;
        for entry in entries {
            let more = sizes(&module.definitions, &module.ranges(entry));
            let Some(known) = &mut hull else {
                hull = Some(more);
                continue;
            };
            for (sym, range) in more {
                let both = known.entry(sym).or_insert(range);
                *both = Range { min: both.min.min(range.min), max: both.max.max(range.max) };
            }
        }
        let ranges = hull.unwrap_or_else(|| module.symbols.clone());
        let (definitions, context) = (module.definitions.clone(), Some(options.context(module)));
        Bounds { ranges, definitions, context, chosen: BTreeSet::new() }
    }

    /// What holds where free symbols keep to `ranges`, within a context.
    pub(crate) fn within(module: &Module, mut ranges: BTreeMap<Sym, Range>, context: i64) -> Bounds {
        follow(&module.definitions, &mut ranges);
        let (definitions, context) = (module.definitions.clone(), Some(context));
        Bounds { ranges, definitions, context, chosen: BTreeSet::new() }
    }

    /// Whether the function's input at this place always holds what `top_k` chose: see `crate::chosen`.
    pub fn chosen(&self, param: usize) -> bool {
        self.chosen.contains(&param)
    }

    /// The most that `size` can be; `None` where one of its symbols has no range.
    pub fn upper(&self, size: &Dim) -> Option<i64> {
        let k = |s: Sym| size.terms().iter().find(|(sym, _)| *sym == s).map_or(0, |(_, k)| *k);
        // What is counted before a call and its growth are what is counted behind it.
        let counted = size.terms().iter().find_map(|(sym, held)| match self.definitions.get(*sym)? {
            Definition::Quotient { of, by } => {
                let new = self.definitions.growth(*sym)?;
                Some((*sym, new, (*held).min(k(new)), of, *by)).filter(|(.., both, _, _)| *both > 0)
            }
            Definition::Growth { .. } => None,
        });
        if let Some((held, new, both, of, by)) = counted {
            let tokens = of.terms().iter().find(|(s, _)| *s == Sym::P).map_or(0, |(_, k)| *k);
            let behind = self.upper(&(of.clone() + Dim::from(Sym::T) * tokens))?.div_euclid(by);
            let rest = self.upper(&(size.clone() - (Dim::from(held) + new) * both))?;
            return Some(rest.saturating_add(both.saturating_mul(behind)));
        }
        let ends = self.sum(size, |r, k| if k > 0 { r.max } else { r.min })?;
        // `P + T` is never more than the context: what both could be beyond it is at most counted the cheaper way.
        let cheaper = k(Sym::P).min(k(Sym::T)).max(0);
        let most = |s: Sym| self.ranges.get(&s).map_or(0, |r| r.max);
        let beyond = self.context.map_or(0, |c| most(Sym::P).saturating_add(most(Sym::T)).saturating_sub(c).max(0));
        Some(ends.saturating_sub(cheaper.saturating_mul(beyond)))
    }

    /// The least that `size` can be; `None` where one of its symbols has no range.
    pub fn lower(&self, size: &Dim) -> Option<i64> {
        self.sum(size, |r, k| if k > 0 { r.min } else { r.max })
    }

    /// The largest sizes: as many new tokens as there may be, and the rest of the context before them.
    pub fn largest(&self) -> Bindings {
        let mut out: Bindings = self.ranges.iter().map(|(s, r)| (*s, r.max)).collect();
        if let (Some(context), Some(t)) = (self.context, out.get(&Sym::T).copied()) {
            out.entry(Sym::P).and_modify(|p| *p = context.saturating_sub(t).clamp(0, (*p).max(0)));
        }
        self.definitions.complete(&out)
    }

    fn sum(&self, size: &Dim, end: impl Fn(&Range, i64) -> i64) -> Option<i64> {
        size.terms().iter().try_fold(size.constant(), |sum, (sym, k)| {
            Some(sum.saturating_add(k.saturating_mul(end(self.ranges.get(sym)?, *k))))
        })
    }
}

/// Which entries reach which functions, and what callers give these, found once for a module.
#[derive(Clone, Debug)]
pub struct Reached<'m> {
    module: &'m Module,
    entries: BTreeMap<&'m str, Vec<&'m Entry>>,
    chosen: BTreeMap<&'m str, BTreeSet<usize>>,
}

impl<'m> Reached<'m> {
    /// Follows the calls of every entry.
    pub fn of(module: &'m Module) -> Reached<'m> {
        let calls = |f: &'m Func| -> BTreeSet<&'m str> {
            let callees = f.insts.iter().filter_map(|i| match &i.kind {
                InstKind::Call(call) => Some(call.func.as_str()),
                _ => None,
            });
            callees.collect()
        };
        let calls: BTreeMap<&str, BTreeSet<&str>> = module.funcs.iter().map(|f| (f.name.as_str(), calls(f))).collect();
        // Entries of one function reach the same.
        let mut by_func: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut entries: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
        for entry in &module.entries {
            let reached = by_func.entry(&entry.func).or_insert_with(|| {
                let mut seen = BTreeSet::from([entry.func.as_str()]);
                let mut open = vec![entry.func.as_str()];
                while let Some(name) = open.pop() {
                    open.extend(calls.get(name).into_iter().flatten().copied().filter(|callee| seen.insert(callee)));
                }
                seen
            });
            for name in reached.iter() {
                entries.entry(name).or_default().push(entry);
            }
        }
        Reached { module, entries, chosen: chosen::params(module) }
    }

    /// The entries that are `func` or call it, however deep, in their order.
    pub(crate) fn by(&self, func: &str) -> &[&'m Entry] {
        self.entries.get(func).map_or(&[], Vec::as_slice)
    }

    /// [`Bounds::of`] a function.
    pub fn bounds(&self, func: &str, options: &Options) -> Bounds {
        let chosen = self.chosen.get(func).cloned().unwrap_or_default();
        Bounds { chosen, ..Bounds::hull(self.module, self.by(func), options) }
    }

    /// [`Options::typical`] for a function.
    pub fn typical(&self, func: &str, options: &Options) -> Bindings {
        options.typical_for(self.module, self.by(func).first().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hadal_ir::text::parse_module;

    #[test]
    fn sizes_are_bounded_by_the_entries_that_reach_a_function() {
        let module = parse_module(
            "symbols P in 0..63, T in 1..16
            func @layer(%x: f32[T, 8]) -> (y: f32[T, 8]) { return %x }
            func @alone(%x: f32[T, 8]) -> (y: f32[T, 8]) { return %x }
            func @main(%x: f32[T, 8]) -> (y: f32[T, 8]) {
              %0 = call @layer(%x) at \"a.\" : f32[T, 8]
              return %0 }
            entry decode = @main where T = 1, P in 0..31
            entry verify = @main where T in 2..4, P in 8..40",
        )
        .unwrap();
        let rows = Dim::from(Sym::P) + Sym::T;
        let ends = |func: &str, context, size: &Dim| {
            let bounds = Bounds::of(&module, func, &Options { max_context: context, ..Options::default() });
            (bounds.lower(size), bounds.upper(size))
        };
        assert_eq!(ends("layer", None, &rows), (Some(1), Some(44)));
        assert_eq!(ends("layer", Some(20), &rows), (Some(1), Some(20)));
        assert_eq!(ends("alone", None, &rows), (Some(1), Some(79)));
        assert_eq!(ends("layer", Some(20), &(Dim::from(Sym::P) - Sym::T)), (Some(-4), Some(39)));
        assert_eq!(ends("layer", None, &Dim::from(Sym::B)), (None, None));
        assert_eq!(Bounds::default().upper(&Dim::from(7i64)), Some(7));
        let largest = Bounds::of(&module, "layer", &Options { max_context: Some(20), ..Options::default() }).largest();
        assert_eq!((largest[&Sym::P], largest[&Sym::T]), (16, 4));
    }

    #[test]
    fn what_is_counted_is_bounded_by_the_context() {
        let module = parse_module(
            "symbols P in 0..63, T in 1..16, C4 = P / 4, N4 = growth C4
            func @main(%x: f32[T, 8]) -> (y: f32[T, 8]) { return %x }
            entry main = @main",
        )
        .unwrap();
        let sym = |name: &str| module.symbols.keys().copied().find(|s| s.to_string() == name).expect("a symbol");
        let (held, new) = (Dim::from(sym("C4")), Dim::from(sym("N4")));
        let most = |context, size: &Dim| {
            Bounds::of(&module, "main", &Options { max_context: context, ..Options::default() }).upper(size)
        };
        let all = held.clone() + new.clone();
        assert_eq!((most(None, &all), most(Some(64), &all), most(Some(67), &all)), (Some(19), Some(16), Some(16)));
        // The growth alone may be rounded up; of 3 C4 + 2 N4 - T two are both, and one is held.
        assert_eq!((most(Some(64), &held), most(Some(64), &new)), (Some(15), Some(4)));
        assert_eq!(most(Some(64), &(held * 3 + new * 2 - Sym::T)), Some(2 * 16 + 15 - 1));
    }
}
