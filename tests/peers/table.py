#!/usr/bin/env python3
"""The table of docs/perf/cpu.md, by one command: each row beside the best other program and beside the limit of the
machine, both measured in the same run.

  table.py --quick                                   hadal and llama.cpp, one round
  table.py --rounds 5 --smollm2 FILE.gguf --json all.json
  table.py --only v2-lite --dtypes int8

It makes what it measures: random weights for the configurations under tests/fixtures/configs, GGUF files of them in
bf16, Q8_0 and Q4_K_M where there is a llama-quantize, and folders in int8 and int4 by the model builder of
onnxruntime-genai. One checkpoint at a time is on the disk (27 GB at most), in --folder, and is deleted afterwards but
for --keep. hadal rounds the same weights to 8 and 4 bits itself (`--quantize`).

Rows are shown with the cores that other programs used meanwhile; where that is more than a tenth of one, the row says
so, and its figures are worth little. Ratios are medians of those within a round.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import compare

CONFIGS = compare.HERE.parent / "fixtures/configs"
# Name, configuration, layers, contexts.
MODELS = {
    "1.5b": ("deepseek-r1-distill-qwen-1.5b.json", None, "128,2048,16384"),
    "v2-lite": ("deepseek-v2-lite.json", 6, "128,2048"),
}
FORMATS = {"int8": "Q8_0", "int4": "Q4_K_M"}
# OpenVINO reads no bf16 from GGUF, and multiplies f16 in bf16.
HALVES = "f16"
# Those that run no DeepSeek-V2: OpenVINO reads no experts from GGUF, mistral.rs stops in its attention (shapes do not
# fit), and the model builder of onnxruntime-genai does not know it.
NO_V2 = {"openvino", "mistralrs", "onnxruntime-genai"}
# Share of the limit to reach, by model, format and metric.
AIMS = {
    ("1.5b", "bf16", "decode_tps 128"): 0.95,
    ("1.5b", "bf16", "prefill_tps 512"): 0.88,
    ("1.5b", "int8", "decode_tps 128"): 0.90,
    ("1.5b", "int8", "prefill_tps 512"): 0.70,
    ("1.5b", "int4", "decode_tps 128"): 0.85,
    ("1.5b", "int4", "prefill_tps 512"): 0.65,
    ("v2-lite", "bf16", "decode_tps 128"): 0.92,
    ("v2-lite", "bf16", "prefill_tps 512"): 0.80,
    ("v2-lite", "int8", "decode_tps 128"): 0.85,
    ("v2-lite", "int8", "prefill_tps 512"): 0.60,
    ("v2-lite", "int4", "decode_tps 128"): 0.75,
    ("v2-lite", "int4", "prefill_tps 512"): 0.60,
}
# How many times as fast as the best other program.
RATIOS = {("smollm2", "decode_tps 128"): 1.5, ("smollm2", "prefill_tps 512"): 1.3}
# Decode at one context beside another, by all cores.
LONGER = {("v2-lite", "bf16", "decode_tps 2048"): ("decode_tps 128", 0.95)}
# Seconds until the first token of 128 and memory over weights, at most.
FIRST_TOKEN, MEMORY = 0.6, 1.05
INSTALL = {
    "llama.cpp": "build it, and name its programs by --llama FOLDER; or `pip install llama-cpp-python`",
    "torch": "`pip install torch transformers`, and --python torch=PATH for an interpreter that has them",
    "openvino": "`pip install openvino-genai`, and --python openvino=PATH for an interpreter that has it",
    "mistralrs": "`pip install mistralrs`, and --python mistralrs=PATH for an interpreter that has it",
    "onnxruntime-genai": "`pip install onnxruntime-genai onnx onnx-ir torch transformers`, and "
    "--python onnxruntime-genai=PATH for an interpreter that has them",
}
MODULES = {
    "llama.cpp": "llama_cpp",
    "torch": "transformers",
    "openvino": "openvino_genai",
    "mistralrs": "mistralrs",
    "onnxruntime-genai": "onnxruntime_genai",
}


def say(text):
    print(text, file=sys.stderr, flush=True)


def installed(system, given):
    """Whether a system can be started."""
    if system == "hadal":
        return Path(given.hadal).exists()
    if system == "llama.cpp" and given.bench:
        return True
    python = given.pythons.get(system, sys.executable)
    return subprocess.run([python, "-c", f"import {MODULES[system]}"], capture_output=True).returncode == 0


def measure(given, words_of, metrics):
    """Rows of every system that `words_of` has a command for."""
    commands = {}
    for system in given.systems:
        words = words_of(system)
        if words:
            commands[system] = (words + metrics, given.threads)
    if "hadal" in commands:
        _, fault = compare.run(commands["hadal"][0] + ["--compile"], len(os.sched_getaffinity(0)))
        if fault:
            say(f"hadal: left out: {fault}")
            del commands["hadal"]

    def before(system, words):
        # All of them together need more memory than many machines have.
        opened = [given.work / "hadal-bench"] if system == "hadal" else [Path(w).resolve() for w in words if "/" in w]
        compare.forget(given.work, opened)

    return compare.rows(compare.rounds(given.rounds, commands, say, before))


def of_model(name, folder, files, dtypes, contexts, given):
    """All rows of a checkpoint: `files` has its GGUF file for each format, and the folders of `onnx_name`."""
    out = []
    for dtype in dtypes:

        def words_of(system):
            # torch multiplies no integers here.
            if system == "torch" and (dtype != "bf16" or not folder) or system in NO_V2 and name == "v2-lite":
                return None
            file = HALVES if (system, dtype) == ("openvino", "bf16") else dtype
            file = onnx_name(dtype) if system == "onnxruntime-genai" else file
            model = folder if folder and system in ("hadal", "torch") else files.get(file)
            return model and compare.command(system, model, given.threads, given.pythons, given.hadal) + ["--dtype", dtype]

        gen = ["--gen", str(given.gen), "--reps", str(given.reps)]
        for row in measure(given, words_of, ["--prefill", "512", "--ctx", contexts] + gen):
            if row["metric"] != "load_s":
                out.append({"model": name, "dtype": dtype, "threads": given.threads, **row})
    return out


def first_token(name, folder, files, given):
    """How long whole processes take until the first token of 128, by all cores, and how much memory they need: the file
    in the page cache."""
    out, threads = [], len(os.sched_getaffinity(0))
    ways = {"hadal": folder, "llama.cpp": files.get("int8")}
    base = None
    for system in [s for s in given.systems if ways.get(s)]:
        words = compare.command(system, ways[system], threads, given.pythons, given.hadal)
        words += ["--dtype", "int8", "--ttft", "128", "--ctx", "0"]
        runs = [compare.timed(words, threads) for _ in range(given.rounds + 1)]
        faults = [r["error"] for r in runs if r["error"]]
        if faults:
            say(f"{system}: left out: {faults[0]}")
            continue
        took = statistics.median(r["seconds"] for r in runs[1:])
        base = took if system == "hadal" else base
        out.append({
            "model": name,
            "dtype": "int8",
            "threads": threads,
            "metric": "first_token_s",
            "system": system,
            "median": took,
            "hadal_to_it": base / took if base else None,
            "of_limit": None,
            compare.OTHERS: statistics.median(r[compare.OTHERS] for r in runs[1:]),
            "memory": max(r["memory"] for r in runs),
        })
    return out


def copy(source, target):
    """Seconds that reading and writing a file takes, until it is on the disk."""
    begun = time.monotonic()
    with open(source, "rb") as file, open(target, "wb") as out:
        while part := file.read(8 << 20):
            out.write(part)
        out.flush()
        os.fsync(out.fileno())
    took = time.monotonic() - begun
    target.unlink()
    return took


def whole_file(name, folder, dtype, given):
    """What compiling to a file takes, beside reading and writing as many bytes, and what memory the file needs when it
    runs, over its size."""
    words = compare.command("hadal", folder, given.threads, given.pythons, given.hadal)
    words += ["--dtype", dtype, "--ctx", "128", "--compile"]
    cores = len(os.sched_getaffinity(0))
    runs, copies = [], []
    # In turn: what writing takes differs from minute to minute.
    for _ in range(max(2, given.rounds)):
        found, fault = compare.run(words, cores)
        if fault:
            say(f"hadal: {fault}")
            return []
        runs.append(found)
        copies.append(copy(folder / "model.safetensors", folder.with_suffix(".copy")))
    file = runs[0]["values"]["file"]
    middle = lambda metric: statistics.median(run["values"][metric] for run in runs)
    metrics = {m: middle(m) for m in ("compile_s", "compile_code_s")} | {"copy_s": statistics.median(copies)}
    others = statistics.median(run[compare.OTHERS] for run in runs)
    size = Path(file).stat().st_size
    # Different ones, as experts that no token chooses are not read.
    tokens = ",".join(str(100 + 37 * i) for i in range(128))
    run = [file, "generate", "--tokens", tokens, "-n", "2", "--ignore-stop", "--threads", str(cores)]
    run = compare.timed(run, cores)
    if run["error"]:
        say(f"hadal: {run['error']}")
    else:
        metrics["memory_over_file"] = run["memory"] / size
    metrics["start_s"] = statistics.median(compare.timed([file, "info"], cores)["seconds"] for _ in range(5))
    Path(file).unlink()
    row = {"model": name, "dtype": dtype, "threads": cores, "system": "hadal", "hadal_to_it": None, "of_limit": None}
    return [{**row, "metric": m, "median": v, compare.OTHERS: others} for m, v in metrics.items()]


def aim(row, best, rows):
    """What a row should reach, and whether it does: beside the best of the others, and other rows of hadal's."""
    key = (row["model"], row["metric"])

    def own(metric):
        same = [r for r in rows if r["system"] == "hadal" and r["metric"] == metric]
        return next((r["median"] for r in same if all(r[k] == row[k] for k in ("model", "dtype", "threads"))), None)

    if key in RATIOS:
        found = best and best["hadal_to_it"]
        return f">= {RATIOS[key]}x", found >= RATIOS[key] if found else None
    longer = LONGER.get((row["model"], row["dtype"], row["metric"])) if row["threads"] > 1 else None
    if longer and own(longer[0]):
        metric, least = longer
        return f">= {least} of {metric}", row["median"] >= least * own(metric)
    # What is rounded on the way is smaller than what was copied.
    if row["metric"] == "compile_s" and row["dtype"] == "bf16" and own("copy_s"):
        return "<= copy_s", row["median"] <= own("copy_s")
    share = AIMS.get((row["model"], row["dtype"], row["metric"]))
    if row["metric"] == "first_token_s":
        return f"<= {FIRST_TOKEN} s", row["median"] <= FIRST_TOKEN
    if row["metric"] == "memory_over_file":
        return f"<= {MEMORY}x", row["median"] <= MEMORY
    if row["metric"] == "start_s":
        return "<= 0.05 s", row["median"] <= 0.05
    if row["metric"] == "compile_code_s":
        return "<= 10 s", row["median"] <= 10
    if share and row["of_limit"]:
        return f">= {share:.0%}", row["of_limit"] >= share
    return "", None


