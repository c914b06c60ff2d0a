use super::*;
use crate::ops::testing::*;

fn attention(sets: &[&str], output: &str, sink: bool) -> Attention {
    let sets = sets.iter().map(|s| s.parse().unwrap()).collect();
    Attention { sets, output: output.into(), scale: Real(0.3), sink }
}

fn ints(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::int(DType::I32, shape, values.to_vec())
}

/// Evaluates, and compares with the decomposition.
fn both(op: &Attention, args: &[&Tensor]) -> Tensor {
    let y = run(op.clone(), args).unwrap_or_else(|e| panic!("{e}"));
    assert_close(&y, &run_decomposed(op.clone(), args), 1e-12);
    y
}

#[test]
fn latent_attention_is_attention_over_joined_terms() {
    let (q1, q2) = (wave(&[2, 3, 4]), wave(&[2, 3, 2]));
    let (k1, k2) = (wave(&[5, 4]), wave(&[5, 2]));
    let y = both(&attention(&["tha,sa thb,sb sa causal"], "tha", false), &[&q1, &k1, &q2, &k2, &k1]);
    let q = run(Concat { axis: 2 }, &[&q1, &q2]).unwrap();
    let k = run(Concat { axis: 1 }, &[&k1, &k2]).unwrap();
    assert_close(&y, &both(&attention(&["thd,sd sa causal"], "tha", false), &[&q, &k, &k1]), 1e-12);
}

#[test]
fn one_visible_key_returns_its_value() {
    let (q, k, v) = (wave(&[1, 2, 3, 4]), wave(&[1, 2, 4]), wave(&[1, 2, 5]));
    let y = both(&attention(&["tgrd,sgd sge causal"], "tgre", false), &[&q, &k, &v]);
    assert_eq!(y.shape, [1, 2, 3, 5]);
    assert_eq!(y.reals()[..5], v.reals()[..5]);
    assert_eq!(y.reals()[5..10], v.reals()[..5]);
}

#[test]
fn intervals_masks_and_selections_say_the_same() {
    let (q, k, v) = (wave(&[2, 3, 4]), wave(&[5, 4]), wave(&[5, 3, 2]));
    let causal = both(&attention(&["tha,sa shb causal"], "thb", false), &[&q, &k, &v]);
    let (lo, hi) = (ints(&[2], &[0, 0]), ints(&[2, 3], &[4, 4, 4, 5, 5, 5]));
    let by_bounds = attention(&["tha,sa shb interval:t,th"], "thb", false);
    assert_eq!(both(&by_bounds, &[&q, &k, &v, &lo, &hi]), causal);
    let mask = Tensor::int(DType::Bool, &[2, 5], vec![1, 1, 1, 1, 0, 1, 1, 1, 1, 1]);
    assert_eq!(both(&attention(&["tha,sa shb masked:ts"], "thb", false), &[&q, &k, &v, &mask]), causal);
    let ids = ints(&[2, 6], &[0, 1, 2, 3, -1, 9, -7, 0, 1, 2, 3, 4]);
    assert_eq!(both(&attention(&["tha,sa shb selected:ts"], "thb", false), &[&q, &k, &v, &ids]), causal);
    // Heads with selections of their own, of keys that are shared and values that are not.
    let of_heads: Vec<i64> = (0..2).flat_map(|t| [0, 1, 2, 3, if t == 0 { -1 } else { 4 }].repeat(3)).collect();
    let ids = ints(&[2, 3, 5], &of_heads);
    assert_eq!(both(&attention(&["tha,sa shb selected:ths"], "thb", false), &[&q, &k, &v, &ids]), causal);
}

#[test]
fn sets_join_in_one_softmax() {
    let (q, k, v) = (wave(&[2, 3, 4]), wave(&[7, 4]), wave(&[7, 3, 2]));
    let part = |x: &Tensor, start: i64, len: i64| {
        run(Slice { axis: 0, start: start.into(), len: len.into(), step: 1 }, &[x]).unwrap()
    };
    let whole = both(&attention(&["tha,sa shb causal"], "thb", false), &[&q, &k, &v]);
    let sets = attention(&["tha,ca chb all", "tha,sa shb all", "tha,sa shb causal"], "thb", false);
    let (none, few) = ((part(&k, 0, 0), part(&v, 0, 0)), (part(&k, 0, 3), part(&v, 0, 3)));
    let rest = (part(&k, 3, 4), part(&v, 3, 4));
    let y = both(&sets, &[&q, &none.0, &none.1, &q, &few.0, &few.1, &q, &rest.0, &rest.1]);
    assert_close(&y, &whole, 1e-12);
}

