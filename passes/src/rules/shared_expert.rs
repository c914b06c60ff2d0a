//! A shared expert as one more routed one: every token takes it, with weight 1.
//!
//! ```text
//! Σ_k w_k · f(x G[i_k]) D[i_k] + f(x G') D'    =    Σ_k w'_k · f(x G"[i'_k]) D"[i'_k]
//! with w' = concat(w, 1),  i' = concat(i, E),  G" = concat(G, G'),  D" = concat(D, D')
//! ```
//!
//! Three steps: the sum takes one expert more, so that its rows are joined from two parts; what is done to both parts
//! is done to the joined rows; and so to where they are made, the products with the experts' first weights. A shared
//! expert `n` times as wide as a routed one is `n` of them.
//!
//! Numbers beyond the stack stand for rows of zeros, and would stand for the shared expert afterwards: so they have to
//! come from a choice among no more than the stack has.

use super::elementwise::repeated;
use super::quantisation::row_op;
use crate::rule::{Site, Term, V};
use hadal_ir::attr::Real;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::{Broadcast, Concat, Constant, Contract, Dequantize, Gather, Iota, Map, Reshape, Transpose};
use hadal_ir::{DType, Dim, Op};

/// Rows of tokens and experts are joined along the experts.
const JOINED: usize = 1;

/// Views between a choice and its use as row numbers, at most.
const VIEWS: usize = 4;

/// Ops that one step goes through, at most; the next goes on from there.
const STEPS: usize = 4;

/// `y[t, k, o] = Σ_s x[t, (k,) s] · W[i[t, k], …]`, in letters of its own.
struct Routed {
    x: V,
    x_letters: String,
    stack: V,
    numbers: V,
    /// Those of the stack but for the first, and the three of the result.
    letters: String,
    output: String,
    /// Whether the input stands before the stack.
    input_first: bool,
    experts: i64,
}

/// `z[t, o] = Σ_s x[t, s] · V[…]`, in the letters of a routed one.
struct Shared {
    x: V,
    x_letters: String,
    weight: V,
    letters: String,
}

impl Routed {
    fn of(site: &dyn Site, v: V) -> Option<Routed> {
        let all = site.forms(v).into_iter().filter_map(|(op, args)| match (op, args.as_slice()) {
            (Op::Contract(c), [a, b]) => Some((c, [*a, *b])),
            _ => None,
        });
        all.flat_map(|(c, args)| [(c, args, 0), (c, args, 1)]).find_map(|(c, args, at)| {
            let (stack, numbers) = site.forms(args[at]).into_iter().find_map(|(op, args)| match op {
                Op::Gather(Gather { axis: 0, batch: 0 }) if site.constant(args[0]) => Some((args[0], args[1])),
                _ => None,
            })?;
            let (letters, x_letters) = (&c.inputs[at], &c.inputs[1 - at]);
            let per_token = letters.get(..2)?;
            let output = c.output.strip_prefix(per_token).filter(|o| o.len() == 1)?;
            let rest = &letters[2..];
            let sum = rest.chars().find(|l| !output.contains(*l))?;
            let (token, choice) = (&per_token[..1], &per_token[1..]);
            let known = [format!("{token}{sum}"), format!("{token}{choice}{sum}")].contains(x_letters);
            let square = rest.len() == 2 && rest.contains(output) && site.ty(numbers).rank() == 2;
            let experts = site.ty(stack).shape[0].as_const()?;
            (known && square && !site.constant(numbers)).then(|| Routed {
                x: args[1 - at],
                x_letters: x_letters.clone(),
                stack,
                numbers,
                letters: rest.to_owned(),
                output: c.output.clone(),
                input_first: at == 1,
                experts,
            })
        })
    }

    fn token(&self) -> char {
        self.output.as_bytes()[0].into()
    }

    fn choice(&self) -> char {
        self.output.as_bytes()[1].into()
    }

    fn result(&self) -> char {
        self.output.as_bytes()[2].into()
    }

    fn summed(&self) -> char {
        let result = self.result();
        self.letters.chars().find(|l| *l != result).expect("two letters, one of which is the result's")
    }

    /// Elements of one expert along a letter.
    fn size(&self, site: &dyn Site, letter: char) -> Option<i64> {
        site.ty(self.stack).shape[1 + self.letters.find(letter)?].as_const()
    }