def markdown(rows):
    """The table: a line for each of hadal's rows, with the best of the others."""
    lines = ["| model | format | threads | what | hadal | of the limit | aim | best other | hadal / it | busy |"]
    lines.append("|" + "---|" * 10)
    for row in [r for r in rows if r["system"] == "hadal"]:
        key = [row[k] for k in ("model", "dtype", "threads", "metric")]
        others = [r for r in rows if r["system"] != "hadal" and [r[k] for k in ("model", "dtype", "threads", "metric")] == key]
        seconds = row["metric"].endswith("_s")
        best = (min if seconds else max)(others, key=lambda r: r["median"], default=None)
        wanted, reached = aim(row, best, rows)
        mark = {True: " reached", False: " **missed**", None: ""}[reached]
        others_used = max([row[compare.OTHERS]] + ([best[compare.OTHERS]] if best else []))
        cells = [row["model"], row["dtype"], row["threads"], row["metric"], f"{row['median']:.3g}"]
        cells.append(f"{row['of_limit']:.0%}" if row["of_limit"] else "-")
        cells.append(wanted + mark)
        cells.append(f"{best['system']} {best['median']:.3g}" if best else "-")
        cells.append(f"{best['hadal_to_it']:.2f}" if best and best["hadal_to_it"] else "-")
        cells.append(f"{others_used:.1f} cores" if others_used > 0.1 else "")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def random_weights(name, config, layers, given, work):
    """A checkpoint folder."""
    folder = work / name
    if not (folder / "model.safetensors").exists():
        say(f"{name}: writing random weights")
        words = [given.hadal, str(CONFIGS / config), "--random", str(folder)]
        subprocess.run(words + (["--layers", str(layers)] if layers else []), check=True)
    return folder


