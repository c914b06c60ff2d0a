//! `hadal predict`: what a model should take on a machine, before there is any code for that machine.

use crate::driver::{Options, build_model, pass_options, target};
use crate::failure::Failure;
use crate::input::Input;
use crate::roofline::{Step, state_elements, step};
use crate::units::{bytes, count, grouped, seconds};
use hadal_ir::target::Target;
use hadal_models::Model;
use hadal_types::DType;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;

/// Predict time, work and traffic of prefill and decode on a machine, for a set of contexts and batches.
///
/// For each context the graph is optimised anew, for the machine and for calls of that length, and cut into kernels.
/// Prefill is one chunk that ends at the context, decode one token for each sequence of the batch.
///
/// The model is a roofline: each kernel takes the longer of its operations at the machine's peak and its bytes at the
/// machine's bandwidth, plus a fixed launch cost, and kernels follow one another. Weights are read once a step however
/// many sequences there are (of experts: the expected number of different ones, all equally likely); states and
/// everything that kernels hand on are moved once for each sequence, in the formats that hadal compiles for now (f32).
///
/// It is not a measurement, and no bound either. Nothing overlaps, no cache keeps anything between kernels, no kernel
/// falls short of the peak, and that peak is one figure for all formats. There is one machine, with room for everything:
/// whether the weights and states fit into it is not checked. Forms are chosen for one sequence, whatever the batch.
#[derive(clap::Args)]
#[command(
    after_help = "Example: hadal predict tests/fixtures/configs/deepseek-r1.json --target h200 --context 4k,128k"
)]
pub struct Args {
    /// A checkpoint folder or a bare config.json.
    path: PathBuf,
    /// The machine: cpu, h100, h200, h800 or b200.
    #[arg(long, default_value = "cpu")]
    target: String,
    /// Tokens in the context, the new ones included: numbers with k (1024) or m (1024²), or a doubling range `4k..1m`.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "4k", value_parser = contexts)]
    context: Vec<Contexts>,
    /// Sequences decoded at once.
    #[arg(long, value_name = "SEQUENCES", value_delimiter = ',', default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: Vec<u32>,
    /// Tokens of a prefill chunk; less where the context is shorter.
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    chunk: u32,
    /// Draw the time of a decode step against the context.
    #[arg(long, conflicts_with = "json")]
    plot: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What one item of `--context` stands for.
#[derive(Clone, PartialEq, Debug)]
struct Contexts(Vec<usize>);

/// Longest context, as for `--max-context`.
const MAX_CONTEXT: usize = 1 << 24;

fn contexts(text: &str) -> Result<Contexts, String> {
    let Some((first, last)) = text.split_once("..") else { return Ok(Contexts(vec![tokens(text)?])) };
    let (first, last) = (tokens(first)?, tokens(last)?);
    if first > last {
        return Err("the range is empty".into());
    }
    Ok(Contexts(std::iter::successors(Some(first), |n| Some(n * 2)).take_while(|n| *n <= last).collect()))
}

/// `4096`, `4k`, `1m`.
fn tokens(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((i, 'k' | 'K')) => (&text[..i], 1 << 10),
        Some((i, 'm' | 'M')) => (&text[..i], 1 << 20),
        _ => (text, 1),
    };
    let n = digits.parse::<usize>().ok().and_then(|n| n.checked_mul(unit));
    n.filter(|n| (1..=MAX_CONTEXT).contains(n)).ok_or_else(|| format!("expected 1 to {MAX_CONTEXT} tokens"))
}

