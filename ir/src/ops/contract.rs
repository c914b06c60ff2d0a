//! `contract %a, %b {spec = "td,fd->tf"}`: product-sum in index notation.
//!
//! One letter per axis; letters absent from the result are summed. `out[t,f] = Σ_d a[t,d] · b[f,d]`.
//! Any number of operands, whose formats may differ; the result is f32, the sum at least that precise.
//!
//! - C1: the spec has one letter per operand axis; no letter twice in one operand or in the result.
//! - C2: a letter has one size wherever it stands.
//! - C3: every result letter stands in some operand.
//! - C4: operands are reals.

use super::*;
use crate::tensor::strides;
use hadal_types::{DType, Dim};
use std::collections::BTreeMap;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Contract {
    /// The letters of each operand.
    pub inputs: Vec<String>,
    /// The letters of the result.
    pub output: String,
}

impl Contract {
    /// Parses `td,fd->tf`; `None` unless it has one arrow and only ASCII letters.
    pub fn parse(spec: &str) -> Option<Contract> {
        let (inputs, output) = spec.split_once("->")?;
        let letters = |s: &str| s.bytes().all(|b| b.is_ascii_alphabetic());
        let inputs: Vec<String> = inputs.split(',').map(str::to_owned).collect();
        (letters(output) && inputs.iter().all(|i| letters(i))).then(|| Contract { inputs, output: output.to_owned() })
    }

    /// The text form.
    pub fn spec(&self) -> String {
        format!("{}->{}", self.inputs.join(","), self.output)
    }

    /// Summed letters, in order of first appearance.
    pub fn summed(&self) -> String {
        let mut out = String::new();
        for c in self.inputs.iter().flat_map(|i| i.chars()) {
            if !self.output.contains(c) && !out.contains(c) {
                out.push(c);
            }
        }
        out
    }

    /// The size of every letter.
    pub fn sizes<'a>(&self, args: &'a [TensorType]) -> BTreeMap<char, &'a Dim> {
        self.inputs.iter().zip(args).flat_map(|(letters, ty)| letters.chars().zip(&ty.shape)).collect()
    }
}

impl OpDef for Contract {
    const MNEMONICS: &'static [&'static str] = &["contract"];
    const TIER: Tier = Tier::Primitive;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("spec", Attr::Str(self.spec()))]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        let spec: String = attrs.get("spec")?;
        Contract::parse(&spec).ok_or(AttrError::Wrong {
            name: "spec",
            expected: "letters like \"td,fd->tf\"",
            found: format!("{spec:?}"),
        })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, self.inputs.len())?;
        let mut sizes: BTreeMap<char, &Dim> = BTreeMap::new();
        let repeats = |s: &str| s.chars().enumerate().any(|(i, c)| s[..i].contains(c));
        for (letters, ty) in self.inputs.iter().zip(args) {
            ensure!(letters.len() == ty.rank(), "C1", "`{letters}` has {} letters for {ty}", letters.len());
            ensure!(!repeats(letters), "C1", "`{letters}` repeats a letter");
            ensure!(ty.dtype.is_float(), "C4", "operand is {}", ty.dtype);
            for (c, size) in letters.chars().zip(&ty.shape) {
                let known = sizes.entry(c).or_insert(size);
                ensure!(*known == size, "C2", "`{c}` is {known} and {size}");
            }
        }
        ensure!(!repeats(&self.output), "C1", "`{}` repeats a letter", self.output);
        let mut shape = Vec::new();
        for c in self.output.chars() {
            ensure!(sizes.contains_key(&c), "C3", "`{c}` stands in no operand");
            shape.push(sizes[&c].clone());
        }
        Ok(TensorType { dtype: DType::F32, shape })
    }

    fn eval(&self, args: &[&Tensor], _: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let mut sizes: BTreeMap<char, usize> = BTreeMap::new();
        for (letters, t) in self.inputs.iter().zip(args) {
            sizes.extend(letters.chars().zip(t.shape.iter().copied()));
        }
        let summed = self.summed();
        // For every operand, how far one step of each letter moves.
        let steps = |letters: &str| -> Vec<Vec<usize>> {
            let step = |operand: &str, t: &Tensor, c: char| operand.find(c).map_or(0, |at| strides(&t.shape)[at]);
            letters
                .chars()
                .map(|c| self.inputs.iter().zip(args).map(|(operand, t)| step(operand, t, c)).collect())
                .collect()
        };
        let data: Vec<&[f64]> = args.iter().map(|t| t.reals()).collect();
        let (outer, inner) = (steps(&self.output), steps(&summed));
        let inner_sizes: Vec<usize> = summed.chars().map(|c| sizes[&c]).collect();
        let mut values = Vec::with_capacity(shape.iter().product());
        odometer(shape, &outer, &vec![0; args.len()], &mut |base| {
            let mut sum = 0.0;
            odometer(&inner_sizes, &inner, base, &mut |at| {
                sum += data.iter().zip(at).map(|(d, i)| d[*i]).product::<f64>();
            });
            values.push(sum);
        });
        Tensor::real(DType::F32, shape, values)
    }

    fn flops(&self, args: &[TensorType], _: &TensorType, bindings: &Bindings) -> f64 {
        let points: f64 = self.sizes(args).values().map(|d| d.eval(bindings).unwrap_or(0) as f64).product();
        points * (args.len().max(2)) as f64
    }
}

