//! The loop generator: kernels it makes agree with the graph interpreter.

mod kernels;

use hadal_codegen::kernels::{Error, Target, loops};
use hadal_ir::{Bindings, Func, Sym, text};
use kernels::{check, check_generated, random};
use proptest::prelude::*;

fn func(body: &str) -> Func {
    let text = format!("symbols P in 0..8, T in 1..8\n{body}");
    let module = text::parse_module(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    hadal_ir::verify::module(&module).unwrap_or_else(|e| panic!("{e}\n{text}"));
    module.funcs.into_iter().next().unwrap()
}

fn both(body: &str) -> String {
    let func = func(body);
    for (t, p) in [(1, 0), (3, 0), (2, 5)] {
        check(&func, &Bindings::from([(Sym::T, t), (Sym::P, p)]), 1);
    }
    let generated = loops::emit(&func, &Target::default()).unwrap();
    format!("# {}\n{}", generated.schedule, generated.kernel)
}

/// The kernel's text where results agree.
fn text_of(name: &str, body: &str) -> String {
    both(&format!("kernel @{name}{body}"))
}

#[test]
fn rms_norm() {
    let text = text_of(
        "rms_norm",
        "(%x: f32[T, 40], %w: bf16[40]) -> (y: f32[T, 40]) {
          %1 = rms_norm %x, %w {eps = 1e-6} : f32[T, 40]
          return %1
        }",
    );
    insta::assert_snapshot!(text);
}

#[test]
fn softmax() {
    let text = text_of(
        "softmax",
        "(%x: f32[T, 3, P+T]) -> (y: bf16[T, 3, P+T]) {
          %1 = softmax %x : f32[T, 3, P+T]
          %2 = cast %1 {to = bf16} : bf16[T, 3, P+T]
          return %2
        }",
    );
    insta::assert_snapshot!(text);
}

#[test]
fn selections_leave_places_over() {
    // Logarithms of negative numbers and of zero are never taken.
    for (size, k) in [("P+T", 3), ("P+T", 40), ("70", 9), ("70", 48), ("300", 100), ("5", 9)] {
        let chosen = |rest: &str, result: &str| {
            both(&format!(
                "kernel @k(%x: f32[T, {size}]) -> (y: {result}) {{
                  %0 = log %x : f32[T, {size}]
                  %1 = top_k %0 {{k = {k}}} : i32[T, {k}]
                  {rest}
                  return %y
                }}"
            ))
        };
        chosen(&format!("%y = reshape %1 {{shape = [T, {k}]}} : i32[T, {k}]"), &format!("i32[T, {k}]"));
        chosen(&format!("%y = gather %x, %1 {{axis = 1, batch = 1}} : f32[T, {k}]"), &format!("f32[T, {k}]"));
        chosen(&format!("%y = member %1 {{len = {size}}} : bool[T, {size}]"), &format!("bool[T, {size}]"));
    }
}

#[test]
fn members_of_given_indices() {
    for (len, indices) in [("P+T", "i32[T, 2, 5]"), ("6", "i64[T, 2, P]"), ("1", "i32[T, 2, 40]")] {
        both(&format!(
            "kernel @k(%i: {indices}, %x: f32[T, 2, {len}]) -> (y: f32[T, 2, {len}]) {{
              %0 = member %i {{len = {len}}} : bool[T, 2, {len}]
              %1 = constant {{value = -1.0, dtype = f32}} : f32[]
              %2 = broadcast %1 {{shape = [T, 2, {len}], dims = []}} : f32[T, 2, {len}]
              %3 = select %0, %x, %2 : f32[T, 2, {len}]
              return %3
            }}"
        ));
    }
}

#[test]
fn rope() {
    for (name, interleaved) in [("rope", false), ("rope_interleaved", true)] {
        let text = text_of(
            "rope",
            &format!(
                "(%x: bf16[T, 3, 20], %c: f32[T, 8], %s: f32[T, 8]) -> (y: bf16[T, 3, 20]) {{
          %0 = cast %x {{to = f32}} : f32[T, 3, 20]
          %1 = slice %0 {{axis = 2, start = 0, len = 4}} : f32[T, 3, 4]
          %2 = slice %0 {{axis = 2, start = 4, len = 16}} : f32[T, 3, 16]
          %3 = rope %2, %c, %s {{interleaved = {interleaved}}} : f32[T, 3, 16]
          %4 = concat %1, %3 {{axis = 2}} : f32[T, 3, 20]
          %5 = cast %4 {{to = bf16}} : bf16[T, 3, 20]
          return %5
        }}"
            ),
        );
        insta::assert_snapshot!(name, text);
    }
}

