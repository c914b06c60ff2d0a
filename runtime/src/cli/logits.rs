//! `logits`: what the model makes of a given sequence, as a safetensors file.

use super::Failure;
use crate::{Error, Pool, Program, Session};
use clap::Args;
use hadal_artifact::Port;
use hadal_types::{DType, Dim, Sym};
use safetensors::tensor::{Dtype, TensorView};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Arguments of `logits`.
#[derive(Args)]
#[command(after_help = "Example:
  ./model logits --tokens 0,17,42 --out logits.safetensors

The file holds `input_ids` (i64[T]) and every output of the entry: for the entry `logits`, f32[T, V] and more; for
`prefill`, f32[1, V] of the last token. An entry that takes one token a call, such as `decode`, is called for one after
the other, and what the last call gave is written.")]
pub struct LogitsArgs {
    /// Token ids, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', required = true)]
    tokens: Vec<u32>,
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Entry to call
    #[arg(long, value_name = "NAME", default_value = "logits")]
    entry: String,
    /// Threads, 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = super::threads())]
    threads: usize,
}

pub(super) fn run(program: Arc<Program>, args: &LogitsArgs) -> Result<(), Failure> {
    let mut session = Session::new(program.clone(), Pool::new(args.threads))?;
    let outputs = evaluate(&mut session, &args.entry, &args.tokens)?;
    let entry = &program.manifest().entries[session.entry(&args.entry)?];

    let ids: Vec<u8> = args.tokens.iter().flat_map(|t| (*t as i64).to_le_bytes()).collect();
    let mut tensors = vec![("input_ids".to_string(), view(Dtype::I64, vec![args.tokens.len()], &ids)?)];
    for (port, output) in entry.outputs.iter().zip(&outputs) {
        let dtype = safetensors_dtype(port.ty.dtype);
        tensors.push((port.name.clone(), view(dtype, output.shape.clone(), &output.bytes)?));
    }
    let file = safetensors::serialize(tensors, None).map_err(cannot_serialize)?;
    write(&args.out, &file).map_err(|source| Failure::Io { what: args.out.display().to_string(), source })
}

/// Writes a file whole or not at all: it gets its name when it is complete. What is there and no plain file (a pipe, a
/// device, a link) is written through.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if path.symlink_metadata().is_ok_and(|m| !m.is_file()) {
        return std::fs::write(path, bytes);
    }
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.part", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// One output of [`evaluate`].
pub(super) struct Output {
    shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// Runs `tokens` through an entry in chunks as large as it takes. Outputs with one row per token are joined; of others
/// the last chunk's stays.
pub(super) fn evaluate(session: &mut Session, name: &str, tokens: &[u32]) -> Result<Vec<Output>, Failure> {
    let program = session.program().clone();
    let entry = session.entry(name)?;
    let described = &program.manifest().entries[entry];
    let takes_tokens = matches!(&described.inputs[..], [Port { ty, .. }] if ty.dtype == DType::I32);
    if !takes_tokens {
        return Err(Error::NoPort { entry: name.to_string(), port: "single input of type i32[T]" }.into());
    }
    let vocab = program.manifest().model.vocab;
    if let Some(token) = tokens.iter().find(|t| **t as u64 >= vocab) {
        return Err(Error::Token { token: *token as i64, vocab }.into());
    }
    let max = program.manifest().model.max_context;
    if tokens.len() as u64 > max {
        return Err(Error::Context { held: 0, new: tokens.len() as u64, max }.into());
    }

    let chunk = described.range(Sym::T).map_or(1, |r| r.hi.max(1)) as usize;
    let mut joined: Vec<Output> = described.outputs.iter().map(|_| Output { shape: vec![], bytes: vec![] }).collect();
    for tokens in tokens.chunks(chunk) {
        let ids: Vec<i32> = tokens.iter().map(|t| *t as i32).collect();
        let (held, new) = (session.held(entry) as i64, tokens.len() as i64);
        let bindings = [(Sym::P, held), (Sym::T, new)].into();
        // Held as u64 so that any element is aligned.
        let mut buffers: Vec<(Vec<u64>, usize)> = described
            .outputs
            .iter()
            .map(|p| hadal_artifact::tensor_bytes(&p.ty, &bindings).unwrap_or(0) as usize)
            .map(|bytes| (vec![0u64; bytes.div_ceil(8)], bytes))
            .collect();
        let mut slices: Vec<&mut [u8]> =
            buffers.iter_mut().map(|(b, n)| &mut bytemuck::cast_slice_mut(b)[..*n]).collect();
        session.run(entry, tokens.len(), &[bytemuck::cast_slice(&ids)], &mut slices)?;
        for ((port, output), bytes) in described.outputs.iter().zip(&mut joined).zip(slices) {
            let shape = port.ty.eval_shape(&bindings).unwrap_or_default();
            let per_token = port.ty.shape.first() == Some(&Dim::from(Sym::T));
            if per_token && !output.shape.is_empty() {
                output.shape[0] += shape[0];
                output.bytes.extend_from_slice(bytes);
            } else {
                *output = Output { shape, bytes: bytes.to_vec() };
            }
        }
    }
    Ok(joined)
}

fn view(dtype: Dtype, shape: Vec<usize>, bytes: &[u8]) -> Result<TensorView<'_>, Failure> {
    TensorView::new(dtype, shape, bytes).map_err(cannot_serialize)
}

fn cannot_serialize(e: safetensors::SafeTensorError) -> Failure {
    Failure::Io { what: "output".to_string(), source: std::io::Error::other(e) }
}

fn safetensors_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::Bool => Dtype::BOOL,
        DType::U8 => Dtype::U8,
        DType::I8 => Dtype::I8,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F8E4M3 => Dtype::F8_E4M3,
        DType::F8E8M0 => Dtype::F8_E8M0,
        DType::F4E2M1 => Dtype::F4,
        // Never of an output: formats of weights alone. Two elements a byte, as there.
        DType::U4 | DType::I4 => Dtype::F4,
    }
}
