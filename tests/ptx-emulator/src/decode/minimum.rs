//! What the module must state for an instruction to exist.

use crate::error::{ErrorKind, Result};
use crate::syntax::Text;

/// The least version (times ten), the least target, and whether only the `a` target has it.
struct Minimum {
    version: u32,
    target: u32,
    specific: bool,
}

const fn at(version: u32, target: u32) -> Option<Minimum> {
    Some(Minimum { version, target, specific: false })
}

/// The first that matches counts.
fn minimum(words: &[&str]) -> Option<Minimum> {
    let has = |word: &str| words.contains(&word);
    match words {
        ["wgmma", ..] | ["setmaxnreg", ..] => Some(Minimum { version: 80, target: 90, specific: true }),
        ["mma", ..] if has("e4m3") || has("e5m2") => at(84, 89),
        ["mma", ..] if has("bf16") || has("tf32") => at(70, 80),
        ["mma", ..] => at(70, 75),
        ["cvt", ..] if has("e4m3x2") || has("e5m2x2") => at(81, 89),
        ["cvt", ..] if has("bf16x2") || has("tf32") => at(70, 80),
        ["cvt", ..] if has("bf16") && !matches!(words, ["cvt", .., "bf16", "f32"]) => at(78, 90),
        ["cvt", ..] if has("bf16") => at(70, 80),
        ["cp", _, "bulk", ..] | ["cp", "reduce", ..] => at(80, 90),
        ["cp", "async", "mbarrier", ..] => at(70, 80),
        ["cp", ..] => at(70, 80),
        ["stmatrix", ..] => at(78, 90),
        ["ldmatrix", ..] => at(65, 75),
        ["mbarrier", "try_wait", ..] => at(78, 90),
        ["mbarrier", ..] if has("expect_tx") || has("complete_tx") || has("shared::cluster") || has("cluster") => {
            at(80, 90)
        }
        ["mbarrier", "test_wait", "parity", ..] => at(71, 80),
        ["mbarrier", ..] => at(70, 80),
        ["barrier", "cluster", ..] => at(78, 90),
        ["elect", ..] | ["griddepcontrol", ..] => at(if words[0] == "elect" { 80 } else { 78 }, 90),
        ["mapa", ..] | ["getctarank", ..] => at(78, 90),
        ["fence", "proxy", "async", ..] | ["fence", "mbarrier_init", ..] => at(80, 90),
        ["fence", "cluster"] | ["fence", _, "cluster"] => at(78, 90),
        ["redux", ..] => at(70, 80),
        ["activemask", ..] => at(62, 30),
        ["match", ..] => at(60, 70),
        ["tanh", ..] | ["ex2", "approx", "f16" | "f16x2"] => at(70, 75),
        ["fma", ..] if has("bf16") || has("bf16x2") => at(70, 80),
        ["add" | "sub" | "mul", ..] if has("bf16") || has("bf16x2") => at(78, 90),
        ["min" | "max" | "neg" | "abs", ..] if has("bf16") || has("bf16x2") => at(70, 80),
        ["atom" | "red", ..] if has("bf16") || has("bf16x2") => at(78, 90),
        ["dp4a" | "dp2a", ..] => at(50, 61),
        ["szext" | "bmsk", ..] => at(76, 70),
        ["nanosleep", ..] => at(63, 70),
        _ if has("shared::cluster") => at(78, 90),
        _ if has("shared::cta") => at(78, 30),
        _ => None,
    }
}

pub(super) fn check(text: &Text, words: &[&str]) -> Result<()> {
    let Some(Minimum { version, target, specific }) = minimum(words) else { return Ok(()) };
    let fits =
        text.version >= version && text.target >= target && (!specific || text.specific && text.target == target);
    if fits {
        return Ok(());
    }
    let suffix = |specific| if specific { "a" } else { "" };
    Err(ErrorKind::TooNew {
        what: words.join("."),
        needs: format!("PTX {}.{} and sm_{target}{}", version / 10, version % 10, suffix(specific)),
        states: format!(
            "PTX {}.{} and sm_{}{}",
            text.version / 10,
            text.version % 10,
            text.target,
            suffix(text.specific)
        ),
    })
}
