use super::schedule::candidates;
use super::{Desc, emit};
use crate::kernels::contract::tests::{arguments, close, compiled, function, interpreted, kernel};
use hadal_ir::kernel::verify::verify;
use hadal_ir::{Bindings, interpret};
use hadal_types::Sym;
use proptest::prelude::*;

/// All schedules agree with the graph interpreter, and compiled with the kernel interpreter.
fn check(text: &str, t: i64, p: i64) -> Vec<String> {
    let func = function(text);
    let bindings = Bindings::from([(Sym::T, t), (Sym::P, p)]);
    let args = arguments(&func, &bindings, 5);
    let expected = interpret::eval_func(&func, &args, &bindings).unwrap();
    let desc = Desc::of(&func).expect("an attention");
    for s in candidates(&desc) {
        let kernel = emit::emit(&desc, &s);
        let errors = verify(&kernel);
        assert!(errors.is_empty(), "{errors:?}\n{kernel}");
        let results = interpreted(&kernel, &func, &args, &bindings);
        let what = || format!("{}\n{desc}\n{kernel}", s.show(&desc));
        close(&results[0], &expected[0], 1e-5, &what);
        compiled(&kernel, &func, &args, &bindings, &results, true);
    }
    candidates(&desc).iter().map(|s| s.show(&desc)).collect()
}

fn attention(terms: &str, value: &str, output: &str) -> String {
    format!("sets = [\"{terms} {value} causal\"], output = \"{output}\", scale = 0.4")
}

#[test]
fn heads_with_their_own_keys() {
    let body = format!(
        "  %1 = attention %q, %k, %v {{{}}} : f32[T, 3, 12]\n  %y = reshape %1 {{shape = [T, 36]}} : f32[T, 36]",
        attention("thd,shd", "she", "the")
    );
    let text = kernel("%q: f32[T, 3, 9], %k: bf16[P+T, 3, 9], %v: f32[P+T, 3, 12]", &body, "f32[T, 36]");
    for (t, p) in [(1, 0), (1, 40), (5, 0), (9, 31), (40, 3)] {
        check(&text, t, p);
    }
}

#[test]
fn groups_share_keys() {
    let body = format!("  %y = attention %q, %k, %v {{{}}} : bf16[T, 2, 3, 16]", attention("tgrd,sgd", "sge", "tgre"));
    let body = body.replace("%y = attention", "%1 = attention").replace(": bf16", ": f32")
        + "\n  %y = cast %1 {to = bf16} : bf16[T, 2, 3, 16]";
    let text = kernel("%q: f32[T, 2, 3, 8], %k: bf16[P+T, 2, 8], %v: bf16[P+T, 2, 16]", &body, "bf16[T, 2, 3, 16]");
    for (t, p) in [(1, 33), (6, 30)] {
        check(&text, t, p);
    }
    let one = text.replace("T, 2, 3", "1, 2, 3").replace("P+T", "P+1");
    let shown = check(&one, 1, 64);
    assert!(shown[0].contains("1 queries x 3 heads"), "{shown:?}");
}

#[test]
fn latent_keys_serve_all_heads() {
    let body = "  %c = slice %kv {axis = 1, start = 0, len = 16} : bf16[P+T, 16]
  %r = slice %kv {axis = 1, start = 16, len = 6} : bf16[P+T, 6]
";
    let body = format!(
        "{body}  %y = attention %q1, %c, %q2, %r, %c {{{}}} : f32[T, 10, 16]",
        attention("tha,sa thb,sb", "sa", "tha")
    );
    let text = kernel("%q1: f32[T, 10, 16], %q2: f32[T, 10, 6], %kv: bf16[P+T, 22]", &body, "f32[T, 10, 16]");
    for (t, p) in [(1, 0), (1, 70), (7, 29)] {
        check(&text, t, p);
    }
}

