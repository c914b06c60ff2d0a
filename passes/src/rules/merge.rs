//! Laws that merge products of one input: the input is read once, and one kernel does the work of several.
//!
//! Each product becomes a part of the merged one's result. Whether that pays depends on who reads the parts, so this is
//! left to the cost model; what the law takes care of is that joined weights stay in the format they are stored in.

use crate::rule::NumericClass::Reassociating;
use crate::rule::{Rule, Site, Term, V};
use hadal_ir::ops::{Concat, Contract, Dequantize, Reshape, Slice};
use hadal_ir::{DType, Dim, Op};

/// The laws of this file.
pub const RULES: &[Rule] = &[Rule {
    name: "merge-products",
    law: "contract(x, A) = the first rows of contract(x, concat(A, B, …)), contract(x, B) = the next, …, for weights A, B, …",
    class: Reassociating,
    example: "func @f(%x: f32[A, 4]) -> (y: f32[A, 3], z: f32[A, 2], u: f32[A, 1, 2]) {
        weight %v = \"v\" : bf16[3, 4]
        weight %w = \"w\" : bf16[2, 4]
        weight %u = \"u\" : bf16[4, 1, 2]
        %0 = contract %x, %v {spec = \"td,fd->tf\"} : f32[A, 3]
        %1 = contract %x, %w {spec = \"td,fd->tf\"} : f32[A, 2]
        %2 = contract %u, %x {spec = \"dhn,td->thn\"} : f32[A, 1, 2]
        return %0, %1, %2 }",
    apply: merge,
}];

/// How a weight lies in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Format {
    Plain(DType),
    /// Elements, scales and perhaps offsets; scales may have scales themselves.
    Scaled {
        block: Vec<usize>,
        parts: Vec<Format>,
    },
}

impl Format {
    /// Rows that belong together, because they share a scale.
    fn rows(&self, axis: usize) -> i64 {
        match self {
            Format::Plain(_) => 1,
            Format::Scaled { block, parts } => {
                let inner = parts[1..].iter().map(|p| p.rows(axis)).max().unwrap_or(1);
                (block[axis] as i64).saturating_mul(inner)
            }
        }
    }

    /// A term of this form, of one leaf after the other.
    fn term(&self, leaves: &mut impl Iterator<Item = Term>) -> Option<Term> {
        match self {
            Format::Plain(_) => leaves.next(),
            Format::Scaled { block, parts } => {
                let parts = parts.iter().map(|p| p.term(leaves)).collect::<Option<Vec<Term>>>()?;
                Some(Term::new(Dequantize { block: block.clone() }, parts))
            }
        }
    }
}

/// A product of an input with a weight.
struct Product {
    weight: V,
    /// Where the weight stands among the operands.
    at: usize,
    /// Letters that only the weight and the result have: the axes of the weight, and of the result.
    axes: (usize, usize),
    /// How many such letters there are.
    width: usize,
    /// Letters of weight and result with these as one `*`, and those of the input by position.
    pattern: (String, String),
    /// Elements along these axes.
    rows: i64,
    format: Format,
    /// What is stored of the weight, in the format's order.
    leaves: Vec<V>,
}

/// Most products that are merged. Each of them states the whole, so time grows with the square.
const MOST: usize = 64;

fn merge(site: &dyn Site, op: &Op, args: &[V]) -> Vec<Term> {
    let Some(mine) = product(site, op, args) else { return vec![] };
    let x = args[1 - mine.at];
    let mut all: Vec<Product> = Vec::new();
    for (_, reader, operands) in site.readers(x) {
        let Some(other) = product(site, reader, &operands).filter(|p| operands[1 - p.at] == x) else { continue };
        let known = all.iter().any(|p| p.weight == other.weight && p.pattern == other.pattern);
        if !known && other.pattern == mine.pattern {
            all.push(other);
        }
        if all.len() > MOST {
            site.miss(&|| format!("more than {MOST} products of one input"));
            return vec![];
        }
    }
    all.retain(|p| {
        let same = p.format == mine.format;
        if !same {
            site.miss(&|| format!("weights in different formats: {:?} and {:?}", mine.format, p.format));
        }
        same
    });
    let all = in_whole_blocks(site, all);
    let Some(place) = all.iter().position(|p| p.weight == mine.weight).filter(|_| all.len() > 1) else { return vec![] };
    merged(site, op, args, &all, place).into_iter().collect()
}

/// Products whose scales line up when their weights are joined: all but the last have whole blocks.
fn in_whole_blocks(site: &dyn Site, all: Vec<Product>) -> Vec<Product> {
    let cut = |p: &Product| p.rows % p.format.rows(p.axes.0) != 0;
    let (ragged, mut whole): (Vec<Product>, Vec<Product>) = all.into_iter().partition(cut);
    let mut ragged = ragged.into_iter();
    whole.extend(ragged.next());
    for p in ragged {
        site.miss(&|| format!("{} rows are no whole blocks of scales, and only the last weight may end so", p.rows));
    }
    whole
}

/// The part at `place` of one product with all weights.
fn merged(site: &dyn Site, op: &Op, args: &[V], all: &[Product], place: usize) -> Option<Term> {
    let mine = &all[place];
    let flat = |p: &Product, v: V| {
        let mut shape = site.ty(v).shape.clone();
        if p.width == 1 {
            return Term::Old(v);
        }
        shape.splice(p.axes.0..p.axes.0 + p.width, [Dim::from(p.rows)]);
        Term::new(Reshape { shape }, [Term::Old(v)])
    };
    let joined = |leaf: usize| {
        let parts = all.iter().map(|p| flat(p, p.leaves[leaf])).collect::<Vec<Term>>();
        Term::new(Concat { axis: mine.axes.0 }, parts)
    };
    let weight = mine.format.term(&mut (0..mine.leaves.len()).map(joined))?;
    let Op::Contract(c) = op else { return None };
    let free = c.inputs[mine.at][mine.axes.0..mine.axes.0 + mine.width].to_owned();
    let one = |s: &str| s.replace(&free, &free[..1]);
    let inputs = c.inputs.iter().map(|s| one(s)).collect();
    let operand = |(i, v): (usize, &V)| if i == mine.at { weight.clone() } else { Term::Old(*v) };
    let whole = Term::new(
        Contract { inputs, output: one(&c.output) },
        args.iter().enumerate().map(operand).collect::<Vec<_>>(),
    );
    let start: i64 = all[..place].iter().map(|p| p.rows).sum();
    let slice = Slice { axis: mine.axes.1, start: start.into(), len: mine.rows.into(), step: 1 };
    let part = Term::new(slice, [whole]);
    if mine.width == 1 {
        return Some(part);
    }
    let mut shape = part.ty(site)?.shape;
    let sizes = &site.ty(mine.weight).shape[mine.axes.0..mine.axes.0 + mine.width];
    shape.splice(mine.axes.1..=mine.axes.1, sizes.iter().cloned());
    Some(Term::new(Reshape { shape }, [part]))
}

/// A contraction as a product of an input with a weight that is not joined from others yet.
fn product(site: &dyn Site, op: &Op, args: &[V]) -> Option<Product> {
    let (Op::Contract(c), [a, b]) = (op, args) else { return None };
    let at = match (site.constant(*a), site.constant(*b)) {
        (false, true) => 1,
        (true, false) => 0,
        _ => return None,
    };
    let (weight, letters, input) = (args[at], &c.inputs[at], &c.inputs[1 - at]);
    let free: String = letters.chars().filter(|l| !input.contains(*l)).collect();
    if free.is_empty() {
        return None;
    }
    let axes = (letters.find(&free)?, c.output.find(&free)?);
    let sizes = &site.ty(weight).shape[axes.0..axes.0 + free.len()];
    let rows = sizes.iter().try_fold(1i64, |n, d| n.checked_mul(d.as_const()?))?;
    let spelled = |s: &str| -> String {
        let digits = s.replace(&free, "*");
        digits.chars().map(|l| input.find(l).map_or(l, |i| char::from(b'0' + i as u8))).collect()
    };
    let mut leaves = Vec::new();
    let format = format(site, weight, free.len(), &mut leaves)?;
    let pattern = (spelled(letters), spelled(&c.output));
    Some(Product { weight, at, axes, width: free.len(), pattern, rows, format, leaves })
}

/// How a weight is stored, and what of it; `None` where it is computed, or joined already.
fn format(site: &dyn Site, weight: V, width: usize, leaves: &mut Vec<V>) -> Option<Format> {
    let forms = site.forms(weight);
    let scaled = forms.iter().find_map(|(op, parts)| match op {
        Op::Dequantize(d) if width == 1 => Some((d, parts)),
        _ => None,
    });
    if let Some((d, parts)) = scaled {
        let parts = parts.iter().map(|p| format(site, *p, width, leaves)).collect::<Option<_>>()?;
        return Some(Format::Scaled { block: d.block.clone(), parts });
    }
    leaves.push(weight);
    is_stored(site, weight, VIEWS).then(|| Format::Plain(site.ty(weight).dtype))
}

/// Most views between a weight and its use.
const VIEWS: usize = 4;

/// Whether a value is a weight as it is stored, or a view of one.
fn is_stored(site: &dyn Site, v: V, views: usize) -> bool {
    let forms = site.forms(v);
    if forms.is_empty() {
        return true;
    }
    views > 0
        && forms.iter().all(|(op, args)| {
            let view = matches!(op, Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_));
            view && is_stored(site, args[0], views - 1)
        })
}
