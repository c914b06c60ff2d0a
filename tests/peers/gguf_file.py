#!/usr/bin/env python3
"""Writes the weights of a checkpoint folder as a GGUF file, for programs that read only those.

  gguf_file.py FOLDER FILE.gguf

The tokenizer is made up: what is measured is given tokens, but some programs open no file without one. Weights stay in bf16, vectors and routers become f32. Further
formats: `llama-quantize FILE.gguf OUT.gguf Q8_0`. It knows the `qwen2` and `deepseek_v2` families, and needs numpy.
"""

import json
import struct
import sys
from pathlib import Path

import numpy

F32, BF16 = 0, 30
ALIGN = 32


class Weights:
    """The tensors of the safetensors files of a folder, as bf16 in 16-bit words."""

    def __init__(self, folder):
        self.found = {}
        for path in sorted(Path(folder).glob("*.safetensors")):
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, tensor in header.items():
                self.found[name] = (path, 8 + length, tensor)

    def shape(self, name):
        return self.found[name][2]["shape"]

    def __contains__(self, name):
        return name in self.found

    def __getitem__(self, name):
        path, base, tensor = self.found[name]
        if tensor["dtype"] != "BF16":
            sys.exit(f"{name}: {tensor['dtype']}, expected BF16")
        shape = tuple(tensor["shape"])
        return numpy.memmap(path, "<u2", "r", base + tensor["data_offsets"][0], shape)


def wide(words):
    return (words.astype("<u4") << 16).view("<f4")


