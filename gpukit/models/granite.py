"""Granite 3 and 4.1, dense: import from `GraniteForCausalLM` checkpoints, and the decoder.

Llamas with four factors: of embeddings, scores, what a layer adds, and logits. Facts: transformers'
GraniteConfig (defaults), llama.cpp's converter (names, permutation) and loader.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpukit.errors import CheckpointError
from gpukit.formats.gguf_fields import Field, f32
from gpukit.models import llama
from gpukit.models.config import ModelConfig
from gpukit.models.registry import Architecture
from gpukit.models.sizes import SILU, check_activation, check_square, read_sizes, restore_sizes
from gpukit.models.values import optional, real
from gpukit.tokenizer import vocabulary_fields

NAME = "granite"
DEFAULTS = llama.DEFAULTS


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with GraniteConfig's defaults."""
    check_activation(config, NAME, SILU)
    if config.get("deepstack_layer_map") or config.get("spatial_target_layers"):
        raise CheckpointError("config.json: layers that see pictures; gpukit runs language models")
    return replace(
        check_square(read_sizes(config, NAME, DEFAULTS)),
        attention_scale=real(config, "attention_multiplier", 1.0),
        embedding_scale=real(config, "embedding_multiplier", 1.0),
        residual_scale=real(config, "residual_multiplier", 1.0),
        logit_divisor=real(config, "logits_scaling", 1.0),
        head_dim_said=False,
    )


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order."""
    return [
        *llama.fields(config),
        f32(f"{NAME}.attention.scale", config.attention_scale),
        f32(f"{NAME}.embedding_scale", config.embedding_scale),
        f32(f"{NAME}.residual_scale", config.residual_scale),
        f32(f"{NAME}.logit_scale", config.logit_divisor),
    ]


def restore(found: Mapping[str, Field], name: str) -> ModelConfig:
    """The configuration that a GGUF's metadata describes; a factor that is missing or 0 is 1."""
    return replace(
        restore_sizes(found, name),
        embedding_scale=optional(found, f"{name}.embedding_scale") or 1.0,
        residual_scale=optional(found, f"{name}.residual_scale") or 1.0,
        logit_divisor=optional(found, f"{name}.logit_scale") or 1.0,
    )


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("GraniteForCausalLM",),
        read=read,
        rules=llama.rules,
        fields=fields,
        vocabulary=vocabulary_fields,
        style=llama.STYLE,
        restoring=restore,
    ),
)
