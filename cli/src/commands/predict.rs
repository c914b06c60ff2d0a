//! `hadal predict`: what a model should take on a machine, before there is any code for that machine.

use crate::driver::{Options, build_model, target};
use crate::failure::Failure;
use crate::input::Input;
use crate::options::{ActivationsArg, LawArgs, StateDtypeArg};
use crate::predict::{Context, Phase, Predicted, Prediction, Question, expected_tokens, predict};
use crate::report::curves;
use crate::units::{self, Listed, bytes, count, grouped, seconds, short};
use hadal_ir::target::Target;
use hadal_models::Model;
use hadal_types::DType;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Predict time, work and traffic of prompts, decode and checked drafts on a machine, for a set of contexts and
/// batches.
///
/// For each context and batch the graph is optimised anew, for the machine and for calls of exactly those sizes, and
/// cut into kernels. A prompt is as long as the context, and its time that to the first token: the sum of its chunks,
/// of which some are predicted and those between them taken as between. The last chunk is the one that ends at the
/// context; decode is one token for each sequence of the batch; with --drafts, verify is one token and the drafts
/// behind it, and draft one of those by the model's own module. How many tokens a verify gains depends on how many
/// drafts are right: tell with --acceptance.
///
/// The model is a roofline: each kernel takes the longer of its operations at the machine's peak for the formats it
/// multiplies and its bytes at the machine's bandwidth, plus a fixed launch cost, and kernels follow one another.
/// Weights are read once a step however many sequences there are (of experts: the expected number of different ones,
/// all equally likely); states and everything that kernels hand on are moved once for each sequence, by each kernel
/// that reads them.
///
/// It is not a measurement, and no bound either: nothing overlaps and no kernel falls short of the peak. Several
/// --devices share everything evenly and talk to each other for free.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hadal predict tests/fixtures/configs/deepseek-r1.json --target h200 --context 4k..128k --devices 8\n  \
    hadal predict CHECKPOINT --target here.toml --batch 1,8,64 --state-dtype bf16 --plot=curves.html")]
pub struct Args {
    /// A checkpoint folder or a bare config.json.
    path: PathBuf,
    /// The machine: a name from `hadal target list`, or a file from `hadal target probe`.
    #[arg(long, default_value = "cpu")]
    target: String,
    /// Tokens in the context, the new ones included: numbers with k (1024) or m (1024²), or a doubling range `4k..1m`.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "4k", value_parser = units::contexts)]
    context: Vec<Listed>,
    /// Sequences decoded at once: numbers, or a doubling range `1..64`.
    #[arg(long, value_name = "SEQUENCES", value_delimiter = ',', default_value = "1", value_parser = units::batches)]
    batch: Vec<Listed>,
    /// Tokens of a prompt's chunk; less where the context is shorter.
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = units::chunk)]
    chunk: u32,
    /// Tokens that are proposed ahead and checked in one call.
    #[arg(long, value_name = "TOKENS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024))]
    drafts: u32,
    /// How often a draft is right when those before it are, 0 to 1; without it nothing is said of a verify's tokens/s.
    #[arg(long, value_name = "SHARE", value_parser = units::share)]
    acceptance: Option<f64>,
    /// Format of the states [default: as compiled, f32]. fp8 counts a byte an element, without scales.
    #[arg(long, value_enum)]
    state_dtype: Option<StateDtypeArg>,
    /// What products read, and what states keep.
    #[arg(long, value_enum, default_value_t = ActivationsArg::F32)]
    activations: ActivationsArg,
    /// Machines that share the work and the memory, as if talking cost nothing.
    #[arg(long, value_name = "MACHINES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=units::MAX_DEVICES as i64))]
    devices: u32,
    /// Draw the curves against the context: in the terminal, or into a file, as .svg or .html.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    plot: Option<Option<PathBuf>>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    laws: LawArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    if args.acceptance.is_some() && args.drafts == 0 {
        return Err(Failure::usage("--acceptance is of drafts, and there are none").help("say how many: --drafts 1"));
    }
    let target = target(&args.target)?;
    let input = Input::open(&args.path)?;
    let mut question = Question {
        contexts: args.context.iter().flat_map(|c| &c.0).copied().collect(),
        batches: args.batch.iter().flat_map(|b| &b.0).copied().collect(),
        chunk: args.chunk as usize,
        drafts: args.drafts as usize,
        devices: args.devices as usize,
    };
    for list in [&mut question.contexts, &mut question.batches] {
        list.sort_unstable();
        list.dedup();
    }
    let defaults = Options::default();
    let state_dtype = args.state_dtype.map_or(defaults.state_dtype, StateDtypeArg::dtype);
    let options =
        Options { state_dtype, activations: args.activations.activations(), laws: args.laws.set(), ..defaults };
    let mut answer = Answer::new(&input, target, &options, &question)?;
    answer.asked = Asked { state: args.state_dtype.is_some(), acceptance: args.acceptance };
    answer.note();
    if let Some(Some(file)) = &args.plot {
        write_plot(file, &answer)?;
    }
    match args.json {
        true => say!("{:#}", answer.json()),
        false if args.plot == Some(None) => say!("{}\n\n{}", answer.table(), answer.bars()),
        false => say!("{}", answer.table()),
    }
}

