"""OLMo 2: import from `Olmo2ForCausalLM` checkpoints, and the decoder.

Norms stand behind attention and feed forward, none before; those of queries and keys go over all
heads at once. Facts: transformers' Olmo2Config (defaults), llama.cpp's converter and graph.
"""

from collections.abc import Mapping
from typing import Any

from gpukit.errors import CheckpointError
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
from gpukit.models.style import Style
from gpukit.models.tables import ATTENTION, FEED_FORWARD, Row, decoder_rules
from gpukit.models.values import flag
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


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with Olmo2Config's defaults."""
    check_activation(config, NAME, SILU)
    if flag(config, "attention_bias"):
        raise CheckpointError(f"config.json: attention_bias is true; an {NAME} GGUF has no biases")
    return with_said_head_dim(check_square(read_sizes(config, NAME, DEFAULTS)), config)


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint holds, with its shape."""
    return decoder_rules(config, LAYER)


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("Olmo2ForCausalLM",),
        read=read,
        rules=rules,
        fields=size_fields,
        vocabulary=plain_vocabulary,
        style=Style(qk_norms=True, wide_norms=True, pre_norms=False, post_norms=True),
    ),
)
