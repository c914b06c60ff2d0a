use super::schedule::{Schedule, candidates};
use super::{Desc, emit};
use crate::kernels::contract::tests::{arguments, close, compiled, function, interpreted, kernel};
use crate::kernels::loops;
use crate::kernels::{Ranges, Target};
use hadal_ir::kernel::verify::verify;
use hadal_ir::module::STEP;
use hadal_ir::tensor::Data;
use hadal_ir::{Bindings, Func, Range, Tensor, interpret};
use hadal_types::{DType, Sym};
use proptest::prelude::*;

/// Those for registers of four and of sixteen lanes and for warps, for few queries and for any number; the preferred one
/// first.
fn schedules(desc: &Desc) -> Vec<Schedule> {
    let step = Ranges::from([(Sym::T, Range { min: 1, max: STEP })]);
    let wide = Target { lanes: 16, registers: 32, ..Target::default() };
    let mut all: Vec<Schedule> = Vec::new();
    let warp = Target { lanes: 128, ..wide.clone() };
    let any = Ranges::new;
    for (target, ranges) in [
        (Target::default(), any()),
        (wide, any()),
        (Target::default(), step.clone()),
        (warp.clone(), any()),
        (warp, step),
    ] {
        let more = candidates(desc, &ranges, &target);
        all.extend(more.into_iter().filter(|s| all.iter().all(|a| a != s)).collect::<Vec<_>>());
    }
    all
}

/// All schedules agree with the graph interpreter, and compiled with the kernel interpreter.
fn check(text: &str, t: i64, p: i64) -> Vec<String> {
    let func = function(text);
    let bindings = Bindings::from([(Sym::T, t), (Sym::P, p)]);
    let mut args = arguments(&func, &bindings, 5);
    for ints in args.iter_mut().filter_map(|a| match &mut a.data {
        Data::Int(ints) if a.dtype != DType::Bool => Some(ints),
        _ => None,
    }) {
        // Row numbers all over, some of which are no row's.
        ints.iter_mut().for_each(|x| *x = if *x > 2 { *x * 17 % 71 } else { *x });
    }
    check_args(&func, &bindings, &args, true)
}