    /// The forms of `v` that are a product with one weight.
    fn shared(&self, site: &dyn Site, v: V) -> Vec<Shared> {
        let of = |c: &Contract, args: &[V]| {
            let at = args.iter().position(|a| site.constant(*a)).filter(|at| !site.constant(args[1 - at]))?;
            let (letters, x_letters) = (&c.inputs[at], &c.inputs[1 - at]);
            let [token, result] = c.output.chars().collect::<Vec<_>>().try_into().ok()?;
            let sum = letters.chars().find(|l| *l != result)?;
            let spelled = |s: &str| -> Option<String> {
                let name = |l| match l {
                    l if l == token => Some(self.token()),
                    l if l == result => Some(self.result()),
                    l => (l == sum).then(|| self.summed()),
                };
                s.chars().map(name).collect()
            };
            let (letters, x_letters) = (spelled(letters)?, spelled(x_letters)?);
            let product = letters.len() == 2
                && letters.contains(self.result())
                && letters.contains(self.summed())
                && x_letters == format!("{}{}", self.token(), self.summed());
            product.then(|| Shared { x: args[1 - at], x_letters, weight: args[at], letters })
        };
        let forms = site.forms(v).into_iter().filter_map(|(op, args)| match op {
            Op::Contract(c) if args.len() == 2 => of(c, &args),
            _ => None,
        });
        forms.collect()
    }

    /// The product that has both, and how many experts the shared one is, which is split along a letter.
    fn joined(&self, site: &dyn Site, shared: &Shared, split: char) -> Option<(Term, i64)> {
        let size = |letter: char| site.ty(shared.weight).shape[shared.letters.find(letter)?].as_const();
        let other = if split == self.result() { self.summed() } else { self.result() };
        let (one, all) = (self.size(site, split)?, size(split)?);
        if all == 0 || all % one.max(1) != 0 || self.size(site, other)? != size(other)? {
            site.miss(&|| format!("the shared expert's width of {all} is no multiple of a routed one's, {one}"));
            return None;
        }
        let n = all / one;
        if !chosen_among(site, self.numbers, self.experts, VIEWS) {
            site.miss(&|| format!("the numbers of experts are not known to be below {}", self.experts));
            return None;
        }
        let (tokens, per_token) = (site.ty(self.numbers).shape[0].clone(), Dim::from(n));
        let input = if !self.x_letters.contains(self.choice()) {
            let same = self.x == shared.x && self.x_letters == shared.x_letters;
            if !same {
                site.miss(&|| "routed experts and the shared one read different values".into());
                return None;
            }
            Term::Old(self.x)
        } else {
            // Of an input that is not split, each would need a copy.
            let width = if split == self.summed() { one } else { self.size(site, other)? };
            if split != self.summed() && n != 1 {
                site.miss(&|| format!("the shared expert is {n} routed ones, which would read copies of its input"));
                return None;
            }
            let rows = Reshape { shape: vec![tokens.clone(), per_token.clone(), width.into()] };
            concat(JOINED, Term::Old(self.x), Term::new(rows, [Term::Old(shared.x)]))
        };
        let last = Term::new(Iota { len: per_token.clone(), start: self.experts.into() }, []);
        let last = Term::new(Broadcast { shape: vec![tokens, per_token], dims: vec![1] }, [last]);
        let numbers = concat(JOINED, Term::Old(self.numbers), last);
        let stack = self.stacked(site, shared, split, n)?;
        let weights = Term::new(Gather { axis: 0, batch: 0 }, [stack, numbers]);
        let letters = format!("{}{}{}", self.token(), self.choice(), self.letters);
        let (inputs, operands) = match self.input_first {
            true => (vec![self.x_letters.clone(), letters], [input, weights]),
            false => (vec![letters, self.x_letters.clone()], [weights, input]),
        };
        Some((Term::new(Contract { inputs, output: self.output.clone() }, operands), n))
    }

