//! The problem: one product-sum of two operands, as addresses in parameters.

use super::epilogue::{self, Epilogue, Node, is_code, is_real};
use super::grouped::Grouped;
use super::view::{Access, Affine, Tracer, Var, VarKind, Vars};
use crate::kernels::Ranges;
use hadal_ir::kernel::Access as Rights;
use hadal_ir::module::{Func, STEP};
use hadal_ir::ops::Op;
use hadal_types::{DType, Dim, Sym, TensorType};
use std::collections::BTreeMap;
use std::fmt;

/// Which operands a letter moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Both, and the result.
    Batch,
    /// The first operand and the result.
    Left,
    /// The second operand and the result.
    Right,
    /// The result alone: a repeated axis.
    Repeat,
    /// Not the result: it is summed over.
    Summed,
}

/// A buffer of the kernel: flat, because addresses are element numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flat {
    /// Name.
    pub name: String,
    /// Format.
    pub dtype: DType,
    /// Number of elements; of a buffer that is not flat, its sizes.
    pub shape: Vec<Dim>,
    /// What the kernel does with it.
    pub rights: Rights,
}

/// A product-sum with its epilogue.
#[derive(Clone, PartialEq, Debug)]
pub struct Desc {
    /// The kernel's name.
    pub name: String,
    /// Letters first (those of the result, then the summed ones), then derived variables.
    pub vars: Vars,
    /// The role of each letter.
    pub roles: Vec<Role>,
    /// What is multiplied.
    pub operands: [Access; 2],
    /// What happens to each sum.
    pub epilogue: Epilogue,
    /// The kernel's buffers: the function's parameters, then its results.
    pub params: Vec<Flat>,
    /// The values that symbols may take; one that is not here may be anything.
    pub ranges: Ranges,
    /// Which rows share what an index chooses, where they are put together.
    pub grouped: Option<Grouped>,
}

impl Desc {
    /// Reads a kernel function; `None` where it is anything but such a product-sum.
    ///
    /// Where an operand's axes were exchanged inside a summed letter, as heads of grouped queries are, the letter is
    /// cut into digits, in which all addresses are affine. A letter of the result is cut as well where weights are laid
    /// out as panels (`laid.rs`).
    pub fn of(func: &Func) -> Option<Desc> {
        let mut digits = BTreeMap::new();
        loop {
            let (desc, letters) = Desc::in_digits(func, &digits)?;
            let cut = |a: &Access, v: Var| {
                let (VarKind::Div(of, by) | VarKind::Rem(of, by)) = &desc.vars.list[v].kind else { return None };
                let var = *of.terms.keys().next()?;
                let size = desc.vars.size(var).as_const()?;
                let inside = matches!(desc.vars.list[v].kind, VarKind::Rem(..)).then(|| a.at.coefficient(v));
                let laid = || inside.is_some_and(|group| desc.is_line(a, &(group * *by)));
                let whole = *of == Affine::var(var) && size % by == 0 && (2..size).contains(by);
                (whole && (desc.roles.get(var) == Some(&Role::Summed) || laid())).then_some((
                    *letters.get(var)?,
                    size / by,
                    *by,
                ))
            };
            let cut = desc.operands.iter().find_map(|a| a.at.terms.keys().find_map(|v| cut(a, *v)));
            let Some(((letter, place), high, low)) = cut else { return Some(desc) };
            let sizes: &mut Vec<i64> = digits.entry(letter).or_default();
            let end = sizes.len().min(place + 1);
            sizes.splice(place.min(end)..end, [high, low]);
        }
    }

    /// With some letters as digits of these sizes, the highest first; and for each variable that is a letter, which it
    /// is and which of its digits.
    fn in_digits(func: &Func, digits: &BTreeMap<char, Vec<i64>>) -> Option<(Desc, Vec<(char, usize)>)> {
        let mut t = Tracer::new(func)?;
        let contracts = func.insts.iter().filter_map(|i| match t.def(i.results[0])? {
            (Op::Contract(c), inst) => Some((c, inst)),
            _ => None,
        });
        let [(contract, inst)] = contracts.collect::<Vec<_>>()[..] else { return None };
        let [a, b] = inst.args.as_slice() else { return None };
        let types: Vec<TensorType> = inst.args.iter().map(|a| t.ty(*a).clone()).collect();
        let sizes = contract.sizes(&types);
        let mut coords: BTreeMap<char, Affine> = BTreeMap::new();
        let (mut letters, mut outputs) = (Vec::new(), 0);
        for (i, c) in contract.output.chars().chain(contract.summed().chars()).enumerate() {
            let digits = digits.get(&c).map_or(vec![sizes[&c].clone()], |d| d.iter().map(|n| (*n).into()).collect());
            let mut at = Affine::default();
            for (place, size) in digits.into_iter().enumerate() {
                at = at.times(&size)?.plus(&Affine::var(t.vars.letter(c, size)));
                letters.push((c, place));
            }
            coords.insert(c, at);
            if i < contract.output.len() {
                outputs = letters.len();
            }
        }
        let var = |c: char| coords[&c].clone();
        let left = t.access(*a, contract.inputs[0].chars().map(var).collect())?;
        let right = t.access(*b, contract.inputs[1].chars().map(var).collect())?;
        let root = inst.results[0];
        let epilogue = epilogue::trace(&mut t, root, contract.output.chars().map(var).collect())?;
        let roles = (0..letters.len())
            .map(|v| match (t.vars.reads(&left, v), t.vars.reads(&right, v)) {
                _ if v >= outputs => Role::Summed,
                (true, true) => Role::Batch,
                (true, false) => Role::Left,
                (false, true) => Role::Right,
                (false, false) => Role::Repeat,
            })
            .collect();
        let operands = [left, right];
        let all = operands.iter().chain(epilogue.loads());
        let computable = |a: &Access| is_real(a.dtype) || a.scale.is_some() && is_code(a.dtype);
        if !all.into_iter().all(|a| a.all(&computable)) {
            return None;
        }
        let params = flat_params(func, &[])?;
        let ranges = Ranges::new();
        let desc =
            Desc { name: func.name.clone(), vars: t.vars, roles, operands, epilogue, params, ranges, grouped: None };
        Some((desc, letters))
    }

