//! From an input to a compiled program, stage by stage. Each stage keeps what it made, so that `dump` can show it and
//! the report can count it.

use crate::cache::Cache;
use crate::failure::Failure;
use crate::input::Input;
use crate::runner::Runner;
use crate::tuning::{self, Choice, Database, Tuning};
use hadal_artifact as artifact;
use hadal_codegen::kernels::{self, Generated};
use hadal_codegen::processor::{self, CompiledKernel, Processor};
use hadal_ir::interpret::{WeightSource, eval_func};
use hadal_ir::layout_fold::{self, Piece, pieces};
use hadal_ir::module::FuncKind;
use hadal_ir::plan::{Place, Plan, Program};
use hadal_ir::storage::Storage;
use hadal_ir::target::{Target, TargetKind};
use hadal_ir::{Bindings, DType, Func, Inst, InstKind, Module, Op, Sym, Tensor, TensorType, ValueId};
use hadal_models::checkpoint::{Checkpoint, Quantize, TensorRef, check};
use hadal_models::stats::cost;
use hadal_models::{BuildOptions, Model, ModelWeights, Planned};
use hadal_passes::{Fused, PassReport};
use hadal_runtime::DeviceChoice;
use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What to compile for.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Most tokens in the states.
    pub max_context: Option<usize>,
    /// Most tokens of one call.
    pub max_chunk: usize,
    /// The machine.
    pub target: String,
    /// Leave tensors that need no change in the checkpoint's own files.
    pub external_weights: bool,
    /// Keep assembler text of the kernels.
    pub disassembly: bool,
    /// What to make of a non-standard `attn_factor`.
    pub attn_factor: hadal_models::AttnFactor,
    /// What products with block-scaled weights read.
    pub activations: hadal_models::Activations,
    /// Which hidden states multi-token prediction is given.
    pub mtp_input: hadal_models::MtpInput,
    /// Whether the entry `logits` also gives what some layers compute on the way.
    pub inner: bool,
    /// Format of the states.
    pub state_dtype: DType,
    /// To what verification rounds weights first; elsewhere an input is opened so.
    pub quantize: Option<Quantize>,
    /// The laws that the optimiser may use.
    pub laws: hadal_passes::LawSet,
    /// Sequences that a call is costed for.
    pub batch: u64,
    /// Processors that the file holds code for, those to be preferred first.
    pub levels: Vec<Processor>,
    /// Where measurements that choose among kernels of equal bits are kept; `None` for the generators' own choice.
    pub tuning: Option<Tuning>,
    /// Whether verification runs a GPU's code on the emulator.
    pub emulate: bool,
    /// What runs programs that are compiled to be run at once.
    pub device: DeviceChoice,
    /// The program that the file begins with.
    pub runner: Runner,
    /// Where machine code of kernels is kept that were compiled before; `None` to make all of it. Assembler text is
    /// made with the code and needs it made.
    pub cache: Option<Cache>,
}

impl Options {
    /// What passes are told of a model.
    pub fn passes(&self, model: &Model) -> hadal_passes::Options {
        hadal_passes::Options { laws: self.laws.clone(), batch: self.batch, ..pass_options(model) }
    }

    /// The same for a program that runs at once: of its levels the first that this machine has.
    pub fn here(mut self) -> Options {
        if let Some(best) = self.levels.iter().find(|l| l.is_here()) {
            self.levels = vec![*best];
        }
        self
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            max_context: None,
            max_chunk: 512,
            target: "cpu".into(),
            external_weights: false,
            disassembly: false,
            attn_factor: hadal_models::AttnFactor::default(),
            activations: hadal_models::Activations::default(),
            mtp_input: hadal_models::MtpInput::default(),
            inner: false,
            state_dtype: BuildOptions::default().state_dtype,
            quantize: None,
            laws: hadal_passes::LawSet::default(),
            batch: 1,
            levels: levels_like_here(),
            tuning: None,
            emulate: false,
            device: DeviceChoice::default(),
            runner: Runner::default(),
            cache: Cache::of_user(),
        }
    }
}

/// The levels of this machine's architecture that code can be made for, or all where there are none.
fn levels_like_here() -> Vec<Processor> {
    let all = hadal_codegen::levels();
    let like: Vec<Processor> = all.iter().filter(|l| l.arch == std::env::consts::ARCH).cloned().collect();
    if like.is_empty() { all } else { like }
}

/// Longest context compiled for where nobody says: states and working memory are sized for it.
pub const DEFAULT_CONTEXT: usize = 4096;

/// One kernel on its way to machine code.
#[derive(Clone, Debug)]
pub struct BuiltKernel {
    /// The kernel function's name.
    pub func: String,
    /// Its kernel IR, and which generator made it.
    pub generated: Generated,
    /// Its code.
    pub compiled: CompiledKernel,
    /// The measurements by which it was chosen, where there are any.
    pub tuned: Option<tuning::Entry>,
    /// Whether the code was there already.
    pub cached: bool,
}

