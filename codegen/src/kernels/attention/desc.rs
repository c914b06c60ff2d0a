//! The problem: one attention, as addresses in parameters.

use crate::kernels::contract::desc::{Flat, flat_params};
use crate::kernels::contract::epilogue::{self, Epilogue, is_real};
use crate::kernels::contract::view::{Access, Affine, Tracer, Var, Vars};
use hadal_ir::Func;
use hadal_ir::ops::Op;
use hadal_ir::ops::attention::Visible;
use hadal_types::Dim;
use std::collections::BTreeMap;
use std::fmt;

/// Scores of one kind: a query times keys.
#[derive(Clone, PartialEq, Debug)]
pub struct Term {
    /// The query.
    pub query: Access,
    /// The keys.
    pub key: Access,
    /// The summed letter, consecutive in both.
    pub sum: Var,
}

/// An attention with its epilogue.
#[derive(Clone, PartialEq, Debug)]
pub struct Desc {
    /// The kernel's name.
    pub name: String,
    /// Letters first, then derived variables.
    pub vars: Vars,
    /// The letter of queries.
    pub query: Var,
    /// The letter of keys.
    pub key: Var,
    /// Letters of heads.
    pub heads: Vec<Var>,
    /// The letter of the values' elements, consecutive in them.
    pub element: Var,
    /// What scores are the sum of.
    pub terms: Vec<Term>,
    /// The values.
    pub value: Access,
    /// Multiplies the scores.
    pub scale: f32,
    /// Whether keys after the query are hidden.
    pub causal: bool,
    /// What happens to each element.
    pub epilogue: Epilogue,
    /// The kernel's buffers: the function's parameters, then its results.
    pub params: Vec<Flat>,
}

impl Desc {
    /// Reads a kernel function; `None` where it is anything but an attention of plain views of parameters.
    pub fn of(func: &Func) -> Option<Desc> {
        let mut t = Tracer::new(func)?;
        let found = func.insts.iter().filter_map(|i| match t.def(i.results[0])? {
            (Op::Attention(a), inst) => Some((a, inst)),
            _ => None,
        });
        let [(attention, inst)] = found.collect::<Vec<_>>()[..] else { return None };
        let [set] = &attention.sets[..] else { return None };
        let causal = match &set.rows {
            Visible::All => false,
            Visible::Causal => true,
            Visible::Interval(..) | Visible::Masked(_) | Visible::Selected(_) => return None,
        };
        if attention.sink {
            return None;
        }
        // Letters of the result, then the key letter, then one summed letter per term: terms may use one letter twice
        // with different sizes, so those are told apart by their position.
        let mut names: BTreeMap<char, Var> = BTreeMap::new();
        let out: Vec<char> = attention.output.chars().collect();
        let root = inst.results[0];
        for (c, size) in out.iter().zip(&t.ty(root).shape) {
            names.insert(*c, t.vars.letter(*c, size.clone()));
        }
        let values = t.ty(inst.args[2 * set.terms.len()]);
        let key_name = set.value.chars().next()?;
        let key = t.vars.letter(key_name, values.shape.first()?.clone());
        names.insert(key_name, key);
        let affine = |names: &BTreeMap<char, Var>, letters: &str| -> Option<Vec<Affine>> {
            letters.chars().map(|c| names.get(&c).map(|v| Affine::var(*v))).collect()
        };
        let mut terms = Vec::new();
        for ((q, k), args) in set.terms.iter().zip(inst.args.chunks(2)) {
            let last = q.chars().last()?;
            let sum = t.vars.letter(last, t.ty(args[0]).shape.last()?.clone());
            let mut names = names.clone();
            names.insert(last, sum);
            let query = t.access(args[0], affine(&names, q)?)?;
            let key = t.access(args[1], affine(&names, k)?)?;
            let unit = |a: &Access| t.vars.stride(&a.at, sum).is_some_and(|s| s.is(1));
            if !unit(&query) || !unit(&key) {
                return None;
            }
            terms.push(Term { query, key, sum });
        }
        let value = t.access(*inst.args.last()?, affine(&names, &set.value)?)?;
        let element = names[out.last()?];
        if !t.vars.stride(&value.at, element).is_some_and(|s| s.is(1)) || t.vars.size(element).as_const().is_none() {
            return None;
        }
        let epilogue = epilogue::trace(&mut t, root, affine(&names, &attention.output)?)?;
        let operands: Vec<&Access> = terms.iter().flat_map(|t| [&t.query, &t.key]).chain([&value]).collect();
        let plain = operands.into_iter().all(|a| a.scale.is_none() && is_real(a.dtype) && t.vars.gathers(a).is_empty());
        let sums = terms.iter().all(|term| t.vars.size(term.sum).as_const().is_some());
        if !plain || !sums || !epilogue.loads().all(|a| is_real(a.dtype)) {
            return None;
        }
        Some(Desc {
            name: func.name.clone(),
            query: names[&out[0]],
            key,
            heads: out[1..out.len() - 1].iter().map(|c| names[c]).collect(),
            element,
            terms,
            value,
            scale: attention.scale.0 as f32,
            causal,
            epilogue,
            params: flat_params(func)?,
            vars: t.vars,
        })
    }

    /// The size of a letter.
    pub fn size(&self, var: Var) -> &Dim {
        self.vars.size(var)
    }

    /// Whether keys and values are the same along this letter of heads.
    pub fn shared(&self, head: Var) -> bool {
        let keys = self.terms.iter().any(|t| self.vars.reads(&t.key, head));
        !keys && !self.vars.reads(&self.value, head)
    }
}

impl fmt::Display for Desc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "attention @{}{} scale {}", self.name, if self.causal { " causal" } else { "" }, self.scale)?;
        write!(f, "{}", self.vars)?;
        for t in &self.terms {
            let (q, k) = (self.vars.show_access(&t.query), self.vars.show_access(&t.key));
            writeln!(f, "  term {q} . {k} over {}", self.vars.name(t.sum))?;
        }
        writeln!(f, "  value {}", self.vars.show_access(&self.value))?;
        for o in &self.epilogue.outputs {
            writeln!(f, "  store e{} to {}:p{}[{}]", o.node, o.dtype, o.param, self.vars.show(&o.at))?;
        }
        Ok(())
    }
}