#[test]
fn sinks_take_their_share() {
    let (q, k, v) = (wave(&[2, 2, 4]), wave(&[3, 4]), wave(&[3, 2]));
    let zero = Tensor::real(DType::F32, &[2, 2, 4], vec![0.0; 16]);
    let op = attention(&["tha,sa sb all"], "thb", true);
    let sink = Tensor::real(DType::F32, &[2], vec![0.0, f64::NEG_INFINITY]);
    let y = both(&op, &[&zero, &k, &v, &sink]);
    let sum: f64 = (0..3).map(|s| v.at(2 * s)).sum();
    assert!((y.at(0) - sum / 4.0).abs() < 1e-12 && (y.at(2) - sum / 3.0).abs() < 1e-12);
    both(&op, &[&q, &k, &v, &wave(&[2])]);
    let without = attention(&["tha,sa sb all"], "thb", false);
    assert_eq!(both(&without, &[&q, &k, &v]).reals()[2..4], both(&op, &[&q, &k, &v, &sink]).reals()[2..4]);
}

#[test]
fn nothing_seen_gives_zeros_and_hidden_rows_do_not_count() {
    let (q, k) = (wave(&[2, 1, 4]), wave(&[3, 4]));
    let op = attention(&["tha,sa sa selected:tj"], "tha", false);
    assert!(run(op, &[&q, &k, &k, &ints(&[2, 1], &[0, 0])]).is_err(), "the key letter is that of the value");
    let op = attention(&["tha,sa sa selected:ts"], "tha", false);
    let y = both(&op, &[&q, &k, &k, &ints(&[2, 2], &[-1, 3, -5, 1])]);
    assert_eq!(y.reals()[..4], [0.0; 4]);
    assert_eq!(y.reals()[4..], k.reals()[4..8]);
    let (no_k, no_ids) = (wave(&[0, 4]), ints(&[2, 0], &[]));
    assert_eq!(both(&op, &[&q, &k, &k, &no_ids]).reals(), [0.0; 8]);
    assert_eq!(both(&op, &[&q, &no_k, &no_k, &ints(&[2, 1], &[0, 0])]).reals(), [0.0; 8]);
    assert_eq!(both(&attention(&["tha,sa sa all"], "tha", false), &[&q, &no_k, &no_k]).reals(), [0.0; 8]);
    let mut odd = k.clone();
    odd = Tensor::real(DType::F32, &[3, 4], odd.reals().iter().map(|x| x + 0.0).collect());
    if let crate::tensor::Data::Real(x) = &mut odd.data {
        x[8..].fill(f64::NAN);
    }
    let seen = run(op, &[&q, &odd, &odd, &ints(&[2, 2], &[0, 1, 1, -1])]).unwrap();
    assert!(seen.reals().iter().all(|x| x.is_finite()));
}

#[test]
fn text_forms() {
    for text in ["tha,sa thb,sb sa causal", "ta,sa sa interval:t,t", "ta,sa sa masked:ts", "ta,sa sa selected:ts"] {
        assert_eq!(text.parse::<RowSet>().unwrap().to_string(), text);
    }
    for text in
        ["", "sa", "ta sa all", "ta,sa sa", "ta,sa sa all:t", "ta,sa sa masked", "ta,sa sa interval:t", "t1,sa sa all"]
    {
        assert!(text.parse::<RowSet>().is_err(), "{text}");
    }
}

#[test]
fn constraints() {
    let (q, k) = (wave(&[2, 3, 4]), wave(&[5, 4]));
    let broken = |set: &str, output: &str, args: &[&Tensor]| {
        run(attention(&[set], output, false), args).expect_err(set).constraint
    };
    assert_eq!(broken("tha,sa thb,sb sa all", "tha", &[&q, &k, &k]), "C1");
    assert_eq!(broken("tha,sa sa all", "tha", &[&q, &wave(&[5, 3, 4]), &k]), "C1");
    assert_eq!(run(attention(&[], "tha", false), &[]).unwrap_err().constraint, "C1");
    assert_eq!(broken("sa all", "tha", &[&k]), "C1");
    assert_eq!(broken("tha,sa xa all", "tha", &[&q, &k, &k]), "C2");
    assert_eq!(broken("tha,ta ta all", "tha", &[&q, &k, &k]), "C2");
    assert_eq!(broken("tha,sb sa all", "tha", &[&q, &k, &k]), "C2");
    assert_eq!(broken("txa,sa sa all", "tha", &[&q, &k, &k]), "C3");
    assert_eq!(broken("tht,st sa all", "tha", &[&wave(&[2, 3, 2]), &wave(&[5, 2]), &k]), "C3");
    assert_eq!(broken("ta,sa sa all", "tha", &[&wave(&[2, 4]), &k, &k]), "C3");
    assert_eq!(broken("tha,sa sa all", "tha", &[&q, &wave(&[5, 3]), &k]), "C4");
    assert_eq!(broken("tha,sa sa all", "tha", &[&q, &wave(&[4, 4]), &k]), "C4");
    assert_eq!(broken("tha,sa sa masked:ts", "tha", &[&q, &k, &k, &ints(&[2, 5], &[0; 10])]), "C4");
    assert_eq!(broken("tha,sa sa selected:st", "tha", &[&q, &k, &k, &ints(&[5, 2], &[0; 10])]), "C2");
    let many = ints(&[2, 3, 2, 5], &[0; 60]);
    let (q, k) = (wave(&[2, 2, 3, 4]), wave(&[5, 4]));
    assert_eq!(broken("tgha,sa sa selected:thgs", "tgha", &[&q, &k, &k, &many]), "C3");
}