/// Code for one level.
#[derive(Clone, Debug)]
pub struct Level {
    /// The processors.
    pub cpu: Processor,
    /// One per kernel function, in the module's order.
    pub kernels: Vec<BuiltKernel>,
}

/// A compiled program, all of it but the weights' bytes.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The graph as built.
    pub model: Model,
    /// The graph after rewriting.
    pub optimised: Module,
    /// Kernels, memory and launches.
    pub program: Program,
    /// Code for each level asked for, in that order.
    pub levels: Vec<Level>,
    /// What each pass did.
    pub passes: Vec<PassReport>,
    /// How long each stage took.
    pub times: Vec<(&'static str, Duration)>,
    /// The plan of the compiled file.
    pub manifest: artifact::Manifest,
    /// The constants that the file holds, in the manifest's order, and those that lie inside of them.
    pub stored: Storage,
    /// Machine code of all kernels.
    pub code: Vec<u8>,
    /// What the file begins with.
    pub runner: Runner,
}

/// Compiles `input`, up to the weights' bytes. Tensors are checked before anything else is done.
pub fn compile(input: &Input, options: &Options) -> Result<Compiled, Failure> {
    targets(&options.target)?;
    let start = Instant::now();
    let model = build_model(input, options)?;
    compile_model(input, model, ("graph", start.elapsed()), options)
}

