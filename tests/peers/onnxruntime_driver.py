"""onnxruntime-genai, on a folder that its model builder made: that decides the format."""

import json
import time

import driver

given = driver.options(__doc__)

import numpy
import onnxruntime_genai

config = onnxruntime_genai.Config(given.model)
options = {"intra_op_num_threads": given.threads}
config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
model = onnxruntime_genai.Model(config)
numbers = numpy.random.default_rng(1)


def generator(length):
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    return onnxruntime_genai.Generator(model, parameters)


def feed(to, n):
    to.append_tokens(numbers.integers(100, 40_000, n, dtype=numpy.int32))


def prompt(n):
    to = generator(n + 1)
    begun = time.monotonic()
    feed(to, n)
    to.generate_next_token()
    return time.monotonic() - begun


def decode(context, n):
    to = generator(context + 1 + (given.reps + 1) * n)
    # In parts: attention holds all scores of a call.
    for at in range(0, context, 512):
        feed(to, min(512, context - at))
    to.generate_next_token()
    while True:
        begun = time.monotonic()
        for _ in range(n):
            to.generate_next_token()
        yield time.monotonic() - begun


driver.measure(given, prompt, decode)
