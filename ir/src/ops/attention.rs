//! `attention %q1, %k1, %q2, %k2, %v {terms = ["tha,sa", "thb,sb"], value = "sa", output = "tha", scale = 0.1, causal = true}`:
//! softmax-weighted values without a score matrix in memory. Made by passes only.
//!
//! Scores are a *sum of terms*, each a contraction of a query with keys: `Σ_terms Σ q·k · scale`, over the query
//! letter (the first of every query operand), the head letters (those of the output but the first and last), and the
//! key letter (the first of every key operand). Keys and values may lack some or all head letters: then heads share
//! them. That covers multi-head, grouped-query and latent attention in one form.
//!
//! - C1: an even number of query/key operands and one value; one term per pair, letters as for `contract`.
//! - C2: all queries start with one letter, all keys and the value with another, the output with the query letter.
//! - C3: every operand's inner letters are head letters of the output, then the term's own summed letter last.
//! - C4: sizes agree, and every operand is a tensor of reals.

use super::*;
use crate::attr::Real;
use crate::ops::contract::Contract;
use hadal_types::{DType, Dim};
use std::collections::BTreeMap;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Attention {
    /// Letters of each query and key.
    pub terms: Vec<(String, String)>,
    /// Letters of the value.
    pub value: String,
    /// Letters of the result.
    pub output: String,
    /// Multiplies the scores.
    pub scale: Real,
    /// Whether keys after the query are hidden (see `causal_mask`).
    pub causal: bool,
}

impl Attention {
    /// The head letters, in the output's order.
    pub fn heads(&self) -> &str {
        &self.output[1..self.output.len() - 1]
    }

    /// Letters of the score tensor: heads, query, key.
    fn scores(&self) -> String {
        format!("{}{}{}", self.heads(), &self.output[..1], &self.value[..1])
    }

    fn term(&self, i: usize) -> Contract {
        let (q, k) = &self.terms[i];
        Contract { inputs: vec![q.clone(), k.clone()], output: self.scores() }
    }

    fn weighted(&self) -> Contract {
        Contract { inputs: vec![self.scores(), self.value.clone()], output: self.output.clone() }
    }
}

impl OpDef for Attention {
    const MNEMONICS: &'static [&'static str] = &["attention"];
    const TIER: Tier = Tier::Fused;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("terms", Attr::List(self.terms.iter().map(|(q, k)| Attr::Str(format!("{q},{k}"))).collect())),
            ("value", Attr::Str(self.value.clone())),
            ("output", Attr::Str(self.output.clone())),
            ("scale", self.scale.into()),
            ("causal", self.causal.into()),
        ]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        let texts: Vec<String> = attrs.get("terms")?;
        let wrong = |name, found: &str| AttrError::Wrong { name, expected: "letters", found: format!("{found:?}") };
        let letters = |name, s: String| match !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphabetic()) {
            true => Ok(s),
            false => Err(wrong(name, &s)),
        };
        let mut terms = Vec::new();
        for text in &texts {
            let (q, k) = text.split_once(',').ok_or_else(|| wrong("terms", text))?;
            terms.push((letters("terms", q.into())?, letters("terms", k.into())?));
        }
        let (value, output) = (letters("value", attrs.get("value")?)?, letters("output", attrs.get("output")?)?);
        if output.len() < 2 {
            return Err(wrong("output", &output));
        }
        Ok(Attention { terms, value, output, scale: attrs.get("scale")?, causal: attrs.get("causal")? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        let n = 2 * self.terms.len() + 1;
        ensure!(!self.terms.is_empty() && args.len() == n, "C1", "{} operands, {n} needed", args.len());
        let (query, key) = (&self.output[..1], &self.value[..1]);
        let heads = self.heads();
        let result = &self.output[self.output.len() - 1..];
        let mut operands: Vec<(&str, &str, &str)> = vec![(&self.value, key, result)];
        for (q, k) in &self.terms {
            ensure!(q.len() >= 2 && k.len() >= 2, "C1", "a term `{q},{k}` too short");
            let summed = &k[k.len() - 1..];
            ensure!(q.ends_with(summed) && !heads.contains(summed), "C3", "`{q},{k}` has no common last letter");
            operands.extend([(q.as_str(), query, summed), (k.as_str(), key, summed)]);
        }
        ensure!(query != key && !heads.contains(query) && !heads.contains(key), "C2", "`{query}` and `{key}`");
        for (letters, first, last) in operands {
            let framed = letters.starts_with(first) && letters.ends_with(last) && letters.len() >= 2;
            ensure!(framed, "C2", "`{letters}` should run from `{first}` to `{last}`");
            let inner = &letters[1..letters.len() - 1];
            let from_heads = inner.chars().all(|c| heads.contains(c));
            ensure!(from_heads, "C3", "`{letters}` has letters besides the heads `{heads}`");
        }
        let mut sizes: BTreeMap<char, Dim> = BTreeMap::new();
        for i in 0..self.terms.len() {
            let out = self.term_type(i, &args[2 * i..2 * i + 2])?;
            for (c, d) in self.scores().chars().zip(out.shape) {
                let known = sizes.entry(c).or_insert_with(|| d.clone());
                ensure!(*known == d, "C4", "`{c}` is {known} and {d}");
            }
        }
        let scores =
            TensorType { dtype: DType::F32, shape: self.scores().chars().map(|c| sizes[&c].clone()).collect() };
        self.weighted().infer(&[scores, args[n - 1].clone()]).map_err(|v| Violation { constraint: "C4", ..v })
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType, shape: &[usize], bindings: &Bindings) -> Tensor {
        // The decomposition, one query row at a time through the plain ops.
        let types: Vec<_> = args.iter().map(|t| TensorType::new(t.dtype, t.shape.clone())).collect();
        let mut b = Builder::new("attention");
        let values: Vec<_> = types.iter().enumerate().map(|(i, ty)| b.param(&format!("a{i}"), ty.clone())).collect();
        let result = self.decompose(&mut b, &values).expect("defined by decomposition");
        b.result("out", result);
        let func = b.finish().expect("types were inferred");
        let args: Vec<Tensor> = args.iter().map(|t| (*t).clone()).collect();
        let mut y = crate::interpret::eval_func(&func, &args, bindings).expect("types were inferred").remove(0);
        (y.dtype, y.shape) = (out.dtype, shape.to_vec());
        y
    }

    fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<ValueId> {
        let mut scores = None;
        for i in 0..self.terms.len() {
            let term = b.op(self.term(i), &args[2 * i..2 * i + 2]);
            scores = Some(match scores {
                None => term,
                Some(sum) => b.add(sum, term),
            });
        }
        let mut scores = b.mul_scalar(scores?, self.scale.0);
        let n = self.heads().len();
        if self.causal {
            scores = b.op(CausalMask { query: n, key: n + 1 }, &[scores]);
        }
        let weights = b.op(Softmax, &[scores]);
        Some(b.op(self.weighted(), &[weights, args[2 * self.terms.len()]]))
    }

    fn flops(&self, args: &[TensorType], _: &TensorType, bindings: &Bindings) -> f64 {
        let Ok(scores) = self.term_type(0, &args[..2]) else { return 0.0 };
        let terms = (0..self.terms.len()).map(|i| self.term(i).flops(&args[2 * i..2 * i + 2], &scores, bindings));
        let weighted = [scores.clone(), args[args.len() - 1].clone()];
        terms.sum::<f64>()
            + 7.0 * scores.count(bindings).unwrap_or(0.0)
            + self.weighted().flops(&weighted, &scores, bindings)
    }
}