/// The same with a graph that is there already, for which `input` has the weights.
pub fn compile_model(
    input: &Input,
    model: Model,
    built: (&'static str, Duration),
    options: &Options,
) -> Result<Compiled, Failure> {
    let targets = targets(&options.target)?;
    let target = &targets[0];
    let options = &Options { levels: levels(&targets, options)?, ..options.clone() };
    if input.checkpoint.is_some() {
        model.check_made()?;
    }
    let mut times = vec![built];
    let mut timed = |what: &'static str, start: Instant| times.push((what, start.elapsed()));

    let start = Instant::now();
    let mut choices = options.passes(&model);
    if options.external_weights {
        // Joined weights would have to be written a second time, beside the checkpoint's own.
        let joining = hadal_passes::rules::MERGING.iter().flat_map(|p| p.themes).flat_map(|t| t.rules);
        choices.laws = choices.laws.without(joining.map(|r| r.name)).expect("names of laws");
    }
    let (fused, program) = hadal_passes::compile(&model.module, target, &choices).map_err(Failure::optimising)?;
    let fixed = |w: &hadal_ir::plan::Weight| in_place(w, input.checkpoint.as_ref(), options).is_some();
    let (fused, program) = lay_out(fused, program, choices.context(&model.module), &options.levels, &fixed)?;
    timed("passes", start);

    let start = Instant::now();
    let kernels = choose(&program, options)?;
    if options.tuning.is_some() {
        timed("tuning", start);
    }

    let mut copies = input.checkpoint.as_ref().map(Checkpoint::copies).unwrap_or_default();
    copies.retain(|name, _| !model.made.contains_key(*name));
    let stored = Storage::of(&program, &|name| copies.get(name).copied().unwrap_or(name).to_owned());

    let start = Instant::now();
    let aligned = alignments(&program, &stored);
    let build = |(cpu, kernels): (&Processor, Vec<Choice>)| {
        let build = |choice: &Choice| {
            let mut generated = choice.best().clone();
            // On a processor accesses that are not aligned cost nothing.
            if let Some(known) = aligned.get(choice.func.as_str()).filter(|_| cpu.is_gpu()) {
                generated.kernel.params.iter_mut().zip(known).for_each(|(p, bytes)| p.align = *bytes);
            }
            let (compiled, cached) =
                code(&generated.kernel, cpu, options).map_err(|e| Failure::internal("compiling a kernel", e))?;
            Ok(BuiltKernel { func: choice.func.clone(), generated, compiled, tuned: choice.entry.clone(), cached })
        };
        Ok(Level { cpu: *cpu, kernels: on_all_cores(&kernels, build)? })
    };
    let levels = options.levels.iter().zip(kernels).map(build).collect::<Result<Vec<Level>, Failure>>()?;
    if let Some(cache) = options.cache.as_ref().filter(|_| levels.iter().flat_map(|l| &l.kernels).any(|k| !k.cached)) {
        cache.trim();
    }
    timed("code", start);

    let packed = processor::pack(levels.iter().flat_map(|l| &l.kernels).map(|k| &k.compiled));
    let manifest = manifest(input, &model, (&fused.optimised, &program, &stored), &levels, &packed.offsets, options)?;
    let (optimised, passes) = (fused.optimised, fused.reports);
    let (code, runner) = (packed.code, options.runner.clone());
    Ok(Compiled { model, optimised, program, levels, passes, times, manifest, stored, code, runner })
}

/// What to make code for: of GPUs their architectures, which are preferred, and with a processor the levels asked for.
fn levels(targets: &[Target], options: &Options) -> Result<Vec<Processor>, Failure> {
    let mut found = Vec::new();
    for target in targets.iter().filter(|t| t.kind != TargetKind::Cpu) {
        let level = Processor::GPUS.into_iter().find(|l| l.name == target.arch);
        let Some(level) = level else {
            let known = Processor::GPUS.map(|l| l.name).join(", ");
            return Err(Failure::usage(format!(
                "target `{}`: no code for {}, only for {known}",
                target.name, target.arch
            )));
        };
        if !cfg!(feature = "llvm") && !cfg!(feature = "llvm-static") {
            let help = "build hadal with `--features llvm`";
            return Err(
                Failure::usage(format!("target `{}`: this build makes no code for GPUs", target.name)).help(help)
            );
        }
        if !found.contains(&level) {
            found.push(level);
        }
    }
    if targets.iter().any(|t| t.kind == TargetKind::Cpu) {
        found.extend(options.levels.iter().cloned());
    }
    Ok(found)
}

/// The machines that `names` lists, the first of which the optimiser counts costs for.
pub fn targets(names: &str) -> Result<Vec<Target>, Failure> {
    names.split(',').map(target).collect()
}

/// The machine called `name`, or the first one of the architecture `name`, or what the file `name` describes.
pub fn target(name: &str) -> Result<Target, Failure> {
    let of_architecture = || Target::all().into_iter().find(|t| t.kind != TargetKind::Cpu && t.arch == name);
    if let Some(known) = Target::by_name(name).or_else(of_architecture) {
        return Ok(known);
    }
    let path = Path::new(name);
    if path.extension().is_some_and(|e| e == "toml") || path.is_file() {
        let text = crate::failure::read_text(path)?;
        return Target::parse(&text).map_err(|e| {
            let help = "`hadal target show cpu` prints a description to begin with, `hadal target probe` makes one";
            Failure::input(format!("{name}: no description of a machine: {e}")).help(help)
        });
    }
    let known: Vec<String> = Target::all().into_iter().map(|t| t.name).collect();
    let help = "a file that `hadal target probe -o FILE.toml` wrote can stand here too";
    Err(Failure::usage(format!("there is no target `{name}`; known are {}", known.join(", "))).help(help))
}

/// What passes are told of a model where nobody says otherwise.
pub fn pass_options(model: &Model) -> hadal_passes::Options {
    hadal_passes::Options { max_context: Some(model.max_context as i64), ..Default::default() }
}

/// The graph of `input`, its tensors checked where there are any.
pub fn build_model(input: &Input, options: &Options) -> Result<Model, Failure> {
    let mut build = BuildOptions {
        max_context: options.max_context,
        max_chunk: options.max_chunk,
        attn_factor: options.attn_factor,
        activations: options.activations,
        mtp_input: options.mtp_input,
        inner: options.inner,
        state_dtype: options.state_dtype,
        vocabulary: input.vocabulary.clone(),
    };
    if build.max_context.is_none() {
        let limit = input.config.object().optional_usize("max_position_embeddings")?;
        build.max_context = Some(limit.unwrap_or(DEFAULT_CONTEXT).min(DEFAULT_CONTEXT));
    }
    let model = match &input.checkpoint {
        Some(checkpoint) => {
            let model = hadal_models::build(&input.config, checkpoint, &build)?;
            check(checkpoint, &model.expected_tensors())?;
            model
        }
        None => hadal_models::build(&input.config, &Planned, &build)?,
    };
    hadal_ir::verify::module(&model.module).map_err(|e| Failure::internal("building the graph", e))?;
    Ok(model)
}

/// A kernel's code, and whether it was there already.
fn code(
    kernel: &hadal_ir::kernel::Kernel,
    cpu: &Processor,
    options: &Options,
) -> Result<(CompiledKernel, bool), hadal_codegen::Error> {
    match &options.cache {
        Some(cache) if !options.disassembly => cache.compile(kernel, cpu),
        _ => Ok((hadal_codegen::compile(kernel, cpu, options.disassembly)?, false)),
    }
}

/// The kernels to compile, by level and in the module's order.
fn choose(program: &Program, options: &Options) -> Result<Vec<Vec<Choice>>, Failure> {
    let Some(tuning) = &options.tuning else {
        let funcs: Vec<&Func> = program.module.funcs.iter().filter(|f| f.kind == FuncKind::Kernel).collect();
        let level = |cpu: &Processor| {
            let target = kernels::Target::of(cpu);
            on_all_cores(&funcs, |func| Choice::first(func, program, &target))
        };
        return options.levels.iter().map(level).collect();
    };
    let mut database = Database::open(&tuning.file)?;
    // What this machine would run is measured here.
    let here = options.levels.iter().position(Processor::is_here).filter(|_| tuning.measure);
    let level = |(i, cpu)| tuning::choose(program, cpu, &mut database, here == Some(i));
    options.levels.iter().enumerate().map(level).collect()
}

/// Does something with each item on all cores; results in order, or the first error.
pub(crate) fn on_all_cores<T: Sync, R: Send>(
    items: &[T],
    one: impl Fn(&T) -> Result<R, Failure> + Sync,
) -> Result<Vec<R>, Failure> {
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(item) = items.get(i) else { return done };
            done.push((i, one(item)));
        }
    };
    let mut all: Vec<(usize, Result<R, Failure>)> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        handles.into_iter().flat_map(|h| h.join().expect("workers return their errors")).collect()
    });
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, built)| built).collect()
}

