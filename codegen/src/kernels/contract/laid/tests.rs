use super::super::schedule::candidates;
use super::super::tests::{
    OF_BYTES, OF_BYTES_TOLERANCE, arguments, close, compiled, function, interpreted, kernel, of_bytes,
};
use super::super::{Desc, emit, generate};
use super::*;
use crate::kernels::Ranges;
use hadal_ir::{Bindings, Func, Range, Tensor, interpret, panels};
use hadal_types::Sym;

const WIDE: Target = Target { lanes: 16, registers: 32, dots: true, warpgroups: false, cache: 4 * 32 * 64 };
const NO_DOTS: Target = Target { dots: false, ..WIDE };

/// The function that reads panels of all parameters of which it wants them, and how to lay out its arguments.
fn reading(func: &Func, target: &Target) -> (Func, impl Fn(&[Tensor]) -> Vec<Tensor>) {
    let asked = |target: &Target| super::super::panels(func, &Ranges::new(), target);
    let wanted = asked(target);
    // Narrow registers do not want small floats so, but read them.
    let small = func.params.iter().any(|p| func.ty(*p).dtype == DType::F8E4M3);
    let wanted = if small && !target.is_wide() { asked(&WIDE) } else { wanted };
    assert!(!wanted.is_empty());
    let reading = wanted.iter().fold(func.clone(), |f, (p, group)| panels::reading(&f, *p, *group).unwrap());
    let func = func.clone();
    let lay_out = move |args: &[Tensor]| {
        let mut args = args.to_vec();
        for (p, group) in &wanted {
            let fold = panels::fold("lay", func.ty(func.params[*p]), *group).unwrap();
            args[*p] = interpret::eval_func(&fold, &args[*p..=*p], &Bindings::new()).unwrap().remove(0);
        }
        args
    };
    (reading, lay_out)
}

/// Every schedule of every target is the laid form and gives what the graph interpreter gives of weights as they were
/// (the preferred one as machine code too); and those of one target agree to the bit, whatever the ranges.
fn check(text: &str, tokens: &[i64], tolerance: f64) {
    let func = function(text);
    let step = Ranges::from([(Sym::T, Range { min: 1, max: STEP })]);
    for (t, target) in tokens.iter().flat_map(|t| [Target::default(), WIDE, NO_DOTS].map(|target| (*t, target))) {
        let bindings = Bindings::from([(Sym::T, t)]);
        let args = arguments(&func, &bindings, 7 + t as u64);
        let expected = interpret::eval_func(&func, &args, &bindings).unwrap();
        let (reading, lay_out) = reading(&func, &target);
        let args = lay_out(&args);
        let desc = Desc::of(&reading).expect("a product-sum");
        let stepped = desc.clone().within(&step);
        let mut descs = vec![desc.grouped(), Some(desc)];
        if t <= STEP {
            descs.extend([stepped.grouped(), Some(stepped)]);
        }
        let mut bits: Option<Vec<u8>> = None;
        for desc in descs.iter().flatten() {
            let all = candidates(desc, &target);
            assert!(!all.is_empty(), "no schedule for\n{desc}");
            for (i, s) in all.into_iter().enumerate() {
                assert_eq!(s.form, Form::Laid, "{desc}");
                let made = emit::emit(desc, &s);
                let errors = hadal_ir::kernel::verify::verify(&made);
                assert!(errors.is_empty(), "{errors:?}\n{made}");
                let found = interpreted(&made, &reading, &args, &bindings);
                let shown = || format!("T = {t}: {}\n{desc}\n{made}", s.show(desc));
                assert!(found[0].initialised.iter().all(|i| *i), "{}", shown());
                close(&found[0], &expected[0], tolerance, &shown);
                if i == 0 {
                    compiled(&made, &reading, &args, &bindings, &found, (desc.epilogue.is_heavy(), target.is_wide()));
                }
                let first = bits.get_or_insert_with(|| found[0].bytes.clone());
                assert_eq!(*first, found[0].bytes, "{}", shown());
            }
        }
    }
}

fn dense(x: &str, w: &str, n: i64, k: i64) -> String {
    let body = format!(
        "  %0 = contract %x, %w {{spec = \"td,fd->tf\"}} : f32[T, {n}]
%1 = sigmoid %0 : f32[T, {n}]
%y = mul %1, %b : f32[T, {n}]"
    );
    let params = format!("%x: {x}[T, {k}], %w: {w}[{n}, {k}], %b: f32[T, {n}]");
    kernel(&params, &body, &format!("f32[T, {n}]"))
}

