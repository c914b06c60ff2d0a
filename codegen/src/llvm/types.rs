//! How types, constants and targets are written.
//!
//! | lanes of | element |
//! |---|---|
//! | f32, f64 | float, double |
//! | i32, i64 | i32, i64 |
//! | bool | i1 |
//! | bf16, f16 | i16 |
//! | u8, i8, f8, f4 (a nibble a byte) | i8 |
//!
//! On a processor a vector of any number of lanes is a vector of LLVM's: it splits what is wider than registers.

use crate::processor::Processor;
use hadal_ir::kernel::ValueType;
use hadal_types::DType;

/// The type of one lane.
pub(super) fn elem(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float",
        DType::F64 => "double",
        DType::I32 => "i32",
        DType::I64 => "i64",
        DType::Bool => "i1",
        DType::BF16 | DType::F16 => "i16",
        DType::U8 | DType::I8 | DType::F8E4M3 | DType::F8E8M0 | DType::F4E2M1 | DType::U4 | DType::I4 => "i8",
    }
}

/// The type of a value.
pub(super) fn ty(ty: ValueType) -> String {
    vector(elem(ty.elem), ty.lanes)
}

/// `lanes` of a type.
pub(super) fn vector(elem: &str, lanes: u32) -> String {
    if lanes == 1 { elem.to_string() } else { format!("<{lanes} x {elem}>") }
}

/// A type in the name of one of LLVM's functions.
pub(super) fn mangled(ty: ValueType) -> String {
    let elem = match elem(ty.elem) {
        "float" => "f32",
        "double" => "f64",
        int => int,
    };
    if ty.lanes == 1 { elem.to_string() } else { format!("v{}{elem}", ty.lanes) }
}

/// An f32 constant: LLVM writes them as the bits of a double.
pub(super) fn float(x: f32) -> String {
    format!("0x{:016X}", (x as f64).to_bits())
}

/// An f32 constant in every lane.
pub(super) fn floats(lanes: u32, x: f32) -> String {
    if lanes == 1 { float(x) } else { format!("splat (float {})", float(x)) }
}

/// An integer in every lane.
pub(super) fn int(ty: ValueType, x: i64) -> String {
    ints(elem(ty.elem), ty.lanes, x)
}

/// An integer in every one of `lanes` lanes.
pub(super) fn ints(elem: &str, lanes: u32, x: i64) -> String {
    let x = if elem == "i1" { (x & 1 != 0).to_string() } else { x.to_string() };
    if lanes == 1 { x } else { format!("splat ({elem} {x})") }
}

/// A vector constant, without its type.
pub(super) fn list(dtype: DType, items: impl Iterator<Item = String>) -> String {
    let elem = elem(dtype);
    let items: Vec<String> = items.map(|x| format!("{elem} {x}")).collect();
    format!("<{}>", items.join(", "))
}

/// A vector constant with its type.
pub(super) fn list_of(elem: &str, items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.map(|x| format!("{elem} {x}")).collect();
    format!("<{} x {elem}> <{}>", items.len(), items.join(", "))
}

/// Whether bf16 holds every value of a format.
pub(super) fn is_within_bf16(dtype: DType) -> bool {
    match dtype {
        DType::BF16
        | DType::F8E4M3
        | DType::F8E8M0
        | DType::F4E2M1
        | DType::U8
        | DType::I8
        | DType::U4
        | DType::I4
        | DType::Bool => true,
        DType::F16 | DType::F32 | DType::F64 | DType::I32 | DType::I64 => false,
    }
}

/// The name of a target for LLVM.
pub(super) fn triple(target: &Processor) -> String {
    match target.is_gpu() {
        true => "nvptx64-nvidia-cuda".into(),
        false => format!("{}-unknown-linux-gnu", target.arch),
    }
}

/// The processor that a level's code is arranged for.
pub(super) fn cpu(target: &Processor) -> &'static str {
    match target.arch {
        _ if target.is_gpu() => target.name,
        "x86_64" if target.has("avx512f") => "x86-64-v4",
        "x86_64" => "x86-64-v3",
        _ => "generic",
    }
}

/// A level's features as LLVM spells them.
pub(super) fn features(target: &Processor) -> String {
    let spelled = |f: &&str| match *f {
        "bmi1" => "+bmi".to_string(),
        f => format!("+{f}"),
    };
    let told = target.features.iter().filter(|f| **f != target.name);
    told.map(spelled).collect::<Vec<_>>().join(",")
}
