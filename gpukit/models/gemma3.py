"""Gemma 3, its text: import from `Gemma3ForCausalLM` and `Gemma3ForConditionalGeneration`
checkpoints, and the decoder.

Beyond Gemma 2: norms of queries and keys, a RoPE of its own on windowed layers, no cap of scores.
Facts: transformers' Gemma3TextConfig, llama.cpp's converter and loader.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from typing import Any

from gpukit.errors import CheckpointError
from gpukit.formats.gguf_fields import Field, f32, u32
from gpukit.models.config import ModelConfig
from gpukit.models.gemma import GELU_TANH, attention_rows, shifted
from gpukit.models.gemma2 import pattern_fields, scale_fields, usual_scale
from gpukit.models.registry import Architecture
from gpukit.models.rope import split_ropes
from gpukit.models.rules import Rule
from gpukit.models.sizes import check_activation, read_sizes, restore_sizes, size_fields
from gpukit.models.style import Style
from gpukit.models.tables import (
    FEED_FORWARD_IN_NORMS,
    QK_NORMS,
    VISION,
    decoder_rules,
    text_name,
)
from gpukit.models.values import real, section, whole
from gpukit.models.windows import periodic, windowed_layers
from gpukit.tokenizer import gemma2_vocabulary

NAME = "gemma3"
DEFAULTS = {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "rope_theta": 1e6,
}  # fmt: skip
WINDOW, PERIOD, LOCAL_THETA = 4096, 6, 10000.0
LAYERS_27B = 62


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration of the text in a config.json of transformers 4 or 5, with
    Gemma3TextConfig's defaults."""
    config = {**config, **section(config, "text_config")}
    check_activation(config, NAME, GELU_TANH, "hidden_activation")
    if config.get("attn_logit_softcapping") is not None:
        raise CheckpointError(
            f"config.json: attn_logit_softcapping is {config['attn_logit_softcapping']!r}; "
            f"a {NAME} GGUF has no cap of scores"
        )
    local = real(config, "rope_local_base_freq", LOCAL_THETA)
    whole_rope, local_theta = split_ropes(config, NAME, local)
    model = read_sizes({**config, **whole_rope}, NAME, DEFAULTS)
    period = whole(config, "sliding_window_pattern", PERIOD)
    cap = config.get("final_logit_softcapping")
    return replace(
        model,
        window=whole(config, "sliding_window", WINDOW),
        windowed=tuple(windowed_layers(config, model) or periodic(model.n_layer, period)),
        rope_theta_local=local_theta,
        attention_scale=1 / sqrt(real(config, "query_pre_attn_scalar", 256)),
        logit_cap=0.0 if cap is None else real(config, "final_logit_softcapping"),
    )


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint's text holds, with its shape."""
    rows = (*attention_rows(config), *QK_NORMS, *FEED_FORWARD_IN_NORMS)
    return shifted(decoder_rules(config, rows))


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order; then what differs from what the loader
    takes for granted."""
    cap = [f32(f"{NAME}.final_logit_softcapping", config.logit_cap)] if config.logit_cap else []
    return [
        *size_fields(config),
        *cap,
        u32(f"{NAME}.attention.sliding_window", config.window),
        *pattern_fields(config, PERIOD),
        *scale_fields(config, LAYERS_27B),
    ]


def restore(found: Mapping[str, Field], arch: str) -> ModelConfig:
    """The configuration that a GGUF's metadata describes."""
    config = restore_sizes(found, arch)
    return replace(
        config,
        windowed=config.windowed or periodic(config.n_layer, PERIOD),
        rope_theta_local=config.rope_theta_local or LOCAL_THETA,
        attention_scale=config.attention_scale or usual_scale(config, LAYERS_27B),
    )


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        read=read,
        rules=rules,
        fields=fields,
        vocabulary=gemma2_vocabulary,
        style=Style(activation="gelu_tanh", scaled=True, post_norms=True, qk_norms=True),
        restoring=restore,
        skipped_parts=VISION,
        renamed=text_name,
    ),
)
