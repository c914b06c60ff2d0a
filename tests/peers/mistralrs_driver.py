"""mistral.rs, on a GGUF file or a folder with a tokenizer.json.

It takes text: letters at random, each after a space, which are one token each in every vocabulary used here. Times are
its own: of a prompt, and of the tokens after the first. Weights of 16 bits are multiplied in f16: by default it widens
them to f32, and in bf16 it decodes at less than a tenth of that. Contexts over 4096 are left out: the time of a prompt
grows with its square, to half an hour for 16384 tokens of the model of 1.5b.
"""

import os
import random
import string
import sys
from pathlib import Path

import driver

given = driver.options(__doc__)
given.ctx = [c for c in given.ctx if c <= 4096]
threads = str(given.threads)
os.environ.update(RAYON_NUM_THREADS=threads, TOKIO_WORKER_THREADS=threads, HF_HUB_OFFLINE="1", RUST_BACKTRACE="0")

import mistralrs

path = Path(given.model).resolve()
dtype = {"bf16": mistralrs.ModelDType.F16, "f32": mistralrs.ModelDType.F32}.get(given.dtype, mistralrs.ModelDType.Auto)
if path.is_dir():
    which = mistralrs.Which.Plain(str(path), dtype=dtype)
else:
    which = mistralrs.Which.GGUF(str(path.parent), path.name, dtype=dtype)
model = mistralrs.Runner(which, max_seqs=1, prefix_cache_n=0)


def generate(context, n):
    text = "".join(" " + random.choice(string.ascii_letters) for _ in range(context))
    wanted = mistralrs.CompletionRequest(text, "default", max_tokens=n, temperature=0.0, ignore_eos=True)
    usage = model.send_completion_request(wanted).usage
    if (usage.prompt_tokens, usage.completion_tokens) != (context, n):
        sys.exit(f"{usage.prompt_tokens} tokens and {usage.completion_tokens} after them, expected {context} and {n}")
    return usage


def decode(context, n):
    # A request has to begin with its prompt: all samples are the mean of one.
    seconds = generate(context, 1 + given.reps * n).total_completion_time_sec / given.reps
    while True:
        yield seconds


driver.measure(given, lambda n: generate(n, 1).total_prompt_time_sec, decode)
