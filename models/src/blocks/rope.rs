//! Rotary position embedding: tables of cosines and sines for the positions of a call.
//!
//! Pair `i` of a head of size `D` turns by the angle `p · w_i` at position `p`; base frequencies are
//! `w_i = theta^(-2i/D)`. Scalings change the table only (sheets `llama-dense` and `qwen-distill`, "Forward pass"), and
//! act at every position. Frequencies are computed in f32 with the reference's order of operations.

use super::Block;
use crate::config_reader::Object;
use crate::error::Result;
use hadal_ir::module::ValueId;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::{Constant, Rope as RopeOp};
use hadal_types::{DType, Dim, Sym};
use std::f32::consts::TAU;

/// What to make of `rope_scaling.attn_factor`, a key that one release carries and no specification defines.
///
/// DeepSeek-R1-0528-Qwen3-8B has `attn_factor = 1 / (0.1 ln(factor) + 1)`, which cancels the magnitude that YaRN gives
/// cosines and sines by default. Engines disagree: logits scale with the square of that magnitude.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AttnFactor {
    /// Pass over it as transformers does: the magnitude is `0.1 ln(factor) + 1`.
    #[default]
    Ignore,
    /// Multiply the magnitude by it, as vLLM did and llama.cpp does: the product is 1 for that release.
    Apply,
}

/// How frequencies are stretched for longer contexts.
#[derive(Clone, PartialEq, Debug)]
pub enum Scaling {
    /// Not at all.
    None,
    /// `w_i / factor`.
    Linear {
        /// The stretch.
        factor: f32,
    },
    /// Long waves are stretched, short ones kept, those between blended.
    Llama3 {
        /// The stretch.
        factor: f32,
        /// Waves longer than `original / low` are stretched.
        low: f32,
        /// Waves shorter than `original / high` are kept.
        high: f32,
        /// Context length before stretching.
        original: f32,
    },
    /// As llama3, with the blend linear in the index of the pair.
    Yarn {
        /// The stretch.
        factor: f64,
        /// Context length before stretching.
        original: f64,
        /// Pairs that turn more often than this within `original` are kept.
        beta_fast: f64,
        /// Pairs that turn less often than this are stretched.
        beta_slow: f64,
        /// Whether the ends of the blend are rounded outwards to whole pairs.
        truncate: bool,
        /// Factor on cosines and sines.
        magnitude: f64,
    },
}

/// The rotation of heads.
#[derive(Clone, PartialEq, Debug)]
pub struct Rope {
    /// Elements that turn.
    pub dim: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// Stretching.
    pub scaling: Scaling,
    /// Whether pairs are neighbours `(2i, 2i+1)` rather than halves `(i, i + D/2)`.
    pub interleaved: bool,
}

/// Cosines and sines of a call's positions, `[T, D/2]` each.
#[derive(Clone, Copy, Debug)]
pub struct Angles {
    /// Cosines.
    pub cos: ValueId,
    /// Sines.
    pub sin: ValueId,
}

/// YaRN's magnitude: `0.1 · m · ln(factor) + 1`, or 1 where nothing is stretched.
pub fn mscale(factor: f64, m: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 }
}

/// The object that holds the scaling, under its older or its newer name.
pub fn scaling_object<'a>(o: &Object<'a>) -> Result<Option<Object<'a>>> {
    o.optional_object(if o.has("rope_scaling") { "rope_scaling" } else { "rope_parameters" })
}

impl Rope {
    /// Reads `rope_theta` and `rope_scaling` for heads whose first `dim` elements turn.
    pub fn read(o: &Object<'_>, dim: usize, interleaved: bool, attn_factor: AttnFactor) -> Result<Rope> {
        if o.optional_f64("partial_rotary_factor")?.is_some_and(|f| f != 1.0) {
            return Err(o.error("partial_rotary_factor", "1, as whole heads turn in this architecture"));
        }
        let scaling = scaling_object(o)?;
        let theta = match &scaling {
            Some(s) if s.has("rope_theta") => s.require_positive("rope_theta")?,
            _ => o.positive_or("rope_theta", 10000.0)?,
        };
        let scaling = match &scaling {
            Some(s) if s.keys().any(|k| k != "rope_theta") => Scaling::read(s, o, theta, attn_factor)?,
            _ => Scaling::None,
        };
        Ok(Rope { dim, theta, scaling, interleaved })
    }