/// Calls `f` with every operand's offset, for every coordinate of `sizes` in row-major order.
fn odometer(sizes: &[usize], steps: &[Vec<usize>], base: &[usize], f: &mut impl FnMut(&[usize])) {
    let mut at = base.to_vec();
    walk(sizes, steps, &mut at, f);

    fn walk(sizes: &[usize], steps: &[Vec<usize>], at: &mut [usize], f: &mut impl FnMut(&[usize])) {
        let Some((n, rest)) = sizes.split_first() else { return f(at) };
        for _ in 0..*n {
            walk(rest, &steps[1..], at, f);
            at.iter_mut().zip(&steps[0]).for_each(|(a, s)| *a += s);
        }
        at.iter_mut().zip(&steps[0]).for_each(|(a, s)| *a -= s * n);
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    fn op(spec: &str) -> Contract {
        Contract::parse(spec).unwrap()
    }

    #[test]
    fn multiplies_matrices() {
        let a = Tensor::real(DType::F32, &[2, 2], vec![1., 2., 3., 4.]);
        let b = Tensor::real(DType::F32, &[1, 2], vec![5., 6.]);
        assert_eq!(run(op("td,fd->tf"), &[&a, &b]).unwrap().reals(), [17., 39.]);
    }

    #[test]
    fn three_operands_equal_two_steps() {
        let (a, b, c) = (wave(&[2, 3]), wave(&[3, 4]), wave(&[4, 5]));
        let at_once = run(op("ij,jk,kl->il"), &[&a, &b, &c]).unwrap();
        let ab = run(op("ij,jk->ik"), &[&a, &b]).unwrap();
        assert_close(&at_once, &run(op("ik,kl->il"), &[&ab, &c]).unwrap(), 1e-12);
    }

    #[test]
    fn an_empty_sum_is_zero() {
        let a = Tensor::real(DType::F32, &[2, 0], vec![]);
        assert_eq!(run(op("td->t"), &[&a]).unwrap().reals(), [0., 0.]);
    }

    #[test]
    fn constraints() {
        let (a, b) = (wave(&[2, 3]), wave(&[2, 4]));
        let broken = |spec: &str| run(op(spec), &[&a, &b]).unwrap_err().constraint;
        assert_eq!(broken("td,f->tf"), "C1");
        assert_eq!(broken("tt,fd->fd"), "C1");
        assert_eq!(broken("td,fd->tf"), "C2");
        assert_eq!(broken("td,te->tx"), "C3");
        let ints = Tensor::int(DType::I32, &[2, 3], vec![0; 6]);
        assert_eq!(run(op("td,te->de"), &[&ints, &b]).unwrap_err().constraint, "C4");
        assert!(Contract::parse("ab").is_none() && Contract::parse("a1->a").is_none());
    }
}
