//! The check of laws is worth something: every law broken on purpose is noticed by it.
//!
//! Mutations know nothing of the laws; they change what a law made. A mutant may pass only where it is the same term
//! with the operands of commutative ops in another order, or with one more or less op that does nothing, or what the
//! law started from.

use crate::common::{law, parse};
use hadal_ir::attr::Real;
use hadal_ir::ops::attention::Visible;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::{Contract, Map};
use hadal_ir::{Func, InstKind, Op, ValueId};
use hadal_passes::rule::{Rule, Term, V};
use hadal_passes::rules;
use std::collections::BTreeMap;

/// What was done, and the term that came of it.
type Mutants = Vec<(&'static str, Term)>;

/// Ops like `op` but for one attribute.
fn altered(op: &Op) -> Vec<(&'static str, Op)> {
    let mut out: Vec<(&'static str, Op)> = Vec::new();
    match op {
        Op::Contract(c) => {
            for i in 0..=c.inputs.len() {
                let letters = c.inputs.get(i).unwrap_or(&c.output);
                for spelled in swaps(&letters.chars().collect::<Vec<char>>()) {
                    let spelled = spelled.into_iter().collect();
                    let mut c = c.clone();
                    *c.inputs.get_mut(i).unwrap_or(&mut c.output) = spelled;
                    out.push(("other letters", c.into()));
                }
            }
        }
        Op::Attention(a) => {
            out.push(("other scale", hadal_ir::ops::Attention { scale: Real(a.scale.0 * 1.5), ..a.clone() }.into()));
            let mut seen = a.clone();
            for set in &mut seen.sets {
                set.rows = if set.rows == Visible::All { Visible::Causal } else { Visible::All };
            }
            // What says which rows are seen is an operand otherwise.
            if a.sets.iter().all(|s| matches!(s.rows, Visible::All | Visible::Causal)) {
                out.push(("other mask", seen.into()));
            }
        }
        Op::Constant(c) => {
            let mut c = c.clone();
            c.values.iter_mut().for_each(|v| *v = Real(v.0 * 1.5 + 0.25));
            out.push(("other constant", c.into()));
        }
        Op::Transpose(t) => {
            out.extend(
                swaps(&t.perm)
                    .into_iter()
                    .map(|perm| ("other order of axes", hadal_ir::ops::Transpose { perm }.into())),
            );
        }
        Op::Broadcast(b) => {
            let of = |dims| ("other axes", hadal_ir::ops::Broadcast { dims, ..b.clone() }.into());
            out.extend(swaps(&b.dims).into_iter().map(of));
        }
        Op::Slice(s) => {
            for by in [-1i64, 1] {
                out.push(("other start", hadal_ir::ops::Slice { start: s.start.clone() + by, ..s.clone() }.into()));
            }
        }
        _ => {}
    }
    out
}

/// Every list that differs by two elements changing places.
fn swaps<T: Clone + PartialEq>(items: &[T]) -> Vec<Vec<T>> {
    let pairs = (0..items.len()).flat_map(|i| (i + 1..items.len()).map(move |j| (i, j)));
    let of = |(i, j)| {
        let mut items = items.to_vec();
        items.swap(i, j);
        items
    };
    pairs.map(of).filter(|s| s != items).collect()
}

/// Every way to break a term for `value` in one place, with what else `func` computes before it.
fn mutants(func: &Func, value: ValueId, term: &Term) -> Mutants {
    let mut out = Mutants::new();
    match term {
        Term::Old(v) => {
            let others = (0..value.0).filter(|o| func.ty(ValueId(*o)) == func.ty(ValueId(v.0)));
            out.extend(others.filter(|o| *o != v.0).map(|o| ("other value", Term::Old(V(o)))));
        }
        Term::New(op, args) => {
            out.extend(altered(op).into_iter().map(|(what, op)| (what, Term::New(op, args.clone()))));
            out.extend(swaps(args).into_iter().map(|args| ("swapped operands", Term::New(op.clone(), args))));
            out.extend(args.iter().map(|a| ("dropped op", a.clone())));
            for (i, a) in args.iter().enumerate() {
                out.extend(mutants(func, value, a).into_iter().map(|(what, a)| {
                    let mut args = args.clone();
                    args[i] = a;
                    (what, Term::New(op.clone(), args))
                }));
            }
        }
    }
    out
}

/// A part of a value that was masked already, as the same part of what it was before: masked twice is masked once.
fn before_mask(func: &Func, mask: &Op, term: &Term) -> Term {
    match term {
        Term::New(op @ Op::Slice(_), args) => Term::new(op.clone(), [before_mask(func, mask, &args[0])]),
        Term::Old(v) => match func.insts.iter().find(|i| i.results.contains(&ValueId(v.0))) {
            Some(i) if matches!(&i.kind, InstKind::Op(op) if op == mask) => Term::Old(V(i.args[0].0)),
            _ => term.clone(),
        },
        _ => term.clone(),
    }
}

/// A spelling that is the same for terms that differ only in the order of operands of commutative ops, and in the
/// names of letters, in views and casts that change nothing, or in masking twice. A value that is repeated is spelled
/// out.
fn spelling(func: &Func, term: &Term) -> String {
    let (op, args) = match term {
        Term::Old(v) => match func.insts.iter().find(|i| i.results.contains(&ValueId(v.0))) {
            Some(i) if matches!(i.kind, InstKind::Op(Op::Broadcast(_))) => {
                return spelling(func, &written(func, i.results[0]));
            }
            _ => return format!("%{}", v.0),
        },
        Term::New(op, args) => (op, args),
    };
    if let (Op::Slice(_) | Op::Concat(_) | Op::Cast(_), [x]) = (op, &args[..])
        && x.ty(&law::View(func)) == term.ty(&law::View(func))
    {
        return spelling(func, x);
    }
    let masked = [args.first().map(|x| before_mask(func, op, x))];
    let args = match (op, &masked) {
        (Op::CausalMask(_), [Some(x)]) => std::slice::from_ref(x),
        _ => &args[..],
    };
    let mut args: Vec<String> = args.iter().map(|a| spelling(func, a)).collect();
    match op {
        Op::Map(Map { f: MapFn::Add | MapFn::Mul | MapFn::Max | MapFn::Min | MapFn::Eq }) => args.sort(),
        Op::Contract(c) if args.len() == 2 => {
            let one = contraction(c, &args, [0, 1]);
            return one.min(contraction(c, &args, [1, 0]));
        }
        _ => {}
    }
    format!("{op:?}({})", args.join(", "))
}

fn contraction(c: &Contract, args: &[String], order: [usize; 2]) -> String {
    let mut names: BTreeMap<char, char> = BTreeMap::new();
    let mut free = 'a'..='z';
    let mut rename = |s: &str| -> String {
        s.chars().map(|l| *names.entry(l).or_insert_with(|| free.next().expect("few letters"))).collect()
    };
    let inputs = order.map(|i| format!("{}:{}", rename(&c.inputs[i]), args[i]));
    format!("contract({} -> {})", inputs.join(", "), rename(&c.output))
}

/// The op that computes a value.
fn written(func: &Func, value: ValueId) -> Term {
    let inst = func.insts.iter().find(|i| i.results.contains(&value)).expect("laws look at ops");
    let InstKind::Op(op) = &inst.kind else { panic!("examples do not call") };
    Term::new(op.clone(), inst.args.iter().map(|a| Term::Old(V(a.0))))
}

/// The example as it is, and with all sizes equal, so that types alone do not give letters in wrong places away.
fn examples(rule: &Rule) -> Vec<Func> {
    let square = ["B", "C", "D"].iter().fold(rule.example.to_owned(), |text, s| {
        let words = text.split_inclusive(|c: char| !c.is_alphanumeric());
        words
            .map(|w| {
                if w.trim_end_matches(|c: char| !c.is_alphanumeric()) == *s {
                    w.replacen(s, "A", 1)
                } else {
                    w.to_owned()
                }
            })
            .collect()
    });
    let square = hadal_ir::text::parse_module(&law::with_symbols(&square)).ok();
    let square = square.filter(|m| hadal_ir::verify::module(m).is_ok());
    [Some(parse(&law::with_symbols(rule.example))), square]
        .into_iter()
        .flatten()
        .map(|mut m| m.funcs.remove(0))
        .collect()
}

#[test]
fn every_broken_law_is_noticed() {
    let (mut survivors, mut commuted, mut refused, mut noticed) = (Vec::new(), 0, 0, 0);
    for rule in rules::all() {
        let mut by_values = 0;
        for func in examples(rule) {
            for (value, term) in law::firings(rule, &func) {
                let start = written(&func, value);
                let negated = ("negated", Term::new(Map { f: MapFn::Neg }, [term.clone()]));
                for (what, mutant) in mutants(&func, value, &term).into_iter().chain([negated]) {
                    if mutant.ty(&law::View(&func)).as_ref() != Some(func.ty(value)) {
                        refused += 1;
                    } else if law::check(rule, &func, value, &mutant).is_err() {
                        by_values += 1;
                    } else if [&term, &start].iter().any(|t| spelling(&func, &mutant) == spelling(&func, t)) {
                        commuted += 1;
                    } else {
                        survivors.push(format!("{} × {what}: {term:?} became {mutant:?}", rule.name));
                    }
                }
            }
        }
        if by_values == 0 {
            survivors.push(format!("{}: no mutant came as far as to be evaluated", rule.name));
        }
        noticed += by_values;
    }
    println!("{noticed} noticed by value, {refused} by type, {commuted} were equal terms");
    assert!(survivors.is_empty(), "{} survive:\n{}", survivors.len(), survivors.join("\n"));
}