    /// The experts' weights with the shared one's behind them, in the format that both are stored in.
    fn stacked(&self, site: &dyn Site, shared: &Shared, split: char, n: i64) -> Option<Term> {
        let end = |v: V| self.as_experts(site, shared, v, split, n);
        let scaled = |v: V| {
            site.forms(v).into_iter().find_map(|(op, args)| match op {
                Op::Dequantize(d) => Some((d.block.clone(), args)),
                _ => None,
            })
        };
        let (ours, theirs) = (scaled(self.stack), scaled(shared.weight));
        match (ours, theirs) {
            (None, None) if site.ty(self.stack).dtype == site.ty(shared.weight).dtype => {
                Some(concat(0, Term::Old(self.stack), end(shared.weight)?))
            }
            (Some((block, ours)), Some((other, theirs))) => {
                let along = |l: char| Some(other[shared.letters.find(l)?]);
                let blocks: Option<Vec<usize>> = self.letters.chars().map(along).collect();
                let same = block[0] == 1 && blocks.as_deref() == Some(&block[1..]);
                // Several experts' scales must not lie in one block.
                let whole = n == 1 || self.size(site, split)? % along(split)? as i64 == 0;
                let formats = |parts: &[V]| parts.iter().map(|v| site.ty(*v).dtype).collect::<Vec<_>>();
                if !(same && whole && formats(&ours) == formats(&theirs)) {
                    site.miss(&|| format!("blocks of scales do not line up: {block:?} and {other:?} for {n} experts"));
                    return None;
                }
                let parts = ours.iter().zip(&theirs).map(|(a, b)| Some(concat(0, Term::Old(*a), end(*b)?)));
                Some(Term::new(Dequantize { block }, parts.collect::<Option<Vec<Term>>>()?))
            }
            _ => {
                site.miss(&|| "routed experts and the shared one are stored in different formats".into());
                None
            }
        }
    }

    /// The shared weight, or its scales, as `n` experts.
    fn as_experts(&self, site: &dyn Site, shared: &Shared, v: V, split: char, n: i64) -> Option<Term> {
        let (mut letters, mut shape) = (String::new(), Vec::new());
        for (letter, size) in shared.letters.chars().zip(&site.ty(v).shape) {
            let size = size.as_const()?;
            if letter == split {
                letters.push(self.choice());
                shape.push(n.into());
            }
            letters.push(letter);
            shape.push(Dim::from(if letter == split { size / n } else { size }));
        }
        let first = std::iter::once(self.choice());
        let perm = first.chain(self.letters.chars()).map(|l| letters.find(l)).collect::<Option<Vec<usize>>>()?;
        let split = Term::new(Reshape { shape }, [Term::Old(v)]);
        Some(if perm.is_sorted() { split } else { Term::new(Transpose { perm }, [split]) })
    }
}

fn concat(axis: usize, a: Term, b: Term) -> Term {
    Term::new(Concat { axis }, [a, b])
}

fn constant(value: f64, dtype: DType, shape: Vec<Dim>) -> Term {
    let value = Term::new(Constant { values: vec![Real(value)], scalar: true, dtype }, []);
    Term::new(Broadcast { shape, dims: vec![] }, [value])
}

/// Whether numbers are chosen among at most `n`: below `n`, wherever they stand for anything.
fn chosen_among(site: &dyn Site, numbers: V, n: i64, views: usize) -> bool {
    site.forms(numbers).into_iter().any(|(op, args)| match op {
        Op::TopK(_) => site.ty(args[0]).shape.last().and_then(|d| site.upper(d)).is_some_and(|most| most <= n),
        Op::Reshape(_) | Op::Slice(_) | Op::Transpose(_) | Op::Broadcast(_) => {
            views > 0 && chosen_among(site, args[0], n, views - 1)
        }
        _ => false,
    })
}

/// `shared-expert-among-routed`.
pub(super) fn among_routed(site: &dyn Site, op: &Op, args: &[V]) -> Option<Term> {
    let Op::Map(Map { f: MapFn::Add }) = op else { return None };
    [(args[0], args[1]), (args[1], args[0])].into_iter().find_map(|(sum, other)| {
        site.forms(sum).into_iter().find_map(|(op, operands)| {
            let (Op::Contract(c), [a, b]) = (op, operands.as_slice()) else { return None };
            let at = c.inputs.iter().position(|l| l.len() == 3)?;
            let (y, w) = if at == 0 { (*a, *b) } else { (*b, *a) };
            let (rows, weights) = (&c.inputs[at], &c.inputs[1 - at]);
            let weighed = weights == &rows[..2] && c.output == format!("{}{}", &rows[..1], &rows[2..]);
            let routed = Routed::of(site, y).filter(|_| weighed)?;
            let mut shared = routed.shared(site, other).into_iter();
            let (joined, n) = shared.find_map(|s| routed.joined(site, &s, routed.summed()))?;
            let ty = site.ty(w);
            let weights = concat(JOINED, Term::Old(w), constant(1.0, ty.dtype, vec![ty.shape[0].clone(), n.into()]));
            let operands = if at == 0 { [joined, weights] } else { [weights, joined] };
            Some(Term::new(c.clone(), operands))
        })
    })
}