/// The inverse of [`tokens`].
fn short(n: usize) -> String {
    match n {
        n if n.is_multiple_of(1 << 20) => format!("{}m", n >> 20),
        n if n.is_multiple_of(1 << 10) => format!("{}k", n >> 10),
        n => n.to_string(),
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let target = target(&args.target)?;
    let input = Input::open(&args.path)?;
    let mut contexts: Vec<usize> = args.context.iter().flat_map(|c| &c.0).copied().collect();
    let mut batches: Vec<usize> = args.batch.iter().map(|b| *b as usize).collect();
    for list in [&mut contexts, &mut batches] {
        list.sort_unstable();
        list.dedup();
    }
    let prediction = Prediction::new(&input, target, &contexts, &batches, args.chunk as usize)?;
    prediction.note();
    match args.json {
        true => say!("{:#}", prediction.json()),
        false if args.plot => say!("{}\n\n{}", prediction.table(), prediction.plot()),
        false => say!("{}", prediction.table()),
    }
}

/// What the command finds out.
struct Prediction {
    model: Model,
    target: Target,
    at: Vec<Context>,
}

/// The same for one context.
struct Context {
    tokens: usize,
    /// State elements of one sequence, by compiled format.
    state: Vec<(DType, u64)>,
    phases: Vec<Phase>,
}

/// One kind of call.
struct Phase {
    name: &'static str,
    tokens: usize,
    batch: usize,
    step: Step,
}

impl Prediction {
    fn new(
        input: &Input,
        target: Target,
        contexts: &[usize],
        batches: &[usize],
        chunk: usize,
    ) -> Result<Prediction, Failure> {
        let longest = contexts.iter().copied().max().unwrap_or(1);
        let options = Options { max_context: Some(longest), max_chunk: chunk, ..Options::default() };
        let model = build_model(input, &options)?;
        let at = contexts.iter().map(|n| Context::new(&model, &target, *n, batches, chunk.min(*n)));
        Ok(Prediction { at: at.collect::<Result<_, _>>()?, model, target })
    }

    /// Says on standard error where more is asked for than the model was made for.
    fn note(&self) {
        let (longest, limit) = (self.at.iter().map(|c| c.tokens).max().unwrap_or(0), self.model.max_position);
        if longest > limit {
            eprintln!("note: a context of {longest} is beyond the {limit} tokens that the model was made for");
        }
    }

    fn table(&self) -> String {
        let t = &self.target;
        let mut out = format!("{} ({})\n", self.model.name, self.model.why);
        let peaks = t.flops.list().into_iter().map(|(name, peak)| format!("{}FLOP/s in {name}", count(peak)));
        let (flops, bandwidth) = (peaks.collect::<Vec<_>>().join(", "), bytes(t.bandwidth));
        let launch = seconds(t.launch_seconds);
        _ = writeln!(out, "on {}: {flops}, {bandwidth}/s, {launch} a launch; a roofline, not a measurement", t.name);
        if let Some(c) = self.at.first() {
            let n = c.tokens as u64;
            let (bf16, compiled) = (grouped(c.state_bf16() / n), grouped(c.state_compiled() / n));
            _ = writeln!(out, "state a token: {bf16} B in bf16, {compiled} B as compiled ({})", c.formats());
        }
        let head = ["context", "phase", "tokens", "batch", "time", "tokens/s", "FLOP", "weights", "state read"];
        let more = ["other", "state, bf16", "compiled", "bound by"];
        let mut rows = vec![head.iter().chain(&more).map(|s| (*s).to_owned()).collect::<Vec<_>>()];
        for c in &self.at {
            rows.extend(c.phases.iter().map(|p| c.row(p)));
        }
        let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
        for row in &rows {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:>w$}")).collect();
            out += "\n";
            out += &cells.join("  ");
        }
        out
    }

    fn plot(&self) -> String {
        const CELLS: f64 = 50.0;
        let bars = self.at.iter().flat_map(|c| c.phases.iter().filter(|p| p.name == "decode").map(move |p| (c, p)));
        let bars: Vec<(String, f64)> =
            bars.map(|(c, p)| (format!("{:>6} ×{:<5}", short(c.tokens), p.batch), p.step.seconds())).collect();
        let most = bars.iter().map(|(_, s)| *s).fold(0.0, f64::max);
        let mut out = "seconds of a decode step, by context × batch".to_owned();
        for (label, s) in bars {
            _ = write!(out, "\n{label} {} {}", bar(CELLS * s / most), seconds(s));
        }
        out
    }

    fn json(&self) -> Value {
        let t = &self.target;
        json!({
            "architecture": self.model.name,
            "why": self.model.why,
            "method": "roofline: no overlap, no cache between kernels, a fixed cost a launch",
            "target": {"name": t.name, "flops": t.flops.list().into_iter().collect::<std::collections::BTreeMap<_, _>>(), "bandwidth": t.bandwidth, "launch_seconds": t.launch_seconds},
            "contexts": self.at.iter().map(Context::json).collect::<Vec<_>>(),
        })
    }
}