impl Attention {
    /// The type of term `i`'s scores. Head letters that only other terms have must not occur: queries carry them all.
    fn term_type(&self, i: usize, args: &[TensorType]) -> Result<TensorType, Violation> {
        self.term(i).infer(args).map_err(|v| Violation { constraint: "C4", ..v })
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    fn latent() -> Attention {
        Attention {
            terms: vec![("tha".into(), "sa".into()), ("thb".into(), "sb".into())],
            value: "sa".into(),
            output: "tha".into(),
            scale: Real(0.3),
            causal: true,
        }
    }

    #[test]
    fn latent_attention_is_attention_over_joined_terms() {
        let (q1, q2) = (wave(&[2, 3, 4]), wave(&[2, 3, 2]));
        let (k1, k2) = (wave(&[5, 4]), wave(&[5, 2]));
        let y = run(latent(), &[&q1, &k1, &q2, &k2, &k1]).unwrap();
        let q = run(Concat { axis: 2 }, &[&q1, &q2]).unwrap();
        let k = run(Concat { axis: 1 }, &[&k1, &k2]).unwrap();
        let joined = Attention { terms: vec![("thd".into(), "sd".into())], ..latent() };
        assert_close(&y, &run(joined.clone(), &[&q, &k, &k1]).unwrap(), 1e-12);
        assert_close(&y, &run_decomposed(joined, &[&q, &k, &k1]), 1e-12);
    }

    #[test]
    fn one_visible_key_returns_its_value() {
        let op = Attention {
            terms: vec![("tgrd".into(), "sgd".into())],
            value: "sge".into(),
            output: "tgre".into(),
            ..latent()
        };
        let (q, k, v) = (wave(&[1, 2, 3, 4]), wave(&[1, 2, 4]), wave(&[1, 2, 5]));
        let y = run(op, &[&q, &k, &v]).unwrap();
        assert_eq!(y.shape, [1, 2, 3, 5]);
        assert_eq!(y.reals()[..5], v.reals()[..5]);
        assert_eq!(y.reals()[5..10], v.reals()[..5]);
    }

    #[test]
    fn constraints() {
        let (q, k) = (wave(&[2, 3, 4]), wave(&[5, 4]));
        let one = |q: &str, k: &str, value: &str, output: &str| Attention {
            terms: vec![(q.into(), k.into())],
            value: value.into(),
            output: output.into(),
            ..latent()
        };
        let broken = |op: Attention| run(op, &[&q, &k, &k]).unwrap_err().constraint;
        assert_eq!(run(latent(), &[&q, &k, &k]).unwrap_err().constraint, "C1");
        assert_eq!(broken(one("tha", "sa", "xa", "tha")), "C2");
        assert_eq!(broken(one("tha", "sb", "sa", "tha")), "C3");
        assert_eq!(broken(one("txa", "sa", "sa", "tha")), "C3");
        assert_eq!(run(one("tha", "sa", "sa", "tha"), &[&q, &wave(&[5, 3]), &k]).unwrap_err().constraint, "C4");
    }
}