    /// The frequency of each pair.
    pub fn frequencies(&self) -> Vec<f32> {
        let pairs = 0..self.dim / 2;
        let wave = |i: usize| (self.theta as f32 as f64).powf(((2 * i) as f32 / self.dim as f32) as f64) as f32;
        match self.scaling {
            Scaling::None => pairs.map(|i| 1.0 / wave(i)).collect(),
            Scaling::Linear { factor } => pairs.map(|i| 1.0 / wave(i) / factor).collect(),
            Scaling::Llama3 { factor, low, high, original } => {
                let stretch = |w: f32| {
                    let length = TAU / w;
                    if length < original / high {
                        return w;
                    }
                    if length > original / low {
                        return w / factor;
                    }
                    let keep = (original / length - low) / (high - low);
                    (1.0 - keep) * w / factor + keep * w
                };
                pairs.map(|i| stretch(1.0 / wave(i))).collect()
            }
            Scaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } => {
                // The pair that turns `r` times within the original context.
                let dim = self.dim as f64;
                let pair = |r: f64| dim * (original / (r * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln());
                let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let ramp = |i: usize| ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let blend = |i: usize| {
                    let keep = 1.0 - ramp(i);
                    1.0 / (factor as f32 * wave(i)) * (1.0 - keep) + 1.0 / wave(i) * keep
                };
                pairs.map(blend).collect()
            }
        }
    }

    /// The tables for positions `P .. P+T`.
    pub fn angles(&self, f: &mut Block<'_>) -> Angles {
        let positions = f.within("rope", |f| f.iota(Sym::T, Sym::P));
        self.angles_at(f, positions)
    }

    /// The tables for `positions`, which are integers.
    pub fn angles_at(&self, f: &mut Block<'_>, positions: ValueId) -> Angles {
        f.within("rope", |f| {
            let shape: [Dim; 2] = [f.shape(positions)[0].clone(), (self.dim / 2).into()];
            let positions = f.cast(positions, DType::F32);
            let positions = f.broadcast(positions, &shape, &[0]);
            let frequencies = f.op(Constant::vector(self.frequencies().into_iter().map(f64::from)), &[]);
            let frequencies = f.broadcast(frequencies, &shape, &[1]);
            let angles = f.mul(positions, frequencies);
            let (mut cos, mut sin) = (f.map(MapFn::Cos, &[angles]), f.map(MapFn::Sin, &[angles]));
            if let Scaling::Yarn { magnitude, .. } = self.scaling
                && magnitude != 1.0
            {
                (cos, sin) = (f.mul_scalar(cos, magnitude), f.mul_scalar(sin, magnitude));
            }
            Angles { cos, sin }
        })
    }

    /// `x` with its last `dim` channels turned by its rows' angles.
    pub fn turn_last(&self, f: &mut Block<'_>, x: ValueId, angles: Angles) -> ValueId {
        let axis = f.shape(x).len() - 1;
        let still = f.size(x, axis) - self.dim;
        if still == 0 {
            return self.turn(f, x, angles);
        }
        let (rest, last) = (f.slice(x, axis, 0, still, 1), f.slice(x, axis, still, self.dim, 1));
        let last = self.turn(f, last, angles);
        f.concat(&[rest, last], axis)
    }

    /// `x`, `[T, …, D]`, turned by its rows' angles.
    pub fn turn(&self, f: &mut Block<'_>, x: ValueId, angles: Angles) -> ValueId {
        f.op(RopeOp { interleaved: self.interleaved }, &[x, angles.cos, angles.sin])
    }
}

impl Scaling {
    /// YaRN by `factor` from contexts of `original` tokens, with its further keys in `o`. It changes no magnitude.
    pub fn yarn(o: &Object<'_>, factor: f64, original: usize) -> Result<Scaling> {
        Ok(Scaling::Yarn {
            factor,
            original: original as f64,
            beta_fast: o.positive_or("beta_fast", 32.0)?,
            beta_slow: o.positive_or("beta_slow", 1.0)?,
            truncate: true,
            magnitude: 1.0,
        })
    }

    /// YaRN as `o` describes it, which must be all that it does; a factor of 1 also says that magnitudes are left
    /// alone.
    pub fn only_yarn(o: &Object<'_>) -> Result<Scaling> {
        o.ignore(&["type"]);
        if o.optional_f64("attention_factor")?.is_some_and(|f| f != 1.0) {
            return Err(o.error("attention_factor", "1"));
        }
        o.require_str_in(if o.has("rope_type") { "rope_type" } else { "type" }, &["yarn"])?;
        let original = o.require_usize("original_max_position_embeddings")?;
        Scaling::yarn(o, o.require_positive("factor")?, original)
    }

