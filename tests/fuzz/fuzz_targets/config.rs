//! Any bytes as config.json: parsed or refused, and then asked for everything as every type.
#![no_main]

use hadal_models::config_reader::{Config, Object};
use libfuzzer_sys::fuzz_target;

fn ask_everything(object: &Object<'_>) {
    for key in object.keys().chain(["absent"]) {
        let _ = (object.optional_usize(key), object.count_or(key, 0), object.require_usize_in(key, 3..=5));
        let _ = (object.require_f64(key), object.optional_positive(key), object.optional_bool(key));
        let _ = (object.require_str(key), object.optional_str_in(key, &["a", "b"]));
        let _ = (object.usize_list(key), object.f64_list(key), object.str_list(key));
        if let Ok(Some(inner)) = object.optional_object(key) {
            ask_everything(&inner);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    if let Ok(config) = Config::parse("config.json", data) {
        ask_everything(&config.object());
        assert!(config.unread().is_empty());
    }
});
