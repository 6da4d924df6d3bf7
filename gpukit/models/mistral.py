"""Mistral v0.1 to v0.3, Nemo and Small: import from `MistralForCausalLM` checkpoints.

In a GGUF they are Llamas. The sliding window of v0.1 has a key of gpukit's own there, which
llama.cpp passes over. Facts: transformers' MistralConfig (defaults), llama.cpp's converter.
"""

from collections.abc import Mapping
from typing import Any

from gpukit.formats.gguf_fields import Field
from gpukit.models import llama
from gpukit.models.config import ModelConfig
from gpukit.models.registry import Architecture
from gpukit.models.rules import Rule
from gpukit.models.sizes import SILU, check_activation, read_sizes
from gpukit.models.tables import ATTENTION, FEED_FORWARD, decoder_rules
from gpukit.models.windows import window_fields, with_window
from gpukit.tokenizer import vocabulary_fields

DEFAULTS = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
}  # fmt: skip
# Where config.json does not say; v0.2 and later say null.
WINDOW = {"sliding_window": 4096}


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with MistralConfig's defaults."""
    check_activation(config, llama.NAME, SILU)
    model = read_sizes(config, llama.NAME, DEFAULTS, llama.SCALINGS)
    return with_window(model, {**WINDOW, **config})


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint holds, with its shape."""
    return llama.rotated(decoder_rules(config, (*ATTENTION, *FEED_FORWARD)), config)


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order."""
    return [*llama.fields(config), *window_fields(config)]


ARCHITECTURES = (
    Architecture(
        name=llama.NAME,
        classes=("MistralForCausalLM",),
        read=read,
        rules=rules,
        fields=fields,
        vocabulary=vocabulary_fields,
        style=llama.STYLE,
        computed=llama.computed,
    ),
)
