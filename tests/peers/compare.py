#!/usr/bin/env python3
"""hadal beside other programs, in one run.

  compare.py --folder qwen1.5b --threads 1 --systems hadal,torch
  compare.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --threads 1 --systems hadal,llama.cpp,openvino --json

Each round runs every system once, one after the other, pinned to as many cores as threads; so what disturbs the machine
disturbs all of them. The table has medians over all rounds, and the median of the ratios to hadal within a round.
A system that is not installed, or that fails, is left out and said so. Interpreters: --python llama.cpp=/some/venv/bin/python.
`hadal` is target/release/hadal-bench, which `cargo build --release --features llvm -p hadal-tests` makes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
DRIVERS = {"torch": "torch_driver.py", "llama.cpp": "llama_driver.py", "openvino": "openvino_driver.py"}


def command(system, given):
    model = given.folder if system == "torch" or not given.gguf else given.gguf
    if system == "hadal":
        return [given.hadal, given.gguf or given.folder]
    return [given.pythons.get(system, sys.executable), str(HERE / DRIVERS[system]), model]


def run(system, given):
    words = command(system, given) + ["--threads", str(given.threads), "--dtype", given.dtype, "--prefill", str(given.prefill)]
    words += ["--ctx", given.ctx, "--gen", str(given.gen), "--reps", str(given.reps)]
    cores = sorted(os.sched_getaffinity(0))[-given.threads :]
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{system}: left out: {last}", file=sys.stderr)
        return None
    samples = defaultdict(list)
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            at = found.get("n", found.get("ctx"))
            samples[found["metric"] + (f" {at}" if at else "")].append(found["value"])
    return {name: statistics.median(values) for name, values in samples.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="a checkpoint folder")
    parser.add_argument("--gguf", help="a GGUF file")
    parser.add_argument("--systems", default="hadal,llama.cpp,torch,openvino")
    parser.add_argument("--python", action="append", default=[], metavar="SYSTEM=PATH")
    parser.add_argument("--hadal", default=str(HERE.parent.parent / "target/release/hadal-bench"))
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
    given.pythons = dict(word.split("=", 1) for word in given.python)
    systems = given.systems.split(",")
    rounds = []
    for number in range(given.rounds):
        results = {}
        for system in list(systems):
            found = run(system, given)
            if found is None:
                systems.remove(system)
            else:
                results[system] = found
            print(f"round {number + 1}: {system}: {found}", file=sys.stderr)
        rounds.append(results)
    rows = []
    for metric in dict.fromkeys(m for r in rounds for s in r.values() for m in s):
        for system in systems:
            values = [r[system][metric] for r in rounds if metric in r.get(system, {})]
            both = [r for r in rounds if metric in r.get(system, {}) and metric in r.get("hadal", {})]
            ratios = [r["hadal"][metric] / r[system][metric] for r in both]
            if values:
                ratio = statistics.median(ratios) if ratios else None
                rows.append({"metric": metric, "system": system, "median": statistics.median(values), "hadal_to_it": ratio})
    if given.json:
        print(json.dumps({"threads": given.threads, "rounds": len(rounds), "rows": rows}, indent=1))
        return
    for row in rows:
        ratio = f"{row['hadal_to_it']:.2f}" if row["hadal_to_it"] else "-"
        print(f"{row['metric']:18} {row['system']:10} {row['median']:10.2f}   hadal / it {ratio}")


main()
