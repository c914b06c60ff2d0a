//! What the tests of the whole pipeline share: where data lies, how a command is run, how a program in memory is
//! called.

pub use hadal::random_checkpoint::{self, Numbers};
use hadal::{Failure, Input, Options, compile};
use hadal_ir::Tensor;
use hadal_models::Vocabulary;
use hadal_models::checkpoint::Checkpoint;
use hadal_models::ngram::Classes;
use hadal_runtime::{Pool, Program, Session};
use hadal_types::{Bindings, Sym};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// The project's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the project is there")
}

/// A small checkpoint with golden tensors.
pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

/// Fixtures of every kind of model.
pub const KINDS: [&str; 17] = [
    "llama-dense",
    "r1-distill-qwen",
    "deepseek-moe-16b",
    "v2",
    "v2-lite",
    "v3",
    "v3-fp8",
    "variant-v3-k1",
    "variant-v3-mtp2",
    "v32",
    "variant-v32-fp8",
    "v4-flash-like",
    "v4-fp4",
    "v41-like",
    "v41-fp8fp4-like",
    "engram",
    "nsa",
];

/// Those with releases that define how states are rounded.
pub const ROUNDED: [&str; 3] = ["variant-v32-fp8", "v4-fp4", "v41-fp8fp4-like"];

/// A fixture as input. Where its tokenizer is not there, the classes of tokens are those that were recorded.
pub fn open(name: &str) -> Input {
    let mut input = Input::open(&fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let golden = Checkpoint::open(fixture(name).join("golden.safetensors")).ok();
    if input.vocabulary.is_none()
        && let Some(classes) = golden.as_ref().and_then(|g| g.tensor("compressed_lookup"))
    {
        let classes = Tensor::from_bytes(classes.dtype, classes.shape, classes.bytes).expect("as recorded");
        let classes = classes.ints().iter().map(|c| *c as u32).collect();
        input.vocabulary = Some(Vocabulary::Classes(Classes::new(classes)));
    }
    input
}

/// The trained model.
pub fn demo_folder() -> PathBuf {
    root().join("models/demo")
}

/// Does the work of each item, on all cores, and returns the results in order.
pub fn on_all_cores<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let waiting = Mutex::new(items.into_iter().enumerate());
    let next = || waiting.lock().expect("nobody panics while holding it").next();
    let worker = || std::iter::from_fn(|| next().map(|(i, item)| (i, work(item)))).collect::<Vec<_>>();
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let started: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        started.into_iter().flat_map(|w| w.join().expect("no item fails")).collect()
    });
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Copies the files of `from` (not its folders) to the new folder `to`.
pub fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a writable folder");
    for entry in std::fs::read_dir(from).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().expect("files have names"))).expect("copied");
        }
    }
}

/// What a process left.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The exit code; a signal has none.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs `command` to its end. What it writes must be UTF-8.
pub fn run(command: &mut Command) -> Ran {
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap_or_else(|e| panic!("{command:?}: {e}"));
    Ran { code: out.status.code(), stdout: text(out.stdout), stderr: text(out.stderr) }
}

impl Ran {
    /// Its standard output, if it succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// Compiles `input` into memory, for this machine.
pub fn load(input: &Input, options: &Options) -> Result<Arc<Program>, Failure> {
    let compiled = compile(input, &options.clone().here())?;
    let (_file, path) = compiled.in_memory(input)?;
    Ok(Program::open(&path)?)
}

/// A new sequence of `program`.
pub fn session(program: &Arc<Program>, threads: usize) -> Session {
    Session::new(program.clone(), Pool::new(threads)).expect("a sequence fits into memory")
}

/// Calls an entry on `tokens` and, where it takes more, on rows of reals; gives its outputs, all of which are reals.
pub fn call(session: &mut Session, entry: &str, tokens: &[u32], more: &[&[f32]]) -> Vec<Vec<f32>> {
    let index = session.entry(entry).expect("the entry exists");
    let bindings = Bindings::from([(Sym::P, session.held(index) as i64), (Sym::T, tokens.len() as i64)]);
    let described = &session.program().manifest().entries[index];
    let floats = |p: &hadal_artifact::Port| hadal_artifact::tensor_bytes(&p.ty, &bindings).expect("bound") as usize / 4;
    let mut outputs: Vec<Vec<f32>> = described.outputs.iter().map(|p| vec![0.0; floats(p)]).collect();
    let ids: Vec<i32> = tokens.iter().map(|t| *t as i32).collect();
    let mut inputs: Vec<&[u8]> = vec![bytemuck::cast_slice(&ids)];
    inputs.extend(more.iter().map(|m| bytemuck::cast_slice::<f32, u8>(m)));
    let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(|o| bytemuck::cast_slice_mut(o)).collect();
    session.run(index, tokens.len(), &inputs, &mut slices).expect("the call is in order");
    outputs
}