/// Stores weights as panels where all levels' kernels read them in place, but for those that stay in the checkpoint.
fn lay_out(
    fused: Fused,
    program: Program,
    max_context: i64,
    levels: &[Processor],
    fixed: &dyn Fn(&hadal_ir::plan::Weight) -> bool,
) -> Result<(Fused, Program), Failure> {
    let targets: Vec<kernels::Target> = levels.iter().map(kernels::Target::of).collect();
    let wants = |func: &hadal_ir::Func, ranges: &kernels::Ranges| {
        let mut all = targets.iter().map(|target| kernels::panels(func, ranges, target));
        let first = all.next().unwrap_or_default();
        if all.all(|other| other == first) { first } else { Vec::new() }
    };
    hadal_passes::panels::run(fused, program, max_context, &wants, fixed).map_err(Failure::optimising)
}

/// The compiled file's plan.
fn manifest(
    input: &Input,
    model: &Model,
    (optimised, program, stored): (&Module, &Program, &Storage),
    levels: &[Level],
    offsets: &[usize],
    options: &Options,
) -> Result<artifact::Manifest, Failure> {
    let mut files = Vec::new();
    let weights = stored.kept.iter().map(|place| match *place {
        Place::Fold(i) => Ok(embedded(format!("fold{i} @{}", program.folds[i].func), &program.folds[i].ty)),
        Place::Weight(i) => weight(&program.weights[i], input.checkpoint.as_ref(), options, &mut files),
        _ => unreachable!("only constants are stored"),
    });
    let mut weights = weights.collect::<Result<Vec<_>, _>>()?;
    let states = program.states.iter().map(|s| {
        let row_shape: Vec<u64> = s.row.shape.iter().map(|d| d.as_const().unwrap_or(0) as u64).collect();
        let row_bytes = s.row.dtype.bytes(row_shape.iter().product());
        // A window slides: the more room, the less often its rows move to the front.
        let room = s.window().map_or(0, |kept| kept.max(32));
        let rows = (s.rows + room) as u64;
        artifact::State {
            name: s.name.clone(),
            dtype: s.row.dtype,
            row_shape,
            held: s.held.clone(),
            rows,
            page_rows: rows,
            bytes: row_bytes * rows,
        }
    });
    let mut next = offsets;
    let levels = levels.iter().map(|l| {
        let (own, rest) = next.split_at(l.kernels.len());
        next = rest;
        level(l, own, (optimised, program, stored))
    });
    let levels = levels.collect::<Result<Vec<artifact::Level>, _>>()?;
    let whole = read_whole(program, &levels);
    weights.iter_mut().enumerate().for_each(|(i, w)| w.by_rows = !whole.contains(&(i as u32)));
    let mut levels = levels.into_iter();
    let first = levels.next().ok_or_else(|| Failure::usage("no level of processors to make code for"))?;
    let stop = if input.stop.is_empty() {
        model.eos.iter().filter_map(|t| u32::try_from(*t).ok()).collect()
    } else {
        input.stop.clone()
    };
    let mut manifest = artifact::Manifest {
        producer: format!("hadal {}", env!("CARGO_PKG_VERSION")),
        target: first.target,
        model: artifact::Model {
            name: input.name.clone(),
            architecture: format!("{} ({})", model.name, model.why),
            vocab: model.vocab as u64,
            max_context: model.max_context as u64,
            max_chunk: options.max_chunk.min(model.max_context) as u64,
            bos: model.bos.and_then(|t| u32::try_from(t).ok()),
            stop,
            sampling: input.sampling.clone(),
        },
        kernels: first.kernels,
        weights,
        files,
        states: states.collect(),
        definitions: program.module.definitions.clone(),
        entries: first.entries,
        arena_bytes: first.arena_bytes,
        facts: Vec::new(),
        others: levels.collect(),
    };
    manifest.place_embedded_weights();
    Ok(manifest)
}

