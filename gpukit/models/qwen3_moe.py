"""Qwen 3 with experts (30B-A3B, 235B-A22B, Coder): import from `Qwen3MoeForCausalLM` checkpoints,
and the decoder.

Facts: transformers' Qwen3MoeConfig (defaults), llama.cpp's converter (names, order of writing) and
graph (the shares of the experts that take part sum to 1).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpukit.errors import CheckpointError
from gpukit.formats.gguf_fields import Field, u32
from gpukit.models import qwen3
from gpukit.models.config import ModelConfig
from gpukit.models.experts import DOWN, GATE, UP, Names, expert_rules, with_experts
from gpukit.models.qwen2 import with_qwen_window
from gpukit.models.registry import Architecture
from gpukit.models.rules import Rule
from gpukit.models.sizes import SILU, check_activation, read_sizes, with_said_head_dim
from gpukit.models.tables import FEED_FORWARD_NORM, Row, decoder_rules
from gpukit.models.values import flag, whole
from gpukit.tokenizer import plain_vocabulary

NAME = "qwen3moe"
DEFAULTS = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24,
    "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
}  # fmt: skip

ROUTER: Row = ("mlp.gate.weight", "ffn_gate_inp.weight", ("expert", "embd"))
EXPERTS = Names(
    one="mlp.experts.{}.{}",
    matrices={"down_proj": DOWN, "gate_proj": GATE, "up_proj": UP},
    stacks="mlp.experts",
    together=False,
)


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with Qwen3MoeConfig's defaults."""
    check_activation(config, NAME, SILU)
    _check_layers(config)
    if not flag(config, "norm_topk_prob"):
        raise CheckpointError(
            f"config.json: norm_topk_prob is false; a {NAME} GGUF is run with the shares of the "
            "experts that take part brought to a sum of 1"
        )
    model = replace(
        with_said_head_dim(read_sizes(config, NAME, DEFAULTS), config),
        n_ff_expert=whole(config, "moe_intermediate_size", 768),
    )
    return with_qwen_window(with_experts(model, config, _count_key(config), 128, 8), config)


def _count_key(config: Mapping[str, Any]) -> str:
    # transformers 5 saves the second.
    return "num_experts" if "num_experts" in config else "num_local_experts"


def _check_layers(config: Mapping[str, Any]) -> None:
    """`CheckpointError` where some layers have no experts."""
    if dense := config.get("mlp_only_layers"):
        raise CheckpointError(
            f"config.json: mlp_only_layers is {dense}; every layer of a {NAME} GGUF has experts"
        )
    if (step := whole(config, "decoder_sparse_step", 1)) != 1:
        raise CheckpointError(
            f"config.json: decoder_sparse_step is {step}; every layer of a {NAME} GGUF has experts"
        )


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint may hold, with its shape; experts in two forms."""
    rows = (*qwen3.attention(config), FEED_FORWARD_NORM, ROUTER)
    return [*decoder_rules(config, rows), *expert_rules(config, EXPERTS)]


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order."""
    return [
        *qwen3.fields(config),
        u32(f"{NAME}.expert_feed_forward_length", config.expert_ff),
    ]


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("Qwen3MoeForCausalLM",),
        read=read,
        rules=rules,
        fields=fields,
        vocabulary=plain_vocabulary,
        style=qwen3.STYLE,
    ),
)
