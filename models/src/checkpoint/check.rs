//! Comparison of a checkpoint with what a model wants, before any compute.
//!
//! Everything missing, extra, misshapen or of the wrong format is collected first and reported together: a wrong
//! download or a wrong configuration shows as a pattern, which the first error alone would hide.

use super::{Checkpoint, TensorRef, describe};
use crate::error::{Error, Result};
use hadal_types::DType;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::path::PathBuf;

/// Most tensors of one kind that a report prints.
const SHOWN: usize = 20;

/// Ends of names that older exports carry and that models compute for themselves.
const IGNORED: [&str; 3] = [".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias_mask"];

/// A tensor that a model wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expected {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its sizes, outermost first.
    pub shape: Vec<usize>,
    /// The formats that will do.
    pub dtypes: Vec<DType>,
    /// Whether the model does without it.
    pub optional: bool,
}

impl Expected {
    /// A tensor without which the model cannot be.
    pub fn required(name: impl Into<String>, shape: &[usize], dtypes: &[DType]) -> Expected {
        Expected { name: name.into(), shape: shape.into(), dtypes: dtypes.into(), optional: false }
    }

    /// Tensors that may be there and are of no concern: those whose names are `pattern`, in which `*` stands for
    /// anything.
    pub fn passed_over(pattern: impl Into<String>) -> Expected {
        Expected::optional(pattern, &[], &[])
    }

    /// Whether it passes over the tensor `name`.
    fn passes_over(&self, name: &str) -> bool {
        let (start, end) = self.name.split_once('*').unwrap_or((&self.name, ""));
        self.dtypes.is_empty()
            && name.len() >= start.len() + end.len()
            && name.starts_with(start)
            && name.ends_with(end)
    }

    /// A tensor that may be absent.
    pub fn optional(name: impl Into<String>, shape: &[usize], dtypes: &[DType]) -> Expected {
        Expected { optional: true, ..Expected::required(name, shape, dtypes) }
    }
}

/// A tensor that is not there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Its type, as `bf16|f32[64, 32]`.
    pub expected: String,
}

/// A tensor nobody wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its type, as `bf16[64, 32]`.
    pub found: String,
    /// The file that holds it.
    pub file: PathBuf,
}

/// A tensor that is there with another type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// Its name.
    pub name: String,
    /// The type the model wants.
    pub expected: String,
    /// The type it has.
    pub found: String,
    /// The file that holds it.
    pub file: PathBuf,
    /// Whether its shape is the wanted one the other way round.
    pub transposed: bool,
}

/// How a checkpoint and a model's wants compare. [`check`] returns it whole; its text shows the first twenty of a kind.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Folder or file of the checkpoint.
    pub place: PathBuf,
    /// Tensors that are as wanted.
    pub matched: usize,
    /// Bytes of those.
    pub bytes: u64,
    /// Optional tensors that are absent.
    pub absent: Vec<String>,
    /// Tensors passed over: tables that the model computes for itself, and what it has no use for.
    pub ignored: Vec<String>,
    /// Required tensors that are not there.
    pub missing: Vec<Wanted>,
    /// Tensors that the model does not know.
    pub extra: Vec<Found>,
    /// Tensors of another shape.
    pub misshapen: Vec<Wrong>,
    /// Tensors of the right shape in a format that will not do.
    pub wrong_format: Vec<Wrong>,
    /// What the pattern of differences suggests.
    pub hints: Vec<String>,
}

/// Compares every tensor with `expected`: the report, or [`Error::Mismatch`] with it where anything is wrong.
pub fn check(checkpoint: &Checkpoint, expected: &[Expected]) -> Result<Report> {
    let mut report = Report { place: checkpoint.place().into(), ..Report::default() };
    let mut wanted = HashSet::with_capacity(expected.len());
    let patterns: Vec<&Expected> = expected.iter().filter(|e| e.dtypes.is_empty()).collect();
    for want in expected.iter().filter(|e| !e.dtypes.is_empty()) {
        wanted.insert(want.name.as_str());
        match checkpoint.tensor(&want.name) {
            Some(tensor) => report.compare(want, tensor),
            None if want.optional => report.absent.push(want.name.clone()),
            None => report.missing.push(Wanted { name: want.name.clone(), expected: want.describe() }),
        }
    }
    // A packed weight is there once, however it is read.
    let read: HashSet<&str> = wanted.iter().map(|name| checkpoint.origin(name)).collect();
    let extra = |name: &str| !read.contains(name) && checkpoint.origin(name) == name;
    for (name, tensor) in checkpoint.tensors().filter(|(name, _)| extra(name)) {
        match IGNORED.iter().any(|end| name.ends_with(end)) || patterns.iter().any(|p| p.passes_over(name)) {
            true => report.ignored.push(name.into()),
            false => {
                let file = tensor.file.into();
                report.extra.push(Found { name: name.into(), found: tensor.describe(), file });
            }
        }
    }
    report.hints = hints(&report, checkpoint, expected);
    match report.agrees() {
        true => Ok(report),
        false => Err(Error::Mismatch(Box::new(report))),
    }
}

impl Expected {
    fn describe(&self) -> String {
        let formats: Vec<&str> = self.dtypes.iter().map(|d| d.name()).collect();
        describe(formats.join("|"), &self.shape)
    }
}

impl Report {
    /// Whether nothing is wrong.
    pub fn agrees(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.misshapen.is_empty() && self.wrong_format.is_empty()
    }

