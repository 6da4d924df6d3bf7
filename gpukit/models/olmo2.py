"""OLMo 2: import from `Olmo2ForCausalLM` checkpoints, and the decoder, OLMo 3's too.

Norms stand behind attention and feed forward, none before; those of queries and keys go over all
heads at once. Facts: transformers' Olmo2Config (defaults), llama.cpp's converter and graph.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpukit.errors import CheckpointError
from gpukit.formats.gguf_fields import Field
from gpukit.models.config import ModelConfig
from gpukit.models.registry import Architecture
from gpukit.models.rules import Rule
from gpukit.models.sizes import (
    SILU,
    check_activation,
    check_square,
    read_sizes,
    restore_sizes,
    size_fields,
    with_said_head_dim,
)
from gpukit.models.style import Style
from gpukit.models.tables import ATTENTION, FEED_FORWARD, Row, decoder_rules
from gpukit.models.values import flag
from gpukit.models.windows import periodic
from gpukit.tokenizer import plain_vocabulary

NAME = "olmo2"
DEFAULTS = {
    "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
}  # fmt: skip
LAYER: tuple[Row, ...] = (
    *ATTENTION[1:],
    ("self_attn.q_norm.weight", "attn_q_norm.weight", ("q",)),
    ("self_attn.k_norm.weight", "attn_k_norm.weight", ("kv",)),
    ("post_attention_layernorm.weight", "post_attention_norm.weight", ("embd",)),
    *FEED_FORWARD[1:],
    ("post_feedforward_layernorm.weight", "post_ffw_norm.weight", ("embd",)),
)


STYLE = Style(qk_norms=True, wide_norms=True, pre_norms=False, post_norms=True)
# Of OLMo 3: the last of so many layers sees everything.
PERIOD = 4


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with Olmo2Config's defaults."""
    check_activation(config, NAME, SILU)
    if flag(config, "attention_bias"):
        raise CheckpointError(f"config.json: attention_bias is true; an {NAME} GGUF has no biases")
    return with_said_head_dim(check_square(read_sizes(config, NAME, DEFAULTS)), config)


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint holds, with its shape."""
    return decoder_rules(config, LAYER)


def restore(found: Mapping[str, Field], arch: str) -> ModelConfig:
    """The configuration that a GGUF's metadata describes; with a window OLMo 3's, whose windowed
    layers are not scaled."""
    config = restore_sizes(found, arch)
    if not config.window:
        return config
    return replace(
        config,
        windowed=config.windowed or periodic(config.n_layer, PERIOD),
        rope_theta_local=config.rope_theta_local or config.rope_theta,
    )


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("Olmo2ForCausalLM",),
        read=read,
        rules=rules,
        fields=size_fields,
        vocabulary=plain_vocabulary,
        style=STYLE,
        restoring=restore,
    ),
)
