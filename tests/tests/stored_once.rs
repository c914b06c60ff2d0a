//! Whatever versions of an entry join and cut: no constant is stored that is a part of another one. Judged by bytes, in
//! files that were written.

use hadal::{Input, Options, compile};
use hadal_artifact::{ALIGN, Place, parse};
use hadal_models::checkpoint::WeightOnly;
use hadal_tests::{on_all_cores, open};
use hadal_types::DType;
use std::collections::HashMap;

/// Smaller ones may be equal because nothing was learnt: norms of ones, biases of zeros.
const LEAST: usize = 1024;

/// The constants of `input` as they are written, by name.
fn stored(input: &Input) -> Vec<(String, Vec<u8>)> {
    let options = Options { max_context: Some(64), ..Options::default() };
    let compiled = compile(input, &options).unwrap_or_else(|e| panic!("{e}"));
    let (_file, path) = compiled.in_memory(input).unwrap_or_else(|e| panic!("{e}"));
    let file = std::fs::read(path).expect("it was written");
    let artifact = parse(&file, &|_| true).expect("it is complete");
    let section = &file[artifact.weights];
    let weights = artifact.manifest.weights.iter().filter_map(|w| match w.place {
        Place::Embedded { offset } => {
            Some((w.name.clone(), section[offset as usize..(offset + w.bytes) as usize].to_vec()))
        }
        Place::External { .. } => None,
    });
    weights.filter(|(_, bytes)| bytes.len() >= LEAST).collect()
}

/// Pairs of constants of which the first lies in the second, where it could be addressed there.
fn repeated(constants: &[(String, Vec<u8>)]) -> Vec<String> {
    let step = ALIGN as usize;
    let mut begin: HashMap<&[u8], Vec<usize>> = HashMap::new();
    for (i, (_, bytes)) in constants.iter().enumerate() {
        begin.entry(&bytes[..step]).or_default().push(i);
    }
    let mut out = Vec::new();
    for (i, (name, bytes)) in constants.iter().enumerate() {
        for (at, block) in bytes.as_chunks::<{ ALIGN as usize }>().0.iter().enumerate() {
            for part in begin.get(&block[..]).into_iter().flatten().filter(|part| **part != i) {
                let (other, part) = &constants[*part];
                if bytes[at * step..].starts_with(part) {
                    out.push(format!("{other} is {name} from byte {} on", at * step));
                }
            }
        }
    }
    out
}

#[test]
fn nothing_is_stored_twice() {
    let names = ["llama-dense", "r1-distill-qwen", "deepseek-moe-16b", "v2", "v2-lite", "v3", "v3-fp8", "v32"];
    let more = ["v4-flash-like", "v4-fp4", "v41-like", "variant-v3-mtp2", "engram", "nsa", "gguf-qwen3", "demo"];
    let rounded = ["r1-distill-qwen", "v2-lite", "v3-fp8", "demo"].iter().map(|name| (*name, Some(DType::I4)));
    let cases = names.iter().chain(&more).map(|name| (*name, None)).chain(rounded).collect();
    let found = on_all_cores(cases, |(name, codes): (&str, Option<DType>)| {
        let input = if name == "demo" { Input::demo().expect("embedded") } else { open(name) };
        let to = codes.map(|codes| WeightOnly { codes, group: 32 }.into());
        let input = input.quantized(to).unwrap_or_else(|e| panic!("{e}"));
        let constants = stored(&input);
        assert!(!constants.is_empty(), "{name} {codes:?}");
        (format!("{name} {codes:?}"), repeated(&constants))
    });
    let bad: Vec<_> = found.into_iter().filter(|(_, repeated)| !repeated.is_empty()).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn parts_would_be_found() {
    let of =
        |name: &str, from: u32, to: u32| (name.to_owned(), (from..to).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    let constants = [of("whole", 0, 1024), of("rows", 512, 1024), of("other", 513, 1025), of("copy", 513, 1025)];
    let found = repeated(&constants);
    assert_eq!(
        found,
        ["rows is whole from byte 2048 on", "copy is other from byte 0 on", "other is copy from byte 0 on"]
    );
}
