//! Checkpoints of random numbers for any configuration: the tensors that its model expects, in the formats that the
//! configuration announces.
//!
//! The numbers are scaled so that activations keep their size from layer to layer, as in a trained model; with larger
//! ones rounding would drown every comparison. Tensors are made as they are written, so that files larger than memory
//! can be made. The same configuration and seed give the same bytes.

use crate::failure::{Failure, read_text};
use hadal_models::checkpoint::Expected;
use hadal_models::config_reader::Config;
use hadal_models::{BuildOptions, Planned, build};
use hadal_types::DType;
use hadal_types::minifloat::{e4m3_from_f32, e8m0_from_f64};
use half::{bf16, f16};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// End of the names of scales.
const SCALE: &str = "_scale_inv";

/// In which formats tensors are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stored {
    /// As the configuration announces.
    Announced,
    /// Each in any format that a model reads: the experts of a layer differ, and no two layers are alike.
    Mixed,
}

/// Writes a checkpoint for the configuration in the file `config` into the folder `dir`, of as many layers as it says
/// or as are given. Returns the bytes of the weights.
pub fn write_for(config: &Path, layers: Option<u32>, dir: &Path) -> Result<u64, Failure> {
    let fault = |e: String| Failure::input(format!("{}: {e}", config.display()));
    let mut json: Value = serde_json::from_str(&read_text(config)?).map_err(|e| fault(e.to_string()))?;
    if let (Some(n), Some(object)) = (layers, json.as_object_mut()) {
        object.insert("num_hidden_layers".into(), n.into());
    }
    write(dir, &json, Stored::Announced, 1).map_err(|e| fault(e.to_string()))
}

/// Writes `config.json` and `model.safetensors` into the folder `dir`. Returns the bytes of the weights.
pub fn write(dir: &Path, config: &Value, stored: Stored, seed: u64) -> Result<u64, Box<dyn std::error::Error>> {
    std::fs::create_dir_all(dir)?;
    let text = serde_json::to_vec_pretty(config)?;
    std::fs::write(dir.join("config.json"), &text)?;
    let parsed = Config::parse(dir.join("config.json"), &text)?;
    let model = build(&parsed, &Planned, &BuildOptions::default())?;
    let plain = match config["torch_dtype"].as_str() {
        Some("float32") => DType::F32,
        Some("float16") => DType::F16,
        _ => DType::BF16,
    };
    let scale = match config["quantization_config"]["scale_fmt"].as_str() {
        Some("ue8m0") => DType::F8E8M0,
        _ => DType::F32,
    };
    let tensors: Vec<Expected> = model.expected_tensors().into_iter().filter(|t| !t.optional).collect();
    let dtypes: Vec<DType> = match stored {
        Stored::Announced => tensors.iter().map(|t| announced(t, plain, scale)).collect(),
        Stored::Mixed => tensors.iter().map(|t| t.dtypes[Numbers::of(&t.name, !seed).below(t.dtypes.len())]).collect(),
    };

    let (mut header, mut end) = (Map::new(), 0u64);
    for (t, dtype) in tensors.iter().zip(&dtypes) {
        let bytes = dtype.bytes(t.shape.iter().product::<usize>() as u64);
        let offsets = [end, end + bytes];
        header.insert(t.name.clone(), json!({"dtype": format_name(*dtype), "shape": t.shape, "data_offsets": offsets}));
        end += bytes;
    }
    let header = serde_json::to_vec(&header)?;
    let mut out = BufWriter::with_capacity(1 << 20, File::create(dir.join("model.safetensors"))?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (t, dtype) in tensors.iter().zip(&dtypes) {
        fill(t, *dtype, seed, &mut out)?;
    }
    out.flush()?;
    Ok(end)
}

/// The format a tensor is announced in.
fn announced(t: &Expected, plain: DType, scale: DType) -> DType {
    match t.dtypes[..] {
        [only] => only,
        _ if t.name.ends_with(SCALE) => scale,
        _ if t.name.ends_with("e_score_correction_bias") => DType::F32,
        _ => plain,
    }
}

fn format_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::F8E4M3 => "F8_E4M3",
        DType::F8E8M0 => "F8_E8M0",
        _ => "BF16",
    }
}

/// Middle and width of a tensor's numbers.
fn spread(t: &Expected, dtype: DType) -> (f32, f32) {
    let columns = *t.shape.last().unwrap_or(&1) as f32;
    match &t.name {
        // A scale times a number of the quantised weight is as large as a plain weight; every block has 128 columns or
        // fewer, so the exact fan-in matters little.
        n if n.ends_with(SCALE) => (1.5 / (columns * 128.0).sqrt(), 0.7 / (columns * 128.0).sqrt()),
        _ if dtype == DType::F8E4M3 => (0.0, 1.0),
        n if n.contains("norm") => (1.0, 0.3),
        n if n.ends_with("embed_tokens.weight") => (0.0, 1.0),
        n if n.ends_with("bias") => (0.0, 0.2),
        _ => (0.0, 1.7 / columns.sqrt()),
    }
}

fn fill(t: &Expected, dtype: DType, seed: u64, out: &mut impl Write) -> std::io::Result<()> {
    let mut numbers = Numbers::of(&t.name, seed);
    let (middle, width) = spread(t, dtype);
    let mut chunk = Vec::with_capacity(1 << 16);
    for _ in 0..t.shape.iter().product::<usize>() {
        let x = middle + width * numbers.even();
        match dtype {
            DType::F32 => chunk.extend(x.to_le_bytes()),
            DType::F16 => chunk.extend(f16::from_f32(x).to_le_bytes()),
            DType::F8E4M3 => chunk.push(e4m3_from_f32(x)),
            DType::F8E8M0 => chunk.push(e8m0_from_f64(x as f64)),
            _ => chunk.extend(bf16::from_f32(x).to_le_bytes()),
        }
        if chunk.len() >= (1 << 16) - 8 {
            out.write_all(&chunk)?;
            chunk.clear();
        }
    }
    out.write_all(&chunk)
}

/// Numbers that look random and are the same everywhere (SplitMix64).
#[derive(Clone, Debug)]
pub struct Numbers(pub u64);

impl Numbers {
    /// The sequence that belongs to `name`.
    pub fn of(name: &str, seed: u64) -> Numbers {
        // FNV-1a.
        Numbers(name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3)))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next_u64() % n as u64) as usize
    }

    /// Between -1 and 1, evenly.
    pub fn even(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }
}