#[test]
fn rows_meet_panels() {
    for (x, w, n, k) in [
        ("bf16", "bf16", 32, 70),
        ("bf16", "bf16", 96, 34),
        ("f32", "bf16", 64, 130),
        ("f16", "bf16", 32, 6),
        ("f32", "f32", 64, 35),
        ("bf16", "f32", 32, 17),
    ] {
        check(&dense(x, w, n, k), &[1, 2, 3, 8, 13, 33], 1e-5);
    }
}

#[test]
fn rows_meet_panels_of_experts() {
    for (x, own) in [("bf16", false), ("f32", true)] {
        let (e, k, f, d) = (5, 3, 64, 34);
        let (given, spec) = match own {
            true => (format!("T, {k}, {d}"), "tkd,tkfd->tkf"),
            false => (format!("T, {d}"), "td,tkfd->tkf"),
        };
        let body = format!(
            "  %1 = gather %w, %e {{axis = 0}} : bf16[T, {k}, {f}, {d}]
%2 = contract %x, %1 {{spec = \"{spec}\"}} : f32[T, {k}, {f}]
%y = mul %2, %g : f32[T, {k}, {f}]"
        );
        let params = format!("%x: {x}[{given}], %w: bf16[{e}, {f}, {d}], %e: i32[T, {k}], %g: f32[T, {k}, {f}]");
        check(&kernel(&params, &body, &format!("f32[T, {k}, {f}]")), &[1, 2, 7, 14], 1e-5);
    }
}

/// Rows of heads, and a result whose columns are split and turned.
#[test]
fn columns_may_become_several_axes() {
    let body = "  %0 = contract %x, %w {spec = \"td,fd->tf\"} : f32[T, 96]
%1 = reshape %0 {shape = [T, 3, 32]} : f32[T, 3, 32]
%2 = transpose %1 {perm = [1, 0, 2]} : f32[3, T, 32]
%y = mul %2, %b : f32[3, T, 32]";
    let params = "%x: bf16[T, 34], %w: bf16[96, 34], %b: f32[3, T, 32]";
    check(&kernel(params, body, "f32[3, T, 32]"), &[1, 5, 14], 1e-5);
}

/// Some columns of each of several heads.
#[test]
fn panels_may_be_of_a_part_of_the_columns() {
    let body = "  %0 = reshape %w {shape = [3, 96, 34]} : bf16[3, 96, 34]
%1 = slice %0 {axis = 1, start = 64, len = 32} : bf16[3, 32, 34]
%y = contract %x, %1 {spec = \"td,hfd->thf\"} : f32[T, 3, 32]";
    check(&kernel("%x: bf16[T, 34], %w: bf16[288, 34]", body, "f32[T, 3, 32]"), &[1, 5, 14], 1e-5);
}

/// The first row has the same bits alone, as an entry for one token has it, as among others.
#[test]
fn a_row_has_the_same_bits_in_every_company() {
    let step = Ranges::from([(Sym::T, Range { min: 1, max: STEP })]);
    let plain = |x| dense(x, "bf16", 64, 134);
    let bytes = |codes| of_bytes((codes, 32, None, true), 64, 544, 32);
    for (what, text, target) in [
        ("bf16", plain("bf16"), WIDE),
        ("bf16", plain("bf16"), NO_DOTS),
        ("f32", plain("f32"), WIDE),
        ("bf16", plain("bf16"), Target::default()),
        ("i8", bytes("i8"), WIDE),
        ("i4", bytes("i4"), WIDE),
        ("u4", bytes("u4"), NO_DOTS),
        ("f8e4m3", of_floats("bf16", ("f8e4m3", "f32", false), [128, 128], 64, 384), WIDE),
        ("f8e4m3", of_floats("f32", ("f8e4m3", "f32", false), [32, 32], 64, 96), NO_DOTS),
        ("f32 by u4", of_floats("f32", ("u4", "f16", true), [1, 32], 64, 96), WIDE),
    ] {
        let run = |text: &str, ranges: &Ranges, args: &dyn Fn(&Func) -> Vec<Tensor>, t: i64| {
            let func = function(text);
            let (reading, lay_out) = reading(&func, &target);
            let made = generate(&reading, ranges, &target).unwrap().next().unwrap();
            assert!(made.schedule.starts_with("laid"), "{}", made.schedule);
            let bindings = Bindings::from([(Sym::T, t)]);
            interpreted(&made.kernel, &reading, &lay_out(&args(&func)), &bindings).remove(0).bytes
        };
        let all = |func: &Func| arguments(func, &Bindings::from([(Sym::T, 29)]), 3);
        let many = run(&text, &Ranges::new(), &all, 29);
        for t in [1, 2, 5, 8] {
            let firsts = |func: &Func| {
                let bindings = Bindings::from([(Sym::T, t)]);
                let cut = |(a, p): (&Tensor, &hadal_ir::ValueId)| {
                    let shape = func.ty(*p).eval_shape(&bindings).unwrap();
                    let bytes = a.to_bytes();
                    let wanted = shape.iter().product::<usize>() * bytes.len() / a.len();
                    Tensor::from_bytes(a.dtype, &shape, &bytes[..wanted]).unwrap()
                };
                all(&function(&text)).iter().zip(&func.params).map(cut).collect()
            };
            let few = run(&text, &step, &firsts, t);
            assert_eq!(few, many[..few.len()], "{t} {what}");
            let known = text.replace("[T", &format!("[{t}"));
            assert_eq!(run(&known, &step, &firsts, t), few, "{t} {what}");
        }
    }
}

/// Rows of floats by codes in groups: format of the rows, of the codes and their scales, whether there are offsets, and
/// the block that shares a scale.
fn of_floats(x: &str, (codes, scales, offsets): (&str, &str, bool), block: [i64; 2], n: i64, k: i64) -> String {
    let sizes = format!("{}, {}", (n + block[0] - 1) / block[0], (k + block[1] - 1) / block[1]);
    let (param, operand) = match offsets {
        true => (format!(", %m: {scales}[{sizes}]"), ", %m"),
        false => (String::new(), ""),
    };
    let body = format!(
        "  %1 = dequantize %w, %s{operand} {{block = [{}, {}]}} : f32[{n}, {k}]
  %y = contract %x, %1 {{spec = \"td,fd->tf\"}} : f32[T, {n}]",
        block[0], block[1]
    );
    let params = format!("%x: {x}[T, {k}], %w: {codes}[{n}, {k}], %s: {scales}[{sizes}]{param}");
    kernel(&params, &body, &format!("f32[T, {n}]"))
}

#[test]
fn rows_of_bytes_meet_panels_of_codes() {
    for (i, (codes, widths)) in OF_BYTES.into_iter().enumerate() {
        let [k, block] = widths[i % widths.len()];
        // Among them more rows than a grid index has.
        let tokens = [[1, 9], [2, 33], [8, 13], [5, 7]][i % 4];
        let tokens = if codes.0 == "u4" && codes.2.is_none() { [16, ROWS + 5] } else { tokens };
        check(&of_bytes(codes, [64, 96][i / 4 % 2], k, block), &tokens, OF_BYTES_TOLERANCE);
    }
}

#[test]
fn rows_of_floats_meet_panels_of_codes() {
    for (x, codes, block, n, k) in [
        ("f32", ("i8", "f16", false), [1, 32], 64, 96),
        ("bf16", ("i8", "f32", false), [1, 128], 32, 320),
        ("bf16", ("u8", "f16", true), [1, 64], 96, 128),
        ("f32", ("i4", "f16", false), [1, 32], 32, 160),
        ("bf16", ("u4", "bf16", true), [1, 32], 64, 72),
        ("f32", ("f4e2m1", "f8e8m0", false), [1, 32], 32, 64),
        ("f32", ("i8", "f32", false), [64, 32], 128, 64),
        ("f16", ("i4", "f32", false), [16, 128], 96, 136),
        ("f32", ("f8e4m3", "f32", false), [128, 128], 160, 320),
        ("bf16", ("f8e4m3", "f32", false), [128, 128], 96, 260),
        ("bf16", ("f8e4m3", "f8e8m0", false), [32, 32], 64, 64),
        ("bf16", ("f8e4m3", "f16", false), [1, 128], 32, 128),
        ("f16", ("f8e4m3", "bf16", true), [1, 32], 32, 100),
    ] {
        check(&of_floats(x, codes, block, n, k), &[1, 3, 13], 1e-4);
    }
}

/// Rows and weights of e4m3, with scales of each token and of blocks of columns.
#[test]
fn rows_of_small_floats_meet_panels_of_them() {
    for (block, group, n, k) in [(128, 128, 96, 256), (32, 64, 64, 192)] {
        let body = format!(
            "  %0 = dequantize %x, %xs {{block = [1, {group}]}} : f32[T, {k}]
  %1 = dequantize %w, %s {{block = [{block}, {block}]}} : f32[{n}, {k}]
  %y = contract %0, %1 {{spec = \"td,fd->tf\"}} : f32[T, {n}]"
        );
        let scales = format!("%s: f32[{}, {}]", (n + block - 1) / block, k / block);
        let params = format!("%x: f8e4m3[T, {k}], %xs: f32[T, {}], %w: f8e4m3[{n}, {k}], {scales}", k / group);
        check(&kernel(&params, &body, &format!("f32[T, {n}]")), &[1, 3, 13], 1e-4);
    }
}

/// Every code by itself: columns are codes in turn, the row has one element that is not zero. NaN is NaN.
#[test]
fn all_codes_of_small_floats_are_exact() {
    let func = function(&of_floats("bf16", ("f8e4m3", "f32", false), [1, 32], 256, 32));
    let bindings = Bindings::from([(Sym::T, 1)]);
    for (at, target) in (0..4).flat_map(|at| [Target::default(), WIDE, NO_DOTS].map(|target| (at, target))) {
        let x: Vec<f64> = (0..32).map(|k| f64::from(u8::from(k == at))).collect();
        let codes: Vec<u8> = (0..256 * 32).map(|i| if i % 32 == at { (i / 32) as u8 } else { 0 }).collect();
        let args = [
            Tensor::real(DType::BF16, &[1, 32], x),
            Tensor::from_bytes(DType::F8E4M3, &[256, 32], &codes).unwrap(),
            Tensor::real(DType::F32, &[256, 1], vec![1.0; 256]),
        ];
        let (reading, lay_out) = reading(&func, &target);
        let made = generate(&reading, &Ranges::new(), &target).unwrap().next().unwrap();
        let found = interpreted(&made.kernel, &reading, &lay_out(&args), &bindings).remove(0).bytes;
        for (code, found) in found.chunks(4).enumerate() {
            let found = f32::from_le_bytes(found.try_into().unwrap());
            let expected = hadal_types::minifloat::e4m3_to_f32(code as u8);
            assert!(found == expected || found.is_nan() && expected.is_nan(), "{code}: {found} for {expected}");
        }
    }
}

#[test]
fn rows_meet_panels_of_codes_of_experts() {
    for (codes, bytes, own) in [("i8", true, false), ("i4", true, true), ("u4", false, false), ("f8e4m3", false, true)]
    {
        let (e, k, f, d) = (5, 3, 64, 64);
        let (given, spec) = match own {
            true => (format!("T, {k}"), "tkd,tkfd->tkf"),
            false => ("T".to_owned(), "td,tkfd->tkf"),
        };
        let ones = if own { "1, 1" } else { "1" };
        let (x, quantised) = match bytes {
            true => (
                format!("%x: i8[{given}, {d}], %xs: f32[{given}, {}]", d / 32),
                format!("  %0 = dequantize %x, %xs {{block = [{ones}, 32]}} : f32[{given}, {d}]\n"),
            ),
            false => (format!("%0: f32[{given}, {d}]"), String::new()),
        };
        let body = format!(
            "{quantised}  %1 = dequantize %w, %s {{block = [1, 1, 32]}} : f32[{e}, {f}, {d}]
  %2 = gather %1, %e {{axis = 0}} : f32[T, {k}, {f}, {d}]
  %3 = contract %0, %2 {{spec = \"{spec}\"}} : f32[T, {k}, {f}]
  %y = mul %3, %g : f32[T, {k}, {f}]"
        );
        let scales = format!("%s: f16[{e}, {f}, {}]", d / 32);
        let params = format!("{x}, %w: {codes}[{e}, {f}, {d}], {scales}, %e: i32[T, {k}], %g: f32[T, {k}, {f}]");
        check(&kernel(&params, &body, &format!("f32[T, {k}, {f}]")), &[1, 2, 7, 14], OF_BYTES_TOLERANCE);
    }
}

/// What is summed exactly is the same at all levels, whatever instructions they have.
#[test]
fn products_of_bytes_are_the_same_at_all_levels() {
    for (codes, widths) in OF_BYTES {
        let [k, block] = widths[0];
        let func = function(&of_bytes(codes, 32, k, block));
        let bindings = Bindings::from([(Sym::T, 3)]);
        let args = arguments(&func, &bindings, 11);
        let run = |target: &Target| {
            let (reading, lay_out) = reading(&func, target);
            let made = generate(&reading, &Ranges::new(), target).unwrap().next().unwrap();
            interpreted(&made.kernel, &reading, &lay_out(&args), &bindings).remove(0).bytes
        };
        let all = [Target::default(), WIDE, NO_DOTS].map(|target| run(&target));
        assert!(all.iter().all(|bits| *bits == all[0]), "{codes:?}");
    }
}
