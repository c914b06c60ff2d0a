//! `hadal explain`, `report` and `target` from outside: what they print, how they fail, and that a page needs nothing
//! else.

use hadal_tests::{root, run};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

const HADAL: &str = env!("CARGO_BIN_EXE_hadal-under-test");

fn tiny() -> PathBuf {
    root().join("tests/tests/data/tiny-v3/config.json")
}

fn hadal(args: &[&str]) -> hadal_tests::Ran {
    run(Command::new(HADAL).args(args))
}

/// Of a model whose sizes are worth a choice.
fn explain(args: &[&str]) -> String {
    let config = root().join("tests/fixtures/configs/deepseek-r1.json");
    hadal(&[&["explain", config.to_str().expect("UTF-8"), "--target", "h200"], args].concat()).ok()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn absorption_is_explained_by_its_laws() {
    let text = explain(&["--why", "absorption", "--entry", "decode"]);
    assert!(text.starts_with("absorb: "), "{text}");
    assert!(text.contains("gather-contractions (contraction, reassociating)"), "{text}");
    let answer = json(&explain(&["--why", "absorb", "--json"]));
    let laws: Vec<&str> = answer["laws"].as_array().expect("laws").iter().filter_map(|l| l["law"].as_str()).collect();
    assert!(laws.contains(&"gather-contractions") && laws.contains(&"nest-contractions"), "{laws:?}");
    // Every function says what came of each law.
    for law in answer["laws"].as_array().expect("laws") {
        for f in law["functions"].as_array().expect("functions") {
            let known = ["chosen", "lost", "side condition failed", "idle", "not matched"];
            assert!(known.contains(&f["verdict"].as_str().expect("a verdict")), "{f}");
            assert_eq!(f["verdict"] == "lost", !f["lost"].is_null() && f["chosen"] == 0, "{f}");
        }
    }
}

#[test]
fn absorption_stands_beside_the_choice_without_it() {
    let answer = json(&explain(&["--why", "absorb", "--entry", "decode", "--json"]));
    let functions = answer["without"]["functions"].as_array().expect("functions");
    let row = functions.iter().find(|f| f["function"] == "moe_layer.decode").expect("the layer");
    let number = |side: &str, what: &str| row[side][what].as_f64().expect("a number");
    // Without it the keys and values of all rows are made for every token: 2 × 4096 rows × 512 × 128 × 256.
    assert!(number("without", "flops") - number("chosen", "flops") > 1.3e11, "{row}");
    assert!(number("without", "seconds") > number("chosen", "seconds"), "{row}");
    assert!(!row["only_chosen"].as_array().expect("ops").is_empty(), "{row}");
    let text = explain(&["--why", "absorb"]);
    assert!(text.contains("the choice changes at T = "), "{text}");
}

#[test]
fn places_are_found_with_and_without_their_layer() {
    for place in ["self_attn", "mlp.experts", "model.layers.3.mlp", "o_proj"] {
        let answer = json(&explain(&["--why", place, "--entry", "decode", "--json"]));
        assert!(!answer["kernels"].as_array().expect("kernels").is_empty(), "{place}");
    }
}

#[test]
fn a_page_without_a_folder_is_refused_before_any_work() {
    let ran = hadal(&["report", tiny().to_str().expect("UTF-8"), "-o", "/no/such/folder/x.html"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("there is no folder /no/such/folder"), "{}", ran.stderr);
}

#[test]
fn costs_are_for_the_context_that_is_asked_for() {
    let text = explain(&["--entry", "decode", "--context", "8k"]);
    assert!(text.contains("predicted at P = 8191, T = 1") && text.contains("(P = 8191, T = 1)"), "{text}");
}

#[test]
fn a_kernel_tells_its_laws_its_tensors_and_its_cost() {
    let answer = json(&explain(&["--kernel", "attention", "--entry", "decode", "--json"]));
    let kernel = &answer["kernels"][0];
    let laws: Vec<&str> =
        kernel["chain"].as_array().expect("a chain").iter().filter_map(|l| l["law"].as_str()).collect();
    assert!(laws.contains(&"select-attention"), "{kernel}");
    assert!(kernel["chain"].as_array().expect("a chain").iter().all(|l| l["says"].is_string()), "{kernel}");
    assert!(kernel["choices"][0]["choice"]["runner_up"]["more"].as_f64().is_some_and(|s| s >= 0.0), "{kernel}");
    assert!(kernel["versions"][0]["seconds"].as_f64().is_some_and(|s| s > 0.0), "{kernel}");
    assert!(!kernel["origin"].as_array().expect("places").is_empty());
    let text = explain(&["--kernel", kernel["kernel"].as_str().expect("a name"), "--entry", "decode"]);
    assert!(text.contains("laws, from the source graph on") && text.contains("comes from"), "{text}");
}

#[test]
fn why_not_gives_a_verdict_for_every_function() {
    let text = explain(&["--why-not", "select-attention-with-sink"]);
    assert!(text.contains("its pattern is not there"), "{text}");
}

#[test]
fn the_summary_names_every_entry() {
    let text = explain(&[]);
    for entry in ["decode", "prefill"] {
        let line = |l: &str| l.starts_with(entry) && l.contains(" predicted at P = ");
        assert!(text.lines().any(line), "{entry}: {text}");
    }
    assert!(text.contains("choices in @"), "{text}");
    let answer = json(&explain(&["--json"]));
    assert!(!answer["functions"].as_array().expect("functions").is_empty());
}

#[test]
fn questions_about_nothing_are_usage_errors_with_a_next_step() {
    let path = tiny();
    let path = path.to_str().expect("UTF-8");
    for args in [
        &["--why", "no-such-word"][..],
        &["--why-not", "no-such-law"],
        &["--kernel", "no-such-kernel"],
        &["--kernel", ""],
        &["--why", ""],
        &["--entry", "no-such-entry"],
        &["--target", "no-such-machine"],
    ] {
        let ran = hadal(&[&["explain", path], args].concat());
        assert_eq!(ran.code, Some(2), "{args:?}: {}", ran.stderr);
        assert!(
            ["help: ", "this model has", "a value is required"].iter().any(|s| ran.stderr.contains(s)),
            "{args:?}: {}",
            ran.stderr
        );
    }
}

#[test]
fn the_page_is_whole_and_needs_nothing_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let page = dir.path().join("report.html");
    let path = page.to_str().expect("UTF-8");
    let out = hadal(&["report", tiny().to_str().expect("UTF-8"), "-o", path, "--json"]).ok();
    let text = std::fs::read_to_string(&page).expect("written");
    for part in ["curves", "entries", "graphs", "rewrites", "choices", "roofline", "memory", "gap", "time"] {
        assert!(text.contains(&format!("<section id=\"{part}\">")), "{part}");
    }
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        let names = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!names.contains(outside), "the page refers to something outside: {outside}");
    }
    for (open, close) in [("<svg", "</svg>"), ("<table", "</table>"), ("<section", "</section>"), ("<g ", "</g>")] {
        assert_eq!(text.matches(open).count(), text.matches(close).count(), "{open}");
    }
    assert!(!text.contains("NaN") && !text.contains("inf\""), "a number that is none");
    let figures = json(&out);
    assert!(figures["gaps"].as_array().expect("gaps").iter().all(|g| g["quick"].as_f64() >= g["bound"].as_f64()));
    assert!(figures["entries"][0]["kernels"][0]["seconds"].as_f64().is_some_and(|s| s > 0.0));
}

