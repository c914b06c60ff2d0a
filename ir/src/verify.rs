//! The graph verifier: collects every fault of a module, each with its place.

use crate::module::*;
use hadal_types::{Bindings, DType, Definitions, Dim, Sym, TensorType};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// One fault.
#[derive(Clone, PartialEq, Debug)]
pub struct Fault {
    /// The function, where there is one.
    pub func: Option<String>,
    /// The instruction, where there is one.
    pub inst: Option<usize>,
    /// What is wrong.
    pub message: String,
}

/// Every fault found.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            let line = if i > 0 { "\n" } else { "" };
            match (&fault.func, fault.inst) {
                (Some(func), Some(inst)) => write!(f, "{line}@{func}, step {inst}: {}", fault.message)?,
                (Some(func), None) => write!(f, "{line}@{func}: {}", fault.message)?,
                (None, _) => write!(f, "{line}{}", fault.message)?,
            }
        }
        Ok(())
    }
}

/// Versions an entry may have, as in artifacts.
const MAX_VERSIONS: usize = 64;

/// Calls within calls; a model has two or three, and passes follow them by recursion.
const MAX_DEPTH: usize = 64;

/// Checks a module.
pub fn module(module: &Module) -> Result<(), Faults> {
    let mut faults = Vec::new();
    let mut known: BTreeMap<&str, &Func> = BTreeMap::new();
    let ranges = ranges_by_func(module);
    for f in &module.funcs {
        let mut check = Checker { func: f, definitions: &module.definitions, faults: &mut faults };
        check.run(Some(&known));
        check.symbols(module, ranges.get(f.name.as_str()).unwrap_or(&module.symbols));
        if known.insert(&f.name, f).is_some() {
            faults.push(Fault { func: Some(f.name.clone()), inst: None, message: "defined twice".into() });
        }
    }
    if let Err((sym, wrong)) = module.definitions.check() {
        faults.push(Fault { func: None, inst: None, message: format!("symbol `{sym}` {wrong}") });
    }
    for (sym, range) in &module.symbols {
        let mut fault = |message| faults.push(Fault { func: None, inst: None, message });
        if range.min > range.max {
            fault(format!("symbol `{sym}` in {range} has no value"));
        } else if range.min < 0 {
            fault(format!("symbol `{sym}` in {range} may be negative, which no count of tokens is"));
        }
    }
    nesting(module, &mut faults);
    new_rows(module, &mut faults);
    let mut versions: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    module.entries.iter().for_each(|e| versions.entry(&e.name).or_default().push(e));
    let messages = versions.iter().filter_map(|(name, all)| wrong_versions(module, &known, name, all));
    faults.extend(messages.map(|message| Fault { func: None, inst: None, message }));
    for e in &module.entries {
        let mut fault = |message| faults.push(Fault { func: None, inst: None, message });
        if !known.contains_key(e.func.as_str()) {
            fault(format!("entry `{}` runs @{}, which does not exist", e.name, e.func));
        }
        for (sym, range) in &e.ranges {
            if module.definitions.has(*sym) {
                fault(format!(
                    "entry `{}`: {sym} in {range} is not for an entry to say, as it follows from others",
                    e.name
                ));
            }
            let within = module.symbols.get(sym).is_some_and(|r| r.min <= range.min && range.max <= r.max);
            if !within || range.min > range.max {
                fault(format!("entry `{}`: {sym} in {range} is not within the module's range", e.name));
            }
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(Faults(faults)) }
}

/// Finds calls that are nested too deep.
fn nesting(module: &Module, faults: &mut Vec<Fault>) {
    let mut depths: BTreeMap<&str, usize> = BTreeMap::new();
    for f in &module.funcs {
        let depth = callees(f).filter_map(|c| depths.get(c)).max().map_or(0, |d| d + 1);
        // Whoever calls what is too deep is told nothing new.
        if depth == MAX_DEPTH + 1 {
            let message = format!("calls are nested more than {MAX_DEPTH} deep here");
            faults.push(Fault { func: Some(f.name.clone()), inst: None, message });
        }
        depths.insert(&f.name, depth);
    }
}

/// Finds states that grow by a number of tokens that is not what every entry brings that reaches them.
fn new_rows(module: &Module, faults: &mut Vec<Fault>) {
    let mut tokens: BTreeMap<&str, Range> = BTreeMap::new();
    let hull = |a: Range, b: Range| Range { min: a.min.min(b.min), max: a.max.max(b.max) };
    for e in &module.entries {
        if let Some(range) = e.ranges.get(&Sym::T).or(module.symbols.get(&Sym::T)) {
            tokens.entry(&e.func).and_modify(|r| *r = hull(*r, *range)).or_insert(*range);
        }
    }
    for f in module.funcs.iter().rev() {
        let Some(range) = tokens.get(f.name.as_str()).copied() else { continue };
        for callee in callees(f) {
            tokens.entry(callee).and_modify(|r| *r = hull(*r, range)).or_insert(range);
        }
        for s in &f.states {
            let size = |v: ValueId| f.values.get(v.index())?.ty.shape.first();
            let grown =
                size(s.value).zip(size(s.next)).and_then(|(before, after)| new_tokens(before, after)?.as_const());
            if let Some(n) = grown.filter(|n| *n != 0 && (range.min, range.max) != (*n, *n)) {
                let message = format!("state `{}` grows by {n} where an entry has T in {range}", s.name);
                faults.push(Fault { func: Some(f.name.clone()), inst: None, message });
            }
        }
    }
}

/// The values that symbols take in each function that entries reach.
fn ranges_by_func(module: &Module) -> BTreeMap<&str, BTreeMap<Sym, Range>> {
    let mut out: BTreeMap<&str, BTreeMap<Sym, Range>> = BTreeMap::new();
    let widen = |all: &mut BTreeMap<Sym, Range>, by: &BTreeMap<Sym, Range>| {
        for (sym, r) in by {
            let hull = |a: &mut Range| *a = Range { min: a.min.min(r.min), max: a.max.max(r.max) };
            all.entry(*sym).and_modify(hull).or_insert(*r);
        }
    };
    for e in &module.entries {
        widen(out.entry(&e.func).or_default(), &module.ranges(e));
    }
    // Calls are of functions before.
    for f in module.funcs.iter().rev() {
        let Some(ranges) = out.get(f.name.as_str()).cloned() else { continue };
        for callee in callees(f) {
            widen(out.entry(callee).or_default(), &ranges);
        }
    }
    out
}

fn callees(func: &Func) -> impl Iterator<Item = &str> {
    func.insts.iter().filter_map(|i| match &i.kind {
        InstKind::Call(call) => Some(call.func.as_str()),
        InstKind::Op(_) => None,
    })
}

/// What is wrong with the versions of an entry, where it has several: they must be for different values of the symbols,
/// leave none out between them, and take and give the same.
fn wrong_versions(module: &Module, funcs: &BTreeMap<&str, &Func>, name: &str, all: &[&Entry]) -> Option<String> {
    if all.len() < 2 {
        return None;
    }
    if all.len() > MAX_VERSIONS {
        return Some(format!("entry `{name}` has {} versions, more than {MAX_VERSIONS}", all.len()));
    }
    let free = |e: &&Entry| -> BTreeMap<Sym, Range> {
        module.ranges(e).into_iter().filter(|(s, _)| !module.definitions.has(*s)).collect()
    };
    let ranges: Vec<BTreeMap<Sym, Range>> = all.iter().map(free).collect();
    let mut hull = BTreeMap::new();
    for (sym, r) in ranges.iter().flatten() {
        let whole: &mut Range = hull.entry(*sym).or_insert(*r);
        *whole = Range { min: whole.min.min(r.min), max: whole.max.max(r.max) };
    }
    // Symbols that the module does not have, and ranges without values, are faults of their own.
    if hull.iter().any(|(s, r)| ranges.iter().any(|v| !v.contains_key(s)) || r.min > r.max) {
        return None;
    }
    let meet = |a: &BTreeMap<Sym, Range>, b: &BTreeMap<Sym, Range>| {
        a.iter().zip(b).all(|((_, a), (_, b))| a.min <= b.max && b.min <= a.max)
    };
    for (i, version) in ranges.iter().enumerate() {
        if let Some(other) = ranges[..i].iter().position(|other| meet(version, other)) {
            return Some(format!("entry `{name}`: versions {other} and {i} are for the same sizes"));
        }
        if signature(funcs, all[i]) != signature(funcs, all[0]) {
            return Some(format!("entry `{name}`: version {i} does not take and give what the first does"));
        }
    }
    let count = |r: &Range| u128::try_from(i128::from(r.max) - i128::from(r.min) + 1).ok();
    let values = |v: &BTreeMap<Sym, Range>| v.values().try_fold(1u128, |n, r| n.checked_mul(count(r)?));
    let Some(whole) = values(&hull) else {
        return Some(format!("entry `{name}`: its symbols have more values than can be counted"));
    };
    // Parts of the whole that do not meet have no more values than it.
    let covered: u128 = ranges.iter().filter_map(values).sum();
    (covered != whole).then(|| format!("entry `{name}`: there are sizes between its versions that none is for"))
}

/// Formats and ranks of what an entry takes and gives, with the names of the latter. Sizes may be fixed in a version.
fn signature<'a>(funcs: &BTreeMap<&str, &'a Func>, entry: &Entry) -> Option<Vec<(&'a str, Port)>> {
    let func = *funcs.get(entry.func.as_str())?;
    let port = |v: ValueId| func.values.get(v.index()).map(|v| (v.ty.dtype, v.ty.rank()));
    let results = func.results.iter().map(|(name, v)| (name.as_str(), port(*v)));
    let params = func.params.iter().map(|p| ("", port(*p)));
    // A nameless thing without a type tells the last input from the first result.
    Some(params.chain([("", None)]).chain(results).collect())
}

