"""OpenVINO GenAI, on a GGUF file or a folder with its own representation."""

import driver

given = driver.options(__doc__)

import numpy
import openvino
import openvino_genai

pipeline = openvino_genai.LLMPipeline(given.model, "CPU", INFERENCE_NUM_THREADS=given.threads)
numbers = numpy.random.default_rng(1)


def generate(context, n):
    tokens = numbers.integers(100, 40_000, (1, context))
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(tokens), openvino.Tensor(numpy.ones_like(tokens)))
    config = openvino_genai.GenerationConfig(max_new_tokens=n, ignore_eos=True, do_sample=False)
    return pipeline.generate(inputs, config).perf_metrics


def decode(context, n):
    while True:
        yield n * generate(context, n + 1).get_tpot().mean / 1e3


driver.measure(given, lambda n: generate(n, 1).get_ttft().mean / 1e3, decode)
