//! Machine code of kernels, kept in a folder by what it was made of.
//!
//! The key of an entry is a hash of the kernel's text without its name and of everything else that its code depends on
//! ([`hadal_codegen::maker`]); the value is the code. Entries are files that are written whole or not at all, by any
//! number of processes at once. One that is not what was written (its checksum covers all of it, its key too) is
//! removed and made anew. As code from here is run, the folder must belong to the user and be writable by nobody else.
//!
//! A cache changes no result: whatever goes wrong with it, code is made as if there were none.

use hadal_codegen::processor::{CompiledKernel, Processor};
use hadal_ir::kernel::Kernel;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

/// The first bytes of an entry; the last of them is the format's version.
const MAGIC: [u8; 8] = *b"hadalcc\x01";

/// What names of entries end with.
const EXTENSION: &str = "code";

/// Bytes around the code of an entry: magic, key, checksum.
const AROUND: usize = 8 + 16 + 16;

/// Bytes of an entry beyond which nobody wrote it.
const MOST_OF_ONE: u64 = 64 << 20;

/// Bytes of all entries before the oldest go.
pub const LIMIT: u64 = 256 << 20;

/// A folder of code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cache {
    folder: PathBuf,
    limit: u64,
}

/// How much there is of something.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// Entries.
    pub entries: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// The user's folder for what can be made again: `$HADAL_CACHE`, or `hadal` in `$XDG_CACHE_HOME` or in `~/.cache`.
pub fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let named = |name: &str| set(name).filter(|p| p.is_absolute());
    let caches = || named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")));
    match set("HADAL_CACHE") {
        Some(own) => std::path::absolute(own).ok(),
        None => Some(caches()?.join("hadal")),
    }
}

impl Cache {
    /// The user's, where there is a place for one.
    pub fn of_user() -> Option<Cache> {
        Some(Cache::at(folder()?.join("code"), LIMIT))
    }

    /// In a folder, which need not exist, of about so many bytes.
    pub fn at(folder: PathBuf, limit: u64) -> Cache {
        Cache { folder, limit }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Code for a kernel, and whether it was there already.
    pub fn compile(&self, kernel: &Kernel, cpu: &Processor) -> Result<(CompiledKernel, bool), hadal_codegen::Error> {
        let key = key(kernel, cpu);
        if let Some(code) = self.read(key) {
            return Ok((CompiledKernel::of(kernel, cpu, code)?, true));
        }
        let compiled = hadal_codegen::compile(kernel, cpu, false)?;
        // What cannot be kept is made again.
        let _ = self.write(key, &compiled.code);
        Ok((compiled, false))
    }

    fn file(&self, key: u128) -> PathBuf {
        self.folder.join(format!("{key:032x}.{EXTENSION}"))
    }

    /// The code under a key. An entry that is read becomes the youngest, one that is damaged is removed.
    fn read(&self, key: u128) -> Option<Vec<u8>> {
        if !self.is_ours() {
            return None;
        }
        let path = self.file(key);
        // The folder may have been exchanged since: the entry itself is the user's own too. A pipe is not waited for.
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
        let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(&path).ok()?;
        let about = file.metadata().ok()?;
        if !(about.is_file() && is_own(&about)) {
            return None;
        }
        let mut entry = Vec::new();
        (&file).take(MOST_OF_ONE).read_to_end(&mut entry).ok()?;
        let Some(code) = code(&entry, key) else {
            let _ = std::fs::remove_file(&path);
            return None;
        };
        // Only a hint for what to keep.
        let _ = file.set_modified(SystemTime::now());
        Some(code.to_vec())
    }

    fn write(&self, key: u128, code: &[u8]) -> std::io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let size = (code.len() + AROUND) as u64;
        if !self.is_ours() || size > MOST_OF_ONE.min(self.limit) {
            return Ok(());
        }
        let suffix = format!(".{EXTENSION}");
        let mut file = tempfile::Builder::new().prefix(".new-").suffix(&suffix).tempfile_in(&self.folder)?;
        file.write_all(&entry(key, code))?;
        file.persist(self.file(key))?;
        Ok(())
    }

    /// Whether code from here may be run: the folder is the user's own and nobody else can write to it.
    pub fn is_ours(&self) -> bool {
        std::fs::metadata(&self.folder).is_ok_and(|m| m.is_dir() && is_own(&m))
    }