fn check_args(func: &Func, bindings: &Bindings, args: &[Tensor], finite: bool) -> Vec<String> {
    let expected = interpret::eval_func(func, args, bindings).unwrap();
    // What does not depend on how this kernel is made: the decomposition, as loops. It multiplies hidden rows by zero.
    if finite {
        let general = loops::emit(func, &Target::default()).unwrap();
        let results = interpreted(&general.kernel, func, args, bindings);
        close(&results[0], &expected[0], 1e-5, &|| format!("loops\n{}", general.kernel));
    }
    let desc = Desc::of(func).expect("an attention");
    for s in schedules(&desc) {
        let kernel = emit::emit(&desc, &s);
        let errors = verify(&kernel);
        assert!(errors.is_empty(), "{errors:?}\n{kernel}");
        let results = interpreted(&kernel, func, args, bindings);
        let what = || format!("{}\n{desc}\n{kernel}", s.show(&desc));
        close(&results[0], &expected[0], 1e-5, &what);
        // What is for warps runs on the emulator, in tests of its own.
        if s.tiles.lanes <= 16 {
            compiled(&kernel, func, args, bindings, &results, (true, s.tiles.lanes > 8));
        }
    }
    schedules(&desc).iter().map(|s| s.show(&desc)).collect()
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

/// Rows of 80 columns: `still` of them in a narrow format with scales for every `block`, the others as they are; keys
/// and values.
fn parts(still: i64, block: i64, format: &str, seen: &str) -> Func {
    let scales = (still + block - 1) / block;
    let turning = 80 - still;
    let (more, operand) = if seen.starts_with("selected") { (", %i: i32[T, 40]", ", %i") } else { ("", "") };
    let params =
        format!("%q: f32[T, 6, 80], %k: {format}[P+T, {still}], %s: f8e8m0[P+T, 8], %r: bf16[P+T, {turning}]{more}");
    let body = format!(
        "  %0 = slice %s {{axis = 1, start = 0, len = {scales}}} : f8e8m0[P+T, {scales}]
  %1 = dequantize %k, %0 {{block = [1, {block}]}} : f32[P+T, {still}]
  %2 = cast %r {{to = f32}} : f32[P+T, {turning}]
  %3 = concat %1, %2 {{axis = 1}} : f32[P+T, 80]
  %4 = slice %q {{axis = 2, start = 0, len = {still}}} : f32[T, 6, {still}]
  %5 = slice %q {{axis = 2, start = {still}, len = {turning}}} : f32[T, 6, {turning}]
  %y = attention %4, %1, %5, %2, %3, %q, %3, %3{operand}{operand} {{sets = [\"tha,sa thb,sb sc {seen}\", \"thc,sc sc {seen}\"], output = \"thc\", scale = 0.1}} : f32[T, 6, 80]"
    );
    let body = match operand {
        "" => body,
        // What is seen stands behind each set's values.
        _ => body.replace("%3, %q, %3, %3, %i, %i", "%3, %i, %q, %3, %3, %i"),
    };
    function(&kernel(&params, &body, "f32[T, 6, 80]"))
}

#[test]
fn rows_may_lie_in_parts_with_scales() {
    let (bytes, nibbles) = ("f8e4m3", "f4e2m1");
    for (still, block, format, seen) in [
        (64, 64, bytes, "causal"),
        (48, 16, bytes, "selected:ts"),
        (70, 24, bytes, "all"),
        (13, 5, bytes, "causal"),
        (64, 16, nibbles, "selected:ts"),
        (48, 32, nibbles, "causal"),
    ] {
        let func = parts(still, block, format, seen);
        let desc = Desc::of(&func).expect("an attention");
        assert_eq!(desc.sets[1].terms.len(), 2, "a term for each part\n{desc}");
        assert_eq!(desc.sets[0].values.len(), 2, "{desc}");
        for (t, p) in [(1, 0), (2, 40), (7, 30)] {
            let bindings = Bindings::from([(Sym::T, t), (Sym::P, p)]);
            let args = arguments(&func, &bindings, 5);
            check_args(&func, &bindings, &args, true);
        }
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
    let kernel = emit::emit(&desc, &schedules(&desc)[0]);
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

/// A set of rows: the parameters it takes, as text and as operands, and its letters.
struct Part {
    params: String,
    args: String,
    set: String,
}

/// How the operands of an attention are spelled, and which rows there are.
#[derive(Clone, Debug)]
struct Choice {
    rows: &'static str,
    format: &'static str,
    seen: usize,
    second: bool,
    of_heads: bool,
}

impl Choice {
    /// The set numbered `n`; `own` and `shared` are letters of heads with sizes, `d` and `e` widths.
    fn part(&self, n: usize, own: &str, shared: &str, sizes: &[i64; 4]) -> Part {
        let [g, r, d, e] = sizes;
        let size = |l: char| if l == 'g' { format!("{g}, ") } else { format!("{r}, ") };
        let shape = |letters: &str| letters.chars().map(size).collect::<String>();
        let (heads, keys) = (format!("{own}{shared}"), own);
        let rows = if self.seen == 1 { "P+T" } else { self.rows };
        let (qs, ks, format) = (shape(&heads), shape(keys), self.format);
        let mut params = format!("%q{n}: f32[T, {qs}{d}], %k{n}: {format}[{rows}, {ks}{d}]");
        let (mut terms, mut args) = (format!("t{heads}a,s{keys}a"), format!("%q{n}, %k{n}"));
        if self.second {
            params += &format!(", %r{n}: bf16[T, {qs}5], %l{n}: f32[{rows}, 5]");
            terms += &format!(" t{heads}b,sb");
            args += &format!(", %r{n}, %l{n}");
        }
        params += &format!(", %v{n}: {format}[{rows}, {ks}{e}]");
        args += &format!(", %v{n}");
        let of = if self.of_heads { heads.as_str() } else { "" };
        let sees = shape(of);
        let seen = match self.seen {
            0 => "all".to_owned(),
            1 => "causal".to_owned(),
            2 => {
                params += &format!(", %lo{n}: i32[T], %hi{n}: i64[T, {}]", sees.trim_end_matches(", "));
                args += &format!(", %lo{n}, %hi{n}");
                format!("interval:t,t{of}")
            }
            3 => {
                params += &format!(", %m{n}: bool[T, {sees}{rows}]");
                args += &format!(", %m{n}");
                format!("masked:t{of}s")
            }
            _ => {
                params += &format!(", %i{n}: i32[T, {sees}{}]", [3, 35, 64][self.seen % 3]);
                args += &format!(", %i{n}");
                format!("selected:t{of}s")
            }
        };
        Part { params: params.replace(", ]", "]"), args, set: format!("{terms} s{keys}e {seen}") }
    }
}

/// One to three sets, letters of heads (g: own keys, r: shared ones), sizes and formats.
fn case() -> impl Strategy<Value = (String, i64, i64)> {
    let choice = (
        prop::sample::select(vec!["P+T", "P", "41", "1"]),
        prop::sample::select(vec!["f32", "bf16", "f16"]),
        0usize..7,
        any::<[bool; 2]>(),
    );
    let choice =
        choice.prop_map(|(rows, format, seen, [second, of_heads])| Choice { rows, format, seen, second, of_heads });
    let sizes = [1i64..4, 1i64..10, 1i64..20, 1i64..20];
    (1i64..20, 0i64..70, sizes, prop::collection::vec(choice, 1..4), any::<[bool; 3]>()).prop_map(
        |(t, p, sizes, choices, [own, shared, sink])| {
            let (own, shared) = (if own { "g" } else { "" }, if shared { "r" } else { "" });
            let parts: Vec<Part> = choices.iter().enumerate().map(|(n, c)| c.part(n, own, shared, &sizes)).collect();
            let joined = |f: fn(&Part) -> &str| parts.iter().map(f).collect::<Vec<&str>>();
            let (mut params, mut args) = (joined(|p| &p.params).join(", "), joined(|p| &p.args).join(", "));
            let heads: Vec<String> = [(own, sizes[0]), (shared, sizes[1])]
                .iter()
                .filter(|(l, _)| !l.is_empty())
                .map(|(_, n)| n.to_string())
                .collect();
            if sink {
                params += &format!(", %sink: f32[{}]", heads.join(", "));
                args += ", %sink";
            }
            let sets = joined(|p| &p.set).join("\", \"");
            let result = format!("f32[T, {}{}]", heads.iter().map(|n| format!("{n}, ")).collect::<String>(), sizes[3]);
            let attrs = format!("sets = [\"{sets}\"], output = \"t{own}{shared}e\", scale = 0.4, sink = {sink}");
            let body = format!("  %y = attention {args} {{{attrs}}} : {result}");
            (kernel(&params, &body, &result), t, p)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_attentions((text, t, p) in case()) {
        check(&text, t, p);
    }
}

#[test]
fn selections_of_nothing_of_few_and_of_heads() {
    let set = |seen: &str| {
        let body = format!(
            "  %y = attention %q, %k, %v, %i {{sets = [\"tha,sa sa {seen}\"], output = \"tha\", scale = 0.4}} : f32[T, 4, 8]"
        );
        let ids = if seen.ends_with("ths") { "i32[T, 4, 40]" } else { "i32[T, 40]" };
        kernel(&format!("%q: f32[T, 4, 8], %k: f32[P+T, 8], %v: f32[P+T, 8], %i: {ids}"), &body, "f32[T, 4, 8]")
    };
    for seen in ["selected:ts", "selected:ths"] {
        let func = function(&set(seen));
        for (t, p) in [(1, 0), (3, 2), (2, 60)] {
            let bindings = Bindings::from([(Sym::T, t), (Sym::P, p)]);
            let mut args = arguments(&func, &bindings, 3);
            let shape = args[3].shape.clone();
            let count = shape.iter().product::<usize>() as i64;
            // None at all, fewer than there are places, and one of them many times.
            for ids in [
                vec![-1; count as usize],
                (0..count).map(|i| (i % 40 + i / 40) % 45).collect(),
                vec![0; count as usize],
            ] {
                args[3] = Tensor::int(DType::I32, &shape, ids);
                check_args(&func, &bindings, &args, true);
            }
        }
    }
    let shown = check(&set("selected:ts"), 3, 40);
    assert!(shown[0].contains("1 queries x 4 heads"), "{shown:?}");
    let shown = check(&set("selected:ths"), 3, 40);
    assert!(shown[0].contains("1 queries x 1 heads"), "{shown:?}");
}

#[test]
fn hidden_rows_do_not_count_whatever_they_hold() {
    for seen in ["causal", "interval:t,t", "masked:ts", "selected:ts"] {
        let more = match seen {
            "interval:t,t" => ", %lo: i32[T], %hi: i32[T]",
            "masked:ts" => ", %m: bool[T, P+T]",
            "selected:ts" => ", %i: i32[T, 6]",
            _ => "",
        };
        let operands: String =
            more.split(", ").skip(1).filter_map(|p| p.split(':').next()).fold(String::new(), |s, p| s + ", " + p);
        let body = format!(
            "  %y = attention %q, %k, %v{} {{sets = [\"ta,sa sa {seen}\"], output = \"ta\", scale = 0.4}} : f32[T, 8]",
            operands.split(", ").filter(|p| p.starts_with('%')).fold(String::new(), |s, p| s + ", " + p)
        );
        let func =
            function(&kernel(&format!("%q: f32[T, 8], %k: f32[P+T, 8], %v: f32[P+T, 8]{more}"), &body, "f32[T, 8]"));
        let bindings = Bindings::from([(Sym::T, 4), (Sym::P, 2)]);
        let mut args = arguments(&func, &bindings, 3);
        // The last row is no number; only the last query sees it where all that came before are seen.
        for x in &mut args[1..3] {
            if let Data::Real(values) = &mut x.data {
                values[40..].fill(f64::NAN);
            }
        }
        let ints = |dtype, shape: &[usize], values: &[i64]| Tensor::int(dtype, shape, values.to_vec());
        match seen {
            "interval:t,t" => {
                args[3] = ints(DType::I32, &[4], &[0, 2, -3, 4]);
                args[4] = ints(DType::I32, &[4], &[5, 3, 4, 4]);
            }
            "masked:ts" => {
                let rows = [[1, 1, 1, 1, 1, 0], [0; 6], [0, 0, 1, 0, 0, 0], [1, 0, 1, 0, 1, 0]];
                args[3] = ints(DType::Bool, &[4, 6], rows.as_flattened());
            }
            "selected:ts" => {
                let rows = [[4, -1, 3, -1, 9, -1], [-1; 6], [0, 1, 2, 3, 4, 6], [1, 1, 1, 1, 1, 1]];
                args[3] = ints(DType::I32, &[4, 6], rows.as_flattened());
            }
            _ => {}
        }
        let expected = interpret::eval_func(&func, &args, &bindings).unwrap();
        let desc = Desc::of(&func).unwrap();
        for s in schedules(&desc) {
            let kernel = emit::emit(&desc, &s);
            let found = interpreted(&kernel, &func, &args, &bindings).remove(0).to_f32();
            for (i, x) in found.iter().enumerate().take(24) {
                assert!((expected[0].at(i) - f64::from(*x)).abs() < 1e-5, "{seen}, element {i}: {x}\n{kernel}");
            }
        }
    }
}

#[test]
fn bounds_may_follow_from_the_position() {
    let body = "  %lo = iota {len = T, start = P-4} : i32[T]
  %hi = iota {len = T, start = P+1} : i32[T]
  %y = attention %q, %k, %v, %lo, %hi {sets = [\"tha,sa sa interval:t,t\"], output = \"tha\", scale = 0.4} : f32[T, 4, 8]";
    let text = kernel("%q: f32[T, 4, 8], %k: f32[P+T, 8], %v: f32[P+T, 8]", body, "f32[T, 4, 8]");
    for (t, p) in [(1, 0), (5, 40)] {
        check(&text, t, p);
    }
}
