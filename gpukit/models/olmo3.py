"""OLMo 3: import from `Olmo3ForCausalLM` checkpoints.

In a GGUF they are OLMo 2 with a window on three of four layers, whose RoPE is not scaled. Facts:
transformers' Olmo3Config (defaults), llama.cpp's converter and loader.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpukit.errors import CheckpointError
from gpukit.formats.gguf_fields import Field, ValueType, array, u32
from gpukit.models import olmo2
from gpukit.models.config import ModelConfig
from gpukit.models.registry import Architecture
from gpukit.models.rope import split_ropes
from gpukit.models.sizes import size_fields
from gpukit.models.values import real, whole
from gpukit.models.windows import periodic, windowed_layers
from gpukit.tokenizer import plain_vocabulary

THETA, WINDOW = 500000.0, 4096


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with Olmo3Config's defaults."""
    if config.get("sliding_window", WINDOW) is None:
        raise CheckpointError(
            "config.json: sliding_window is null; layers of an OLMo 3 have one in a GGUF"
        )
    # A rope_theta beside is that of whole layers only, as for transformers 5.
    rope, local_theta = split_ropes(config, olmo2.NAME, THETA)
    theta = real(config, "rope_theta", THETA)
    model = olmo2.read({**config, **rope, "rope_theta": theta})
    return replace(
        model,
        window=whole(config, "sliding_window", WINDOW),
        windowed=tuple(windowed_layers(config, model) or periodic(model.n_layer, olmo2.PERIOD)),
        rope_theta_local=local_theta,
    )


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order."""
    at = f"{olmo2.NAME}.attention.sliding_window"
    return [
        *size_fields(config),
        u32(at, config.window),
        array(f"{at}_pattern", ValueType.BOOL, config.windowed),
    ]


ARCHITECTURES = (
    Architecture(
        name=olmo2.NAME,
        classes=("Olmo3ForCausalLM",),
        read=read,
        rules=olmo2.rules,
        fields=fields,
        vocabulary=plain_vocabulary,
        style=olmo2.STYLE,
        restoring=olmo2.restore,
    ),
)