def qwen2(config, weights):
    """The metadata, and a list of tensors: name, shape, format, and a function for the parts of its data."""
    heads = config["num_attention_heads"]
    about = {
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "feed_forward_length": config["intermediate_size"],
    }
    tensors = []
    for i in range(config["num_hidden_layers"]):
        tensors += norms(weights, i) + dense(weights, i)
        for short, long in [("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("output", "o_proj")]:
            name = f"model.layers.{i}.self_attn.{long}"
            tensors.append(plain(weights, f"blk.{i}.attn_{short}.weight", f"{name}.weight"))
            if f"{name}.bias" in weights:
                tensors.append(plain(weights, f"blk.{i}.attn_{short}.bias", f"{name}.bias"))
    return "qwen2", about, tensors


def deepseek_v2(config, weights):
    heads, rank, rope = config["num_attention_heads"], config["kv_lora_rank"], config["qk_rope_head_dim"]
    nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
    experts = config["n_routed_experts"]
    about = {
        "attention.head_count": heads,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": config["q_lora_rank"] or 0,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": nope + rope,
        "attention.value_length_mla": value,
        "rope.dimension_count": rope,
        "leading_dense_block_count": config["first_k_dense_replace"],
        "feed_forward_length": config["intermediate_size"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_count": experts,
        "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "expert_weights_norm": bool(config["norm_topk_prob"]),
        "expert_gating_func": {"softmax": 1, "sigmoid": 2}[config["scoring_func"]],
    }
    scaling = config.get("rope_scaling")
    if scaling:
        about["rope.scaling.type"] = "yarn"
        about["rope.scaling.factor"] = float(scaling["factor"])
        about["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
        about["rope.scaling.yarn_log_multiplier"] = 0.1 * scaling["mscale_all_dim"]
    tensors = []
    for i in range(config["num_hidden_layers"]):
        here, attention = f"model.layers.{i}.", f"model.layers.{i}.self_attn."
        tensors += norms(weights, i)
        names = {"q": "q_proj", "q_a": "q_a_proj", "q_b": "q_b_proj", "q_a_norm": "q_a_layernorm"}
        names |= {"kv_a_mqa": "kv_a_proj_with_mqa", "kv_a_norm": "kv_a_layernorm", "output": "o_proj"}
        for short, long in names.items():
            if f"{attention}{long}.weight" in weights:
                tensors.append(plain(weights, f"blk.{i}.attn_{short}.weight", f"{attention}{long}.weight"))

        def both(i=i):
            return weights[f"model.layers.{i}.self_attn.kv_b_proj.weight"].reshape(heads, nope + value, rank)

        # Keys are wanted the other way round.
        keys = lambda both=both: [both()[:, :nope].transpose(0, 2, 1)]
        values = lambda both=both: [both()[:, nope:]]
        tensors.append((f"blk.{i}.attn_k_b.weight", [heads, rank, nope], BF16, keys))
        tensors.append((f"blk.{i}.attn_v_b.weight", [heads, value, rank], BF16, values))
        if i < config["first_k_dense_replace"]:
            tensors += dense(weights, i)
            continue
        tensors.append(plain(weights, f"blk.{i}.ffn_gate_inp.weight", f"{here}mlp.gate.weight", F32))
        for part in ["gate", "up", "down"]:
            all = [f"{here}mlp.experts.{e}.{part}_proj.weight" for e in range(experts)]
            parts = lambda all=all: (weights[name] for name in all)
            tensors.append((f"blk.{i}.ffn_{part}_exps.weight", [experts, *weights.shape(all[0])], BF16, parts))
            shared = f"{here}mlp.shared_experts.{part}_proj.weight"
            tensors.append(plain(weights, f"blk.{i}.ffn_{part}_shexp.weight", shared))
    return "deepseek2", about, tensors


FAMILIES = {"qwen2": qwen2, "deepseek_v2": deepseek_v2}


def plain(weights, name, source, dtype=None):
    shape = weights.shape(source)
    dtype = dtype if dtype is not None else (F32 if len(shape) == 1 else BF16)
    return name, shape, dtype, lambda: [weights[source]]


def norms(weights, i):
    pairs = [("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")]
    return [plain(weights, f"blk.{i}.{a}.weight", f"model.layers.{i}.{b}.weight") for a, b in pairs]


def dense(weights, i):
    return [
        plain(weights, f"blk.{i}.ffn_{part}.weight", f"model.layers.{i}.mlp.{part}_proj.weight")
        for part in ["gate", "up", "down"]
    ]


def text(value):
    bytes = value.encode()
    return struct.pack("<Q", len(bytes)) + bytes


def field(key, value):
    if isinstance(value, bool):
        return text(key) + struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return text(key) + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    if isinstance(value, list):
        of, entries = (5, [struct.pack("<i", v) for v in value]) if isinstance(value[0], int) else (8, map(text, value))
        return text(key) + struct.pack("<IIQ", 9, of, len(value)) + b"".join(entries)
    return text(key) + struct.pack("<I", 8) + text(value)


def tokenizer(size):
    """A vocabulary with the characters of ASCII, one pair of them, other words, and one token that is special."""
    words = [chr(33 + i) for i in range(94)] + ["ab"]
    words += [f"word{i}" for i in range(size - len(words) - 1)] + ["<end>"]
    about = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": words,
        "token_type": [1] * (size - 1) + [3],
        "merges": ["a b"],
        "eos_token_id": size - 1,
        "bos_token_id": size - 1,
    }
    return [field(f"tokenizer.ggml.{key}", value) for key, value in about.items()]


def write(folder, path):
    config = json.loads((Path(folder) / "config.json").read_text())
    family = FAMILIES.get(config["model_type"])
    if family is None:
        sys.exit(f"{folder}: model_type {config['model_type']}, expected {' or '.join(FAMILIES)}")
    weights = Weights(folder)
    arch, about, tensors = family(config, weights)
    ends = [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")]
    tensors = [plain(weights, f"{a}.weight", f"{b}.weight") for a, b in ends if f"{b}.weight" in weights] + tensors
    about |= {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "vocab_size": config["vocab_size"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config["rope_theta"]),
    }
    fields = [field("general.architecture", arch)] + tokenizer(config["vocab_size"])
    fields += [field(f"{arch}.{key}", value) for key, value in about.items()]
    infos, offset = [], 0
    for name, shape, dtype, _ in tensors:
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        infos.append(text(name) + sizes + struct.pack("<IQ", dtype, offset))
        offset += int(numpy.prod(shape)) * (4 if dtype == F32 else 2)
        offset += -offset % ALIGN
    with open(path, "wb") as out:
        out.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields)) + b"".join(fields + infos))
        out.write(bytes(-out.tell() % ALIGN))
        for _, _, dtype, parts in tensors:
            for part in parts():
                out.write(numpy.ascontiguousarray(wide(part) if dtype == F32 else part))
            out.write(bytes(-out.tell() % ALIGN))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write(*sys.argv[1:])
