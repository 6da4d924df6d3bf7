"""Gemma and CodeGemma: import from `GemmaForCausalLM` checkpoints, and the decoder.

Norms hold their distance from 1 in the checkpoint and the whole weight in a GGUF; embeddings are
scaled by the root of their width; the head is the embedding. Facts: transformers' GemmaConfig,
llama.cpp's converter (its own list of metadata) and loader (RoPE of base 10000).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gpukit.errors import CheckpointError
from gpukit.formats.file_types import FILE_TYPE
from gpukit.formats.gguf_fields import Field, f32, u32
from gpukit.models import tables
from gpukit.models.config import ModelConfig
from gpukit.models.registry import Architecture
from gpukit.models.rules import Rule
from gpukit.models.sizes import check_activation, read_sizes
from gpukit.models.style import Style
from gpukit.models.tables import ATTENTION, FEED_FORWARD, OUTPUT_BIAS, QKV_BIASES, decoder_rules
from gpukit.tokenizer import gemma_vocabulary

NAME = "gemma"
DEFAULTS = {
    "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip

# The first configurations said gelu and meant this approximation.
GELU_TANH = ("gelu_pytorch_tanh", "gelu")

# A copy of the embedding, or nothing.
SKIPPED = (*tables.SKIPPED, "lm_head.weight")


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with GemmaConfig's defaults."""
    check_activation(config, NAME, GELU_TANH)
    return checked_tied(read_sizes(config, NAME, DEFAULTS, scalings=()))


def checked_tied(model: ModelConfig) -> ModelConfig:
    """`model`; `CheckpointError` where it has a head of its own, which its GGUF cannot hold."""
    if not model.tied:
        raise CheckpointError(
            f"config.json: tie_word_embeddings is false; a {model.arch} GGUF has no head of its own"
        )
    return model


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint holds, with its shape."""
    return shifted(decoder_rules(config, (*attention_rows(config), *FEED_FORWARD)))


def attention_rows(config: ModelConfig) -> list[tuple[str, str, tuple[str, ...]]]:
    """The tensors of a layer's attention, with biases where there are some."""
    biases = (*QKV_BIASES, *OUTPUT_BIAS) if config.attention_bias else ()
    return [*ATTENTION, *biases]


def shifted(rules: Sequence[Rule]) -> list[Rule]:
    """`rules` with 1 added to norms."""
    return [
        replace(rule, transform=plus_one) if rule.name.endswith("norm.weight") else rule
        for rule in rules
    ]


def plus_one(slab: Any) -> Any:
    """`slab` + 1: float16 in half precision, as in llama.cpp's converter, the others in float32."""
    if isinstance(slab, np.ndarray):
        return (slab if slab.dtype == np.float16 else slab.astype(np.float32)) + 1
    import torch

    return (slab if slab.dtype is torch.float16 else slab.to(torch.float32)) + 1


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order; the base of RoPE where it is not the
    loader's."""
    return [*gemma_fields(config), *theta_fields(config)]


def gemma_fields(config: ModelConfig) -> list[Field]:
    """What Gemma and Gemma 2 say of their sizes."""
    at = config.arch
    return [
        u32(f"{at}.context_length", config.n_ctx),
        u32(f"{at}.embedding_length", config.n_embd),
        u32(f"{at}.block_count", config.n_layer),
        u32(f"{at}.feed_forward_length", config.n_ff),
        u32(f"{at}.attention.head_count", config.n_head),
        u32(f"{at}.attention.head_count_kv", config.n_head_kv),
        f32(f"{at}.attention.layer_norm_rms_epsilon", config.rms_eps),
        u32(f"{at}.attention.key_length", config.head_dim),
        u32(f"{at}.attention.value_length", config.head_dim),
        u32(FILE_TYPE, 0),
    ]


def theta_fields(config: ModelConfig) -> list[Field]:
    """The base of RoPE, which the converter leaves out, where it is not 10000."""
    if config.rope_theta == 10000.0:
        return []
    return [f32(f"{config.arch}.rope.freq_base", config.rope_theta)]


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("GemmaForCausalLM",),
        read=read,
        rules=rules,
        fields=fields,
        vocabulary=gemma_vocabulary,
        style=Style(activation="gelu_tanh", scaled=True),
        skipped=SKIPPED,
    ),
)
