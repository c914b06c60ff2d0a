//! Any text as IR, graph or kernel: refused, or printed again to a text that parses to the same.
#![no_main]

use hadal_ir::{kernel, text, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    if let Ok(module) = text::parse_module(input) {
        let printed = text::print_module(&module);
        let again = text::parse_module(&printed).expect("what is printed parses");
        assert_eq!(printed, text::print_module(&again));
        if let Err(faults) = verify::module(&module) {
            assert!(!faults.to_string().is_empty());
        }
    }
    if let Ok(kernel) = kernel::text::parse(input) {
        let printed = kernel.to_string();
        let again = kernel::text::parse(&printed).expect("what is printed parses");
        assert_eq!(printed, again.to_string());
        assert!(kernel::verify::verify(&kernel).iter().all(|fault| !fault.to_string().is_empty()));
    }
});
