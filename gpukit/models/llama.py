"""Llama 2, 3, 3.1 and 3.2: import from `LlamaForCausalLM` checkpoints, and the decoder.

Facts: transformers' LlamaConfig (defaults), llama.cpp's converter (names, permutation, rope_freqs).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from gpukit.formats.gguf_fields import Field, u32
from gpukit.models.config import ModelConfig
from gpukit.models.registry import Architecture
from gpukit.models.rope import rope_divisors
from gpukit.models.rules import PlannedTensor, Rule
from gpukit.models.sizes import SILU, check_activation, read_sizes, size_fields
from gpukit.models.style import Style
from gpukit.models.tables import (
    ATTENTION,
    FEED_FORWARD,
    FEED_FORWARD_BIASES,
    OUTPUT_BIAS,
    QKV_BIASES,
    decoder_rules,
)
from gpukit.tokenizer import vocabulary_fields

NAME = "llama"
DEFAULTS = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
}  # fmt: skip

SCALINGS = ("linear", "llama3", "yarn")
STYLE = Style(rotate="pairs")

# Rotated tensors: Hugging Face rotates halves of a head, GGUF neighbouring pairs.
ROTATED = ("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with LlamaConfig's defaults."""
    check_activation(config, NAME, SILU)
    return read_sizes(config, NAME, DEFAULTS, SCALINGS)


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint may hold, with its shape.

    Biases are there with attention_bias and mlp_bias, and used without them where there are some.
    """
    attention, feed_forward = (*QKV_BIASES, *OUTPUT_BIAS), FEED_FORWARD_BIASES
    found = decoder_rules(
        config,
        (
            *ATTENTION, *FEED_FORWARD,
            *(attention if config.attention_bias else ()),
            *(feed_forward if config.mlp_bias else ()),
        ),
        optional=(
            *(() if config.attention_bias else attention),
            *(() if config.mlp_bias else feed_forward),
        ),
    )  # fmt: skip
    return rotated(found, config)


def rotated(rules: Sequence[Rule], config: ModelConfig) -> list[Rule]:
    """`rules` with the rows of queries and keys in the order that GGUF's Llamas have."""
    change = partial(to_pairs, head_dim=config.head_dim)
    return [
        replace(rule, transform=change, row_group=config.head_dim if len(rule.shape) == 2 else 1)
        if rule.name.endswith(ROTATED)
        else rule
        for rule in rules
    ]


def to_pairs(slab: Any, head_dim: int) -> Any:
    """Rows of whole heads, from halves (x, x + d/2) to neighbouring pairs (2x, 2x + 1).

    `[k * head_dim, n]`, or a bias: one row that holds all heads. The result has the same shape.
    """
    width = slab.shape[1] if slab.shape[0] > 1 else 1
    heads = slab.reshape(-1, 2, head_dim // 2, width)
    return heads.swapaxes(1, 2).reshape(slab.shape)


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order."""
    return [
        *size_fields(config),
        u32(f"{config.arch}.vocab_size", config.vocab_size),
        u32(f"{config.arch}.rope.dimension_count", config.head_dim),
    ]


def computed(config: ModelConfig) -> Sequence[PlannedTensor]:
    """rope_freqs.weight for Llama 3.1 and later: what each frequency is divided by."""
    if config.rope_scaling != "llama3":
        return ()
    factors = rope_divisors(config).numpy()
    return (PlannedTensor("rope_freqs.weight", (len(factors),), (), "F32", values=factors),)


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
        read=read,
        rules=rules,
        fields=fields,
        vocabulary=vocabulary_fields,
        style=STYLE,
        computed=computed,
    ),
)