    /// The same in the spelling of the repositories' own code.
    pub fn own_yarn(o: &Object<'_>) -> Result<Scaling> {
        Scaling::yarn(o, o.require_positive("rope_factor")?, o.require_usize("original_seq_len")?)
    }

    fn read(s: &Object<'_>, o: &Object<'_>, theta: f64, attn_factor: AttnFactor) -> Result<Scaling> {
        // Newer files carry `rope_type` beside or instead of `type`.
        let key = if s.has("rope_type") { "rope_type" } else { "type" };
        s.ignore(&["type"]);
        let kind = s.require_str_in(key, &["default", "linear", "llama3", "yarn"])?;
        if kind == "default" {
            return Ok(Scaling::None);
        }
        let factor = s.require_positive("factor")?;
        if kind == "linear" {
            return Ok(Scaling::Linear { factor: factor as f32 });
        }
        let original = match s.optional_positive("original_max_position_embeddings")? {
            Some(n) => n,
            None => o.require_usize("max_position_embeddings")? as f64,
        };
        if kind == "llama3" {
            let (low, high) = (s.require_positive("low_freq_factor")?, s.require_positive("high_freq_factor")?);
            if low >= high {
                return Err(s.error("high_freq_factor", format!("a number greater than low_freq_factor ({low})")));
            }
            return Ok(Scaling::Llama3 {
                factor: factor as f32,
                low: low as f32,
                high: high as f32,
                original: original as f32,
            });
        }
        if theta <= 1.0 {
            return Err(o.error("rope_theta", "a number greater than 1, which yarn needs"));
        }
        // A magnitude of its own, the ratio of two, or the default.
        let (m, all) = (s.f64_or("mscale", 0.0)?, s.f64_or("mscale_all_dim", 0.0)?);
        let mut magnitude = match s.optional_positive("attention_factor")? {
            Some(given) => given,
            None if m != 0.0 && all != 0.0 => mscale(factor, m) / mscale(factor, all),
            None => mscale(factor, 1.0),
        };
        let attn = s.optional_positive("attn_factor")?;
        if attn_factor == AttnFactor::Apply {
            magnitude *= attn.unwrap_or(1.0);
        }
        Ok(Scaling::Yarn {
            factor,
            original,
            beta_fast: s.positive_or("beta_fast", 32.0)?,
            beta_slow: s.positive_or("beta_slow", 1.0)?,
            truncate: s.bool_or("truncate", true)?,
            magnitude,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(dim: usize, theta: f64, scaling: Scaling) -> Rope {
        Rope { dim, theta, scaling, interleaved: false }
    }

    fn yarn(factor: f64, original: f64) -> Scaling {
        Scaling::Yarn { factor, original, beta_fast: 32.0, beta_slow: 1.0, truncate: true, magnitude: 1.0 }
    }

    #[test]
    fn yarn_keeps_blends_and_stretches_as_the_sheet_says() {
        // Sheet `deepseek-v2`: of 32 frequencies, 0..=10 kept, 11..=22 blended, 23..=31 divided by 40.
        let base = rope(64, 10000.0, Scaling::None).frequencies();
        let scaled = rope(64, 10000.0, yarn(40.0, 4096.0)).frequencies();
        for (i, (w, base)) in scaled.iter().zip(base).enumerate() {
            let ratio = base / w;
            match i {
                0..=10 => assert_eq!(ratio, 1.0, "{i}"),
                11..=22 => assert!(ratio > 1.0 && ratio < 40.0, "{i}: {ratio}"),
                _ => assert!((ratio - 40.0).abs() < 1e-4, "{i}: {ratio}"),
            }
        }
    }

    #[test]
    fn linear_and_llama3_stretch_the_longest_waves() {
        let base = rope(128, 500000.0, Scaling::None).frequencies();
        let linear = rope(128, 500000.0, Scaling::Linear { factor: 4.0 }).frequencies();
        assert!(linear.iter().zip(&base).all(|(l, b)| l * 4.0 == *b));
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        let llama3 = rope(128, 500000.0, scaling).frequencies();
        assert_eq!((llama3[0], llama3[63]), (base[0], base[63] / 8.0));
        assert!(llama3.is_sorted_by(|a, b| a > b));
    }

    #[test]
    fn magnitudes() {
        // Sheet `deepseek-v2`, "Softmax scale".
        assert!((mscale(40.0, 0.707) - 1.2608037774).abs() < 1e-9);
        assert!((mscale(40.0, 1.0) - 1.3688879454).abs() < 1e-9);
        assert_eq!(mscale(1.0, 1.0), 1.0);
    }
}