type Port = Option<(DType, usize)>;

/// Checks one function; calls are taken on trust.
pub fn func(func: &Func) -> Result<(), Faults> {
    let mut faults = Vec::new();
    Checker { func, definitions: &Definitions::new(), faults: &mut faults }.run(None);
    if faults.is_empty() { Ok(()) } else { Err(Faults(faults)) }
}

/// Whether a state of `before` rows may have `after` rows when the call is over: the same; or as `P` grows by the new
/// tokens, of which there are `T` or, where an entry fixes it, a number; or as a count of groups grows. A window, which
/// has a fixed size, is given the new tokens' rows behind its own, and keeps the last.
fn grows(before: &Dim, after: &Dim, definitions: &Definitions) -> bool {
    let new = after.clone() - before.clone();
    let some = |t: &Dim, symbol: Sym, least: i64| *t == Dim::from(symbol) || t.as_const().is_some_and(|n| n >= least);
    if before == after {
        return true;
    }
    if before.as_const().is_some() {
        return some(&new, Sym::T, 1);
    }
    if let [(counted, k)] = before.terms()
        && *counted != Sym::P
        && *k > 0
    {
        let growth = definitions.growth(*counted);
        return growth.zip(new.div_exact(*k)).is_some_and(|(growth, n)| some(&n, growth, 0));
    }
    new_tokens(before, after).is_some_and(|t| some(&t, Sym::T, 1))
}