#[test]
fn the_page_of_the_largest_model_stays_small() {
    let dir = tempfile::tempdir().expect("a folder");
    let page = dir.path().join("report.html");
    let config = root().join("tests/fixtures/configs/deepseek-v3.2.json");
    let args = ["report", config.to_str().expect("UTF-8"), "--target", "h200", "-o", page.to_str().expect("UTF-8")];
    hadal(&args).ok();
    let bytes = std::fs::metadata(&page).expect("written").len();
    assert!(bytes < 3_000_000, "{bytes} bytes");
}

#[test]
fn a_measured_machine_can_stand_where_a_known_one_can() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("here.toml");
    let path = file.to_str().expect("UTF-8");
    let probed = json(&hadal(&["target", "probe", "--threads", "1", "-o", path, "--json"]).ok());
    for figure in probed["measured"].as_object().expect("figures").values() {
        let [min, median, max] = ["min", "median", "max"].map(|k| figure[k].as_f64().expect("a number"));
        assert!(0.0 < min && min <= median && median <= max, "{figure}");
    }
    let shown = hadal(&["target", "show", path]).ok();
    assert_eq!(shown.trim_end(), std::fs::read_to_string(&file).expect("written").trim_end());
    let tiny = tiny();
    let answer = json(&hadal(&["predict", tiny.to_str().expect("UTF-8"), "--target", path, "--json"]).ok());
    assert_eq!(answer["target"]["name"], "here");
    std::fs::write(&file, shown.replace("bandwidth =", "width =")).expect("written");
    let ran = hadal(&["predict", tiny.to_str().expect("UTF-8"), "--target", path]);
    assert!(ran.code == Some(3) && ran.stderr.contains("help: "), "{}", ran.stderr);
    assert!(hadal(&["target", "list"]).ok().lines().count() >= 6);
}