/// What the addresses of each kernel's buffers are multiples of, in bytes, in all of its launches on a device.
fn alignments<'p>(program: &'p Program, stored: &Storage) -> HashMap<&'p str, Vec<u32>> {
    let mut all: HashMap<&str, Vec<u32>> = HashMap::new();
    for plan in &program.plans {
        let offset = |place: &Place| match *place {
            Place::Buffer(i) => plan.buffers[i].offset,
            Place::Weight(_) | Place::Fold(_) => stored.find(*place).map_or(1, |(_, offset)| offset),
            // A window begins at any row.
            Place::State(i) if program.states[i].window().is_some() => {
                let row = &program.states[i].row;
                row.dtype.bytes(row.shape.iter().map(|d| d.as_const().unwrap_or(1).max(1) as u64).product())
            }
            Place::State(_) | Place::Input(_) | Place::Output(_) => 0,
        };
        for launch in &plan.launches {
            let known = all.entry(&launch.kernel).or_insert_with(|| vec![artifact::ALIGN as u32; launch.args.len()]);
            for (known, place) in known.iter_mut().zip(&launch.args) {
                *known = 1 << (u64::from(*known) | offset(place)).trailing_zeros();
            }
        }
    }
    all
}

/// The weights that some launch does not only gather rows of.
fn read_whole(program: &Program, levels: &[artifact::Level]) -> BTreeSet<u32> {
    let mut whole = BTreeSet::new();
    for level in levels {
        for launch in level.entries.iter().flat_map(|e| &e.versions).flat_map(|v| &v.launches) {
            let func = program.module.func(&level.kernels[launch.kernel as usize].name);
            let gathers = |number| func.is_some_and(|f| f.params.get(number).is_some_and(|p| gathers_rows(f, *p)));
            let read = launch.args.iter().enumerate().filter_map(|(number, arg)| match arg.space {
                artifact::Space::Weight(i) if !gathers(number) => Some(i),
                _ => None,
            });
            whole.extend(read);
        }
    }
    whole
}

/// Whether all that a function does with a value is to gather rows of it.
fn gathers_rows(func: &Func, value: ValueId) -> bool {
    let used = func.insts.iter().filter(|inst| inst.args.contains(&value));
    let gathers = |inst: &Inst| match &inst.kind {
        InstKind::Op(Op::Gather(_)) => inst.args[0] == value,
        InstKind::Op(op) if op.is_view() || matches!(op, Op::Cast(_) | Op::Dequantize(_)) => {
            gathers_rows(func, inst.results[0])
        }
        _ => false,
    };
    func.results.iter().all(|(_, v)| *v != value) && used.into_iter().all(gathers)
}

/// What the compiled file says of one level, whose kernels lie at `offsets`.
fn level(
    level: &Level,
    offsets: &[usize],
    (optimised, program, stored): (&Module, &Program, &Storage),
) -> Result<artifact::Level, Failure> {
    let Level { cpu, kernels } = level;
    let scratch = kernels.iter().map(|k| scratch_bytes(k, program)).collect::<Result<Vec<_>, _>>()?;
    let origins = kernel_origins(program);
    let kernel_list = kernels.iter().zip(offsets).zip(scratch).map(|((k, offset), scratch_bytes)| artifact::Kernel {
        name: k.func.clone(),
        offset: *offset as u64,
        bytes: k.compiled.code.len() as u64,
        scratch_bytes,
        block: k.compiled.block.map(|b| artifact::Block {
            warps: b.warps,
            indices: b.indices,
            shared_bytes: b.shared_bytes,
        }),
        symbols: k.generated.kernel.symbols.clone(),
        params: k.generated.kernel.params.iter().map(kernel_param).collect(),
        origin: origins.get(k.func.as_str()).cloned().unwrap_or_default(),
    });
    let by_name = |name: &str| kernels.iter().position(|k| k.func == name).expect("every kernel function was built");
    let mut names: Vec<&str> = program.plans.iter().map(|p| p.entry.as_str()).collect();
    names.dedup();
    let entries = names.into_iter().map(|name| entry(name, (program, stored), optimised, kernels, &by_name));
    Ok(artifact::Level {
        target: artifact::Target {
            arch: cpu.arch.into(),
            features: cpu.features.iter().map(|f| (*f).to_owned()).collect(),
        },
        kernels: kernel_list.collect(),
        entries: entries.collect(),
        arena_bytes: program.arena_bytes(),
    })
}

