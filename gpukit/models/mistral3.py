"""Mistral Small 3.1 and Ministral 3, their text: import from `Mistral3ForConditionalGeneration` and
`Ministral3ForCausalLM` checkpoints, and the decoder.

Llamas; queries of a Ministral grow with their position. Facts: transformers' Mistral3Config,
MistralConfig and Ministral3Config (defaults), llama.cpp's converter, loader and graph.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpukit.errors import CheckpointError
from gpukit.formats.gguf_fields import Field, f32
from gpukit.models import llama, mistral
from gpukit.models.config import ModelConfig
from gpukit.models.registry import Architecture
from gpukit.models.rope import rope_kind, yarn_growth
from gpukit.models.sizes import SILU, check_activation, read_sizes, restore_sizes
from gpukit.models.tables import VISION, text_name
from gpukit.models.values import flag, optional, real, section
from gpukit.models.windows import with_window
from gpukit.tokenizer import vocabulary_fields

NAME = "mistral3"
MINISTRAL, MISTRAL4 = "ministral3", "mistral4"
DEFAULTS = {
    "vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 34,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
}  # fmt: skip
# Ministral3Config's, where config.json has none.
ROPE = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "original_max_position_embeddings": 16384, "mscale": 1.0, "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}  # fmt: skip
GROWTH = "attention.temperature_scale"
LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration of the text in a config.json of transformers 4 or 5, with the defaults of
    its class."""
    text = {**config, **section(config, "text_config")}
    kind = text.get("model_type")
    if kind == MISTRAL4:
        raise CheckpointError(
            f"config.json: model_type is {kind!r}, a model with latent attention; a {NAME} GGUF "
            f"holds {MINISTRAL} and mistral"
        )
    check_activation(text, NAME, SILU)
    # The whole model says whether its text has a head of its own.
    if "text_config" in config and flag(config, "tie_word_embeddings", True):
        text["tie_word_embeddings"] = True
    if kind == MINISTRAL:
        return with_window(_ministral(text), text)
    model = read_sizes(text, NAME, mistral.DEFAULTS, llama.SCALINGS)
    return with_window(model, {**mistral.WINDOW, **text})


def _ministral(config: Mapping[str, Any]) -> ModelConfig:
    rope = section(config, "rope_scaling") or section(config, "rope_parameters") or ROPE
    if rope_kind(rope) != "yarn":
        raise CheckpointError(
            f"config.json: RoPE scaling {rope_kind(rope)!r} of a {MINISTRAL}; its GGUF has yarn"
        )
    scales = {key: value for key, value in rope.items() if key.startswith("mscale")}
    rest = {key: value for key, value in rope.items() if key not in scales}
    model = read_sizes({**config, "rope_scaling": None, "rope_parameters": rest}, NAME, DEFAULTS)
    return replace(
        model,
        rope_log_multiplier=_log_multiplier(model, scales),
        attention_growth=real(rope, "llama_4_scaling_beta"),
    )


def _log_multiplier(model: ModelConfig, scales: Mapping[str, Any]) -> float:
    """mscale_all_dim; `CheckpointError` where a GGUF, for which mscale is 1, would run with another
    magnitude than transformers has."""
    mscale, everywhere = (
        real(scales, key, 0.0) if scales.get(key) else 0.0 for key in ("mscale", "mscale_all_dim")
    )
    both = mscale and everywhere
    wanted = yarn_growth(model, mscale) / yarn_growth(model, everywhere) if both else 0.0
    run = yarn_growth(model) / yarn_growth(model, everywhere)
    if not math.isclose(wanted or yarn_growth(model), run, rel_tol=1e-6):
        raise CheckpointError(
            f"config.json: mscale {mscale:g} and mscale_all_dim {everywhere:g} of the RoPE "
            f"scaling; a {NAME} GGUF is run with an mscale of 1"
        )
    return everywhere


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order."""
    found = mistral.fields(config)
    if not config.attention_growth:
        return found
    return [
        *found,
        f32(f"{NAME}.{LOG_MULTIPLIER}", config.rope_log_multiplier),
        f32(f"{NAME}.{GROWTH}", config.attention_growth),
    ]


def restore(found: Mapping[str, Field], name: str) -> ModelConfig:
    """The configuration that a GGUF's metadata describes."""
    return replace(
        restore_sizes(found, name),
        rope_log_multiplier=optional(found, f"{name}.{LOG_MULTIPLIER}"),
        attention_growth=optional(found, f"{name}.{GROWTH}"),
    )


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"),
        read=read,
        rules=mistral.rules,
        fields=fields,
        vocabulary=vocabulary_fields,
        style=llama.STYLE,
        restoring=restore,
        computed=llama.computed,
        skipped_parts=VISION,
        renamed=text_name,
    ),
)
