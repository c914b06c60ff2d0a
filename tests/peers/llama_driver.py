"""llama.cpp through llama-cpp-python, on a GGUF file."""

import random
import time

import driver

given = driver.options(__doc__)

from llama_cpp import Llama

longest = max([given.prefill] + [c + (given.reps + 1) * given.gen for c in given.ctx]) + 8
model = Llama(given.model, n_ctx=longest, n_threads=given.threads, n_threads_batch=given.threads, n_batch=512, n_ubatch=512, verbose=False)


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
