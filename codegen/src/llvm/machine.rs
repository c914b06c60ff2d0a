//! LLVM itself: from the text of a module to an object. All calls into the library are here.

use super::types::{cpu, features, triple};
use crate::processor::Processor;
use inkwell::context::Context;
use inkwell::llvm_sys::LLVMDiagnosticSeverity;
use inkwell::llvm_sys::core::*;
use inkwell::llvm_sys::prelude::LLVMDiagnosticInfoRef;
use inkwell::llvm_sys::target_machine::{LLVMCodeGenOptLevel, LLVMCodeModel, LLVMCreateTargetMachine, LLVMRelocMode};
use inkwell::memory_buffer::MemoryBuffer;
use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{FileType, InitializationConfig, Target, TargetMachine, TargetTriple};
use std::cell::RefCell;
use std::ffi::{CStr, CString};

/// What is done to a module. Kernels come in vectors, unrolled as their schedules say and with loops that test at the
/// bottom: what is left is to fold, to share, and to move out of loops. All of `O2` takes almost twice as long and
/// makes no kernel faster (`docs/perf/cpu-code.md`).
const PASSES: &str = "function(early-cse<memssa>,instcombine<no-verify-fixpoint>,loop-mssa(licm),simplifycfg)";

/// What LLVM makes of a module.
pub(super) struct Made {
    /// A relocatable ELF object.
    pub object: Vec<u8>,
    /// Assembler text, where it was asked for.
    pub assembly: Option<String>,
}

/// Compiles the text of a module.
pub(super) fn compile(text: &str, target: &Processor, assembly: bool) -> Result<Made, String> {
    Session::open(target)?.with_module(text, |session, module| {
        let emit = |file| session.machine.write_to_memory_buffer(module, file).map_err(|e| e.to_string());
        // Making code changes a module, so text is made of a copy.
        let copy = assembly.then(|| module.clone());
        let object = emit(FileType::Object)?.as_slice().to_vec();
        let assembly = match copy {
            Some(copy) => {
                let text = session.machine.write_to_memory_buffer(&copy, FileType::Assembly);
                let text = text.map_err(|e| e.to_string())?;
                Some(String::from_utf8_lossy(text.as_slice()).trim_end_matches('\0').to_string())
            }
            None => None,
        };
        Ok(Made { object, assembly })
    })
}

/// Compiles the text of a module to PTX.
pub(super) fn ptx(text: &str, target: &Processor) -> Result<String, String> {
    Session::open(target)?.with_module(text, |session, module| {
        let ptx = session.machine.write_to_memory_buffer(module, FileType::Assembly).map_err(|e| e.to_string())?;
        Ok(String::from_utf8_lossy(ptx.as_slice()).trim_end_matches('\0').to_string())
    })
}

/// The text of a module after LLVM's passes.
pub(super) fn optimised(text: &str, target: &Processor) -> Result<String, String> {
    Session::open(target)?.with_module(text, |_, module| Ok(module.print_to_string().to_string()))
}

/// A context and a machine to make code for, of one compilation.
struct Session {
    context: Context,
    machine: TargetMachine,
    /// What LLVM has complained about. It also prints, and goes on as if nothing were wrong.
    complaints: Box<RefCell<Vec<String>>>,
}

impl Session {
    fn open(target: &Processor) -> Result<Session, String> {
        let config = InitializationConfig { asm_parser: true, asm_printer: true, ..InitializationConfig::default() };
        Target::initialize_x86(&config);
        Target::initialize_aarch64(&config);
        Target::initialize_nvptx(&config);
        let triple = TargetTriple::create(&triple(target));
        let found = Target::from_triple(&triple).map_err(|e| e.to_string())?;
        let [cpu, features] = [cpu(target).to_string(), features(target)].map(|s| CString::new(s).unwrap_or_default());
        // Constants are near the code: on ARM they are then reached by one instruction, wherever pages begin.
        let model = match target.arch {
            "aarch64" => LLVMCodeModel::LLVMCodeModelTiny,
            _ => LLVMCodeModel::LLVMCodeModelSmall,
        };
        // SAFETY: the target lives for ever, and the strings outlive the call. The library has no safe form with this
        // code model.
        let machine = unsafe {
            let machine = LLVMCreateTargetMachine(
                found.as_mut_ptr(),
                triple.as_ptr(),
                cpu.as_ptr(),
                features.as_ptr(),
                LLVMCodeGenOptLevel::LLVMCodeGenLevelDefault,
                LLVMRelocMode::LLVMRelocPIC,
                model,
            );
            if machine.is_null() {
                return Err(format!("no machine for {}", target.name));
            }
            TargetMachine::new(machine)
        };
        let session = Session { context: Context::create(), machine, complaints: Box::default() };
        let complaints: *const RefCell<Vec<String>> = &*session.complaints;
        // SAFETY: the handler is called only by compilations in this context, which the session drops before the box.
        unsafe { LLVMContextSetDiagnosticHandler(session.context.raw(), Some(heard), complaints.cast_mut().cast()) };
        Ok(session)
    }

    /// Reads and optimises a module and does something with it; fails if LLVM complains on the way.
    fn with_module<T>(
        &self,
        text: &str,
        f: impl FnOnce(&Session, &Module<'_>) -> Result<T, String>,
    ) -> Result<T, String> {
        let buffer = MemoryBuffer::create_from_memory_range_copy(text.as_bytes(), "kernel");
        let module = self.context.create_module_from_ir(buffer).map_err(|e| e.to_string())?;
        module.set_data_layout(&self.machine.get_target_data().get_data_layout());
        module.verify().map_err(|e| e.to_string())?;
        module.run_passes(PASSES, &self.machine, PassBuilderOptions::create()).map_err(|e| e.to_string())?;
        let done = f(self, &module)?;
        let complaints = self.complaints.borrow();
        if complaints.is_empty() { Ok(done) } else { Err(complaints.join("; ")) }
    }
}

/// Keeps what LLVM reports as an error.
extern "C" fn heard(info: LLVMDiagnosticInfoRef, complaints: *mut std::ffi::c_void) {
    // SAFETY: LLVM gives a report that is valid during the call, and what was given to it for this context: a cell
    // that outlives it and is used by one thread.
    unsafe {
        if LLVMGetDiagInfoSeverity(info) != LLVMDiagnosticSeverity::LLVMDSError {
            return;
        }
        let message = LLVMGetDiagInfoDescription(info);
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        LLVMDisposeMessage(message);
        (*complaints.cast::<RefCell<Vec<String>>>()).borrow_mut().push(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(text: &str) -> String {
        match compile(text, &Processor::X86_64_V3, false) {
            Ok(_) => panic!("compiles: {text}"),
            Err(message) => message,
        }
    }

    #[test]
    fn what_llvm_complains_about_is_an_error() {
        let message = fails("define void @f() {\n  call void asm \"nonsense\", \"\"()\n  ret void\n}");
        assert!(message.contains("nonsense"), "{message}");
        assert!(fails("define void @f() { what }").contains("what"));
        let unknown = Processor { arch: "pdp11", ..Processor::X86_64_V3 };
        assert!(compile("", &unknown, false).is_err());
    }
}
