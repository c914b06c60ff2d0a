//! The loop generator: kernels it makes agree with the graph interpreter.

mod kernels;

use hadal_codegen::kernels::{Target, loops};
use hadal_ir::{Bindings, Func, Sym, text};
use kernels::check;

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

#[test]
fn rms_norm() {
    let text = both(
        "kernel @rms_norm(%x: f32[T, 40], %w: bf16[40]) -> (y: f32[T, 40]) {
          %1 = rms_norm %x, %w {eps = 1e-6} : f32[T, 40]
          return %1
        }",
    );
    println!("{text}");
}