    /// Whether code is or can be kept here.
    pub fn is_usable(&self) -> bool {
        use rustix::fs::{Access, access};
        let able = |folder: &Path| access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok();
        match std::fs::symlink_metadata(&self.folder) {
            Ok(_) => self.is_ours() && able(&self.folder),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let there = self.folder.ancestors().find(|f| std::fs::symlink_metadata(f).is_ok());
                there.is_some_and(|f| f.is_dir() && able(f))
            }
            Err(_) => false,
        }
    }

    /// What it holds.
    pub fn usage(&self) -> Usage {
        total(&self.entries())
    }

    /// Removes the oldest entries if there are too many bytes: a quarter of what there may be becomes free.
    pub fn trim(&self) {
        let mut entries = self.entries();
        let mut left = total(&entries).bytes;
        if left <= self.limit {
            return;
        }
        entries.sort_by_key(|e| e.1);
        for (path, _, bytes) in entries {
            if left <= self.limit / 4 * 3 {
                break;
            }
            let _ = std::fs::remove_file(path);
            left -= bytes;
        }
    }

    /// Removes every entry; says what there was.
    pub fn clear(&self) -> std::io::Result<Usage> {
        let entries = self.entries();
        for (path, ..) in &entries {
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(total(&entries))
    }

    /// Files that are entries or were to become some, with the time of their last use and their bytes.
    fn entries(&self) -> Vec<(PathBuf, SystemTime, u64)> {
        let files = std::fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|f| f.path());
        let entries = files.filter(|path| path.extension().is_some_and(|e| e == EXTENSION));
        let described = entries.filter_map(|path| {
            let about = std::fs::symlink_metadata(&path).ok().filter(|m| m.is_file())?;
            Some((path, about.modified().ok()?, about.len()))
        });
        described.collect()
    }
}

/// Whether the user owns it and nobody else can write to it.
fn is_own(about: &std::fs::Metadata) -> bool {
    about.uid() == rustix::process::geteuid().as_raw() && about.mode() & 0o022 == 0
}

fn total(entries: &[(PathBuf, SystemTime, u64)]) -> Usage {
    Usage { entries: entries.len(), bytes: entries.iter().map(|e| e.2).sum() }
}

/// What code is kept under. Kernels that differ in nothing but their name have the same.
fn key(kernel: &Kernel, cpu: &Processor) -> u128 {
    struct Text(Xxh3Default);
    impl std::fmt::Write for Text {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.update(text.as_bytes());
            Ok(())
        }
    }
    let mut text = Text(Xxh3Default::new());
    let nameless = kernel.nameless();
    write!(text, "{}\n{nameless}", hadal_codegen::maker(cpu)).expect("hashing does not fail");
    text.0.digest128()
}

/// A file's bytes.
fn entry(key: u128, code: &[u8]) -> Vec<u8> {
    let mut entry = [&MAGIC[..], &key.to_le_bytes(), code].concat();
    let checksum = xxh3_128(&entry);
    entry.extend(checksum.to_le_bytes());
    entry
}