/// New tokens that make `after` rows of `before`, which must have some for each token held or be a window.
fn new_tokens(before: &Dim, after: &Dim) -> Option<Dim> {
    let new = after.clone() - before.clone();
    if before.as_const().is_some() {
        return Some(new);
    }
    let (_, per_token) = before.terms().iter().find(|(s, k)| *s == Sym::P && *k > 0)?;
    new.div_exact(*per_token)
}

struct Checker<'a> {
    func: &'a Func,
    definitions: &'a Definitions,
    faults: &'a mut Vec<Fault>,
}

impl Checker<'_> {
    fn fault(&mut self, inst: Option<usize>, message: String) {
        self.faults.push(Fault { func: Some(self.func.name.clone()), inst, message });
    }

    fn run(&mut self, callees: Option<&BTreeMap<&str, &Func>>) {
        let func = self.func;
        let mut defined = vec![false; func.values.len()];
        let mut define = |this: &mut Self, inst, v: ValueId| match defined.get_mut(v.index()) {
            Some(d) if !*d => *d = true,
            Some(_) => this.fault(inst, format!("%{} is defined twice", v.0)),
            None => this.fault(inst, format!("%{} does not exist", v.0)),
        };
        let inputs = func.params.iter().copied();
        let inputs = inputs.chain(func.weights.iter().map(|w| w.value)).chain(func.states.iter().map(|s| s.value));
        for v in inputs {
            define(self, None, v);
        }
        let calls = func.insts.iter().any(|i| matches!(i.kind, InstKind::Call(_)));
        if func.kind != FuncKind::Graph && (calls || !func.weights.is_empty() || !func.states.is_empty()) {
            self.fault(None, format!("a {} function has weights, states or calls", func.kind.keyword()));
        }
        let mut names = BTreeSet::new();
        for name in func.weights.iter().map(|w| &w.name).chain(func.states.iter().map(|s| &s.name)) {
            if !names.insert(name) {
                self.fault(None, format!("weight or state `{name}` is declared twice"));
            }
        }
        for (i, inst) in func.insts.iter().enumerate() {
            let missing = inst.args.iter().find(|a| !defined.get(a.index()).copied().unwrap_or(false));
            if let Some(a) = missing {
                self.fault(Some(i), format!("%{} is used before it is defined", a.0));
            } else {
                self.inst(i, inst, callees);
            }
            for r in &inst.results {
                let mut redefined = false;
                match defined.get_mut(r.index()) {
                    Some(d) => redefined = std::mem::replace(d, true),
                    None => self.fault(Some(i), format!("%{} does not exist", r.0)),
                }
                if redefined {
                    self.fault(Some(i), format!("%{} is defined twice", r.0));
                }
            }
        }
        let is_defined = |v: ValueId| defined.get(v.index()).copied().unwrap_or(false);
        for (name, v) in &func.results {
            if !is_defined(*v) {
                self.fault(None, format!("result `{name}` is not defined"));
            }
        }
        for s in &func.states {
            if !is_defined(s.next) {
                self.fault(None, format!("the next value of state `{}` is not defined", s.name));
                continue;
            }
            let (old, new) = (func.ty(s.value), func.ty(s.next));
            let rows = |ty: &TensorType| ty.shape.get(1..).map(<[Dim]>::to_vec);
            let grown = match (old.shape.first(), new.shape.first()) {
                (Some(before), Some(after)) => grows(before, after, self.definitions),
                (before, after) => before == after,
            };
            if old.dtype != new.dtype || rows(old) != rows(new) || !grown {
                self.fault(None, format!("state `{}` is {old} before and {new} after", s.name));
            }
        }
    }

    fn inst(&mut self, i: usize, inst: &Inst, callees: Option<&BTreeMap<&str, &Func>>) {
        let types: Vec<TensorType> = inst.args.iter().map(|a| self.func.ty(*a).clone()).collect();
        let declared: Vec<TensorType> =
            inst.results.iter().filter_map(|r| self.func.values.get(r.index())).map(|v| v.ty.clone()).collect();
        match &inst.kind {
            InstKind::Op(op) => match op.infer(&types) {
                Err(violation) => self.fault(Some(i), format!("`{}`: {violation}", op.mnemonic())),
                Ok(ty) if declared != [ty.clone()] => {
                    let found = declared.iter().map(|t| t.to_string()).collect::<Vec<_>>().join(", ");
                    self.fault(Some(i), format!("`{}` gives {ty}, but {found} is declared", op.mnemonic()));
                }
                Ok(_) => {}
            },
            InstKind::Call(call) => {
                let Some(callees) = callees else { return };
                let Some(callee) = callees.get(call.func.as_str()) else {
                    return self.fault(Some(i), format!("@{} is not defined before this call", call.func));
                };
                let params: Vec<TensorType> = callee.params.iter().map(|p| callee.ty(*p).clone()).collect();
                let results: Vec<TensorType> = callee.results.iter().map(|(_, r)| callee.ty(*r).clone()).collect();
                if params != types {
                    self.fault(Some(i), format!("@{} takes {params:?}, found {types:?}", call.func));
                }
                if results != declared {
                    self.fault(Some(i), format!("@{} returns {results:?}, declared {declared:?}", call.func));
                }
            }
        }
    }

    fn symbols(&mut self, module: &Module, ranges: &BTreeMap<Sym, Range>) {
        let symbols = &module.symbols;
        let mut used: BTreeSet<Sym> =
            self.func.values.iter().flat_map(|v| &v.ty.shape).flat_map(|d| d.terms()).map(|(s, _)| *s).collect();
        for inst in &self.func.insts {
            if let InstKind::Op(op) = &inst.kind {
                op.attrs().iter().for_each(|(_, attr)| attr.symbols(&mut used));
            }
        }
        for sym in used {
            if !symbols.contains_key(&sym) {
                self.fault(None, format!("symbol `{sym}` is not declared"));
            }
        }
        // Sizes are looked at where all symbols are smallest and where all are largest.
        let least: Bindings = ranges.iter().map(|(s, r)| (*s, r.min)).collect();
        let most: Bindings = ranges.iter().map(|(s, r)| (*s, r.max)).collect();
        for (i, v) in self.func.values.iter().enumerate() {
            let negative = |b| v.ty.shape.iter().any(|d| d.eval(b).is_ok_and(|n| n < 0));
            if let Some(at) = [&least, &most].into_iter().find(|b| negative(b)) {
                let (ty, found) = (&v.ty, v.ty.substitute(at));
                self.fault(
                    None,
                    match *ty == found {
                        true => format!("%{i} has a negative size: {ty}"),
                        false => format!("%{i} has a negative size: {ty} may be {found}"),
                    },
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::text::parse_module;

    #[test]
    fn versions_take_each_call_once() {
        let faults = |entries: &str| {
            let text = format!(
                "symbols P in 0..9, T in 1..8
                func @f(%x: f32[T]) -> (y: f32[T]) {{ return %x }}
                func @one(%x: f32[1]) -> (y: f32[1]) {{ return %x }}
                func @other(%x: f32[T]) -> (z: f32[T]) {{ return %x }}
                {entries}"
            );
            super::module(&parse_module(&text).expect("parses")).err().map_or(String::new(), |f| f.to_string())
        };
        let one = "entry e = @one where T = 1\n";
        assert_eq!(
            faults(&format!("{one} entry e = @f where T in 2..8, P in 0..4\nentry e = @f where T in 2..8, P in 5..9")),
            ""
        );
        assert_eq!(faults("entry e = @f where P in 5..6\nentry e = @f where P in 2..4"), "");
        let same = "versions 0 and 1 are for the same sizes";
        assert!(faults(&format!("{one} entry e = @f")).contains(same));
        assert!(faults("entry e = @f where P in 0..4\nentry e = @f where P in 4..9").contains(same));
        let between = "sizes between its versions that none is for";
        assert!(faults("entry e = @f where P in 0..3\nentry e = @f where P in 5..9").contains(between));
        assert!(
            faults("entry e = @f where T = 1, P in 0..4\nentry e = @f where T in 2..8, P in 5..9").contains(between)
        );
        assert!(
            faults(&format!("{one} entry e = @other where T in 2..8")).contains("version 1 does not take and give")
        );
        assert!(
            faults("entry e = @f where P in 4..3\nentry e = @f where P in 5..9").contains("not within the module's")
        );
    }

    #[test]
    fn versions_are_counted_exactly() {
        let faults = |symbols: &str, entries: &str| {
            let text = format!("symbols {symbols}\nfunc @f(%x: f32[T]) -> (y: f32[T]) {{ return %x }}\n{entries}");
            super::module(&parse_module(&text).expect("parses")).err().map_or(String::new(), |f| f.to_string())
        };
        // One value is left out, which a product of reals would not see.
        let (least, most) = (1u64 << 53, i64::MAX);
        let symbols = format!("P in 0..{most}, T in 1..8");
        let split =
            |from: u64| format!("entry e = @f where P in 0..{}\nentry e = @f where P in {from}..{most}", least - 1);
        assert_eq!(faults(&symbols, &split(least)), "");
        assert!(faults(&symbols, &split(least + 1)).contains("sizes between its versions"));
        let huge = format!("A in 0..{most}, B in 0..{most}, C in 0..{most}, T in 1..8");
        assert_eq!(faults(&huge, "entry e = @f"), "");
        let two = "entry e = @f where T = 1\nentry e = @f where T in 2..8";
        assert!(faults(&huge, two).contains("more values than can be counted"));
        let many = |n: usize| (1..=n).map(|t| format!("entry e = @f where T = {t}\n")).collect::<String>();
        assert_eq!(faults("T in 1..64", &many(64)), "");
        assert_eq!(faults("T in 1..65", &many(65)), "entry `e` has 65 versions, more than 64");
    }

    #[test]
    fn calls_nested_too_deep_are_one_fault() {
        let faults = |depth: usize| {
            let mut text = "func @f0(%x: f32[4]) -> (y: f32[4]) { return %x }\n".to_owned();
            for i in 1..=depth {
                let last = i - 1;
                text += &format!(
                    "func @f{i}(%x: f32[4]) -> (y: f32[4]) {{ %0 = call @f{last}(%x) : f32[4]\nreturn %0 }}\n"
                );
            }
            super::module(&parse_module(&text).expect("parses")).err().map_or(String::new(), |f| f.to_string())
        };
        assert_eq!(faults(64), "");
        assert_eq!(faults(65), "@f65: calls are nested more than 64 deep here");
        assert_eq!(faults(5000), faults(65));
    }

    #[test]
    fn states_grow_by_a_number_where_that_many_tokens_come() {
        let faults = |next: &str, entries: &str| {
            let text = format!(
                "symbols P in 0..8, T in 1..8
                func @f(%x: f32[{next}, 4]) -> () {{
                  state %s = \"s\" : f32[2*P, 4]
                  next %s = %x
                  return }}
                func @main(%x: f32[{next}, 4]) -> () {{ call @f(%x)\nreturn }}
                {entries}"
            );
            super::module(&parse_module(&text).expect("parses")).err().map_or(String::new(), |f| f.to_string())
        };
        let (one, five, any) =
            ("entry a = @main where T = 1", "entry b = @f where T = 5", "entry c = @main where T in 1..8");
        for (next, entries) in [("2*P+2", one), ("2*P+10", five), ("2*P", any), ("2*P+2*T", any), ("2*P+2*T", five)] {
            assert_eq!(faults(next, entries), "", "{next}, {entries}");
        }
        assert_eq!(faults("2*P+10", any), "@f: state `s` grows by 5 where an entry has T in 1..8");
        assert!(faults("2*P+10", one).contains("grows by 5 where an entry has T in 1"));
        assert!(faults("2*P+2", &format!("{one}\n{five}")).contains("T in 1..5"));
    }

    #[test]
    fn states_grow_as_tokens_do() {
        let faults = |state: &str, next: &str| {
            let text = format!(
                "symbols P in 0..8, T in 1..8, C = P / 4, N = growth C
                func @f(%x: f32[{next}, 4]) -> () {{
                  state %s = \"s\" : f32[{state}, 4]
                  next %s = %x
                  return }}"
            );
            super::module(&parse_module(&text).expect("parses")).err().map_or(String::new(), |f| f.to_string())
        };
        for (state, next) in [
            ("P", "P+T"),
            ("P", "P+1"),
            ("P", "P"),
            ("2*P", "2*P+2*T"),
            ("P+3", "P+T+3"),
            ("7", "7"),
            ("7", "T+7"),
            ("7", "8"),
            ("C", "C+N"),
            ("2*C", "2*C+2*N"),
            ("C", "C+1"),
        ] {
            assert_eq!(faults(state, next), "", "{state} to {next}");
        }
        for (state, next) in [
            ("-P+8", "-9223372036854775800-P"),
            ("-P+8", "-P-T+8"),
            ("P", "T"),
            ("P", "P+2*T"),
            ("P", "2*P"),
            ("2*P", "2*P+T"),
            ("7", "6"),
            ("7", "T"),
            ("7", "2*T+7"),
            ("7", "N+7"),
            ("C", "C+T"),
            ("C", "P"),
            ("C", "C+2*N"),
            ("P", "P+N"),
            ("P", "P-1"),
        ] {
            assert!(faults(state, next).contains("before and"), "{state} to {next}");
        }
    }

    #[test]
    fn sizes_are_those_of_the_entries_that_reach_them() {
        let text = |entry: &str| {
            format!(
                "symbols P in 0..9, T in 1..8, B2 = (P + T + 1) / 2
                func @f(%x: f32[2*B2-P-8]) -> (y: f32[2*B2-P-8]) {{ return %x }}
                entry prefill = @f {entry}"
            )
        };
        assert!(super::module(&parse_module(&text("where T = 8")).unwrap()).is_ok());
        let faults = super::module(&parse_module(&text("")).unwrap()).unwrap_err();
        assert!(faults.to_string().contains("negative size"), "{faults}");
    }

    #[test]
    fn sizes_below_zero_are_faults() {
        let faults = |symbols: &str, ty: &str| {
            let text = format!("symbols {symbols}\nfunc @f(%x: {ty}) -> (y: {ty}) {{\n  return %x\n}}\n");
            super::module(&parse_module(&text).expect("parses")).err().map_or(String::new(), |f| f.to_string())
        };
        assert_eq!(faults("T in 1..8", "f32[T-1, 4]"), "");
        assert!(faults("T in 1..8", "f32[T, -4]").contains("negative size: f32[T, -4]"));
        assert!(faults("T in 1..8", "f32[T-2, 4]").contains("f32[T-2, 4] may be f32[-1, 4]"));
        assert!(faults("T in 1..8", "f32[4-T]").contains("f32[-T+4] may be f32[-4]"));
        assert!(faults("T in -1..8", "f32[4]").contains("symbol `T` in -1..8"));
    }
}