#[test]
fn router() {
    let text = text_of(
        "router",
        "(%x: f32[T, 32], %bias: f32[32]) -> (i: i32[T, 4], w: f32[T, 4]) {
          %0 = sigmoid %x : f32[T, 32]
          %1 = broadcast %bias {shape = [T, 32], dims = [1]} : f32[T, 32]
          %2 = add %0, %1 : f32[T, 32]
          %3 = reshape %2 {shape = [T, 4, 8]} : f32[T, 4, 8]
          %4 = top_k %3 {k = 2} : i32[T, 4, 2]
          %5 = gather %3, %4 {axis = 2, batch = 2} : f32[T, 4, 2]
          %6 = reduce %5 {kind = sum, axes = [2]} : f32[T, 4]
          %7 = top_k %6 {k = 2} : i32[T, 2]
          %8 = iota {len = 4, start = 0} : i32[4]
          %9 = broadcast %8 {shape = [T, 4, 2], dims = [1]} : i32[T, 4, 2]
          %10 = broadcast %7 {shape = [T, 4, 2], dims = [0, 2]} : i32[T, 4, 2]
          %11 = eq %9, %10 : bool[T, 4, 2]
          %12 = reduce %11 {kind = max, axes = [2]} : bool[T, 4]
          %13 = broadcast %12 {shape = [T, 4, 8], dims = [0, 1]} : bool[T, 4, 8]
          %14 = constant {value = -inf, dtype = f32} : f32[]
          %15 = broadcast %14 {shape = [T, 4, 8], dims = []} : f32[T, 4, 8]
          %16 = select %13, %3, %15 : f32[T, 4, 8]
          %17 = reshape %16 {shape = [T, 32]} : f32[T, 32]
          %18 = top_k %17 {k = 4} : i32[T, 4]
          %19 = gather %0, %18 {axis = 1, batch = 1} : f32[T, 4]
          %20 = reduce %19 {kind = sum, axes = [1]} : f32[T]
          %21 = broadcast %20 {shape = [T, 4], dims = [0]} : f32[T, 4]
          %22 = div %19, %21 : f32[T, 4]
          return %18, %22
        }",
    );
    insta::assert_snapshot!(text);
}

#[test]
fn embedding() {
    let text = text_of(
        "embedding",
        "(%table: bf16[50, 24], %ids: i32[T]) -> (y: f32[T, 24]) {
          %0 = gather %table, %ids {axis = 0} : bf16[T, 24]
          %1 = cast %0 {to = f32} : f32[T, 24]
          return %1
        }",
    );
    insta::assert_snapshot!(text);
}

#[test]
fn appends() {
    let text = text_of(
        "appends",
        "(%state: bf16[P, 24], %x: f32[T, 24], %z: f32[T, 24]) -> (s: bf16[P+T, 24], y: f32[T, 24]) {
          %0 = sigmoid %x : f32[T, 24]
          %1 = mul %x, %0 : f32[T, 24]
          %2 = mul %1, %z : f32[T, 24]
          %3 = append %state, %2 : bf16[P+T, 24]
          return %3, %2
        }",
    );
    insta::assert_snapshot!(text);
}

/// Rows of e2m1 with a scale for every block, rounded and appended: several elements are stored at once, whatever the
/// sizes.
#[test]
fn packed_rows() {
    for (n, block) in [(64, 32), (20, 4), (6, 6), (2, 1)] {
        let blocks = n / block;
        both(&format!(
            "kernel @packed(%s: f4e2m1[P, {n}], %x: f32[T, {n}]) -> (s: f4e2m1[P+T, {n}], z: f8e8m0[T, {blocks}], w: f32[T, {n}]) {{
              %0 = reshape %x {{shape = [T, {blocks}, {block}]}} : f32[T, {blocks}, {block}]
              %1 = abs %0 : f32[T, {blocks}, {block}]
              %2 = reduce %1 {{kind = max, axes = [2]}} : f32[T, {blocks}]
              %c = constant {{value = 0.0078125, dtype = f32}} : f32[]
              %3 = broadcast %c {{shape = [T, {blocks}], dims = []}} : f32[T, {blocks}]
              %4 = max %2, %3 : f32[T, {blocks}]
              %5 = pow2_ceil %4 : f32[T, {blocks}]
              %z = cast %5 {{to = f8e8m0}} : f8e8m0[T, {blocks}]
              %6 = broadcast %5 {{shape = [T, {blocks}, {block}], dims = [0, 1]}} : f32[T, {blocks}, {block}]
              %7 = reshape %6 {{shape = [T, {n}]}} : f32[T, {n}]
              %8 = div %x, %7 : f32[T, {n}]
              %9 = append %s, %8 : f4e2m1[P+T, {n}]
              %w = neg %8 : f32[T, {n}]
              return %9, %z, %w
            }}"
        ));
    }
}

