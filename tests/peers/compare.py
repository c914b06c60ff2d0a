#!/usr/bin/env python3
"""hadal beside other programs, in one run.

  compare.py --folder qwen1.5b --threads 1 --systems hadal,torch
  compare.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --threads 1 --systems hadal,llama.cpp,openvino --json
  compare.py --gguf qwen1.5b-Q4_K_M.gguf --onnx qwen1.5b-onnx --systems hadal,mistralrs,onnxruntime-genai --dtype int4

Each round runs every system once, one after the other, pinned to as many cores as threads; so what disturbs the machine
disturbs all of them. The table has medians over all rounds, and the median of the ratios to hadal within a round.
A system that is not installed, or that fails, is left out and said so. Interpreters: --python llama.cpp=/some/venv/bin/python;
LLAMA_BENCH=/some/llama-bench is taken for llama.cpp. `hadal` is target/release/hadal-bench, which
`cargo build --release --features llvm -p hadal-tests` makes. For all rows at once: table.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
DRIVERS = {
    "torch": "torch_driver.py",
    "llama.cpp": "llama_driver.py",
    "openvino": "openvino_driver.py",
    "mistralrs": "mistralrs_driver.py",
    "onnxruntime-genai": "onnxruntime_driver.py",
}
HADAL = HERE.parent.parent / "target/release/hadal-bench"
# What a run has besides its samples: the cores that other programs used meanwhile.
OTHERS = "others"


def command(system, model, threads, pythons, hadal):
    """The words that start a system on a model, to which what is measured is added."""
    words = [str(hadal)] if system == "hadal" else [pythons.get(system, sys.executable), str(HERE / DRIVERS[system])]
    return words + [str(model), "--threads", str(threads)]


def busy():
    """Seconds that all cores have been busy."""
    user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def timed(words, threads):
    """Runs a command on the last cores: its output, why it failed, its seconds, its bytes of memory at most, and how many
    cores other programs used meanwhile."""
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        busy_before, begun = busy(), time.monotonic()
        child = subprocess.Popen(words, stdout=out, stderr=err, preexec_fn=lambda: os.sched_setaffinity(0, cores))
        _, status, used = os.wait4(child.pid, 0)
        took = time.monotonic() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        others = busy() - busy_before - used.ru_utime - used.ru_stime
        out.seek(0)
        err.seek(0)
        said = err.read().decode(errors="replace").strip().splitlines() or ["no message"]
        return {
            "out": out.read().decode(errors="replace"),
            "error": said[-1] if child.returncode else None,
            "seconds": took,
            "memory": used.ru_maxrss * 1024,
            OTHERS: max(0.0, others / max(took, 0.01)),
        }


def run(words, threads):
    """What a driver prints: for each metric the median of its samples, and the limit beside it."""
    done = timed(words, threads)
    if done["error"]:
        return None, done["error"]
    samples, limits = defaultdict(list), defaultdict(list)
    for line in done["out"].splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            at = found.get("n", found.get("ctx"))
            name = found["metric"] + (f" {at}" if at else "")
            samples[name].append(found["value"])
            if "limit" in found:
                limits[name].append(found["limit"])
    values = {name: statistics.median(all) for name, all in samples.items()}
    # Each sample has a limit of its own, as memory was around it.
    shares = {name: statistics.median(v / l for v, l in zip(samples[name], all)) for name, all in limits.items()}
    limits = {name: values[name] / share for name, share in shares.items()}
    return {"values": values, "limits": limits, "seconds": done["seconds"], OTHERS: done[OTHERS]}, None


def forget(folder, kept):
    """Leaves memory to the files that are needed: the page cache drops all others below a folder."""
    for path in (p for p in Path(folder).rglob("*") if p.is_file() and not any(p.is_relative_to(k) for k in kept)):
        file = os.open(path, os.O_RDONLY)
        os.fdatasync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def rounds(number, commands, say=lambda text: print(text, file=sys.stderr), before=lambda system, words: None):
    """Runs each of `commands` (system to words and threads) once a round. A system that fails is left out from then on."""
    left, all = dict(commands), []
    for n in range(number):
        results = {}
        for system, (words, threads) in list(left.items()):
            before(system, words)
            found, fault = run(words, threads)
            if fault:
                say(f"{system}: left out: {fault}")
                del left[system]
                continue
            results[system] = found
            say(f"round {n + 1}: {system}: " + ", ".join(f"{m} {v:.2f}" for m, v in found["values"].items()))
        all.append(results)
    return all


def rows(rounds):
    """For each metric and system the median, its share of the limit, and the ratio of hadal to it within a round."""
    metrics = dict.fromkeys(m for r in rounds for s in r.values() for m in s["values"])
    out = []
    for metric in metrics:
        for system in dict.fromkeys(s for r in rounds for s in r):
            with_it = [r for r in rounds if metric in r.get(system, {}).get("values", {})]
            if not with_it:
                continue
            both = [r for r in with_it if metric in r.get("hadal", {}).get("values", {})]
            limited = [r for r in both if metric in r["hadal"]["limits"]]

            def middle(values):
                return statistics.median(values) if values else None

            out.append({
                "metric": metric,
                "system": system,
                "median": middle([r[system]["values"][metric] for r in with_it]),
                "hadal_to_it": middle([r["hadal"]["values"][metric] / r[system]["values"][metric] for r in both]),
                "of_limit": middle([r[system]["values"][metric] / r["hadal"]["limits"][metric] for r in limited]),
                OTHERS: middle([r[system][OTHERS] for r in with_it]),
            })
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="a checkpoint folder")
    parser.add_argument("--gguf", help="a GGUF file")
    parser.add_argument("--onnx", help="a folder that onnxruntime-genai's model builder made, for it alone")
    parser.add_argument("--systems", default=",".join(["hadal", *DRIVERS]))
    parser.add_argument("--python", action="append", default=[], metavar="SYSTEM=PATH")
    parser.add_argument("--hadal", default=str(HADAL))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--ctx", default="128")
    parser.add_argument("--gen", type=int, default=16)
    parser.add_argument("--reps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not (given.folder or given.gguf):
        parser.error("give --folder or --gguf")
    pythons = dict(word.split("=", 1) for word in given.python)
    measured = ["--dtype", given.dtype, "--prefill", str(given.prefill), "--ctx", given.ctx]
    measured += ["--gen", str(given.gen), "--reps", str(given.reps)]
    commands = {}
    for system in given.systems.split(","):
        model = given.folder if system == "torch" or not given.gguf else given.gguf
        if system == "onnxruntime-genai":
            model = given.onnx
        if not model:
            print(f"{system}: left out: no model of its kind is given", file=sys.stderr)
            continue
        words = command(system, model, given.threads, pythons, given.hadal) + measured
        commands[system] = (words, given.threads)
    found = rows(rounds(given.rounds, commands))
    if given.json:
        print(json.dumps({"threads": given.threads, "rounds": given.rounds, "rows": found}, indent=1))
        return
    for row in found:
        ratio = f"{row['hadal_to_it']:.2f}" if row["hadal_to_it"] else "-"
        share = f"{row['of_limit']:4.0%}" if row["of_limit"] else "   -"
        print(f"{row['metric']:18} {row['system']:18} {row['median']:9.2f}  of the limit {share}  hadal / it {ratio}")


if __name__ == "__main__":
    main()