#[test]
fn without_a_mask_all_keys_count() {
    let body = format!(
        "  %y = attention %q, %k, %v {{{}}} : f32[T, 2, 8]",
        attention("thd,shd", "she", "the").replace("causal", "all")
    );
    check(&kernel("%q: f32[T, 2, 4], %k: f32[P+T, 2, 4], %v: f32[P+T, 2, 8]", &body, "f32[T, 2, 8]"), 5, 30);
}

#[test]
fn a_row_has_the_same_bits_in_every_chunk() {
    let body = format!("  %y = attention %q, %k, %v {{{}}} : f32[T, 2, 8]", attention("thd,shd", "she", "the"));
    let func = function(&kernel("%q: f32[T, 2, 4], %k: f32[P+T, 2, 4], %v: f32[P+T, 2, 8]", &body, "f32[T, 2, 8]"));
    let desc = Desc::of(&func).unwrap();
    let all = arguments(&func, &Bindings::from([(Sym::T, 40), (Sym::P, 0)]), 5);
    let kernel = emit::emit(&desc, &candidates(&desc)[0]);
    let run = |p: usize, t: usize| {
        let part = |i: usize, from: usize, to: usize| {
            let row = all[i].len() / 40;
            let mut x = all[i].clone();
            x = hadal_ir::Tensor::real(x.dtype, &[to - from, 2, row / 2], x.reals()[from * row..to * row].to_vec());
            x
        };
        let args = [part(0, p, p + t), part(1, 0, p + t), part(2, 0, p + t)];
        let bindings = Bindings::from([(Sym::T, t as i64), (Sym::P, p as i64)]);
        interpreted(&kernel, &func, &args, &bindings).remove(0).to_f32()
    };
    let whole = run(0, 40);
    for (p, t) in [(0, 3), (33, 1), (31, 9), (39, 1)] {
        assert_eq!(run(p, t), whole[p * 16..(p + t) * 16], "P={p} T={t}");
    }
}

/// Which letters of heads (g: own keys, r: shared ones) and how many terms, in which formats.
fn case() -> impl Strategy<Value = (String, i64, i64)> {
    let format = || prop::sample::select(vec!["f32", "bf16", "f16"]);
    let sizes = (1i64..40, 0i64..70, 1i64..4, 1i64..10, 1i64..20, 1i64..20);
    (sizes, format(), format(), any::<[bool; 4]>()).prop_map(|((t, p, g, r, d, e), kf, vf, flags)| {
        let [own, shared, two, causal] = flags;
        let heads = |own: bool, shared: bool| {
            let letters = format!("{}{}", if own { "g" } else { "" }, if shared { "r" } else { "" });
            let sizes = format!(
                "{}{}",
                if own { format!("{g}, ") } else { "".into() },
                match shared {
                    true => format!("{r}, "),
                    false => "".into(),
                }
            );
            (letters, sizes)
        };
        let ((q, qs), (k, ks)) = (heads(own, shared), heads(own, false));
        let mut params = format!("%q: f32[T, {qs}{d}], %k: {kf}[P+T, {ks}{d}]");
        let (mut terms, mut args) = (format!("t{q}a,s{k}a"), "%q, %k".to_owned());
        if two {
            params += &format!(", %q2: bf16[T, {qs}5], %k2: f32[P+T, 5]");
            terms += &format!(" t{q}b,sb");
            args += ", %q2, %k2";
        }
        params += &format!(", %v: {vf}[P+T, {ks}{e}]");
        let attrs = attention(&terms, &format!("s{k}e"), &format!("t{q}e"));
        let attrs = attrs.replace("causal", if causal { "causal" } else { "all" });
        let result = format!("f32[T, {qs}{e}]");
        let body = format!("  %y = attention {args}, %v {{{attrs}}} : {result}");
        (kernel(&params, &body, &result), t, p)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_attentions((text, t, p) in case()) {
        check(&text, t, p);
    }
}
