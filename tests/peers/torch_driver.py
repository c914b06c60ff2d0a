"""transformers on torch, without compilation."""

import os
import time

import driver

given = driver.options(__doc__)
os.environ.update(OMP_NUM_THREADS=str(given.threads), HF_HUB_OFFLINE="1")

import torch
import transformers

transformers.logging.set_verbosity_error()
torch.set_num_threads(given.threads)
model = transformers.AutoModelForCausalLM.from_pretrained(given.model, dtype={"f32": torch.float32}.get(given.dtype, torch.bfloat16))
model.eval()


def feed(tokens, cache):
    with torch.inference_mode():
        out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[:, -1:].argmax(-1), out.past_key_values


def random(n):
    return torch.randint(0, model.config.vocab_size, (1, n))


def prompt(n):
    tokens, begun = random(n), time.monotonic()
    feed(tokens, None)
    return time.monotonic() - begun


def decode(context, n):
    cache = None
    for at in range(0, context, 512):
        token, cache = feed(random(min(512, context - at)), cache)
    while True:
        begun = time.monotonic()
        for _ in range(n):
            token, cache = feed(token, cache)
        yield time.monotonic() - begun


driver.measure(given, prompt, decode)
