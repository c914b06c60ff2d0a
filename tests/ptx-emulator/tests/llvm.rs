//! What LLVM 19 prints is read as it is: demoted variables, initialisers, calls, parameters by value, inline text.

mod support;

use ptx_emulator::{Launch, Memory, Module, Options, run};

/// Printed by `llc-19 -mcpu=sm_90a -mattr=+ptx84` from `llvm.ll`.
const TEXT: &str = include_str!("llvm.ptx");

#[test]
fn its_text_runs() {
    support::assemble(TEXT);
    let module = Module::parse(TEXT).unwrap();
    assert_eq!(module.kernels().collect::<Vec<_>>(), ["k"]);
    let mut memory = Memory::new();
    let values: Vec<u8> = [6.0f32, 1.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let data = memory.upload(&values);
    let out = memory.allocate(16);
    let with = Launch { dynamic_shared: 16, ..Launch::new(1, 1) }
        .arg(data)
        .arg(1i32)
        .arg(vec![9u8; 128])
        .arg(vec![0u8, 0x3c])
        .arg(vec![0x80u8, 0x3f])
        .arg(1234u64)
        .arg(out);
    // Dynamic shared memory is read before anything wrote it.
    let fault = run(module.kernel("k").unwrap(), &with, &mut memory, &Options::default()).unwrap_err();
    assert!(fault.place.text.starts_with("ld.shared.u16"), "{fault}");
    // Until there: 6 / 3 = 2, its root 1.41, its floor 1; one added as an integer, then bf16 of 1 + 1 in its low half.
    let bits = memory.read_u32(data, 1).unwrap()[0];
    assert_eq!(bits & 0xffff, 0x4000);
    // 1234 / 10 as 64 bits, and over it the choice between the tables' first elements, which are both 1.
    assert_eq!(memory.read_u32(out, 2), Some(vec![1, 0]));
    let table = module.variable("tab").unwrap();
    assert_eq!(memory.read_u32(table, 4), Some(vec![1, 2, 3, 4]));
}
