use super::*;
use crate::verify;

const SAMPLE: &str = r#"symbols P in 0..511, T in 1..512
func @block(%x: f32[T, 8]) -> (y: f32[T, 8]) {
  weight %0 = "mlp.{0..4}.weight" : bf16[4, 8, 8]
  state %1 = "k" : f32[P, 8]
  %2 = append %1, %x : f32[P+T, 8]
  %3 = contract %x, %0 {spec = "td,efd->tf"} : f32[T, 8] from "mlp", "moe" by "gather-contractions", "nest-contractions"
  %4 = constant {value = -inf, dtype = f32} : f32[]
  %5 = iota {len = T, start = P} : i32[T]
  next %1 = %2
  return %3
}
func @main(%x: f32[T, 8]) -> (y: f32[T, 8]) {
  %0 = call @block(%x) at "layers.0." : f32[T, 8]
  return %0
}
entry decode = @main where T = 1
entry prefill = @main where T in 1..512
"#;

#[test]
fn prints_what_it_parsed() {
    let module = parse_module(SAMPLE).unwrap();
    verify::module(&module).unwrap();
    assert_eq!(print_module(&module), SAMPLE);
    assert_eq!(parse_module(&print_module(&module)).unwrap(), module);
}

#[track_caller]
fn fails(from: &str, to: &str, line: usize, message: &str) {
    assert!(SAMPLE.contains(from), "the sample has no {from}");
    let error = parse_module(&SAMPLE.replacen(from, to, 1)).unwrap_err();
    assert!(error.to_string().contains(message), "{error}");
    assert_eq!(error.line, line, "{error}");
}

#[test]
fn errors_have_a_place() {
    fails("append", "apend", 5, "found `apend`");
    fails("%1, %x : f32[P+T", "%1, %z : f32[P+T", 5, "`%z`");
    fails("f32[P+T, 8]", "f32[T, 8]", 5, "type f32[P+T, 8]");
    fails("f32[P+T, 8]", "f33[P+T, 8]", 5, "`f33`");
    fails("\"td,efd->tf\"", "\"td,ed->tf\"", 6, "(C1)");
    fails("spec = ", "spek = ", 6, "`spec` is missing");
    fails("dtype = f32}", "dtype = f32, x = 1}", 7, "unknown attribute `x`");
    fails("%5 =", "%4 =", 8, "defined above");
    fails("next %1", "next %2", 9, "expected a state");
    fails("return %3", "return %4", 2, "the type of the value returned");
    fails("from \"mlp\"", "from \"mlp", 6, "a string without an end");
    fails("func @main", "funk @main", 12, "`funk`");
    fails("T = 1", "T = 99999999999999999999", 16, "too large");
    fails("-> (y", "-> y", 2, "`(`");
}

#[test]
fn hostile_nesting_is_refused() {
    let text = SAMPLE.replacen("-inf", &"[".repeat(100_000), 1);
    assert!(parse_module(&text).unwrap_err().to_string().contains("no deeper list"));
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = parse_module(&text);
        }

        #[test]
        fn no_damage_panics(at in 0..SAMPLE.len(), with in "[ -~]{0,3}", cut in 0..4usize) {
            let mut text = SAMPLE.to_owned();
            text.replace_range(at..(at + cut).min(SAMPLE.len()), &with);
            if let Ok(module) = parse_module(&text) {
                let _ = verify::module(&module);
                prop_assert_eq!(parse_module(&print_module(&module)).map(|m| print_module(&m)), Ok(print_module(&module)));
            }
        }
    }
}
