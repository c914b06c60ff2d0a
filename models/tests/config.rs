//! Configurations from outside never make the reader panic, whatever is asked of them.

use hadal_models::config_reader::{Config, Object};
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

/// Asks `object` for every key it has (and one it lacks) as every type, and goes into whatever is an object.
fn ask_everything(object: &Object<'_>) {
    for key in object.keys().chain(["absent"]) {
        let _ =
            (object.require_usize(key), object.usize_or(key, 1), object.count_or(key, 0), object.require_count(key));
        let _ = (object.require_f64(key), object.positive_or(key, 1.0), object.bool_or(key, true));
        let _ = (object.require_str(key), object.optional_str_in(key, &["a", "b"]), object.require_bool(key));
        let _ = (object.usize_list(key), object.f64_list(key), object.str_list(key));
        if let Ok(Some(inner)) = object.optional_object(key) {
            ask_everything(&inner);
        }
    }
}

fn try_config(bytes: &[u8]) {
    if let Ok(config) = Config::parse("config.json", bytes) {
        ask_everything(&config.object());
        assert_eq!(config.unread(), Vec::<String>::new());
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

#[test]
fn every_published_config_is_read() {
    let mut read = 0;
    for entry in fs::read_dir(fixtures().join("configs")).expect("the fixtures") {
        let path = entry.expect("listed").path();
        if path.extension().is_some_and(|e| e == "json") {
            let config = Config::read(&path).unwrap_or_else(|e| panic!("{e}"));
            assert!(!config.unread().is_empty());
            ask_everything(&config.object());
            assert_eq!(config.unread(), Vec::<String>::new());
            read += 1;
        }
    }
    assert!(read > 20, "{read}");
}

#[test]
fn a_folder_stands_for_the_config_in_it() {
    let config = Config::read(fixtures().join("v3")).expect("tests/fixtures/v3/config.json");
    assert!(config.file().ends_with("v3/config.json"));
    assert_eq!(config.object().require_str("model_type").expect("there"), "deepseek_v3");
}

proptest! {
    #[test]
    fn damaged_configs_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = fs::read(fixtures().join("v3-fp8/config.json")).expect("the fixture");
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        try_config(&bytes);
    }

    #[test]
    fn arbitrary_text_never_panics(text in "[{}\\[\\]\":,a-c0-9eE.+\\- ]{0,60}") {
        try_config(text.as_bytes());
        try_config(format!("{{\"a\":{text}}}").as_bytes());
    }
}
