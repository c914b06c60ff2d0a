#!/usr/bin/env python3
"""What rounding weights costs: perplexity of a text by the formats of hadal and of llama.cpp, from the same weights.

  perplexity.py FILE.gguf --llama FOLDER_OF_llama-quantize [--text FILE] [--hadal PROGRAM] [--json FILE]

The file's weights are first written out as f16, which everything else is rounded from. Both programs are given the same
text in windows of 512 tokens; of each the first is given and all others are foreseen. Needs llama-cpp-python.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What hadal is told, and llama.cpp's formats.
HADAL = [
    ["--quantize", "int8"],
    ["--quantize", "int8", "--activations", "int8"],
    ["--quantize", "fp8"],
    ["--quantize", "int4:32"],
    ["--quantize", "int4:32", "--activations", "int8"],
    ["--quantize", "int4"],
]
LLAMA = ["Q8_0", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0"]
WINDOW = 512


def by_llama(path, text):
    """Perplexity, and tokens foreseen."""
    import numpy
    from llama_cpp import Llama

    model = Llama(str(path), n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False)
    tokens = model.tokenize(text.encode(), add_bos=False)
    nats, foreseen = 0.0, 0
    for at in range(0, len(tokens), WINDOW):
        window = tokens[at : at + WINDOW]
        model.reset()
        model.eval(window)
        rows = numpy.array(model.scores[: len(window) - 1], dtype=numpy.float64)
        most = rows.max(axis=1)
        likely = rows[range(len(rows)), window[1:]]
        nats += float((most + numpy.log(numpy.exp(rows - most[:, None]).sum(axis=1)) - likely).sum())
        foreseen += len(rows)
    return math.exp(nats / foreseen), foreseen


def by_hadal(hadal, gguf, words, text, folder):
    made = Path(folder) / "model"
    subprocess.run([hadal, "compile", gguf, *words, "--max-context", str(WINDOW), "-o", made], check=True, capture_output=True)
    done = subprocess.run([made, "perplexity", text, "--window", str(WINDOW), "--json"], check=True, capture_output=True)
    size = made.stat().st_size
    made.unlink()
    found = json.loads(done.stdout)
    return found["perplexity"], found["tokens"], size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--llama", type=Path, required=True, help="folder with llama-quantize")
    parser.add_argument("--hadal", default="target/release/hadal")
    parser.add_argument("--text", type=Path, default=HERE.parent / "fixtures/texts/alice.txt")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    text, rows = given.text.read_text(), []

    def row(program, weights, perplexity, tokens, size):
        rows.append({"program": program, "weights": weights, "perplexity": perplexity, "tokens": tokens, "bytes": size})
        print(f"| {program} | {weights} | {perplexity:.2f} | {tokens} | {size / 1e6:.1f} |", flush=True)

    print("| program | weights | perplexity | tokens | file, MB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        wide = Path(folder) / "f16.gguf"

        def rounded(source, path, form):
            line = [given.llama / "llama-quantize", "--allow-requantize", source, path, form]
            done = subprocess.run(line, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"{' '.join(map(str, line))}\n{done.stderr[-2000:]}")

        rounded(given.gguf, wide, "F16")
        row("hadal", "f16", *by_hadal(given.hadal, wide, [], given.text, folder))
        for words in HADAL:
            row("hadal", " ".join(words), *by_hadal(given.hadal, wide, words, given.text, folder))
        row("llama.cpp", "f16", *by_llama(wide, text), wide.stat().st_size)
        for form in LLAMA:
            path = Path(folder) / f"{form}.gguf"
            rounded(wide, path, form)
            row("llama.cpp", form, *by_llama(path, text), path.stat().st_size)
            path.unlink()
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