/// Writes the curves, drawn as the file's ending says.
fn write_plot(file: &Path, answer: &Answer) -> Result<(), Failure> {
    let title = format!("{} on {}", answer.model.name, answer.machine());
    let text = match file.extension().and_then(|e| e.to_str()) {
        Some("svg") => curves::svg(&title, &answer.prediction),
        Some("html") => curves::html(&title, &answer.prediction),
        _ => return Err(Failure::usage(format!("--plot={}: files are .svg or .html", file.display()))),
    };
    std::fs::write(file, text).map_err(|e| Failure::failed(format!("{}: {e}", file.display())))
}

/// What the command finds out.
struct Answer {
    model: Model,
    /// One machine.
    target: Target,
    prediction: Prediction,
    asked: Asked,
}

/// What was asked for that changes how the answer is told.
#[derive(Clone, Copy, Default)]
struct Asked {
    /// A format of states.
    state: bool,
    /// How often drafts are right.
    acceptance: Option<f64>,
}

impl Answer {
    fn new(input: &Input, target: Target, options: &Options, question: &Question) -> Result<Answer, Failure> {
        let longest = question.contexts.iter().copied().max().unwrap_or(1);
        let options = Options { max_context: Some(longest), max_chunk: question.chunk, ..options.clone() };
        let model = build_model(input, &options)?;
        let prediction = predict(&model, &target, &options.passes(&model), question)?;
        Ok(Answer { model, target, prediction, asked: Asked::default() })
    }

    /// Says on standard error where more is asked for than the model was made for, or than the machines hold.
    fn note(&self) {
        let (longest, limit) = (self.at().iter().map(|c| c.tokens).max().unwrap_or(0), self.model.max_position);
        if longest > limit {
            eprintln!("note: a context of {longest} is beyond the {limit} tokens that the model was made for");
        }
        let calls = self.at().iter().flat_map(|c| c.calls.iter().map(move |p| (c, p)));
        let most = calls.max_by_key(|(c, call)| c.bytes(call));
        if let Some((c, call)) = most.filter(|(c, p)| c.machines(&self.target, p) > self.prediction.devices as u64) {
            let (need, machines) = (bytes(c.bytes(call) as f64), c.machines(&self.target, call));
            let batch = call.batch;
            let (context, name, has) =
                (short(c.tokens), &self.target.name, bytes(self.prediction.target.memory_bytes as f64));
            let help = match machines <= units::MAX_DEVICES as u64 {
                true => format!("{machines} × {name} hold them (--devices {machines})"),
                false => format!("{machines} × {name} would hold them, more than --devices takes"),
            };
            eprintln!(
                "note: {need} of weights, states and working memory at context {context} ×{batch} are more than the {has} \
                 here; {help}"
            );
        }
    }

    fn at(&self) -> &[Context] {
        &self.prediction.at
    }

    fn machine(&self) -> String {
        match self.prediction.devices {
            1 => self.target.name.clone(),
            n => format!("{n} × {}", self.target.name),
        }
    }

