"""What drivers share: their options, and the lines they print.

A driver measures one program on one model. It prints a line of JSON for every sample:
  {"metric": "load_s", "value": s}                 from the start of the process until the model is ready
  {"metric": "prefill_tps", "n": n, "value": x}    tokens a second of a prompt of n tokens, in one call
  {"metric": "decode_tps", "ctx": c, "value": x}   tokens a second after a context of c tokens
With --ttft n it prints nothing and ends with the first token after a prompt of n tokens: who started it takes the time.
"""

import argparse
import json
import time

BEGUN = time.monotonic()


def options(text):
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--ctx", default="128,2048")
    parser.add_argument("--gen", type=int, default=16)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--ttft", type=int, default=0)
    given = parser.parse_args()
    given.ctx = [int(c) for c in given.ctx.split(",") if int(c) > 0]
    return given


def line(metric, value, **at):
    print(json.dumps({"metric": metric, **at, "value": value}), flush=True)


def measure(given, prompt, decode):
    """`prompt(n)` gives the seconds of a prompt of n tokens, `decode(c, n)` yields those of n tokens after c others,
    again and again."""
    if given.ttft:
        prompt(given.ttft)
        return
    line("load_s", time.monotonic() - BEGUN)
    if given.prefill:
        prompt(given.prefill)
        for _ in range(given.reps):
            line("prefill_tps", given.prefill / prompt(given.prefill), n=given.prefill)
    for c in given.ctx:
        samples = decode(c, given.gen)
        next(samples)
        for _ in range(given.reps):
            line("decode_tps", given.gen / next(samples), ctx=c)
