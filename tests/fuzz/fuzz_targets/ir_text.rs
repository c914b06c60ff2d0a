//! Any text as IR: refused, or printed again to a text that parses to the same.
#![no_main]

use hadal_ir::kernel;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(parsed) = kernel::text::parse(text) {
        let printed = parsed.to_string();
        let again = kernel::text::parse(&printed).expect("what is printed parses");
        assert_eq!(printed, again.to_string());
        let _ = kernel::verify::verify(&parsed);
    }
});
