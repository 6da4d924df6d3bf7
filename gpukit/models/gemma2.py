"""Gemma 2: import from `Gemma2ForCausalLM` checkpoints, and the decoder.

Beyond Gemma: norms behind attention and feed forward, caps of scores and logits, a window on every
other layer, a query scale of its own. Facts: transformers' Gemma2Config, llama.cpp's converter and
loader (window, pattern and scale where the metadata do not say).
"""

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from typing import Any

from gpukit.formats.gguf_fields import Field, ValueType, array, f32, u32
from gpukit.models.config import ModelConfig
from gpukit.models.gemma import (
    GELU_TANH,
    SKIPPED,
    attention_rows,
    checked_tied,
    gemma_fields,
    shifted,
    theta_fields,
)
from gpukit.models.registry import Architecture
from gpukit.models.rules import Rule
from gpukit.models.sizes import check_activation, read_sizes, restore_sizes
from gpukit.models.style import Style
from gpukit.models.tables import FEED_FORWARD_IN_NORMS, decoder_rules
from gpukit.models.values import real, whole
from gpukit.models.windows import periodic, windowed_layers
from gpukit.tokenizer import gemma2_vocabulary

NAME = "gemma2"
DEFAULTS = {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip
WINDOW, PERIOD = 4096, 2
ATTENTION_CAP, LOGIT_CAP = 50.0, 30.0
# The model of this many layers divides by its width a head, which is not its head_dim.
LAYERS_27B = 46


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with Gemma2Config's defaults."""
    check_activation(config, NAME, GELU_TANH, "hidden_activation")
    model = checked_tied(read_sizes(config, NAME, DEFAULTS, scalings=()))
    windowed = windowed_layers(config, model) or periodic(model.n_layer, PERIOD)
    return replace(
        model,
        window=whole(config, "sliding_window", WINDOW),
        windowed=tuple(windowed),
        attention_scale=1 / sqrt(real(config, "query_pre_attn_scalar", 256)),
        attention_cap=real(config, "attn_logit_softcapping", ATTENTION_CAP),
        logit_cap=real(config, "final_logit_softcapping", LOGIT_CAP),
    )


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint holds, with its shape."""
    return shifted(decoder_rules(config, (*attention_rows(config), *FEED_FORWARD_IN_NORMS)))


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order; then what differs from what the loader
    takes for granted."""
    return [
        *gemma_fields(config),
        f32(f"{NAME}.attn_logit_softcapping", config.attention_cap),
        f32(f"{NAME}.final_logit_softcapping", config.logit_cap),
        u32(f"{NAME}.attention.sliding_window", config.window),
        *pattern_fields(config, PERIOD),
        *scale_fields(config, LAYERS_27B),
        *theta_fields(config),
    ]


def pattern_fields(config: ModelConfig, period: int) -> list[Field]:
    """Which layers have a window, where it is not all but every `period`-th."""
    if config.windowed == periodic(config.n_layer, period):
        return []
    key = f"{config.arch}.attention.sliding_window_pattern"
    return [array(key, ValueType.BOOL, config.windowed)]


def scale_fields(config: ModelConfig, layers_27b: int) -> list[Field]:
    """The scale of queries where it is not that of the models in the family."""
    if config.attention_scale == usual_scale(config, layers_27b):
        return []
    return [f32(f"{config.arch}.attention.scale", config.attention_scale)]


def usual_scale(config: ModelConfig, layers_27b: int) -> float:
    """The scale of queries that llama.cpp takes for a model of this depth."""
    is_27b = config.n_layer == layers_27b
    return 1 / sqrt(config.n_embd // config.n_head if is_27b else config.head_dim)


def restore(found: Mapping[str, Field], arch: str) -> ModelConfig:
    """The configuration that a GGUF's metadata describes."""
    config = restore_sizes(found, arch)
    return replace(
        config,
        window=config.window or WINDOW,
        windowed=config.windowed or periodic(config.n_layer, PERIOD),
        attention_scale=config.attention_scale or usual_scale(config, LAYERS_27B),
        attention_cap=config.attention_cap or ATTENTION_CAP,
        logit_cap=config.logit_cap or LOGIT_CAP,
    )


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("Gemma2ForCausalLM",),
        read=read,
        rules=rules,
        fields=fields,
        vocabulary=gemma2_vocabulary,
        style=Style(activation="gelu_tanh", scaled=True, post_norms=True),
        restoring=restore,
        skipped=SKIPPED,
    ),
)
