//! `hadal eval`: the graph interpreter on a text file.

use crate::failure::{Failure, read_text};
use hadal_ir::interpret::{EvalError, Interpreter, MAX_ELEMENTS, WeightSource};
use hadal_ir::tensor::Data;
use hadal_ir::{Bindings, DType, Sym, Tensor, TensorType, text, verify};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Evaluate a graph file with the interpreter.
///
/// Inputs, weights and states are filled with reproducible pseudo-random numbers (integers below 4), so that two files
/// that should mean the same can be compared: same names, same seed, same numbers.
#[derive(clap::Args)]
#[command(after_help = "Example: hadal eval layer.hir --func block --bind T=3,P=0 --seed 1")]
pub struct Args {
    /// A file in the graph IR's text form.
    file: PathBuf,
    /// The function or entry to run [default: the first entry, else the last function].
    #[arg(long)]
    func: Option<String>,
    /// Values of symbols, for instance `T=3,P=0`. Symbols not named take their smallest value.
    #[arg(long, value_delimiter = ',')]
    bind: Vec<String>,
    /// Seed of the numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print at most this many elements of each result.
    #[arg(long, default_value_t = 64)]
    limit: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let source = read_text(&args.file)?;
    let at = |e: &dyn std::fmt::Display| Failure::input(format!("{}: {e}", args.file.display()));
    let module = text::parse_module(&source).map_err(|e| at(&e))?;
    verify::module(&module).map_err(|e| at(&e))?;
    let pair = |b: &String| {
        let pair = b.split_once('=').and_then(|(s, v)| Some((Sym::new(s.trim())?, v.trim().parse().ok()?)));
        pair.ok_or_else(|| Failure::usage(format!("--bind {b}: expected SYMBOL=NUMBER")))
    };
    let given = args.bind.iter().map(pair).collect::<Result<Bindings, _>>()?;
    let asked = args.func.as_ref().or(module.entries.first().map(|e| &e.name));
    let entry = asked.and_then(|name| module.version(name, &given));
    let name = match (entry, &args.func, module.funcs.last()) {
        (Some(entry), _, _) => entry.func.clone(),
        (None, Some(name), _) => name.clone(),
        (None, None, Some(func)) => func.name.clone(),
        (None, None, None) => return Err(at(&"the file has no function")),
    };
    let func = module.func(&name).ok_or_else(|| {
        let all = module.entries.iter().map(|e| &e.name).chain(module.funcs.iter().map(|f| &f.name));
        let all: Vec<&str> = all.map(String::as_str).collect();
        Failure::usage(format!("there is no function or entry `{name}`; the file has {}", all.join(", ")))
    })?;
    let mut ranges = module.symbols.clone();
    ranges.extend(entry.into_iter().flat_map(|e| e.ranges.clone()));
    let mut bindings: Bindings = ranges.iter().map(|(s, r)| (*s, r.min)).collect();
    for (sym, value) in given {
        let Some(range) = ranges.get(&sym) else {
            return Err(Failure::usage(format!("--bind {sym}={value}: the file has no symbol `{sym}`")));
        };
        if !(range.min..=range.max).contains(&value) {
            let (min, max) = (range.min, range.max);
            return Err(Failure::usage(format!("--bind {sym}={value}: {sym} is from {min} to {max}")));
        }
        bindings.insert(sym, value);
    }
    let mut types = module.funcs.iter().flat_map(|f| f.values.iter().map(|v| &v.ty));
    if let Some(ty) = types.find(|t| t.shape.iter().any(|d| d.eval(&bindings).is_ok_and(|n| n < 0))) {
        return Err(at(&format!("{} has a negative size", ty.substitute(&bindings))));
    }
    let noise = Noise { seed: args.seed, bindings: &bindings };
    let mut interpreter = Interpreter::new(&module, &noise);
    let mut inputs = Vec::new();
    for (i, p) in func.params.iter().enumerate() {
        inputs.push(noise.weight(&format!("input {i}"), func.ty(*p)).map_err(|e| at(&e))?);
    }
    noise.fill_states(&module, &name, "", &mut interpreter.states).map_err(|e| at(&e))?;
    let results = interpreter.run(&name, "", &inputs, &bindings).map_err(|e| at(&e))?;
    let shown = |t: &Tensor| (0..t.len().min(args.limit)).map(|i| t.at(i)).collect::<Vec<_>>();
    if args.json {
        let rows = func.results.iter().zip(&results).map(|((name, _), t)| {
            serde_json::json!({"name": name, "dtype": t.dtype.name(), "shape": t.shape, "values": shown(t)})
        });
        return super::write_line(serde_json::Value::Array(rows.collect()));
    }
    for ((name, _), t) in func.results.iter().zip(&results) {
        let dots = if t.len() > args.limit { " …" } else { "" };
        let values: Vec<String> = shown(t).iter().map(|v| format!("{v:.6}")).collect();
        say!("{name}: {}{:?} = [{}{dots}]", t.dtype, t.shape, values.join(", "))?;
    }
    Ok(())
}

/// Reproducible numbers for any name.
struct Noise<'a> {
    seed: u64,
    bindings: &'a Bindings,
}

impl WeightSource for Noise<'_> {
    fn weight(&self, name: &str, ty: &TensorType) -> Result<Tensor, String> {
        let shape =
            ty.eval_shape(self.bindings).map_err(|s| format!("symbol `{s}` has no value; give --bind {s}=…"))?;
        let elements = ty.count(self.bindings).unwrap_or(f64::INFINITY);
        if elements > MAX_ELEMENTS as f64 {
            let ty = ty.substitute(self.bindings);
            return Err(format!("`{name}`: {}", EvalError::TooLarge { ty, elements }));
        }
        let count = elements as usize;
        let mut state = name
            .bytes()
            .fold(self.seed ^ 0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x0000_0100_0000_01b3));
        // SplitMix64.
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        let data = match ty.dtype {
            DType::F8E8M0 => Data::Real((0..count).map(|_| 2f64.powi((next() % 5) as i32 - 2)).collect()),
            d if d.is_float() => {
                Data::Real((0..count).map(|_| d.round((next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0)).collect())
            }
            DType::Bool => Data::Int((0..count).map(|_| (next() % 2) as i64).collect()),
            _ => Data::Int((0..count).map(|_| (next() % 4) as i64).collect()),
        };
        Ok(Tensor { dtype: ty.dtype, shape, data })
    }
}

impl Noise<'_> {
    /// Fills the states of `func` and of what it calls.
    fn fill_states(
        &self,
        module: &hadal_ir::Module,
        func: &str,
        prefix: &str,
        states: &mut BTreeMap<String, Tensor>,
    ) -> Result<(), String> {
        let Some(func) = module.func(func) else { return Ok(()) };
        for s in &func.states {
            let name = format!("{prefix}{}", s.name);
            let rows = self.weight(&name, func.ty(s.value))?;
            states.insert(name, rows);
        }
        for inst in &func.insts {
            if let hadal_ir::InstKind::Call(call) = &inst.kind {
                self.fill_states(module, &call.func, &format!("{prefix}{}", call.prefix), states)?;
            }
        }
        Ok(())
    }
}