    fn compare(&mut self, want: &Expected, tensor: TensorRef<'_>) {
        let wrong = || Wrong {
            name: want.name.clone(),
            expected: want.describe(),
            found: tensor.describe(),
            file: tensor.file.into(),
            transposed: tensor.shape != want.shape && tensor.shape.iter().rev().eq(&want.shape),
        };
        if tensor.shape != want.shape {
            self.misshapen.push(wrong());
        } else if !want.dtypes.contains(&tensor.dtype) {
            self.wrong_format.push(wrong());
        } else {
            self.matched += 1;
            self.bytes += tensor.dtype.bytes(tensor.count() as u64);
        }
    }
}

/// What the differences suggest, most telling first.
fn hints(report: &Report, checkpoint: &Checkpoint, expected: &[Expected]) -> Vec<String> {
    let missing = || report.missing.iter().map(|w| w.name.as_str());
    let extra = || report.extra.iter().map(|f| f.name.as_str());
    let mut out = Vec::new();
    if let Some(hint) = prefix_hint(missing, extra) {
        out.push(hint);
    }
    if let Some(layers) = layers_beyond(missing(), checkpoint.tensors().map(|(name, _)| name)) {
        out.push(format!(
            "the checkpoint has no tensor of layers {layers}: is num_hidden_layers in config.json too large?"
        ));
    }
    if let Some(layers) = layers_beyond(extra(), expected.iter().map(|e| e.name.as_str())) {
        out.push(format!(
            "config.json describes no layers {layers}: is num_hidden_layers (or num_nextn_predict_layers) too small?"
        ));
    }
    if missing().any(|n| n.ends_with("lm_head.weight")) {
        out.push(
            "config.json asks for an output head of its own: is `\"tie_word_embeddings\": true` missing there?".into(),
        );
    }
    if extra().any(|n| n.ends_with("lm_head.weight")) {
        out.push("there is an output head, but config.json says that it is shared (tie_word_embeddings)".into());
    }
    let scales = |n: &str| n.ends_with(".weight_scale_inv") || n.ends_with(".scale");
    if missing().any(scales) {
        out.push("config.json declares quantised weights (quantization_config), but scales are missing".into());
    }
    if extra().any(scales) {
        out.push("there are scales of quantised weights, but config.json declares none (quantization_config)".into());
    }
    if let Some(wrong) = report.misshapen.iter().find(|w| w.transposed) {
        out.push(format!("`{}` seems to be transposed; weights are stored as [outputs, inputs]", wrong.name));
    }
    out
}

/// Where what is missing is there under a longer or shorter name.
fn prefix_hint<'a, M, E>(missing: impl Fn() -> M, extra: impl Fn() -> E) -> Option<String>
where
    M: Iterator<Item = &'a str>,
    E: Iterator<Item = &'a str>,
{
    let names: BTreeSet<&str> = extra().collect();
    let wanted = missing().next()?;
    if let Some(longer) = names.iter().find(|n| n.strip_suffix(wanted).is_some_and(|p| p.ends_with('.'))) {
        let prefix = &longer[..longer.len() - wanted.len()];
        return Some(format!("the checkpoint's names begin with `{prefix}`: is it part of a larger model?"));
    }
    let (prefix, rest) = wanted.split_once('.')?;
    names.contains(rest).then(|| format!("the checkpoint's names lack the prefix `{prefix}.`"))
}

/// The layers of `names` beyond the last one in `others`, as `4-7`, unless there are none.
fn layers_beyond<'a>(names: impl Iterator<Item = &'a str>, others: impl Iterator<Item = &'a str>) -> Option<String> {
    let last = others.filter_map(layer_of).max()?;
    let beyond: BTreeMap<usize, ()> = names.filter_map(layer_of).filter(|l| *l > last).map(|l| (l, ())).collect();
    let (first, last) = (beyond.first_key_value()?.0, beyond.last_key_value()?.0);
    Some(if first == last { first.to_string() } else { format!("{first}-{last}") })
}

fn layer_of(name: &str) -> Option<usize> {
    let (_, rest) = name.split_once("layers.")?;
    rest.split('.').next()?.parse().ok()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place.display();
        if self.agrees() {
            return write!(f, "{place}: all {} tensors as expected ({} bytes)", self.matched, self.bytes);
        }
        let (missing, extra) = (self.missing.len(), self.extra.len());
        let (misshapen, formats) = (self.misshapen.len(), self.wrong_format.len());
        write!(f, "{place}: the tensors are not those that config.json describes: {missing} missing, {extra} extra, ")?;
        write!(f, "{misshapen} misshapen, {formats} of a wrong format ({} as expected)", self.matched)?;
        let wrong =
            |w: &Wrong| format!("{}: expected {}, found {} in {}", w.name, w.expected, w.found, w.file.display());
        section(f, "missing", &self.missing, |w| format!("{}: {}", w.name, w.expected))?;
        section(f, "extra", &self.extra, |e| format!("{}: {} in {}", e.name, e.found, e.file.display()))?;
        section(f, "misshapen", &self.misshapen, wrong)?;
        section(f, "wrong format", &self.wrong_format, wrong)?;
        self.hints.iter().try_for_each(|hint| write!(f, "\n  hint: {hint}"))
    }
}

fn section<T>(f: &mut fmt::Formatter<'_>, title: &str, items: &[T], line: impl Fn(&T) -> String) -> fmt::Result {
    for item in items.iter().take(SHOWN) {
        write!(f, "\n  {title}: {}", line(item))?;
    }
    match items.len().checked_sub(SHOWN) {
        None | Some(0) => Ok(()),
        Some(more) => write!(f, "\n  {title}: … and {more} more"),
    }
}
