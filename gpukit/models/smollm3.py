"""SmolLM3: import from `SmolLM3ForCausalLM` checkpoints, and the decoder.

Llamas of which every fourth layer knows no positions. Facts: transformers' SmolLM3Config
(defaults), llama.cpp's converter (names, permutation) and loader (which layers).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpukit.errors import CheckpointError
from gpukit.models import llama
from gpukit.models.config import ModelConfig
from gpukit.models.registry import Architecture
from gpukit.models.sizes import SILU, check_activation, read_sizes, with_said_head_dim
from gpukit.models.values import flag, whole
from gpukit.tokenizer import vocabulary_fields

NAME = "smollm3"
DEFAULTS = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
    "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip
STYLE = replace(llama.STYLE, unrotated_every=4)


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with SmolLM3Config's defaults."""
    check_activation(config, NAME, SILU)
    model = with_said_head_dim(read_sizes(config, NAME, DEFAULTS), config)
    _check_rotated(config, model.n_layer)
    if flag(config, "use_sliding_window"):
        raise CheckpointError(
            f"config.json: use_sliding_window is true; layers of a {NAME} GGUF see every position"
        )
    return model


def _check_rotated(config: Mapping[str, Any], n_layer: int) -> None:
    """`CheckpointError` where other layers know no positions than a GGUF is run with."""
    wanted = [int((layer + 1) % STYLE.unrotated_every != 0) for layer in range(n_layer)]
    found = config.get("no_rope_layers")
    if found is None:
        interval = whole(config, "no_rope_layer_interval", STYLE.unrotated_every)
        found = [int((layer + 1) % interval != 0) for layer in range(n_layer)]
    if found != wanted:
        raise CheckpointError(
            f"config.json: no_rope_layers is {found}; a {NAME} GGUF is run with {wanted}"
        )


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("SmolLM3ForCausalLM",),
        read=read,
        rules=llama.rules,
        fields=llama.fields,
        vocabulary=vocabulary_fields,
        style=STYLE,
    ),
)