/// The most scratch memory that a kernel needs in any call of an entry that launches it.
fn scratch_bytes(kernel: &BuiltKernel, program: &Program) -> Result<u64, Failure> {
    let mut most = 0;
    for plan in program.plans.iter().filter(|p| p.launches.iter().any(|l| l.kernel == kernel.func)) {
        let sizes = hadal_ir::module::sizes(&program.module.definitions, &plan.ranges);
        let bytes = hadal_passes::plan::largest(&kernel.compiled.scratch_bytes, &sizes, plan.max_context);
        let unbound = |s| Failure::internal("planning scratch memory", format!("@{}: {s} has no range", kernel.func));
        most = most.max(bytes.map_err(unbound)?);
    }
    Ok(most as u64)
}

fn kernel_param(p: &hadal_ir::kernel::Param) -> artifact::Param {
    use hadal_ir::kernel::Access;
    let access = match p.access {
        Access::Read => artifact::Access::Read,
        Access::Write => artifact::Access::Write,
        Access::ReadWrite => artifact::Access::ReadWrite,
    };
    artifact::Param { name: p.name.clone(), access, ty: TensorType { dtype: p.dtype, shape: p.shape.clone() } }
}

/// The model paths that each kernel serves, for people: the first few.
fn kernel_origins(program: &Program) -> std::collections::BTreeMap<&str, String> {
    let mut all: std::collections::BTreeMap<&str, Vec<&str>> = Default::default();
    for launch in program.plans.iter().flat_map(|p| &p.launches) {
        let known = all.entry(&launch.kernel).or_default();
        for o in &launch.origin {
            if known.len() < 4 && !known.contains(&o.as_str()) {
                known.push(o);
            }
        }
    }
    all.into_iter().map(|(k, v)| (k, v.join(", "))).collect()
}

fn embedded(name: String, ty: &TensorType) -> artifact::Weight {
    let shape: Vec<u64> = ty.shape.iter().map(|d| d.as_const().unwrap_or(0).max(0) as u64).collect();
    let bytes = ty.dtype.bytes(shape.iter().product());
    artifact::Weight {
        name,
        dtype: ty.dtype,
        shape,
        bytes,
        place: artifact::Place::Embedded { offset: 0 },
        by_rows: false,
    }
}

/// A tensor of the checkpoint that may stay where it lies: the weight's very bytes.
fn in_place<'c>(
    w: &hadal_ir::plan::Weight,
    checkpoint: Option<&'c Checkpoint>,
    options: &Options,
) -> Option<TensorRef<'c>> {
    let stored = checkpoint.filter(|_| options.external_weights)?.tensor(&w.name)?;
    let aligned = stored.offset % w.ty.dtype.bits().div_ceil(8) == 0;
    let same = stored.dtype == w.ty.dtype && stored.bytes.len() as u64 == embedded(w.name.clone(), &w.ty).bytes;
    (same && aligned).then_some(stored)
}

/// A weight in the compiled file, or where it lies in the checkpoint if it may stay there.
fn weight(
    w: &hadal_ir::plan::Weight,
    checkpoint: Option<&Checkpoint>,
    options: &Options,
    files: &mut Vec<artifact::ExternalFile>,
) -> Result<artifact::Weight, Failure> {
    let mut out = embedded(w.name.clone(), &w.ty);
    let Some(stored) = in_place(w, checkpoint, options) else { return Ok(out) };
    let Ok(path) = stored.file.canonicalize() else { return Ok(out) };
    let path = path.into_os_string().into_string().map_err(|path| {
        let path = Path::new(&path).display();
        let help = "rename the folder, or compile with --weights embedded";
        Failure::input(format!("{path}: weights that stay in a file need a path that is UTF-8 text")).help(help)
    })?;
    let file = match files.iter().position(|f| f.path == path) {
        Some(known) => known,
        None => {
            files.push(external_file(path, stored.file)?);
            files.len() - 1
        }
    };
    out.place = artifact::Place::External { file: file as u32, offset: stored.offset };
    Ok(out)
}

/// A shard, recognised later by its size and its header.
fn external_file(path: String, file: &Path) -> Result<artifact::ExternalFile, Failure> {
    let at = |e: std::io::Error| Failure::input(format!("{}: {e}", file.display()));
    let mut opened = std::fs::File::open(file).map_err(at)?;
    let bytes = opened.metadata().map_err(at)?.len();
    let mut length = [0u8; 8];
    std::io::Read::read_exact(&mut opened, &mut length).map_err(at)?;
    // Other files than safetensors say nothing of a header's length there.
    let header_bytes = match length.starts_with(b"GGUF") {
        true => bytes.min(1 << 20),
        false => u64::from_le_bytes(length).saturating_add(8).min(bytes),
    };
    let mut header = length.to_vec();
    std::io::Read::read_to_end(&mut std::io::Read::take(&mut opened, header_bytes - 8), &mut header).map_err(at)?;
    let header_checksum = artifact::checksum(&header);
    Ok(artifact::ExternalFile { path, bytes, header_bytes, header_checksum })
}

