//! `canonicalise`: one form for what can be said in several ways, and no more than is used.
//!
//! ```text
//! %0 = reshape %x {shape = [T, 2, 4]}        %0 = reshape %x {shape = [T, 8]}
//! %1 = reshape %0 {shape = [T, 8]}      ->   return %0
//! return %1
//! ```
//!
//! Applies the directed laws of [`rules::CANONICAL`] wherever they fire, computes equal things once, and drops what
//! nothing uses. Weights that nothing uses go too; states stay. Exact: results keep their values (a zero may change its
//! sign).

use crate::Options;
use crate::bounds::{Bounds, Reached};
use crate::edit::{Edit, Trail};
use crate::rule::{Rule, Term, V};
use crate::rules::{self, LawSet};
use crate::watch::{Watched, extend, leaves};
use hadal_ir::{Func, InstKind, Module, ValueId};
use std::collections::BTreeMap;

/// How often each law fired, by name.
pub type Fired = BTreeMap<&'static str, usize>;

/// Most rounds over one function; directed laws need two or three.
const ROUNDS: usize = 16;

/// Canonicalises every function.
pub fn run(module: &Module, options: &Options) -> (Module, Fired) {
    let mut fired = Fired::new();
    let rules = canonical(&options.laws);
    let reached = Reached::of(module);
    let of = |f: &Func| func(f, &rules, &reached.bounds(&f.name, options), &mut fired);
    let funcs = module.funcs.iter().map(of).collect();
    (Module { funcs, ..module.clone() }, fired)
}

/// One function, of sizes within `bounds`.
pub(crate) fn within(old: &Func, bounds: &Bounds, options: &Options) -> Func {
    func(old, &canonical(&options.laws), bounds, &mut Fired::new())
}

/// The canonical laws that may be used.
pub(crate) fn canonical(laws: &LawSet) -> Vec<&'static Rule> {
    rules::CANONICAL.iter().flat_map(|theme| theme.rules).filter(|r| laws.allows(r)).collect()
}

/// Canonicalises one function, adding to `fired`.
fn func(old: &Func, rules: &[&'static Rule], bounds: &Bounds, fired: &mut Fired) -> Func {
    let mut current = old.clone();
    for _ in 0..ROUNDS {
        let before: usize = fired.values().sum();
        current = round(&current, rules, bounds, fired);
        if fired.values().sum::<usize>() == before {
            break;
        }
    }
    current
}

fn round(old: &Func, rules: &[&'static Rule], bounds: &Bounds, fired: &mut Fired) -> Func {
    let (mut edit, mut map) = Edit::like(old);
    edit.bounds = bounds.clone();
    for inst in &old.insts {
        let args: Vec<ValueId> = inst.args.iter().map(|a| map[a.index()].expect("defined before use")).collect();
        match &inst.kind {
            InstKind::Call(_) => {
                for (r, new) in inst.results.iter().zip(edit.call(old, inst, args)) {
                    map[r.index()] = Some(new);
                }
            }
            InstKind::Op(op) => {
                let term = Term::New(op.clone(), args.iter().map(|a| Term::Old(V(a.0))).collect());
                let name = old.values[inst.results[0].index()].name.as_deref();
                let trail = Trail { origin: &inst.origin, laws: &inst.laws };
                let new = simplify(&mut edit, rules, &term, &trail, name, fired);
                map[inst.results[0].index()] = Some(new);
            }
        }
    }
    edit.finish(old, &map)
}

/// Adds a term with the laws applied from the inside out.
fn simplify(
    edit: &mut Edit,
    rules: &[&'static Rule],
    term: &Term,
    trail: &Trail,
    name: Option<&str>,
    fired: &mut Fired,
) -> ValueId {
    let (op, args) = match term {
        Term::Old(v) => return ValueId(v.0),
        Term::New(op, args) => (op, args),
    };
    let args: Vec<V> = args.iter().map(|a| V(simplify(edit, rules, a, trail, None, fired).0)).collect();
    for rule in rules {
        let site = Watched::new(edit, None);
        // A slice whose bounds only a value of the symbols could show to be wrong may be refused once it is joined.
        let better = (rule.apply)(&site, op, &args).into_iter().find(|t| t.ty(edit).is_some());
        let Some(better) = better else { continue };
        let (kept, mut laws) = (leaves(&better), trail.laws.to_vec());
        for through in site.seen().iter().filter(|v| !kept.contains(v)) {
            edit.laws_of(ValueId(through.0)).iter().for_each(|name| extend(&mut laws, name));
        }
        extend(&mut laws, rule.name);
        *fired.entry(rule.name).or_default() += 1;
        return simplify(edit, rules, &better, &Trail { laws: &laws, ..*trail }, name, fired);
    }
    edit.op(op.clone(), args.iter().map(|v| ValueId(v.0)).collect(), trail, name)
}
