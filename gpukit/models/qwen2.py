"""Qwen 1.5, 2 and 2.5: import from `Qwen2ForCausalLM` checkpoints, and the decoder.

Facts: transformers' Qwen2Config (defaults, windows), llama.cpp's converter (names) and loader.
"""

from collections.abc import Mapping
from typing import Any

from gpukit.formats.gguf_fields import Field
from gpukit.models.config import ModelConfig
from gpukit.models.registry import Architecture
from gpukit.models.rules import Rule
from gpukit.models.sizes import (
    SILU,
    check_activation,
    check_square,
    read_sizes,
    size_fields,
    with_said_head_dim,
)
from gpukit.models.tables import ATTENTION, FEED_FORWARD, QKV_BIASES, decoder_rules
from gpukit.models.values import flag, whole
from gpukit.models.windows import window_fields, windowed_layers, with_window
from gpukit.tokenizer import plain_vocabulary

NAME = "qwen2"
DEFAULTS = {
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
}  # fmt: skip


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with Qwen2Config's defaults."""
    check_activation(config, NAME, SILU)
    model = check_square(read_sizes(config, NAME, DEFAULTS))
    return with_qwen_window(with_said_head_dim(model, config), config)


def with_qwen_window(model: ModelConfig, config: Mapping[str, Any]) -> ModelConfig:
    """`model` with its window, if it uses one: by layer_types, or from max_window_layers on."""
    if not flag(config, "use_sliding_window"):
        return model
    windowed = windowed_layers(config, model)
    if windowed is None:
        from_first = config.get("max_window_layers") == 0
        first = 0 if from_first else whole(config, "max_window_layers", 28)
        windowed = [layer >= first for layer in range(model.n_layer)]
    return with_window(model, {"sliding_window": 4096, **config}, windowed)


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint holds, with its shape."""
    return decoder_rules(config, (*ATTENTION, *QKV_BIASES, *FEED_FORWARD))


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order."""
    return [*size_fields(config), *window_fields(config)]


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("Qwen2ForCausalLM",),
        read=read,
        rules=rules,
        fields=fields,
        vocabulary=plain_vocabulary,
    ),
)