impl Context {
    fn new(
        model: &Model,
        target: &Target,
        context: usize,
        batches: &[usize],
        chunk: usize,
    ) -> Result<Context, Failure> {
        let options = hadal_passes::Options { typical_context: context as i64, ..pass_options(model) };
        let (_, program) =
            hadal_passes::compile(&model.module, target, &options).map_err(|e| Failure::internal("optimising", e))?;
        let phase = |name, tokens: usize, batch| {
            let step = step(&program, name, target, (tokens, context - tokens), batch)?;
            Some(Phase { name, tokens, batch, step })
        };
        let decode = batches.iter().filter_map(|b| phase("decode", 1, *b));
        Ok(Context {
            tokens: context,
            state: state_elements(&program, "decode", context),
            phases: phase("prefill", chunk, 1).into_iter().chain(decode).collect(),
        })
    }

    fn state_bf16(&self) -> u64 {
        DType::BF16.bytes(self.state.iter().map(|(_, n)| n).sum())
    }

    fn state_compiled(&self) -> u64 {
        self.state.iter().map(|(d, n)| d.bytes(*n)).sum()
    }

    fn formats(&self) -> String {
        self.state.iter().map(|(d, _)| d.name()).collect::<Vec<_>>().join(", ")
    }

    fn row(&self, p: &Phase) -> Vec<String> {
        let s = &p.step;
        let speed = (p.tokens * p.batch) as f64 / s.seconds();
        vec![
            short(self.tokens),
            p.name.to_owned(),
            p.tokens.to_string(),
            p.batch.to_string(),
            seconds(s.seconds()),
            count(speed),
            count(s.flops),
            bytes(s.weight_bytes),
            bytes(s.state_bytes_read),
            bytes(s.state_bytes_written + s.activation_bytes),
            bytes(self.state_bf16() as f64),
            bytes(self.state_compiled() as f64),
            s.bound().to_owned(),
        ]
    }

    fn json(&self) -> Value {
        let phase = |p: &Phase| {
            let s = &p.step;
            json!({
                "phase": p.name,
                "tokens": p.tokens,
                "batch": p.batch,
                "seconds": s.seconds(),
                "compute_seconds": s.compute_seconds,
                "memory_seconds": s.memory_seconds,
                "launch_seconds": s.launch_seconds,
                "launches": s.launches,
                "bound": s.bound(),
                "tokens_per_second": (p.tokens * p.batch) as f64 / s.seconds(),
                "flops": s.flops,
                "bytes": s.bytes(),
                "weight_bytes": s.weight_bytes,
                "state_bytes_read": s.state_bytes_read,
                "state_bytes_written": s.state_bytes_written,
                "activation_bytes": s.activation_bytes,
            })
        };
        json!({
            "context": self.tokens,
            "state": {
                "bytes_per_token_bf16": self.state_bf16() / self.tokens as u64,
                "bytes_per_sequence_bf16": self.state_bf16(),
                "bytes_per_sequence_compiled": self.state_compiled(),
                "compiled_format": self.formats(),
            },
            "phases": self.phases.iter().map(phase).collect::<Vec<_>>(),
        })
    }
}

