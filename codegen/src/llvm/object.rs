//! Takes code and constants out of an object: text first, then constants, at distances that do not change.
//!
//! References from one part to another are worked out here. A reference to anything else would be a call of, or a
//! look at, something outside the blob: it is refused by name.

use object::elf::{
    R_AARCH64_ADR_PREL_LO21, R_AARCH64_CALL26, R_AARCH64_JUMP26, R_AARCH64_LD_PREL_LO19, R_AARCH64_PREL32,
    R_AARCH64_PREL64, R_X86_64_PC32, R_X86_64_PC64, R_X86_64_PLT32,
};
use object::{Architecture, Object, ObjectSection, ObjectSymbol, Relocation, RelocationFlags, RelocationTarget};
use object::{SectionIndex, SectionKind};
use std::collections::HashMap;

/// Why there is no blob.
#[derive(Debug)]
pub(super) enum Fault {
    /// The code refers to this, outside itself.
    Foreign(String),
    /// The object is not what was expected.
    Broken(String),
}

/// Position-independent code whose entry is its first byte.
pub(super) fn code(object: &[u8]) -> Result<Vec<u8>, Fault> {
    let broken = |e: object::Error| Fault::Broken(e.to_string());
    let file = object::File::parse(object).map_err(broken)?;
    let mut blob = Vec::new();
    let mut places: HashMap<SectionIndex, u64> = HashMap::new();
    let parts = |kind: fn(SectionKind) -> bool| file.sections().filter(move |s| kind(s.kind()) && s.size() > 0);
    let text = parts(|k| k == SectionKind::Text);
    let constants = parts(|k| matches!(k, SectionKind::ReadOnlyData | SectionKind::ReadOnlyDataWithRel));
    let sections: Vec<_> = text.chain(constants.filter(|s| s.name().is_ok_and(|n| !is_note(n)))).collect();
    for section in &sections {
        blob.resize(blob.len().next_multiple_of(section.align().clamp(1, 64) as usize), 0);
        places.insert(section.index(), blob.len() as u64);
        blob.extend(section.data().map_err(broken)?);
    }
    if sections.first().is_none_or(|s| s.kind() != SectionKind::Text) {
        return Err(Fault::Broken("there is no code".into()));
    }
    if let Some(s) =
        file.sections().find(|s| s.kind() == SectionKind::Data || s.kind() == SectionKind::UninitializedData)
        && s.size() > 0
    {
        return Err(Fault::Foreign(s.name().unwrap_or("variables").to_string()));
    }
    for section in &sections {
        for (offset, relocation) in section.relocations() {
            let at = places[&section.index()] + offset;
            let target = target(&file, &places, &relocation)?;
            let distance = (target as i64).wrapping_add(relocation.addend()).wrapping_sub(at as i64);
            apply(file.architecture(), &relocation, &mut blob, at as usize, distance)?;
        }
    }
    Ok(blob)
}

/// Sections that describe code to others.
fn is_note(name: &str) -> bool {
    name.starts_with(".eh_frame") || name.starts_with(".note") || name.starts_with(".comment")
}

/// Where in the blob a relocation refers to.
fn target(file: &object::File, places: &HashMap<SectionIndex, u64>, r: &Relocation) -> Result<u64, Fault> {
    let broken = |e: object::Error| Fault::Broken(e.to_string());
    match r.target() {
        RelocationTarget::Symbol(index) => {
            let symbol = file.symbol_by_index(index).map_err(broken)?;
            let place = symbol.section_index().and_then(|s| places.get(&s));
            let name = || symbol.name().unwrap_or("a symbol without a name").to_string();
            place.map(|p| p + symbol.address()).ok_or_else(|| Fault::Foreign(name()))
        }
        RelocationTarget::Section(index) => {
            places.get(&index).copied().ok_or_else(|| Fault::Foreign("another section".into()))
        }
        other => Err(Fault::Foreign(format!("{other:?}"))),
    }
}

