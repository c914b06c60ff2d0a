//! What the documentation shows is true: graph text parses, verifies and prints the same; commands run.

use hadal_ir::{text, verify};
use hadal_tests::{root, run};
use std::path::{Path, PathBuf};
use std::process::Command;

const HADAL: &str = env!("CARGO_BIN_EXE_hadal-under-test");

/// A fenced block: its language and its lines.
struct Block {
    place: String,
    language: String,
    text: String,
}

/// Every page: the book's, and those beside it.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md"].iter().map(|n| root().join(n)).filter(|p| p.exists()).collect();
    let mut folders = vec![root().join("docs/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("readable") {
            let path = entry.expect("readable").path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(e) if e == "md" => pages.push(path),
                _ => {}
            }
        }
    }
    pages.sort();
    pages
}

/// The fenced blocks of a Markdown text; `margin` stands before each of its lines.
fn blocks(path: &Path, margin: &str) -> Vec<Block> {
    let source = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (mut out, mut open) = (Vec::new(), None::<Block>);
    for (number, line) in source.lines().enumerate() {
        let Some(line) = line.strip_prefix(margin) else { continue };
        let line = line.strip_prefix(' ').filter(|_| !margin.is_empty()).unwrap_or(line);
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => out.extend(open.take()),
            (Some(language), None) => {
                let place = format!("{}:{}", path.display(), number + 1);
                open = Some(Block { place, language: language.trim().to_owned(), text: String::new() });
            }
            (None, Some(block)) => block.text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{}: a block without an end", path.display());
    out
}

#[test]
fn graph_text_means_what_it_says() {
    let mut all: Vec<Block> = pages().iter().flat_map(|p| blocks(p, "")).collect();
    for entry in std::fs::read_dir(root().join("ir/src/ops")).expect("readable") {
        let path = entry.expect("readable").path();
        // Parts of an op's file, in a folder, show no text of their own.
        if path.is_file() {
            all.extend(blocks(&path, "//!"));
        }
    }
    let mut seen = 0;
    for block in all.iter().filter(|b| b.language == "hir") {
        let module = text::parse_module(&block.text).unwrap_or_else(|e| panic!("{}: {e}", block.place));
        verify::module(&module).unwrap_or_else(|e| panic!("{}: {e}", block.place));
        let printed = text::print_module(&module);
        assert_eq!(text::parse_module(&printed).expect("what is printed parses"), module, "{}", block.place);
        seen += 1;
    }
    assert!(seen > 0, "no page shows graph text");
    // Graph text that is not marked as such would not be tried.
    for block in all.iter().filter(|b| b.language.is_empty() || b.language == "text") {
        assert!(!block.text.starts_with("func @"), "{}: mark it as `hir`", block.place);
    }
}

/// The command lines of a block, continuation lines joined.
fn commands(block: &Block) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut open = false;
    for line in block.text.lines() {
        let text = line.trim_end_matches('\\');
        match line.strip_prefix("$ ") {
            Some(_) => out.push(text[2..].to_owned()),
            None if open => out.last_mut().expect("opened").push_str(text),
            None => {}
        }
        open = line.ends_with('\\') && (open || line.starts_with("$ "));
    }
    out
}

/// How the shell here runs a command line, if it is one of ours: `hadal …`, the same through cargo, or a file that a
/// command before it has made.
fn runnable(line: &str) -> bool {
    line.starts_with("hadal ") || line.starts_with("cargo run --release -- ") || line.starts_with("./")
}

#[test]
fn commands_run() {
    let mut ran = 0;
    for page in pages() {
        let dir = tempfile::tempdir().expect("a folder");
        for folder in ["models", "tests", "docs"] {
            std::os::unix::fs::symlink(root().join(folder), dir.path().join(folder)).expect("a link");
        }
        let shell = format!("hadal() {{ '{HADAL}' \"$@\"; }}\n");
        for block in blocks(&page, "").iter().filter(|b| b.language == "console") {
            for line in commands(block).iter().filter(|l| runnable(l)) {
                let script = shell.clone() + &line.replace("cargo run --release --", "hadal");
                let out = run(Command::new("sh").args(["-c", &script]).current_dir(dir.path()));
                assert_eq!(out.code, Some(0), "{}: `{line}`\n{}\n{}", block.place, out.stdout, out.stderr);
                ran += 1;
            }
        }
    }
    println!("{ran} commands");
    let readme = root().join("README.md");
    assert!(ran > 0 || !readme.exists(), "README.md shows no command in a `console` block");
}
