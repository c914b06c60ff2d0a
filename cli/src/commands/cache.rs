//! `hadal cache`: where compiled kernels are kept, and how much of them.

use crate::cache::{Cache, LIMIT};
use crate::failure::Failure;
use crate::units;
use serde_json::json;

/// Show or clear the cache of compiled kernels.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  hadal cache\n  hadal cache --clear\n\n\
    Machine code is kept by what it was made of, so `hadal compile` makes that of a kernel once. The folder is `code` in \
    $HADAL_CACHE, or else in `hadal` in the user's cache folder. `--no-cache` does without.")]
pub struct Args {
    /// Remove all entries.
    #[arg(long)]
    clear: bool,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let Some(cache) = Cache::of_user() else {
        let help = "set HADAL_CACHE to a folder";
        return Err(Failure::failed("there is no place for a cache: neither HADAL_CACHE nor HOME is set").help(help));
    };
    let folder = cache.folder();
    let failed = |e: std::io::Error| Failure::failed(format!("{}: {e}", folder.display()));
    let removed = if args.clear { Some(cache.clear().map_err(failed)?) } else { None };
    let usage = cache.usage();
    let usable = cache.is_usable();
    if args.json {
        let removed = removed.map(|r| json!({"entries": r.entries, "bytes": r.bytes}));
        let (entries, bytes) = (usage.entries, usage.bytes);
        let out = json!({
            "folder": folder, "entries": entries, "bytes": bytes, "limit": LIMIT, "usable": usable, "removed": removed,
        });
        return say!("{out:#}");
    }
    if let Some(removed) = removed {
        say!("removed {} kernels, {}", removed.entries, units::bytes(removed.bytes as f64))?;
    }
    let (bytes, limit) = (units::bytes(usage.bytes as f64), units::bytes(LIMIT as f64));
    say!("{}: {} kernels, {bytes} of at most {limit}", folder.display(), usage.entries)?;
    if !usable {
        say!("not used: the folder must belong to you and be writable by you and nobody else")?;
    }
    Ok(())
}