fn entry(
    name: &str,
    (program, stored): (&Program, &Storage),
    optimised: &Module,
    kernels: &[BuiltKernel],
    by_name: &dyn Fn(&str) -> usize,
) -> artifact::Entry {
    let plans: Vec<&Plan> = program.versions(name).collect();
    let ports = |of: fn(&Plan) -> &[hadal_ir::plan::Port]| -> Vec<artifact::Port> {
        let one = |i| port(&plans.iter().map(|p| &of(p)[i]).collect::<Vec<_>>());
        (0..plans.first().map_or(0, |p| of(p).len())).map(one).collect()
    };
    let versions: Vec<artifact::Version> =
        plans.iter().map(|plan| version(plan, (program, stored), optimised, kernels, by_name)).collect();
    let mut symbols = versions.first().map(|v| v.symbols.clone()).unwrap_or_default();
    for v in &versions {
        for (whole, part) in symbols.iter_mut().zip(&v.symbols) {
            (whole.lo, whole.hi) = (whole.lo.min(part.lo), whole.hi.max(part.hi));
        }
    }
    artifact::Entry {
        name: name.to_owned(),
        symbols,
        inputs: ports(|p| &p.inputs),
        outputs: ports(|p| &p.outputs),
        versions,
    }
}

/// A port of all versions: one may have fixed a size that is a symbol in another.
fn port(of: &[&hadal_ir::plan::Port]) -> artifact::Port {
    let mut ty = of[0].ty.clone();
    for (i, size) in ty.shape.iter_mut().enumerate() {
        let symbolic = of.iter().map(|p| &p.ty.shape[i]).find(|d| d.as_const().is_none());
        *size = symbolic.unwrap_or(size).clone();
    }
    artifact::Port { name: of[0].name.clone(), ty }
}

fn version(
    plan: &Plan,
    (program, stored): (&Program, &Storage),
    optimised: &Module,
    kernels: &[BuiltKernel],
    by_name: &dyn Fn(&str) -> usize,
) -> artifact::Version {
    let batching = hadal_passes::plan::batching(program, plan);
    let arg = |place: &Place| match *place {
        Place::Buffer(i) if batching.as_ref().is_some_and(|b| b.own[i]) => artifact::Arg::own(plan.buffers[i].offset),
        Place::Buffer(i) => artifact::Arg::arena(plan.buffers[i].offset),
        Place::Weight(_) | Place::Fold(_) => {
            let (at, offset) = stored.find(*place).expect("what launches read is stored");
            artifact::Arg { space: artifact::Space::Weight(at as u32), offset }
        }
        Place::State(i) => artifact::Arg::of(artifact::Space::State(i as u32)),
        Place::Input(i) => artifact::Arg::of(artifact::Space::Input(i as u32)),
        Place::Output(i) => artifact::Arg::of(artifact::Space::Output(i as u32)),
    };
    let launches = plan.launches.iter().enumerate().map(|(i, l)| {
        let kernel = by_name(&l.kernel);
        artifact::Launch {
            kernel: kernel as u32,
            args: l.args.iter().map(arg).collect(),
            grid: kernels[kernel].generated.kernel.grid.clone(),
            each: batching.as_ref().is_some_and(|b| b.each[i]),
        }
    });
    let least = |sym| plan.ranges.get(&sym).map_or(0, |r| r.min.max(0)) as usize;
    let cost = cost(optimised, &plan.entry, least(Sym::T).max(1), least(Sym::P));
    artifact::Version {
        symbols: plan.ranges.iter().map(|(s, r)| artifact::SymbolRange { sym: *s, lo: r.min, hi: r.max }).collect(),
        launches: launches.collect(),
        batches: batching.is_some(),
        weight_bytes_read: cost.map(|c| c.weight_bytes as u64),
        flops: cost.map(|c| c.flops as u64),
    }
}

impl Compiled {
    /// The kernels of the level to be preferred.
    pub fn kernels(&self) -> &[BuiltKernel] {
        self.levels.first().map(|l| &l.kernels[..]).unwrap_or_default()
    }

