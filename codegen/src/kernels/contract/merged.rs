//! Letters that are one: where a letter goes on where another one ends, in all that is read and written.
//!
//! `y[t, h, d] = Σ_c x[t, c] · w[h, d, c]` has as many columns as there are pairs of `h` and `d`, side by side in memory, and
//! is the product of two matrices: tiles need not end with a head, and blocks of scales lie as they do in the matrix.

use super::desc::{Desc, Role};
use super::epilogue::Node;
use super::view::{Access, Affine, Var, VarKind, Vars};

impl Desc {
    /// The same product with as few letters as there can be.
    pub fn merged(mut self) -> Desc {
        while let Some(merged) = self.merge_some() {
            self = merged;
        }
        self
    }

    fn merge_some(&self) -> Option<Desc> {
        let letters = 0..self.roles.len();
        letters.clone().find_map(|high| letters.clone().find_map(|low| self.merge(high, low)))
    }

    /// With two letters as digits of one.
    fn merge(&self, high: Var, low: Var) -> Option<Desc> {
        let old = &self.vars;
        let operand = match (self.roles[high], self.roles[low]) {
            (Role::Left, Role::Left) => &self.operands[0],
            (Role::Right, Role::Right) => &self.operands[1],
            _ => return None,
        };
        let (size, stride) = (old.size(low).as_const()?, operand.at.coefficient(low));
        if high == low || stride.is(0) || self.grouped.is_some() || operand.at.coefficient(high) != stride * size {
            return None;
        }
        let mut vars = Vars::default();
        let mut map = vec![Affine::default(); old.list.len()];
        let mut both = None;
        for v in (0..self.roles.len()).filter(|v| *v != low) {
            let VarKind::Letter(name) = old.list[v].kind else { return None };
            let count = if v == high { old.size(high).clone() * size } else { old.size(v).clone() };
            let letter = vars.letter(name, count);
            map[v] = Affine::var(letter);
            both = both.or((v == high).then_some(letter));
        }
        (map[high], map[low]) = vars.split(&Affine::var(both?), old.size(low))?;
        let digits: Vec<Var> = [high, low].iter().flat_map(|v| map[*v].terms.keys().copied()).collect();
        vars.substitute(old, &mut map, self.roles.len(), None)?;
        let operands = [vars.substituted(&self.operands[0], &map)?, vars.substituted(&self.operands[1], &map)?];
        let epilogue = self.epilogue.substituted(&vars, &map, &Node::Sum)?;
        let whole = |a: &Access| digits.iter().all(|v| !vars.reads(a, *v));
        let apart = |at: &Affine| digits.iter().any(|v| vars.depends(at, *v));
        let loads = epilogue.loads().all(whole) && epilogue.outputs.iter().all(|o| !apart(&o.at));
        if !operands.iter().all(whole) || !loads {
            return None;
        }
        let roles = (0..self.roles.len()).filter(|v| *v != low).map(|v| self.roles[v]).collect();
        Some(Desc { vars, operands, epilogue, roles, ..self.clone() })
    }
}
