"""Small random Llama checkpoints, the same bytes on every machine and in every version."""

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

DATA = Path(__file__).resolve().parents[1] / "data"
SENTENCEPIECE = DATA / "tiny-shakespeare"
# Llama 3's tokenizer is too large for the repository; tests that want it look beside it.
LLAMA3 = DATA.parent.parent.parent / "shared" / "models" / "llama3-tokenizer"

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True)
class Variant:
    """What is special about a checkpoint; `config` goes over the plain one."""

    config: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "BF16"
    biases: bool = False
    head: bool = True
    shards: int = 1
    tokenizer: Path = SENTENCEPIECE
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    card: str | None = None


PLAIN: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "vocab_size": 2048,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "bfloat16",
}

VARIANTS = {
    "plain": Variant(),
    "tied": Variant({"tie_word_embeddings": True}, head=False),
    "tied-with-head": Variant({"tie_word_embeddings": True}),
    "one-kv-head": Variant({"num_key_value_heads": 1}),
    "all-heads": Variant({"num_key_value_heads": 8}),
    "llama31": Variant(
        {
            "head_dim": 32,
            "rope_parameters": {
                "rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        }
    ),
    "llama32-form4": Variant(
        {
            "rope_parameters": None, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
            "tie_word_embeddings": True,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            },
        },
        head=False,
    ),
    "linear-form4": Variant(
        {
            "rope_parameters": None, "rope_theta": 10000.0,
            "rope_scaling": {"type": "linear", "factor": 2.0},
        }
    ),
    "linear": Variant(
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}}
    ),
    "wide-heads": Variant({"head_dim": 48}),
    "narrow-heads": Variant(
        {"hidden_size": 288, "intermediate_size": 608, "num_attention_heads": 6,
         "num_key_value_heads": 3, "head_dim": 24}
    ),
    "biases": Variant({"attention_bias": True, "mlp_bias": True}, biases=True),
    "f16": Variant(dtype="F16"),
    "f32": Variant(dtype="F32"),
    "sharded": Variant(shards=3),
    "eight-layers": Variant({"num_hidden_layers": 8, "hidden_size": 256, "intermediate_size": 256}),
    "padded-vocabulary": Variant({"vocab_size": 2080}),
    "added-tokens": Variant(
        {"vocab_size": 2051},
        extra={
            "tokenizer_config.json": {
                "tokenizer_class": "LlamaTokenizer", "add_bos_token": True,
                "bos_token": "<s>", "eos_token": "<|end|>", "add_prefix_space": False,
                "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
                "added_tokens_decoder": {
                    "2048": {"content": "<|user|>", "special": True},
                    "2049": {"content": "<|end|>", "special": False},
                    "2050": {"content": "▁two▁words", "special": False},
                },
            },
            "generation_config.json": {"temperature": 0.6, "top_p": 0.9, "top_k": 20},
        },
        card="---\nlicense: llama3.1\nlanguage:\n- en\n- de\ntags:\n- tiny\n"
        "base_model: org/Base-1B\n---\n# A model\n",
    ),
    "llama3-tokenizer": Variant(
        {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
         "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 128256,
         "tie_word_embeddings": True, "bos_token_id": 128000, "eos_token_id": 128001},
        head=False,
        tokenizer=LLAMA3,
    ),
}  # fmt: skip


def build(name: str, folder: Path) -> Path:
    """Write checkpoint `name` into `folder / name`; that folder."""
    variant = VARIANTS[name]
    folder = folder / name
    folder.mkdir(parents=True)
    config = {**PLAIN, **variant.config}
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    for path in variant.tokenizer.glob("tokenizer*"):
        # One vocabulary a folder: the converter prefers this one where both are there.
        if not (path.name == "tokenizer.json" and (variant.tokenizer / "tokenizer.model").exists()):
            shutil.copyfile(path, folder / path.name)
    for file, content in variant.extra.items():
        (folder / file).write_text(json.dumps(content))
    if variant.card is not None:
        (folder / "README.md").write_text(variant.card)
    tensors = weights(name)
    if variant.shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    save_shards(folder, tensors, variant.shards)
    return folder


def save_shards(folder: Path, tensors: dict[str, torch.Tensor], count: int) -> None:
    """Write `tensors` dealt out to `count` files, with their index."""
    weight_map = {}
    for shard in range(count):
        file = f"model-{shard + 1:05}-of-{count:05}.safetensors"
        part = {name: t for i, (name, t) in enumerate(tensors.items()) if i % count == shard}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def weights(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint."""
    variant = VARIANTS[name]
    config = {**PLAIN, **variant.config}
    source = random.Random(name)
    return {
        key: _values(source, shape).to(DTYPES[variant.dtype])
        for key, shape in _shapes(config, variant).items()
    }


def _values(source: random.Random, shape: tuple[int, ...]) -> torch.Tensor:
    """float32 in -0.06..0.06, a sum of three uniform numbers each."""
    count = int(np.prod(shape))
    raw = np.frombuffer(source.randbytes(6 * count), "<i2").astype(np.float32).reshape(3, count)
    return torch.from_numpy(raw.sum(0) / np.float32(3 * 32768) * np.float32(0.06)).view(shape)


def _shapes(config: Mapping[str, Any], variant: Variant) -> dict[str, tuple[int, ...]]:
    hidden, ff, vocabulary = (
        config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    )  # fmt: skip
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    q, kv = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    if variant.head:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        linear = {
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "mlp.gate_proj": (ff, hidden),
            "mlp.up_proj": (ff, hidden),
            "mlp.down_proj": (hidden, ff),
        }
        for key, shape in linear.items():
            shapes[f"{at}{key}.weight"] = shape
            if variant.biases:
                shapes[f"{at}{key}.bias"] = shape[:1]
        shapes[at + "input_layernorm.weight"] = (hidden,)
        shapes[at + "post_attention_layernorm.weight"] = (hidden,)
    return shapes
