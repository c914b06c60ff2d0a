//! Runs a kernel for another processor: a program that is made of nothing but its code and its buffers, in an emulator.
//!
//! The program (ELF, one segment that may be written and run) begins with a few instructions that call the kernel for
//! its whole grid and then write what lies in the buffers to standard output.

use hadal_codegen::processor::CompiledKernel;
use hadal_ir::kernel::Kernel;
use hadal_ir::kernel::interpret::Buffer;
use hadal_types::{Bindings, Dim};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

const EMULATOR: &str = "qemu-aarch64";

/// Where the program lies.
const BASE: u64 = 0x40_0000;

/// Bytes of the two headers of the file.
const HEADERS: usize = 64 + 56;

/// Whether the emulator is installed.
pub fn is_there() -> bool {
    Command::new(EMULATOR).arg("--version").output().is_ok_and(|o| o.status.success())
}

/// Runs `code`, for 64-bit ARM, on the buffers.
pub fn run(kernel: &Kernel, code: &CompiledKernel, symbols: &Bindings, buffers: &mut [Buffer]) -> Result<(), String> {
    let size = |dim: &Dim| dim.eval(symbols).unwrap_or(0).max(0) as u64;
    let grid: u64 = kernel.grid.iter().map(size).product();
    // Headers and stub have a page; then the code.
    let mut image = vec![0u8; 4096];
    image.extend(&code.code);
    let mut place = |bytes: &[u8]| {
        image.resize(image.len().next_multiple_of(64), 0);
        let at = BASE + image.len() as u64;
        image.extend(bytes);
        at
    };
    let values: Vec<u8> = kernel.symbols.iter().flat_map(|s| symbols[s].to_le_bytes()).collect();
    let symbols_at = place(&values);
    let scratch_at = place(&vec![0; size(&code.scratch_bytes) as usize + 64]);
    let places: Vec<u64> = buffers.iter().map(|b| place(&b.bytes)).collect();
    let args_at = place(&places.iter().flat_map(|a| a.to_le_bytes()).collect::<Vec<_>>());
    let written = args_at - places[0];
    let kernel_at = BASE + 4096;

    let mut stub = Stub(Vec::new());
    stub.constant(19, places[0]);
    stub.constant(20, written);
    for (register, value) in [args_at, symbols_at, 0, grid, scratch_at].into_iter().enumerate() {
        stub.constant(register as u32, value);
    }
    stub.call(kernel_at);
    stub.write_and_end();
    for (i, word) in stub.0.iter().enumerate() {
        image[HEADERS + 4 * i..][..4].copy_from_slice(&word.to_le_bytes());
    }
    let headers = headers(image.len() as u64);
    image[..HEADERS].copy_from_slice(&headers);

    let path =
        std::env::temp_dir().join(format!("hadal-emulated-{}-{:?}", std::process::id(), std::thread::current().id()));
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o700).open(&path);
    file.and_then(|mut f| f.write_all(&image)).map_err(|e| format!("{}: {e}", path.display()))?;
    let done = Command::new(EMULATOR).arg(&path).output().map_err(|e| format!("{EMULATOR}: {e}"));
    std::fs::remove_file(&path).map_err(|e| e.to_string())?;
    let done = done?;
    if !done.status.success() || done.stdout.len() as u64 != written {
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        return Err(format!("{}, {} bytes of {written}: {said}", done.status, done.stdout.len()));
    }
    for (buffer, at) in buffers.iter_mut().zip(&places) {
        let from = (at - places[0]) as usize;
        let n = buffer.bytes.len();
        buffer.bytes.copy_from_slice(&done.stdout[from..from + n]);
    }
    Ok(())
}

/// The headers of an ELF program for 64-bit ARM with one segment.
fn headers(bytes: u64) -> Vec<u8> {
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |out: &mut Vec<u8>, x: u16| out.extend(x.to_le_bytes());
    let word = |out: &mut Vec<u8>, x: u32| out.extend(x.to_le_bytes());
    let long = |out: &mut Vec<u8>, x: u64| out.extend(x.to_le_bytes());
    half(&mut out, 2);
    half(&mut out, 183);
    word(&mut out, 1);
    [BASE + HEADERS as u64, 64, 0].into_iter().for_each(|x| long(&mut out, x));
    word(&mut out, 0);
    [64, 56, 1, 64, 0, 0].into_iter().for_each(|x| half(&mut out, x));
    // Loaded whole, to be read, written and run.
    word(&mut out, 1);
    word(&mut out, 7);
    [0, BASE, BASE, bytes, bytes, 4096].into_iter().for_each(|x| long(&mut out, x));
    out
}

/// Instructions, as words.
struct Stub(Vec<u32>);

impl Stub {
    /// Puts a number into a register.
    fn constant(&mut self, register: u32, value: u64) {
        for part in 0..4 {
            let bits = (value >> (16 * part)) as u32 & 0xffff;
            let op = if part == 0 { 0xd280_0000 } else { 0xf280_0000 };
            self.0.push(op | (part as u32) << 21 | bits << 5 | register);
        }
    }

    fn call(&mut self, to: u64) {
        let here = BASE + HEADERS as u64 + 4 * self.0.len() as u64;
        self.0.push(0x9400_0000 | ((to - here) / 4) as u32);
    }

    /// Writes as many bytes as register 20 says from where register 19 points on, and ends the program.
    fn write_and_end(&mut self) {
        self.constant(8, 64);
        self.0.extend([
            0xd280_0020, // x0 = 1, standard output
            0xaa13_03e1, // x1 = x19
            0xaa14_03e2, // x2 = x20
            0xd400_0001, // write
            0xf100_001f, // nothing written?
            0x5400_00ad, // then end, five instructions on
            0x8b00_0273, // x19 += x0
            0xeb00_0294, // x20 -= x0
            0x54ff_ff01, // again while there is more
            0xd280_0000, // x0 = 0
        ]);
        self.constant(8, 93);
        self.0.push(0xd400_0001);
    }
}