#[test]
fn plots_are_drawn_as_the_file_is_called() {
    let dir = tempfile::tempdir().expect("a folder");
    let tiny = tiny();
    let draw = |name: &str| {
        let file = dir.path().join(name);
        let plot = format!("--plot={}", file.display());
        let ran = hadal(&["predict", tiny.to_str().expect("UTF-8"), "--context", "16,32,64", &plot]);
        (ran, std::fs::read_to_string(file).unwrap_or_default())
    };
    let (ran, svg) = draw("curves.svg");
    ran.ok();
    assert!(svg.starts_with("<svg ") && svg.contains("<style>") && svg.matches("<circle").count() >= 9, "{svg}");
    let (ran, html) = draw("curves.html");
    ran.ok();
    assert!(html.starts_with("<!doctype html>") && html.contains("<figure>"));
    assert_eq!(draw("curves.png").0.code, Some(2));
}

#[test]
fn a_kernel_shows_its_choice_in_every_version() {
    let answer = json(&explain(&["--kernel", "attention", "--json"]));
    let rows = answer["kernels"][0]["by_version"].as_array().expect("rows");
    for source in ["dense_layer", "moe_layer"] {
        let of = |row: &&Value| row["source"] == source;
        let versions: Vec<&str> =
            rows.iter().filter(of).flat_map(|r| r["versions"].as_array()).flatten().filter_map(Value::as_str).collect();
        // Steps and prompts are in several.
        assert!(versions.iter().any(|v| v.starts_with("decode")), "{versions:?}");
        assert!(versions.iter().filter(|v| v.starts_with("prefill (")).count() >= 2, "{versions:?}");
    }
    for row in rows {
        let (chosen, second) = (&row["function_seconds"], &row["choice"]["runner_up"]["seconds"]);
        assert!(chosen.as_f64() <= second.as_f64() || second.is_null(), "{row}");
        // Filling a drafter's states asks for no attention.
        let fills = |v: &Value| v.as_str().is_some_and(|v| v.starts_with("draft_fill"));
        let attends = row["choice"]["form"].as_str().is_some_and(|f| f.starts_with("attention "));
        assert!(attends || row["versions"].as_array().is_some_and(|all| all.iter().all(fills)), "{row}");
    }
    let text = explain(&["--kernel", "attention"]);
    assert!(text.contains("in every version of @dense_layer"), "{text}");
}

#[test]
fn costs_are_for_as_many_sequences_as_are_asked_for() {
    let seconds = |batch: &str| {
        let answer = json(&explain(&["--entry", "decode", "--batch", batch, "--json"]));
        assert_eq!(answer["batch"].to_string(), batch);
        let functions = answer["functions"].as_array().expect("functions");
        functions.iter().map(|f| f["seconds"].as_f64().expect("a number")).sum::<f64>()
    };
    let (one, many) = (seconds("1"), seconds("64"));
    // Weights are read once for all of them.
    assert!(one < many && many < 32.0 * one, "{one} {many}");
    assert!(explain(&["--entry", "decode", "--batch", "64"]).contains("64 sequences"));
}

#[test]
fn laws_can_be_left_out() {
    let laws = |args: &[&str]| explain(&[&["--entry", "decode"], args].concat());
    assert!(laws(&[]).contains("select-attention"));
    assert!(!laws(&["--without-law", "select-attention"]).contains("select-attention"));
    let ran = hadal(&["report", "nowhere", "--json", "--without-law", "nested-contractions"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("nest-contractions"), "{}", ran.stderr);
}
