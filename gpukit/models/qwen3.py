"""Qwen 3, dense: import from `Qwen3ForCausalLM` checkpoints, and the decoder.

Facts: transformers' Qwen3Config (defaults), llama.cpp's converter (names).
"""

from collections.abc import Mapping
from typing import Any

from gpukit.formats.gguf_fields import Field
from gpukit.models.config import ModelConfig
from gpukit.models.qwen2 import DEFAULTS, with_qwen_window
from gpukit.models.registry import Architecture
from gpukit.models.rules import Rule
from gpukit.models.sizes import SILU, check_activation, read_sizes, size_fields
from gpukit.models.style import Style
from gpukit.models.tables import (
    ATTENTION,
    FEED_FORWARD,
    OUTPUT_BIAS,
    QK_NORMS,
    QKV_BIASES,
    Row,
    decoder_rules,
)
from gpukit.models.windows import window_fields
from gpukit.tokenizer import plain_vocabulary

NAME = "qwen3"
STYLE = Style(qk_norms=True)


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with Qwen3Config's defaults."""
    check_activation(config, NAME, SILU)
    return with_qwen_window(read_sizes(config, NAME, {**DEFAULTS, "head_dim": 128}), config)


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint holds, with its shape."""
    return decoder_rules(config, (*attention(config), *FEED_FORWARD))


def attention(config: ModelConfig) -> tuple[Row, ...]:
    """What a layer has before its feed forward."""
    biases = (*QKV_BIASES, *OUTPUT_BIAS) if config.attention_bias else ()
    return (*ATTENTION, *QK_NORMS, *biases)


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order."""
    return [*size_fields(config), *window_fields(config)]


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("Qwen3ForCausalLM",),
        read=read,
        rules=rules,
        fields=fields,
        vocabulary=plain_vocabulary,
        style=STYLE,
    ),
)