/// A bar of so many cells, in eighths.
fn bar(cells: f64) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = if cells.is_finite() { ((cells * 8.0).round() as usize).max(1) } else { 0 };
    "█".repeat(eighths / 8) + PARTS[eighths % 8]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn predict(config: &str, machine: &str, contexts: &[usize], batches: &[usize]) -> Prediction {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/configs").join(config);
        let input = Input::open(&path).unwrap();
        Prediction::new(&input, target(machine).unwrap(), contexts, batches, 512).unwrap()
    }

    #[test]
    fn contexts_have_suffixes_and_ranges() {
        assert_eq!(tokens("4k"), Ok(4096));
        assert_eq!(tokens("1m"), Ok(1_048_576));
        assert_eq!(tokens("1000"), Ok(1000));
        assert_eq!(contexts("4k..20K"), Ok(Contexts(vec![4096, 8192, 16384])));
        for wrong in ["", "k", "0", "-1", "4g", "17m", "99999999999999999999", "8k..4k", "..", "é"] {
            assert!(contexts(wrong).is_err(), "{wrong}");
        }
        assert_eq!([4096, 1 << 20, 1000].map(short), ["4k", "1m", "1000"]);
    }

    #[test]
    fn v3_is_what_its_sheet_says() {
        let p = predict("deepseek-r1.json", "h200", &[4096, 131_072], &[1, 64]);
        let json = p.json();
        let first = &json["contexts"][0];
        assert_eq!(first["state"]["bytes_per_token_bf16"], 70_272);
        assert_eq!(first["state"]["bytes_per_sequence_bf16"], 70_272 * 4096);
        assert_eq!(first["state"]["bytes_per_sequence_compiled"], 2 * 70_272 * 4096_u64);
        let decode = &first["phases"][1];
        assert_eq!((&decode["phase"], &decode["batch"]), (&json!("decode"), &json!(1)));
        assert_eq!(decode["bound"], "memory");
        assert_eq!(first["phases"][0]["tokens"], 512);
        // 37.6 B active parameters, the embedding's row and FP8 scales: as counted on the graph without kernels.
        let options = hadal_passes::Options { typical_context: 4096, ..pass_options(&p.model) };
        let fused = hadal_passes::optimise(&p.model.module, &p.target, &options).unwrap();
        let counted = hadal_models::stats::cost(&fused.optimised, "decode", 1, 4095).unwrap();
        let step = &p.at[0].phases[1].step;
        assert!((step.weight_bytes / counted.weight_bytes - 1.0).abs() < 1e-3, "{step:?} {counted:?}");
        assert!((step.flops / counted.flops - 1.0).abs() < 1e-3, "{step:?} {counted:?}");
        assert!(step.state_bytes_written == 61.0 * 576.0 * 4.0, "{step:?}");
    }

    #[test]
    fn longer_contexts_and_larger_batches_cost_more() {
        for config in ["deepseek-r1.json", "deepseek-v2-lite.json", "deepseek-llm-7b-chat.json"] {
            let p = predict(config, "h200", &[4096, 32_768, 1 << 20], &[1, 8, 64]);
            for pair in p.at.windows(2) {
                for (a, b) in pair[0].phases.iter().zip(&pair[1].phases) {
                    assert!(a.step.seconds() < b.step.seconds(), "{config} {} ×{}", a.name, a.batch);
                    assert!(a.step.state_bytes_read < b.step.state_bytes_read, "{config} {}", a.name);
                }
                assert!(pair[0].state_bf16() < pair[1].state_bf16());
            }
            for context in &p.at {
                for pair in context.phases[1..].windows(2) {
                    let (a, b) = (&pair[0], &pair[1]);
                    assert!(a.step.seconds() < b.step.seconds(), "{config} ×{}", b.batch);
                    // Weights are shared, so a sequence costs no more in company.
                    let each = |p: &Phase| p.step.seconds() / p.batch as f64;
                    assert!(each(b) < each(a), "{config} ×{}", b.batch);
                    let flops = a.step.flops * (b.batch / a.batch) as f64;
                    assert!((b.step.flops / flops - 1.0).abs() < 1e-9, "{config} ×{}", b.batch);
                }
            }
        }
    }

    #[test]
    fn a_faster_machine_takes_less() {
        let of = |machine| predict("deepseek-v2-lite.json", machine, &[4096], &[1]).at[0].phases[1].step.seconds();
        assert!(of("cpu") > of("h100") && of("h100") > of("h200") && of("h200") > of("b200"));
    }

    #[test]
    fn the_plot_has_a_bar_for_every_decode_step() {
        let p = predict("deepseek-v2-lite.json", "h200", &[4096, 1 << 20], &[1]);
        let plot = p.plot();
        let lengths: Vec<usize> = plot.lines().skip(1).map(|l| l.matches('█').count()).collect();
        assert!(lengths.len() == 2 && lengths[0] < lengths[1] && lengths[1] == 50, "{plot}");
        assert_eq!((bar(1.5).as_str(), bar(0.0).as_str()), ("█▌", "▏"));
    }
}