/// The two parts of rows that are joined along the experts.
fn joined_rows(site: &dyn Site, op: &Op, args: &[V]) -> Option<(V, V)> {
    let (Op::Concat(Concat { axis: JOINED }), [a, b]) = (op, args) else { return None };
    (site.ty(*a).rank() > JOINED + 1 && !site.constant(*a) && !site.constant(*b)).then_some((*a, *b))
}

/// `product-of-joined-rows`.
pub(super) fn product_of_rows(site: &dyn Site, op: &Op, args: &[V]) -> Option<Term> {
    let (a, b) = joined_rows(site, op, args)?;
    let routed = Routed::of(site, a)?;
    reshaped(site, b).into_iter().find_map(|b| {
        let mut shared = routed.shared(site, b).into_iter();
        shared.find_map(|s| routed.joined(site, &s, routed.result())).map(|(joined, _)| joined)
    })
}

/// `function-of-joined-rows`.
pub(super) fn function_of_rows(site: &dyn Site, op: &Op, args: &[V]) -> Option<Term> {
    let (a, b) = joined_rows(site, op, args)?;
    through(site, a, b, &site.ty(b).shape[..=JOINED], STEPS)
}

/// A value and those that it is a reshape of.
fn reshaped(site: &dyn Site, v: V) -> Vec<V> {
    let inner = site.forms(v).into_iter().filter(|(op, _)| matches!(op, Op::Reshape(_))).map(|(_, args)| args[0]);
    std::iter::once(v).chain(inner).collect()
}

/// The rows of `a`, and behind them those of `b`, which has the elements of rows with the leading axes `lead`: by an op
/// that both are made by.
fn through(site: &dyn Site, a: V, b: V, lead: &[Dim], steps: usize) -> Option<Term> {
    let from = &site.ty(a).shape[..=JOINED];
    let joint = [from[0].clone(), from[JOINED].clone() + lead[JOINED].clone()];
    let next = steps.checked_sub(1)?;
    let sides: Vec<V> = reshaped(site, b);
    for (op, x) in site.forms(a) {
        if let Op::Reshape(_) = op {
            let Some(outer) = row_op(op, from, &joint).filter(|_| site.ty(x[0]).shape.starts_with(from)) else {
                continue;
            };
            // Whatever was done, a reshape keeps the order of elements.
            return Some(Term::New(outer, vec![joined(site, x[0], *sides.last()?, lead, next)]));
        }
        let elementwise = matches!(op, Op::Map(_) | Op::Cast(_));
        let outer = if elementwise { Some(op.clone()) } else { row_op(op, from, &joint) };
        let Some(outer) = outer else { continue };
        for (other, y) in sides.iter().flat_map(|side| site.forms(*side)) {
            // A single row of each token may have an axis of its own or not.
            let of_rows = |leading: &[Dim]| {
                let rest = |x: V, y: V| site.ty(x).shape[from.len()..] == site.ty(y).shape[leading.len()..];
                let rows = |x: V, y: V| site.ty(x).shape.starts_with(from) && site.ty(y).shape.starts_with(leading);
                row_op(other, leading, &joint).as_ref() == Some(&outer)
                    && x.iter().zip(&y).all(|(x, y)| rows(*x, *y) && rest(*x, *y))
            };
            let alike = x.len() == y.len()
                && match elementwise {
                    true => op == other,
                    false => of_rows(lead) || lead[JOINED].is(1) && of_rows(&lead[..1]),
                };
            if alike {
                let args = x.iter().zip(&y).map(|(x, y)| joined(site, *x, *y, lead, next));
                return Some(Term::new(outer, args.collect::<Vec<_>>()));
            }
        }
    }
    None
}

/// Joined rows, made further back where that can be.
fn joined(site: &dyn Site, a: V, b: V, lead: &[Dim], steps: usize) -> Term {
    let mut shape = site.ty(a).shape.clone();
    if let (Some(x), Some(y)) = (same_everywhere(site, a), same_everywhere(site, b))
        && x == y
    {
        shape[JOINED] = shape[JOINED].clone() + lead[JOINED].clone();
        return constant(x.0, x.1, shape);
    }
    through(site, a, b, lead, steps).unwrap_or_else(|| {
        shape[JOINED] = lead[JOINED].clone();
        concat(JOINED, Term::Old(a), Term::new(Reshape { shape }, [Term::Old(b)]))
    })
}

/// The constant that all elements are.
fn same_everywhere(site: &dyn Site, v: V) -> Option<(f64, DType)> {
    reshaped(site, v).into_iter().find_map(|v| repeated(site, v))
}