    /// Whether a summed letter moves an operand by so many elements.
    fn is_line(&self, a: &Access, elements: &Dim) -> bool {
        self.of_role(Role::Summed).any(|k| self.vars.stride(&a.at, k).is_some_and(|s| s == *elements))
    }

    /// With symbols that only take these values.
    pub fn within(self, ranges: &Ranges) -> Desc {
        Desc { ranges: ranges.clone(), ..self }
    }

    /// Letters of a role.
    pub fn of_role(&self, role: Role) -> impl Iterator<Item = Var> {
        (0..self.roles.len()).filter(move |v| self.roles[*v] == role)
    }

    /// The size of a letter.
    pub fn size(&self, var: Var) -> &Dim {
        self.vars.size(var)
    }

    /// The size of a letter, where it is known and all of it: rows that are listed are as many as there are.
    pub fn known(&self, var: Var) -> Option<i64> {
        self.size(var).as_const().filter(|_| self.grouped.as_ref().is_none_or(|g| g.rows != var))
    }

    /// Whether calls have the tokens of a step: never more than [`STEP`].
    pub fn in_steps(&self) -> bool {
        self.ranges.get(&Sym::T).is_some_and(|t| t.max <= STEP)
    }

    /// Whether a letter has few values, as that of the tokens of a step.
    pub fn is_few(&self, var: Var) -> bool {
        if let Some(grouped) = self.grouped.as_ref().filter(|g| g.rows == var) {
            return grouped.each_row;
        }
        let size = self.size(var);
        let most = |(sym, k): &(Sym, i64)| Some(self.ranges.get(sym)?.max.saturating_mul(*k));
        let few = || match size.terms() {
            [term] if term.1 > 0 => most(term).is_some_and(|n| n.saturating_add(size.constant()) <= STEP),
            _ => false,
        };
        size.as_const().is_some_and(|n| n <= STEP) || few()
    }
}

/// A function's parameters and results as flat buffers, but for those parameters that `keep` their shape; `None` where
/// a count is no affine form.
pub fn flat_params(func: &Func, keep: &[usize]) -> Option<Vec<Flat>> {
    let results = func.results.iter().map(|(n, v)| (Some(n), *v, Rights::Write));
    let params = func.params.iter().map(|v| (func.values[v.index()].name.as_ref(), *v, Rights::Read));
    let mut out: Vec<Flat> = Vec::new();
    for (i, (name, value, rights)) in params.chain(results).enumerate() {
        let ty = func.ty(value);
        let shape = match keep.contains(&i) {
            true => ty.shape.clone(),
            false => vec![ty.shape.iter().try_fold(Dim::from(1i64), |n, d| n.checked_mul(d))?],
        };
        let name = name.filter(|n| is_name(n) && out.iter().all(|o| o.name != **n)).cloned();
        out.push(Flat { name: name.unwrap_or_else(|| format!("b{i}")), dtype: ty.dtype, shape, rights });
    }
    // A generated name may meet a given one.
    let clash = (0..out.len()).any(|i| out[..i].iter().any(|o| o.name == out[i].name));
    if clash {
        out.iter_mut().enumerate().for_each(|(i, o)| o.name = format!("b{i}"));
    }
    Some(out)
}

fn is_name(n: &str) -> bool {
    n.starts_with(|c: char| c.is_ascii_alphabetic()) && n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

impl fmt::Display for Desc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "contract @{}", self.name)?;
        write!(f, "{}", self.vars)?;
        let roles: Vec<String> =
            self.roles.iter().enumerate().map(|(v, r)| format!("{} {r:?}", self.vars.name(v))).collect();
        writeln!(f, "  roles {}", roles.join(", "))?;
        for a in &self.operands {
            writeln!(f, "  operand {}", self.vars.show_access(a))?;
        }
        for (i, n) in self.epilogue.nodes.iter().enumerate() {
            let text = match n {
                Node::Sum => "sum".to_owned(),
                Node::SumInside(index, last) => format!("sum if {} in 0..={last}", self.vars.show_access(index)),
                Node::Const(x) => x.to_string(),
                Node::Load(a) => self.vars.show_access(a),
                Node::Cast(to, x) => format!("cast e{x} to {to}"),
                Node::Map(g, x) => {
                    let x: Vec<String> = x.iter().map(|x| format!("e{x}")).collect();
                    format!("{} {}", g.name(), x.join(", "))
                }
            };
            writeln!(f, "  e{i} = {text}")?;
        }
        for o in &self.epilogue.outputs {
            writeln!(f, "  store e{} to {}:p{}[{}]", o.node, o.dtype, o.param, self.vars.show(&o.at))?;
        }
        Ok(())
    }
}
