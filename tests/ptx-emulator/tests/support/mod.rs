//! What the tests share: kernels around single instructions, and the assembler's opinion of every text.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use ptx_emulator::{Fault, FaultKind, Launch, Memory, Module, Options, Report, run};

pub const HEADER: &str = ".version 8.4\n.target sm_90a\n.address_size 64\n";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Asks `ptxas`, where the variable `PTXAS` names it, whether a text is PTX.
pub fn assemble(text: &str) {
    let Some(ptxas) = std::env::var_os("PTXAS") else { return };
    let name = format!("ptx-emulator-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let (source, object) = (folder.join("a.ptx"), folder.join("a.cubin"));
    std::fs::write(&source, text).unwrap();
    let output = Command::new(ptxas).args(["-arch=sm_90a", "-o"]).arg(&object).arg(&source).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(output.status.success(), "{said}\n{text}");
}

/// A module of a text without header, which `ptxas` must take too.
pub fn module(text: &str) -> Module {
    let text = format!("{HEADER}{text}");
    assemble(&text);
    Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Runs the only kernel of a module.
pub fn launch(module: &Module, memory: &mut Memory, launch: &Launch, options: &Options) -> Result<Report, Box<Fault>> {
    let name = module.kernels().next().unwrap().to_owned();
    run(module.kernel(&name).unwrap(), launch, memory, options)
}

/// Runs a text that must be right, with some seeds.
pub fn right(text: &str, memory: &Memory, with: &Launch) -> Memory {
    let module = module(text);
    let mut last = memory.clone();
    for seed in 0..50 {
        last = memory.clone();
        let options = Options { seed, ..Options::default() };
        launch(&module, &mut last, with, &options).unwrap_or_else(|f| panic!("seed {seed}: {f}"));
    }
    last
}

/// The fault of a text that must be wrong whatever the seed.
pub fn wrong(text: &str, memory: &Memory, with: &Launch, kinds: &[FaultKind]) -> Box<Fault> {
    let module = module(text);
    let mut found = None;
    for seed in 0..20 {
        let options = Options { seed, ..Options::default() };
        match launch(&module, &mut memory.clone(), with, &options) {
            Ok(_) => panic!("seed {seed} found nothing\n{text}"),
            Err(fault) => {
                assert!(kinds.contains(&fault.kind), "seed {seed}: {fault}");
                found = Some(fault);
            }
        }
    }
    found.unwrap()
}

fn width(ty: &str) -> usize {
    match ty {
        "pred" => 4,
        ty if ty.ends_with("64") => 8,
        ty if ty.ends_with("16") => 2,
        ty if ty.ends_with('8') => 1,
        _ => 4,
    }
}

/// The results of an instruction, in which `d`, `a`, `b` and `c` stand for registers of the given types, for rows
/// of operands. A predicate comes back as 0 or 1.
pub fn apply(instruction: &str, out: &str, ins: &[&str], rows: &[&[u64]]) -> Vec<u64> {
    let mut text = String::from(".visible .entry k(.param .u64 out, .param .u64 in) {\n");
    let mut body = String::new();
    text += ".reg .b64 base, from, at, i;\n.reg .b32 t, flag;\n.reg .pred none;\n";
    text += &format!(".reg .{out} d;\n");
    body += "mov.u32 t, %tid.x;\nld.param.u64 from, [in];\nld.param.u64 base, [out];\n";
    body += &format!("mul.wide.u32 i, t, {};\nadd.s64 from, from, i;\n", 8 * ins.len().max(1));
    for (index, ty) in ins.iter().enumerate() {
        let name = ["a", "b", "c", "e"][index];
        text += &format!(".reg .{ty} {name};\n");
        if *ty == "pred" {
            body += &format!("ld.global.u32 flag, [from+{}];\nsetp.ne.u32 {name}, flag, 0;\n", 8 * index);
        } else {
            body += &format!("ld.global.{ty} {name}, [from+{}];\n", 8 * index);
        }
    }
    body += "mul.wide.u32 i, t, 8;\nadd.s64 at, base, i;\n";
    body += instruction;
    body += "\n";
    if out == "pred" {
        body += "selp.b32 flag, 1, 0, d;\nst.global.u32 [at], flag;\n";
    } else {
        body += &format!("st.global.{out} [at], d;\n");
    }
    text += &body;
    text += "ret;\n}\n";
    let module = module(&text);
    let mut memory = Memory::new();
    let flat: Vec<u8> = rows.iter().flat_map(|r| r.iter().flat_map(|v| v.to_le_bytes())).collect();
    let from = memory.upload(&flat);
    let to = memory.allocate(8 * rows.len());
    let with = Launch::new(1, rows.len() as u32).arg(to).arg(from);
    launch(&module, &mut memory, &with, &Options::default()).unwrap_or_else(|f| panic!("{f}"));
    (0..rows.len())
        .map(|row| {
            let bytes = memory.read(to + 8 * row as u64, width(out)).unwrap();
            let mut wide = [0; 8];
            wide[..bytes.len()].copy_from_slice(&bytes);
            u64::from_le_bytes(wide)
        })
        .collect()
}

/// A generator of numbers for tests.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 ^ self.0 >> 29).wrapping_mul(0xbf58476d1ce4e5b9) ^ self.0 >> 32
    }

    pub fn small(&mut self) -> f32 {
        (self.next() % 17) as f32 - 8.0
    }
}
