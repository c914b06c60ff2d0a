//! What a command ends with when it cannot do what was asked: a message, what to do next, and a stable exit code.

use std::fmt;

/// Exit codes, the same for every command and for compiled files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// What was checked does not hold (a failed verification), or running failed.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// A file that was given is missing, damaged or not supported.
    BadInput = 3,
    /// hadal itself is wrong: please report it.
    Internal = 4,
}

/// A command's failure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The exit code.
    pub code: Code,
    /// What is wrong, naming file and place.
    pub message: String,
    /// What to do next, where there is something to do.
    pub help: Option<String>,
}

impl Failure {
    /// A fault of a file or folder that was given.
    pub fn input(message: impl fmt::Display) -> Failure {
        Failure { code: Code::BadInput, message: message.to_string(), help: None }
    }

    /// Something that was run or checked failed.
    pub fn failed(message: impl fmt::Display) -> Failure {
        Failure { code: Code::Failed, message: message.to_string(), help: None }
    }

    /// The command line makes no sense.
    pub fn usage(message: impl fmt::Display) -> Failure {
        Failure { code: Code::Usage, message: message.to_string(), help: None }
    }

    /// A stage of the compiler produced something the next refuses: a bug here.
    pub fn internal(stage: &str, message: impl fmt::Display) -> Failure {
        let help = "this is a bug in hadal; please report it with the command and the model's config.json".to_owned();
        Failure { code: Code::Internal, message: format!("{stage}: {message}"), help: Some(help) }
    }

    /// What passes could not do: sizes that no machine described here holds are the model's, all else is a bug.
    pub fn optimising(error: hadal_passes::Error) -> Failure {
        use hadal_passes::Error::{NoChoice, NoRoom};
        match error {
            NoRoom { .. } | NoChoice { .. } => {
                Failure::input(format!("the model is too large for this machine: {error}"))
                    .help("lower --max-context or --max-chunk, or name a machine with more memory (--target)")
            }
            other => Failure::internal("optimising", other),
        }
    }

    /// The same with advice.
    pub fn help(mut self, help: impl fmt::Display) -> Failure {
        self.help = Some(help.to_string());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

impl From<hadal_models::Error> for Failure {
    fn from(e: hadal_models::Error) -> Failure {
        let absent = matches!(&e, hadal_models::Error::Io { file, source, .. }
            if source.kind() == std::io::ErrorKind::NotFound && file.ends_with("config.json"));
        let failure = Failure::input(e);
        match absent {
            true => failure.help("a checkpoint folder holds config.json, the tokenizer's files and *.safetensors"),
            false => failure,
        }
    }
}

impl From<hadal_artifact::Error> for Failure {
    fn from(e: hadal_artifact::Error) -> Failure {
        use hadal_artifact::Error as E;
        match e {
            E::DiskFull { .. } | E::Io { .. } => Failure::failed(e),
            E::NotAFile { .. } => Failure::usage(e),
            E::Inconsistent { .. } | E::Length { .. } => Failure::internal("writing the compiled file", e),
            _ => Failure::input(e),
        }
    }
}

impl From<hadal_runtime::Error> for Failure {
    fn from(e: hadal_runtime::Error) -> Failure {
        Failure::failed(e)
    }
}

/// Reads a text file, naming it in the error.
pub fn read_text(path: &std::path::Path) -> Result<String, Failure> {
    /// No honest text comes near: the graph of the largest model has 40 kB.
    const LIMIT: u64 = 1 << 28;
    let at = |e: std::io::Error| Failure::input(format!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(at)?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, LIMIT + 1), &mut bytes).map_err(at)?;
    if bytes.len() as u64 > LIMIT {
        return Err(Failure::input(format!("{}: longer than {LIMIT} bytes, which no such file is", path.display())));
    }
    String::from_utf8(bytes).map_err(|e| Failure::input(format!("{}: not UTF-8 text: {e}", path.display())))
}