/// The code in an entry, if it is whole and under this key.
fn code(entry: &[u8], key: u128) -> Option<&[u8]> {
    let (body, checksum) = entry.split_last_chunk::<16>()?;
    let code = body.strip_prefix(&MAGIC)?.strip_prefix(&key.to_le_bytes())?;
    (xxh3_128(body).to_le_bytes() == *checksum).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const KERNEL: &str = "kernel @f\nsymbols T\nparam x : f32[T] read\nparam y : f32[T] write\ngrid T\n{\n  \
        %0 = grid 0 : i64\n  %1 = load x[%0] : f32\n  %2 = add %1, %1 : f32\n  store y[%0] = %2\n}\n";
    const CPU: Processor = Processor::X86_64_V3;

    fn kernel(text: &str) -> Kernel {
        hadal_ir::kernel::text::parse(text).unwrap()
    }

    fn fresh() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("deep/code"), LIMIT);
        (folder, cache)
    }

    #[test]
    fn code_that_is_there_has_the_same_bytes_whatever_the_kernel_is_called() {
        let (_folder, cache) = fresh();
        let (made, found) = cache.compile(&kernel(KERNEL), &CPU).unwrap();
        assert!(!found);
        let other = kernel(&KERNEL.replace("@f", "@g"));
        let (again, found) = cache.compile(&other, &CPU).unwrap();
        assert!(found && again.code == made.code && again.name == "g");
        assert_eq!(again.scratch_bytes, made.scratch_bytes);
        assert_eq!(cache.usage().entries, 1);
        assert_eq!(cache.clear().unwrap().entries, 1);
        assert_eq!(cache.usage(), Usage::default());
    }

    #[test]
    fn keys_tell_apart_what_code_depends_on() {
        let one = kernel(KERNEL);
        let all = [
            key(&one, &CPU),
            key(&kernel(&KERNEL.replace("add", "mul")), &CPU),
            key(&one, &Processor { features: &["sse3"], ..CPU }),
            key(&one, &Processor { arch: "aarch64", ..CPU }),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(key(&one, &CPU), key(&kernel(KERNEL), &CPU));
    }

    #[test]
    fn an_entry_that_is_not_what_was_written_is_made_anew() {
        let (_folder, cache) = fresh();
        let kernel = kernel(KERNEL);
        let key = key(&kernel, &CPU);
        let made = cache.compile(&kernel, &CPU).unwrap().0;
        let whole = std::fs::read(cache.file(key)).unwrap();
        let mut bad: Vec<Vec<u8>> = (0..whole.len()).step_by(7).map(|n| whole[..n].to_vec()).collect();
        bad.extend((0..whole.len()).map(|i| {
            let mut flipped = whole.clone();
            flipped[i] ^= 0x10;
            flipped
        }));
        bad.push([&whole[..], &[0]].concat());
        bad.push(entry(key ^ 1, b"\xc3"));
        for bytes in bad {
            std::fs::write(cache.file(key), &bytes).unwrap();
            assert!(cache.read(key).is_none());
            assert!(!cache.file(key).exists());
        }
        let (again, found) = cache.compile(&kernel, &CPU).unwrap();
        assert!(!found && again.code == made.code);
        assert!(cache.compile(&kernel, &CPU).unwrap().1);
    }

    #[test]
    fn a_folder_that_others_can_write_to_or_that_cannot_be_made_is_not_used() {
        let (folder, cache) = fresh();
        let kernel = kernel(KERNEL);
        cache.compile(&kernel, &CPU).unwrap();
        std::fs::set_permissions(cache.folder(), PermissionsExt::from_mode(0o777)).unwrap();
        assert!(!cache.compile(&kernel, &CPU).unwrap().1);
        std::fs::set_permissions(cache.folder(), PermissionsExt::from_mode(0o500)).unwrap();
        assert!(cache.compile(&kernel, &CPU).unwrap().1, "what is there can be read");
        std::fs::set_permissions(cache.folder(), PermissionsExt::from_mode(0o700)).unwrap();

        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let cache = Cache::at(file.join("code"), LIMIT);
        assert!(!cache.compile(&kernel, &CPU).unwrap().1);
        assert_eq!((cache.usage(), cache.is_ours()), (Usage::default(), false));
    }

    #[test]
    fn the_oldest_go_first() {
        let (_folder, cache) = fresh();
        let cache = Cache { limit: 4 * (1000 + AROUND as u64), ..cache };
        for i in 0..6u64 {
            cache.write(u128::from(i), &[0; 1000]).unwrap();
            let file = std::fs::File::open(cache.file(u128::from(i))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(i)).unwrap();
        }
        assert!(cache.read(0).is_some(), "now the youngest");
        cache.trim();
        let left: Vec<u128> = (0..6).filter(|i| cache.file(*i).exists()).collect();
        assert_eq!(left, [0, 4, 5]);
        cache.trim();
        assert_eq!(cache.usage().entries, 3);
        cache.write(9, &[0; 5000]).unwrap();
        assert_eq!(cache.usage().entries, 3, "larger than all may be");
    }

    #[test]
    fn many_may_write_at_once() {
        let (_folder, cache) = fresh();
        std::thread::scope(|scope| {
            for writer in 0..8u8 {
                let cache = &cache;
                scope.spawn(move || {
                    for round in 0..50u128 {
                        let key = round % 5;
                        // Another may just clear what is being written.
                        let _ = cache.write(key, &[key as u8; 3000]);
                        if let Some(code) = cache.read(key) {
                            assert_eq!(code, [key as u8; 3000], "{writer}");
                        }
                        if round % 16 == 0 {
                            cache.clear().unwrap();
                        }
                    }
                });
            }
        });
        cache.write(1, &[1; 10]).unwrap();
        assert_eq!(cache.read(1).as_deref(), Some(&[1; 10][..]));
    }
}