/// Writes a distance where and as a relocation says.
fn apply(arch: Architecture, r: &Relocation, blob: &mut [u8], at: usize, distance: i64) -> Result<(), Fault> {
    let RelocationFlags::Elf { r_type } = r.flags() else {
        return Err(Fault::Broken("not an ELF relocation".into()));
    };
    let far = || Fault::Broken(format!("relocation {r_type} reaches {distance} bytes"));
    let size = if matches!(
        (arch, r_type),
        (Architecture::X86_64, R_X86_64_PC64) | (Architecture::Aarch64, R_AARCH64_PREL64)
    ) {
        8
    } else {
        4
    };
    let slot = blob.get_mut(at..at + size).ok_or_else(|| Fault::Broken("a relocation beyond the code".into()))?;
    // ARM's distances are put into instructions: so many bits, in words of so many bytes, that far up.
    let mut field = |bits: u32, unit: i64, up: u32| {
        let (words, limit) = (distance / unit, 1i64 << (bits - 1));
        if distance % unit != 0 || !(-limit..limit).contains(&words) {
            return Err(far());
        }
        let mask = (1u32 << bits) - 1;
        let old = u32::from_le_bytes([slot[0], slot[1], slot[2], slot[3]]);
        let new = old & !(mask << up) | ((words as u32 & mask) << up);
        slot.copy_from_slice(&new.to_le_bytes());
        Ok(())
    };
    match (arch, r_type) {
        (Architecture::X86_64, R_X86_64_PC32 | R_X86_64_PLT32) | (Architecture::Aarch64, R_AARCH64_PREL32) => {
            let short = i32::try_from(distance).map_err(|_| far())?;
            slot.copy_from_slice(&short.to_le_bytes());
        }
        (Architecture::X86_64, R_X86_64_PC64) | (Architecture::Aarch64, R_AARCH64_PREL64) => {
            slot.copy_from_slice(&distance.to_le_bytes());
        }
        (Architecture::Aarch64, R_AARCH64_CALL26 | R_AARCH64_JUMP26) => field(26, 4, 0)?,
        (Architecture::Aarch64, R_AARCH64_LD_PREL_LO19) => field(19, 4, 5)?,
        (Architecture::Aarch64, R_AARCH64_ADR_PREL_LO21) => {
            if !(-(1 << 20)..1 << 20).contains(&distance) {
                return Err(far());
            }
            // The two lowest bits stand apart.
            let old = u32::from_le_bytes([slot[0], slot[1], slot[2], slot[3]]);
            let (low, high) = (distance as u32 & 3, (distance >> 2) as u32 & 0x7_ffff);
            let new = old & !(3 << 29 | 0x7_ffff << 5) | low << 29 | high << 5;
            slot.copy_from_slice(&new.to_le_bytes());
        }
        _ => return Err(Fault::Foreign(format!("what relocation {r_type} means"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llvm::machine;
    use crate::processor::Processor;

    fn code_of(text: &str, target: &Processor) -> Result<Vec<u8>, Fault> {
        let triple = super::super::types::triple(target);
        let made = machine::compile(&format!("target triple = \"{triple}\"\n{text}"), target, false);
        code(&made.unwrap_or_else(|e| panic!("{e}")).object)
    }

    #[test]
    fn references_to_elsewhere_are_refused() {
        for target in Processor::LEVELS {
            let call = "declare void @elsewhere()\ndefine void @f() {\n  call void @elsewhere()\n  ret void\n}";
            let read = "@far = external global i32\ndefine i32 @f() {\n  %x = load i32, ptr @far\n  ret i32 %x\n}";
            let variable = "@x = global i32 1\ndefine i32 @f() {\n  %x = load i32, ptr @x\n  ret i32 %x\n}";
            for text in [call, read, variable] {
                let refused = code_of(text, &target);
                assert!(matches!(refused, Err(Fault::Foreign(_))), "{}: {refused:?}\n{text}", target.name);
            }
            assert!(matches!(code_of("", &target), Err(Fault::Broken(_))));
        }
        assert!(matches!(code(b"not an object"), Err(Fault::Broken(_))));
    }

    #[test]
    fn constants_come_after_the_code() {
        let text = "define <4 x i32> @f(<4 x i32> %x) {\n  %y = add <4 x i32> %x, <i32 1, i32 20, i32 300, i32 4000>\n  ret <4 x i32> %y\n}";
        let constant: Vec<u8> = [1u32, 20, 300, 4000].into_iter().flat_map(u32::to_le_bytes).collect();
        for target in Processor::LEVELS {
            let blob = code_of(text, &target).unwrap_or_else(|e| panic!("{e:?}"));
            let at = blob.windows(16).position(|w| w == constant).expect("the constant is in the blob");
            assert!(at > 0 && at.is_multiple_of(16), "{at}");
        }
        // The distance in the code is that to the constant: `vpaddd xmm0, xmm0, [rip + distance]; ret`.
        let blob = code_of(text, &Processor::X86_64_V3).unwrap_or_else(|e| panic!("{e:?}"));
        let at = blob.windows(16).position(|w| w == constant).unwrap_or_default();
        let distance = i32::from_le_bytes([blob[4], blob[5], blob[6], blob[7]]);
        assert_eq!(8 + distance as usize, at, "{blob:x?}");
    }
}
