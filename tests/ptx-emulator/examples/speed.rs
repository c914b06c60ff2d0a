//! How fast instructions of lanes are executed: arithmetic, shared memory with barriers, global memory.
//!
//! `cargo run --release -p ptx-emulator --example speed`

use std::time::Instant;

use ptx_emulator::{Launch, Memory, Module, Options, run};

const HEADER: &str = ".version 8.4\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 data) {
    .reg .b32 t, i, x, y, s;
    .reg .f32 f, g;
    .reg .b64 p, w;
    .reg .pred more;
    .shared .align 4 .b8 buffer[4096];
    mov.u32 t, %tid.x; mov.u32 i, 0; mov.u32 x, t; cvt.rn.f32.u32 f, t; mov.f32 g, 0f3F800000;
    shl.b32 s, t, 2; mov.u32 y, buffer; add.u32 s, s, y;
    ld.param.u64 p, [data]; mul.wide.u32 w, t, 4; add.s64 p, p, w;
again:\n";

const FOOTER: &str = "    add.u32 i, i, 1;
    setp.lt.u32 more, i, 2000;
    @more bra again;
    st.global.f32 [p], g;
    st.global.u32 [p], x;
    ret;\n}\n";

fn main() {
    let kernels = [
        (
            "arithmetic",
            "mad.lo.u32 x, x, 5, i; xor.b32 x, x, t; fma.rn.f32 g, g, f, f; shl.b32 y, x, 3; add.s32 x, x, y; min.f32 g, g, f;",
        ),
        (
            "shared memory",
            "st.shared.u32 [s], x; bar.sync 0; ld.shared.u32 y, [s]; add.u32 x, x, y; bar.sync 0; add.u32 x, x, 1;",
        ),
        (
            "global memory",
            "ld.global.u32 y, [p]; add.u32 x, x, y; st.global.u32 [p], x; add.u32 x, x, i; xor.b32 y, x, i;",
        ),
    ];
    for (name, body) in kernels {
        let text = format!("{HEADER}{body}\n{FOOTER}");
        let module = match Module::parse(&text) {
            Ok(module) => module,
            Err(error) => return eprintln!("{error}"),
        };
        for races in [true, false] {
            let mut memory = Memory::new();
            let data = memory.upload(&[0; 4096]);
            let Some(kernel) = module.kernel("k") else { return };
            let options = Options { races, ..Options::default() };
            let start = Instant::now();
            match run(kernel, &Launch::new(1, 256).arg(data), &mut memory, &options) {
                Ok(report) => {
                    let rate = report.lane_instructions as f64 / start.elapsed().as_secs_f64() / 1e6;
                    println!("{name:>14}, races {races:>5}: {rate:.0} million instructions of lanes a second");
                }
                Err(fault) => eprintln!("{fault}"),
            }
        }
    }
}