    /// Writes the compiled file, all or nothing. Returns its length.
    pub fn write(&self, input: &Input, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<u64, Failure> {
        let parts = self.parts(input)?;
        Ok(artifact::write(path, &parts, &mut |i, out| self.write_weight(input, i, out, progress))?)
    }

    /// Puts the compiled file into memory, where it can be opened by the path returned as long as the file is held.
    pub fn in_memory(&self, input: &Input) -> Result<(std::fs::File, PathBuf), Failure> {
        use std::os::fd::AsRawFd;
        let fd = rustix::fs::memfd_create("hadal", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|e| Failure::failed(format!("no memory file: {e}")))?;
        let mut file = std::fs::File::from(fd);
        let parts = self.parts(input)?;
        let mut out = std::io::BufWriter::with_capacity(1 << 20, &mut file);
        artifact::write_to(&mut out, &parts, &mut |i, out| self.write_weight(input, i, out, &mut |_| {}))?;
        out.flush().map_err(|e| Failure::failed(format!("the program does not fit into memory: {e}")))?;
        drop(out);
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Ok((file, path))
    }

    fn parts<'a>(&'a self, input: &'a Input) -> Result<artifact::Parts<'a>, Failure> {
        let runner = self.runner.for_levels(self.levels.iter().map(|l| &l.cpu))?;
        Ok(artifact::Parts { runner, manifest: &self.manifest, code: &self.code, blobs: &input.blobs })
    }

    /// Evaluates a tensor that is computed from weights alone.
    fn fold(&self, index: usize, source: &ModelWeights<'_>) -> Result<Tensor, String> {
        let fold = &self.program.folds[index];
        let func = self.program.module.func(&fold.func).ok_or_else(|| format!("@{} does not exist", fold.func))?;
        let arg = |place: &Place| match *place {
            Place::Weight(i) => {
                let w = &self.program.weights[i];
                source.weight(&w.name, &w.ty)
            }
            Place::Fold(i) if i < index => self.fold(i, source),
            _ => Err(format!("{place} is not known when compiling")),
        };
        let args = fold.args.iter().map(arg).collect::<Result<Vec<_>, _>>()?;
        let mut results = eval_func(func, &args, &Bindings::new()).map_err(|e| e.to_string())?;
        Ok(results.swap_remove(fold.result))
    }

    /// The bytes of such a tensor. Where elements are only moved, they are never looked at.
    fn fold_bytes(&self, index: usize, source: &ModelWeights<'_>) -> Result<Vec<u8>, String> {
        let fold = &self.program.folds[index];
        let func = self.program.module.func(&fold.func).ok_or_else(|| format!("@{} does not exist", fold.func))?;
        let pieces = pieces(func, fold.result);
        if pieces.is_none() && !layout_fold::is_layout(func) {
            return Ok(self.fold(index, source)?.to_bytes());
        }
        let arg = |place: &Place| match *place {
            Place::Weight(i) => {
                let (w, mut bytes) = (&self.program.weights[i], Vec::new());
                source.write_to(&w.name, &w.ty, &mut bytes)?;
                Ok(bytes)
            }
            Place::Fold(i) if i < index => self.fold_bytes(i, source),
            _ => Err(format!("{place} is not known when compiling")),
        };
        let args = fold.args.iter().map(arg).collect::<Result<Vec<_>, _>>()?;
        let moved = match pieces {
            Some(pieces) => {
                let of = |p: &Piece<usize>| args.get(p.of)?.get(p.bytes.start as usize..p.bytes.end as usize);
                pieces.iter().map(of).collect::<Option<Vec<&[u8]>>>().map(|parts| parts.concat())
            }
            None => layout_fold::eval(func, args, fold.result),
        };
        moved.ok_or_else(|| format!("@{}: wrong sizes", fold.func))
    }

    /// Writes the bytes of one embedded weight.
    fn write_weight(
        &self,
        input: &Input,
        index: usize,
        out: &mut dyn Write,
        progress: &mut dyn FnMut(u64),
    ) -> std::io::Result<()> {
        let checkpoint = input.checkpoint.as_ref().ok_or_else(|| std::io::Error::other("there are no weights"))?;
        self.write_constant(self.stored.kept[index], &self.model.weights(checkpoint), out)?;
        progress(self.manifest.weights[index].bytes);
        Ok(())
    }

    fn write_constant(&self, place: Place, source: &ModelWeights<'_>, out: &mut dyn Write) -> std::io::Result<()> {
        match place {
            Place::Fold(i) => {
                let fold = &self.program.folds[i];
                // Panels are laid out on the way.
                let func = self.program.module.func(&fold.func);
                match func.and_then(|func| hadal_ir::panels::Writer::new(func, &mut *out)) {
                    Some(mut panels) => self.write_constant(fold.args[0], source, &mut panels),
                    None => out.write_all(&self.fold_bytes(i, source).map_err(std::io::Error::other)?),
                }
            }
            Place::Weight(i) => {
                let w = &self.program.weights[i];
                source.write_to(&w.name, &w.ty, &mut &mut *out).map_err(std::io::Error::other)
            }
            _ => unreachable!("only constants are stored"),
        }
    }
}