    fn table(&self) -> String {
        let t = &self.prediction.target;
        let mut out = format!("{} ({})\n", self.model.name, self.model.why);
        let peaks = t.flops.list().into_iter().map(|(name, peak)| format!("{}FLOP/s in {name}", count(peak)));
        let (peaks, bandwidth) = (peaks.collect::<Vec<_>>().join(", "), bytes(t.bandwidth));
        let launch = seconds(t.launch_seconds);
        _ = writeln!(
            out,
            "on {}: {peaks}, {bandwidth}/s, {launch} a launch; a roofline, not a measurement",
            self.machine()
        );
        if let Some(c) = self.at().first() {
            let n = c.tokens as u64;
            let (bf16, compiled) = (grouped(c.state_in(DType::BF16) / n), grouped(c.state_bytes() / n));
            let as_what = if self.asked.state { "as asked" } else { "as compiled" };
            _ = writeln!(out, "state a token: {bf16} B in bf16, {compiled} B {as_what} ({})", c.formats());
        }
        let head = ["context", "phase", "tokens", "batch", "time", "tokens/s", "FLOP/token", "weights", "state read"];
        let more = ["other", "states", "memory", "machines", "bound by"];
        let mut rows = vec![head.iter().chain(&more).map(|s| (*s).to_owned()).collect::<Vec<_>>()];
        for c in self.at() {
            rows.extend(c.calls.iter().map(|p| self.row(c, p)));
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

    fn row(&self, c: &Context, p: &Predicted) -> Vec<String> {
        let s = &p.step;
        vec![
            short(c.tokens),
            p.phase.name().to_owned(),
            p.tokens.to_string(),
            p.batch.to_string(),
            seconds(s.seconds()),
            c.rate(p, self.asked.acceptance).map_or_else(|| "-".to_owned(), count),
            count(p.flops_per_token()),
            bytes(s.weight_bytes),
            bytes(s.state_bytes_read),
            bytes(s.state_bytes_written + s.activation_bytes),
            bytes(c.state_bytes() as f64 * p.batch as f64),
            bytes(c.bytes(p) as f64),
            c.machines(&self.target, p).to_string(),
            s.bound().to_owned(),
        ]
    }

    fn bars(&self) -> String {
        const CELLS: f64 = 50.0;
        let bars = self.at().iter().flat_map(|c| c.phase(Phase::Decode).map(move |p| (c, p)));
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
        let t = &self.prediction.target;
        json!({
            "architecture": self.model.name,
            "why": self.model.why,
            "method": "roofline: no overlap, intermediate values from the cache where they fit, a fixed cost a launch; \
                       of a prompt's chunks some are predicted and those between them interpolated",
            "acceptance": self.asked.acceptance,
            "devices": self.prediction.devices,
            "target": t,
            "contexts": self.at().iter().map(|c| self.context_json(c)).collect::<Vec<_>>(),
        })
    }

    fn context_json(&self, c: &Context) -> Value {
        let call = |p: &Predicted| {
            let s = &p.step;
            let mut call = json!({
                "phase": p.phase.name(),
                "tokens": p.tokens,
                "batch": p.batch,
                "seconds": s.seconds(),
                "compute_seconds": s.compute_seconds,
                "memory_seconds": s.memory_seconds,
                "launch_seconds": s.launch_seconds,
                "launches": s.launches,
                "bound": s.bound(),
                "tokens_per_second": c.rate(p, self.asked.acceptance),
                "flops": s.flops,
                "flops_per_token": p.flops_per_token(),
                "bytes": s.bytes(),
                "weight_bytes": s.weight_bytes,
                "state_bytes_read": s.state_bytes_read,
                "state_bytes_written": s.state_bytes_written,
                "activation_bytes": s.activation_bytes,
                "stored_weight_bytes": p.stored_bytes,
                "working_bytes": p.arena_bytes,
                "memory_bytes": c.bytes(p),
                "machines": c.machines(&self.target, p),
            });
            if p.phase == Phase::Verify {
                call["draft_seconds"] = json!(c.draft_seconds(p));
                call["expected_tokens"] = json!(self.asked.acceptance.map(|a| expected_tokens(p.tokens, a)));
            }
            call
        };
        json!({
            "context": c.tokens,
            "state": {
                "bytes_per_token_bf16": c.state_in(DType::BF16) / c.tokens as u64,
                "bytes_per_sequence_bf16": c.state_in(DType::BF16),
                "bytes_per_sequence_compiled": c.state_bytes(),
                "compiled_format": c.formats(),
            },
            "phases": c.calls.iter().map(call).collect::<Vec<_>>(),
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
    use crate::roofline::Step;

    fn ask(contexts: &[usize], batches: &[usize]) -> Question {
        Question { contexts: contexts.to_vec(), batches: batches.to_vec(), chunk: 512, drafts: 0, devices: 1 }
    }

    fn answer(config: &str, machine: &str, state: Option<DType>, question: &Question) -> Answer {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/configs").join(config);
        let input = Input::open(&path).unwrap();
        let defaults = Options::default();
        let options = Options { state_dtype: state.unwrap_or(defaults.state_dtype), ..defaults };
        Answer::new(&input, target(machine).unwrap(), &options, question).unwrap()
    }

    #[test]
    fn v3_is_what_its_sheet_says() {
        let p = answer("deepseek-r1.json", "h200", None, &ask(&[4096, 131_072], &[1, 64]));
        let json = p.json();
        let first = &json["contexts"][0];
        assert_eq!(first["state"]["bytes_per_token_bf16"], 70_272);
        assert_eq!(first["state"]["bytes_per_sequence_bf16"], 70_272 * 4096);
        assert_eq!(first["state"]["bytes_per_sequence_compiled"], 2 * 70_272 * 4096_u64);
        let decode = &first["phases"][2];
        assert_eq!((&decode["phase"], &decode["batch"]), (&json!("decode"), &json!(1)));
        assert_eq!(decode["bound"], "memory");
        assert_eq!((&first["phases"][0]["phase"], &first["phases"][0]["tokens"]), (&json!("prompt"), &json!(4096)));
        assert_eq!((&first["phases"][1]["phase"], &first["phases"][1]["tokens"]), (&json!("last chunk"), &json!(512)));
        // 671 GB do not fit into 141.
        assert!(decode["machines"].as_u64().unwrap() >= 5, "{decode}");
        // 37.6 B active parameters, the embedding's row and FP8 scales: as counted on the graph without kernels.
        let options = hadal_passes::Options { typical_context: 4096, ..crate::driver::pass_options(&p.model) };
        let fused = hadal_passes::optimise(&p.model.module, &p.target.several(8), &options).unwrap();
        let counted = hadal_models::stats::cost(&fused.optimised, "decode", 1, 4095).unwrap();
        let step = &p.at()[0].phase(Phase::Decode).next().unwrap().step;
        assert!((step.weight_bytes / counted.weight_bytes - 1.0).abs() < 1e-3, "{step:?} {counted:?}");
        assert!((step.flops / counted.flops - 1.0).abs() < 1e-3, "{step:?} {counted:?}");
        assert!(step.state_bytes_written == 61.0 * 576.0 * 4.0, "{step:?}");
    }

    #[test]
    fn states_cost_what_their_format_takes() {
        let of = |state| {
            let p = answer("deepseek-r1.json", "h200", state, &ask(&[32_768], &[1]));
            let decode = p.at()[0].phase(Phase::Decode).next().unwrap().clone();
            (p.at()[0].state_bytes() / 32_768, decode.step.state_bytes_read, decode.step.seconds())
        };
        let (wide, half, narrow) = (of(None), of(Some(DType::BF16)), of(Some(DType::F8E4M3)));
        assert_eq!((wide.0, half.0, narrow.0), (4 * 35_136, 70_272, 35_136));
        assert!((wide.1 / half.1 - 2.0).abs() < 1e-9 && (half.1 / narrow.1 - 2.0).abs() < 1e-9);
        assert!(wide.2 > half.2 && half.2 > narrow.2);
    }

    #[test]
    fn drafts_are_checked_for_less_than_they_would_cost_one_by_one() {
        let p = answer("deepseek-r1.json", "h200", None, &Question { drafts: 3, ..ask(&[8192], &[1]) });
        let time = |phase| p.at()[0].phase(phase).next().unwrap().step.seconds();
        assert_eq!(p.at()[0].phase(Phase::Verify).next().unwrap().tokens, 4);
        let (one, four, draft) = (time(Phase::Decode), time(Phase::Verify), time(Phase::Draft));
        assert!(four > one && four < 4.0 * one, "{one} {four}");
        assert!(draft < one / 10.0, "{one} {draft}");
        let context = &p.at()[0];
        let verify = context.phase(Phase::Verify).next().unwrap();
        let rate = |acceptance| context.rate(verify, acceptance);
        assert_eq!((rate(None), expected_tokens(4, 0.0), expected_tokens(4, 1.0)), (None, 1.0, 4.0));
        assert!((expected_tokens(4, 0.5) - 1.875).abs() < 1e-12);
        // The drafts take time of their own.
        assert!((4.0 / rate(Some(1.0)).unwrap() / (four + 3.0 * draft) - 1.0).abs() < 1e-9);
        assert!(
            rate(Some(0.0)).unwrap()
                < context.rate(&context.phase(Phase::Decode).next().unwrap().clone(), None).unwrap()
        );
    }

    #[test]
    fn a_prompt_is_the_sum_of_its_chunks() {
        let chunk = Question { chunk: 256, ..ask(&[1024 + 100], &[1]) };
        let p = answer("deepseek-v2-lite.json", "h200", None, &chunk);
        let whole = p.at()[0].phase(Phase::Prompt).next().unwrap();
        let last = |context: usize, chunk: usize| {
            let p = answer("deepseek-v2-lite.json", "h200", None, &Question { chunk, ..ask(&[context], &[1]) });
            p.at()[0].phase(Phase::Prefill).next().unwrap().step
        };
        let chunks = [(256, 256), (512, 256), (768, 256), (1024, 256), (1124, 100)];
        let sum: Step = chunks.into_iter().map(|(context, chunk)| last(context, chunk)).sum();
        assert!((whole.step.seconds() / sum.seconds() - 1.0).abs() < 0.01, "{whole:?} {sum:?}");
        assert!((whole.step.flops / sum.flops - 1.0).abs() < 1e-3, "{whole:?} {sum:?}");
        assert_eq!((whole.tokens, whole.batch), (1124, 1));
    }

    #[test]
    fn more_machines_hold_more_and_take_less() {
        let of = |devices| answer("deepseek-r1.json", "h200", None, &Question { devices, ..ask(&[4096], &[1]) });
        let (one, eight) = (of(1), of(8));
        let time = |p: &Answer| p.at()[0].phase(Phase::Decode).next().unwrap().step.seconds();
        assert!(time(&one) > 2.0 * time(&eight) && time(&one) < 8.0 * time(&eight));
        let machines = |p: &Answer| p.at()[0].machines(&p.target, p.at()[0].phase(Phase::Decode).next().unwrap());
        assert_eq!(machines(&one), machines(&eight));
    }

    #[test]
    fn longer_contexts_and_larger_batches_cost_more() {
        for config in ["deepseek-r1.json", "deepseek-v2-lite.json", "deepseek-llm-7b-chat.json"] {
            let p = answer(config, "h200", None, &ask(&[4096, 32_768, 1 << 20], &[1, 8, 64]));
            for pair in p.at().windows(2) {
                for (a, b) in pair[0].calls.iter().zip(&pair[1].calls) {
                    assert!(a.step.seconds() < b.step.seconds(), "{config} {:?} ×{}", a.phase, a.batch);
                    assert!(a.step.state_bytes_read < b.step.state_bytes_read, "{config} {:?}", a.phase);
                }
                assert!(pair[0].state_bytes() < pair[1].state_bytes());
            }
            for context in p.at() {
                let decode: Vec<_> = context.phase(Phase::Decode).collect();
                for pair in decode.windows(2) {
                    let (a, b) = (pair[0], pair[1]);
                    assert!(a.step.seconds() < b.step.seconds(), "{config} ×{}", b.batch);
                    // Weights are shared, so a sequence costs no more in company.
                    let each = |p: &Predicted| p.step.seconds() / p.batch as f64;
                    assert!(each(b) < each(a), "{config} ×{}", b.batch);
                    let flops = a.step.flops * (b.batch / a.batch) as f64;
                    assert!((b.step.flops / flops - 1.0).abs() < 1e-9, "{config} ×{}", b.batch);
                }
            }
        }
    }

    #[test]
    fn a_faster_machine_takes_less() {
        let of = |machine| {
            let p = answer("deepseek-v2-lite.json", machine, None, &ask(&[4096], &[1]));
            p.at()[0].phase(Phase::Decode).next().unwrap().step.seconds()
        };
        assert!(of("cpu") > of("h100") && of("h100") > of("h200") && of("h200") > of("b200"));
    }

    #[test]
    fn the_plot_has_a_bar_for_every_decode_step() {
        let p = answer("deepseek-v2-lite.json", "h200", None, &ask(&[4096, 1 << 20], &[1]));
        let plot = p.bars();
        let lengths: Vec<usize> = plot.lines().skip(1).map(|l| l.matches('█').count()).collect();
        assert!(lengths.len() == 2 && lengths[0] < lengths[1] && lengths[1] == 50, "{plot}");
        assert_eq!((bar(1.5).as_str(), bar(0.0).as_str()), ("█▌", "▏"));
    }
}
