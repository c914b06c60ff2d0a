"""llama.cpp on a GGUF file: its own llama-bench where there is one (LLAMA_BENCH, or on the PATH), else llama-cpp-python."""

import json
import os
import random
import shutil
import subprocess
import time

import driver

given = driver.options(__doc__)
program = os.environ.get("LLAMA_BENCH") or shutil.which("llama-bench")


def bench(*words):
    """Tokens a second of each run."""
    line = [program, "-m", given.model, "-t", str(given.threads), "-r", str(given.reps), "-o", "jsonl", *map(str, words)]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    return [x for row in done.stdout.splitlines() for x in json.loads(row)["samples_ts"]]


def by_bench():
    if given.ttft:
        bench("-p", given.ttft, "-n", 0, "-r", 1, "--no-warmup")
        return
    if given.prefill:
        for rate in bench("-p", given.prefill, "-n", 0):
            driver.line("prefill_tps", rate, n=given.prefill)
    for c in given.ctx:
        for rate in bench("-p", 0, "-n", given.gen, "-d", c):
            driver.line("decode_tps", rate, ctx=c)


def by_python():
    from llama_cpp import Llama

    longest = max([given.prefill, given.ttft] + [c + (given.reps + 1) * given.gen for c in given.ctx]) + 8
    threads = {"n_threads": given.threads, "n_threads_batch": given.threads}
    model = Llama(given.model, n_ctx=longest, n_batch=512, n_ubatch=512, verbose=False, **threads)

    def tokens(n):
        return [random.randrange(100, model.n_vocab()) for _ in range(n)]

    def prompt(n):
        model.reset()
        new, begun = tokens(n), time.monotonic()
        model.eval(new)
        return time.monotonic() - begun

    def decode(context, n):
        model.reset()
        model.eval(tokens(context))
        while True:
            new, begun = tokens(n), time.monotonic()
            for token in new:
                model.eval([token])
            yield time.monotonic() - begun

    driver.measure(given, prompt, decode)


by_bench() if program else by_python()
