//! The program that a compiled file begins with.
//!
//! One for machines like this is embedded here. A file for another architecture begins with one that was built for it
//! and is named by the user; code and program are held against each other before anything is written.

use crate::Failure;
use hadal_artifact::{ABI_VERSION, RUNNER_NAME, is_compiled};
use hadal_codegen::processor::Processor;
use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The runner for machines like this.
pub static EMBEDDED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hadal-run"));

/// Larger files are no runners.
const MOST: u64 = 1 << 28;

/// A runner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Runner {
    bytes: Cow<'static, [u8]>,
    /// Where it is from; `None` for the embedded one.
    file: Option<PathBuf>,
}

impl Default for Runner {
    fn default() -> Runner {
        Runner { bytes: Cow::Borrowed(EMBEDDED), file: None }
    }
}

impl Runner {
    /// Reads a runner that was built for another machine.
    pub fn open(path: &Path) -> Result<Runner, Failure> {
        let refused = |why: String| {
            let help = "give what `cargo xtask runner aarch64` builds, from the same sources as this program";
            Failure::input(format!("{}: {why}", path.display())).help(help)
        };
        let about = std::fs::metadata(path).map_err(|e| refused(e.to_string()))?;
        if !about.is_file() {
            return Err(refused("not a file".into()));
        }
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes));
        read.map_err(|e| refused(e.to_string()))?;
        if bytes.len() as u64 > MOST {
            return Err(refused(format!("{} bytes; a runner has a few million", about.len())));
        }
        if arch(&bytes).is_none() {
            return Err(refused("it is no program for 64-bit x86 or ARM on Linux (ELF)".into()));
        }
        if is_compiled(&bytes) {
            return Err(refused("a compiled file, which begins with a runner and goes on with a model".into()));
        }
        // The compiler has runners in it too, and its own name of the mark.
        let versions: Vec<u32> = bytes
            .windows(RUNNER_NAME.len() + 4)
            .filter_map(|w| Some(u32::from_le_bytes(w.strip_prefix(&RUNNER_NAME)?.try_into().ok()?)))
            .collect();
        match versions[..] {
            [ABI_VERSION] => Ok(Runner { bytes: bytes.into(), file: Some(path.to_owned()) }),
            [other] => Err(refused(format!("a runner of format version {other}, expected {ABI_VERSION}"))),
            _ => Err(refused("a program, but not hadal's runner".into())),
        }
    }

    /// Its bytes, once it is known to run on the processors that code is for.
    pub fn for_levels<'a>(&self, mut levels: impl Iterator<Item = &'a Processor>) -> Result<&[u8], Failure> {
        // The embedded one need not be ELF: it runs where this program runs.
        let own = self.file.as_ref().map_or(Some(std::env::consts::ARCH), |_| arch(&self.bytes));
        let Some(other) = levels.find(|l| !l.is_gpu() && Some(l.arch) != own) else { return Ok(&self.bytes) };
        let name = self.file.as_ref().map_or("the embedded one".into(), |f| f.display().to_string());
        let own = own.unwrap_or("an unknown processor");
        let message = format!("--cpu {}: the file's runner ({name}) is for {own}, not for {}", other.name, other.arch);
        let help = format!("--runner takes one for {}; `cargo xtask runner {}` builds it", other.arch, other.arch);
        Err(Failure::usage(message).help(help))
    }
}

/// The architecture that a program for Linux is for, as Rust calls it.
fn arch(program: &[u8]) -> Option<&'static str> {
    let header = program.get(..20)?;
    // Magic number, 64 bits, little-endian.
    if header[..6] != *b"\x7fELF\x02\x01" {
        return None;
    }
    match u16::from_le_bytes([header[18], header[19]]) {
        62 => Some("x86_64"),
        183 => Some("aarch64"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(bytes: &[u8]) -> Result<Runner, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runner");
        std::fs::write(&path, bytes).unwrap();
        Runner::open(&path)
    }

    #[test]
    fn the_embedded_runner_can_be_given_too() {
        let runner = opened(EMBEDDED).unwrap();
        let level = Processor::LEVELS.into_iter().find(|l| l.arch == std::env::consts::ARCH).unwrap();
        assert_eq!(runner.for_levels([&level].into_iter()).unwrap(), EMBEDDED);
        let other = Processor::LEVELS.into_iter().find(|l| l.arch != std::env::consts::ARCH).unwrap();
        let refused = Runner::default().for_levels([&level, &other].into_iter()).unwrap_err();
        assert!(refused.message.contains(other.name) && refused.help.unwrap().contains("--runner"));
    }

    #[test]
    fn what_is_no_runner_is_refused() {
        let said = |bytes: &[u8]| opened(bytes).unwrap_err().message;
        assert!(said(b"").contains("no program"));
        assert!(said(&EMBEDDED[..19]).contains("no program"));
        assert!(said(&EMBEDDED[..4096]).contains("not hadal's runner"));
        let mut old = EMBEDDED.to_vec();
        let mark = hadal_artifact::runner_mark();
        let twice = [EMBEDDED, &mark].concat();
        assert!(said(&twice).contains("not hadal's runner"));
        let places: Vec<usize> = (0..old.len() - mark.len()).filter(|at| old[*at..].starts_with(&mark)).collect();
        assert!(!places.is_empty());
        places.iter().for_each(|at| old[at + mark.len() - 4] ^= 0xff);
        assert!(said(&old).contains("a runner of format version"), "{}", said(&old));
        assert!(Runner::open("/dev/zero".as_ref()).unwrap_err().message.contains("not a file"));
        assert!(Runner::open("no/such/file".as_ref()).unwrap_err().message.contains("no/such/file"));
    }
}