def gguf_files(name, folder, dtypes, given, work):
    """A checkpoint as a GGUF file in each format, where a program is measured that needs them."""
    files = {}
    if not {"llama.cpp", "openvino", "mistralrs"} & set(given.systems):
        return files
    say(f"{name}: writing GGUF files")
    plain = work / f"{name}-bf16.gguf"
    if not plain.exists():
        python = given.pythons.get("numpy", sys.executable)
        subprocess.run([python, str(compare.HERE / "gguf_file.py"), str(folder), str(plain)], check=True)
    files["bf16"] = plain
    wanted = {d: FORMATS[d] for d in dtypes if d in FORMATS}
    if "openvino" in given.systems and name != "v2-lite" and "bf16" in dtypes:
        wanted[HALVES] = "F16"
    for dtype, kind in wanted.items() if given.quantize else []:
        files[dtype] = work / f"{name}-{dtype}.gguf"
        if not files[dtype].exists():
            words = [given.quantize, str(plain), str(files[dtype]), kind]
            subprocess.run(words, check=True, capture_output=True)
    return files


def onnx_name(dtype):
    return f"onnx-{dtype}"


def onnx_folders(name, folder, dtypes, given, work):
    """A checkpoint as folders of onnxruntime-genai, in the formats of integers: its CPU lacks operations of bf16."""
    folders = {}
    wanted = [d for d in dtypes if d in FORMATS and "onnxruntime-genai" in given.systems and name != "v2-lite"]
    for dtype in wanted:
        out = work / f"{name}-{onnx_name(dtype)}"
        if not (out / "genai_config.json").exists():
            say(f"{name}: {dtype} by onnxruntime-genai's model builder")
            words = [given.pythons.get("onnxruntime-genai", sys.executable), "-m", "onnxruntime_genai.models.builder"]
            words += ["-i", str(folder), "-o", str(out), "-p", dtype, "-e", "cpu", "-c", str(work / "onnx-cache")]
            # Of a prompt only the last token's logits, as all others compute.
            words += ["--extra_options", "prune_lm_head=true"]
            done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
            shutil.rmtree(work / "onnx-cache", ignore_errors=True)
            if done.returncode != 0:
                shutil.rmtree(out, ignore_errors=True)
                said = done.stderr.strip().splitlines() or ["no message"]
                say(f"onnxruntime-genai: left out: {said[-1]}")
                continue
        folders[onnx_name(dtype)] = out
    return folders


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of short runs, hadal and llama.cpp alone, no context of 16384")
    parser.add_argument("--only", default=",".join(MODELS), help="models: " + ", ".join(MODELS) + "; none with an empty word")
    parser.add_argument("--dtypes", default="bf16,int8,int4")
    parser.add_argument("--contexts", help="tokens held where others are generated [default: 128,2048 and for 1.5b 16384]")
    parser.add_argument("--systems", default=",".join(["hadal", *MODULES]))
    parser.add_argument("--python", action="append", default=[], metavar="SYSTEM=PATH", help="numpy=PATH writes GGUF files")
    parser.add_argument("--llama", metavar="FOLDER", help="where llama-bench and llama-quantize are, if not on the PATH")
    parser.add_argument("--smollm2", metavar="FILE", help="SmolLM2-135M-Instruct.Q4_1.gguf, for its rows")
    parser.add_argument("--hadal", default=str(compare.HADAL))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gen", type=int, default=16)
    parser.add_argument("--reps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="for checkpoints [default: a temporary one]")
    parser.add_argument("--keep", action="store_true", help="leave checkpoints in --folder")
    parser.add_argument("--no-files", action="store_true", help="leave out compiling whole files, and their memory")
    parser.add_argument("--json", metavar="FILE", help="write all rows there too")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.reps, given.gen, given.systems = 1, 1, 8, "hadal,llama.cpp"
    where = lambda name: shutil.which(name, path=given.llama) if given.llama else shutil.which(name)
    given.bench, given.quantize = where("llama-bench"), where("llama-quantize")
    if given.bench:
        os.environ["LLAMA_BENCH"] = given.bench
    given.pythons = dict(word.split("=", 1) for word in given.python)
    given.hadal = str(Path(given.hadal).resolve())
    given.systems = given.systems.split(",")
    return given


def main():
    given = arguments()
    if not installed("hadal", given):
        sys.exit(f"{given.hadal}: not there; `cargo build --release --features llvm -p hadal-tests`, or --hadal PATH")
    for system in [s for s in given.systems if not installed(s, given)]:
        given.systems.remove(system)
        say(f"{system}: not installed: {INSTALL[system]}")
    if "llama.cpp" in given.systems and not given.quantize:
        say("llama.cpp: no llama-quantize: its rows of 8 and 4 bits are left out; --llama FOLDER")
    unknown = set(filter(None, given.only.split(","))) - set(MODELS)
    if unknown:
        sys.exit(f"--only: no model {', '.join(unknown)}; there are {', '.join(MODELS)}")
    rows, dtypes = [], given.dtypes.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(given.folder or temporary)
        work.mkdir(parents=True, exist_ok=True)
        given.work = work = work.resolve()
        # What hadal compiles goes there too.
        os.environ["TMPDIR"] = str(work)
        for name in filter(None, given.only.split(",")):
            config, layers, contexts = MODELS[name]
            contexts = given.contexts or (contexts.replace(",16384", "") if given.quick else contexts)
            folder = random_weights(name, config, layers, given, work)
            if not given.no_files:
                for dtype in dtypes if name == "1.5b" else dtypes[:1]:
                    rows += whole_file(name, folder, dtype, given)
            files = gguf_files(name, folder, dtypes, given, work) | onnx_folders(name, folder, dtypes, given, work)
            rows += of_model(name, folder, files, dtypes, contexts, given)
            if name == "v2-lite" and "bf16" in dtypes and given.threads == 1:
                all_cores = argparse.Namespace(**vars(given) | {"threads": len(os.sched_getaffinity(0))})
                rows += of_model(name, folder, files, ["bf16"], contexts, all_cores)
            if name == "1.5b" and "int8" in dtypes:
                rows += first_token(name, folder, files, given)
            if not given.keep:
                for path in [folder, *files.values()]:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        if given.smollm2:
            rows += of_model("smollm2", None, {"q4_1": given.smollm2}, ["q4_1"], "128", given)
    if given.json:
        Path(given.json).write_text(json.dumps({"rounds": given.rounds, "rows": rows}, indent=1))
    print(markdown(rows))


if __name__ == "__main__":
    main()