#[test]
fn an_odd_number_of_packed_elements_is_refused() {
    let func = func(
        "kernel @k(%x: f32[T, 3]) -> (y: f4e2m1[T, 3]) {
      %0 = cast %x {to = f4e2m1} : f4e2m1[T, 3]
      return %0
    }",
    );
    let error = hadal_codegen::kernels::select(&func, &Default::default(), &hadal_codegen::kernels::Target::default())
        .unwrap_err();
    assert!(error.to_string().contains("a result of f4e2m1 elements, which share bytes"), "{error}");
}

#[test]
fn sinkhorn() {
    both(
        "kernel @mix(%x: f32[T, 4, 4]) -> (y: f32[T, 4, 4]) {
          %0 = sinkhorn %x {rounds = 20, eps = 1e-6} : f32[T, 4, 4]
          return %0
        }",
    );
}

#[test]
fn what_grows_from_a_computed_value_is_written_whole() {
    both(
        "kernel @grow(%x: f32[P, 6], %y: f32[T, 6]) -> (z: f32[P+T, 6]) {
          %0 = neg %x : f32[P, 6]
          %1 = append %0, %y : f32[P+T, 6]
          return %1
        }",
    );
}

#[test]
fn long_rows_are_shared() {
    let text = text_of(
        "gate",
        "(%x: f32[1, 20480], %z: f32[1, 20480]) -> (y: f32[1, 20480]) {
          %0 = sigmoid %x : f32[1, 20480]
          %1 = mul %x, %0 : f32[1, 20480]
          %2 = mul %1, %z : f32[1, 20480]
          return %2
        }",
    );
    insta::assert_snapshot!(text);
}

#[test]
fn dequantized_product() {
    let text = text_of(
        "product",
        "(%x: f32[T, 40], %w: f8e4m3[24, 40], %s: f32[3, 3]) -> (y: f32[T, 24]) {
          %0 = dequantize %w, %s {block = [8, 16]} : f32[24, 40]
          %1 = contract %x, %0 {spec = \"td,fd->tf\"} : f32[T, 24]
          return %1
        }",
    );
    insta::assert_snapshot!(text);
}

/// Rows in groups of which the last is short: the largest magnitude of each, then integers.
#[test]
fn rounded_rows() {
    both(
        "kernel @scales(%x: f32[T, 6, 22]) -> (s: f32[T, 2]) {
          %0 = reshape %x {shape = [T, 132]} : f32[T, 132]
          %1 = constant {value = 0.0, dtype = f32} : f32[]
          %2 = broadcast %1 {shape = [T, 124], dims = []} : f32[T, 124]
          %3 = concat %0, %2 {axis = 1} : f32[T, 256]
          %4 = reshape %3 {shape = [T, 2, 128]} : f32[T, 2, 128]
          %5 = abs %4 : f32[T, 2, 128]
          %6 = reduce %5 {kind = max, axes = [2]} : f32[T, 2]
          return %6
        }",
    );
    both(
        "kernel @codes(%x: f32[T, 132], %s: f32[T, 2]) -> (q: i8[T, 132]) {
          %1 = broadcast %s {shape = [T, 2, 128], dims = [0, 1]} : f32[T, 2, 128]
          %2 = reshape %1 {shape = [T, 256]} : f32[T, 256]
          %3 = slice %2 {axis = 1, start = 0, len = 132} : f32[T, 132]
          %4 = div %x, %3 : f32[T, 132]
          %5 = floor %4 : f32[T, 132]
          %6 = cast %5 {to = i8} : i8[T, 132]
          return %6
        }",
    );
}

#[test]
fn attention() {
    let text = text_of(
        "attention",
        "(%q: f32[T, 2, 8], %k: bf16[P+T, 2, 8], %v: bf16[P+T, 2, 8]) -> (y: f32[T, 2, 8]) {
          %0 = attention %q, %k, %v {sets = [\"thd,shd shd causal\"], output = \"thd\", scale = 0.3} : f32[T, 2, 8]
          return %0
        }",
    );
    insta::assert_snapshot!(text);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_functions(seed in any::<u64>(), steps in 1..12usize, t in 1..=6i64, p in 0..=7i64) {
        let (func, tolerances) = random::function(seed, steps);
        hadal_ir::verify::func(&func).unwrap();
        let generated = loops::emit(&func, &Target::default());
        // A selection that is read everywhere and has two symbolic sizes cannot be held.
        if let Err(Error::Scratch { shape, .. }) = &generated {
            prop_assert!(shape.iter().filter(|d| d.as_const().is_none()).count() > 1);
            return Ok(());
        }
        let generated = generated.unwrap_or_else(|e| panic!("{e}\n{}", text::print_func(&func)));
        for (t, p) in [(t, p), (1, 0)] {
            check_generated(&func, &generated, &Bindings::from([(Sym::T, t), (Sym::P, p)]), seed, &tolerances);
        }
    }
}
