"""Mixtral 8x7B and 8x22B: import from `MixtralForCausalLM` checkpoints.

In a GGUF they are Llamas with experts. transformers 5 keeps stacks of them in memory, and may save
what it has there.
Facts: transformers' MixtralConfig (defaults), llama.cpp's converter (names, order of writing).
"""

from collections.abc import Mapping
from typing import Any

from gpukit.models import llama, mistral
from gpukit.models.config import ModelConfig
from gpukit.models.experts import DOWN, GATE, UP, Names, expert_rules, with_experts
from gpukit.models.registry import Architecture
from gpukit.models.rules import Rule
from gpukit.models.sizes import SILU, check_activation, read_sizes, with_said_head_dim
from gpukit.models.tables import ATTENTION, FEED_FORWARD_NORM, Row, decoder_rules
from gpukit.models.windows import with_window
from gpukit.tokenizer import vocabulary_fields

DEFAULTS = {**mistral.DEFAULTS, "rms_norm_eps": 1e-5, "rope_theta": 1e6}

ROUTER: Row = ("block_sparse_moe.gate.weight", "ffn_gate_inp.weight", ("expert", "embd"))
EXPERTS = Names(
    one="block_sparse_moe.experts.{}.{}",
    matrices={"w1": GATE, "w2": DOWN, "w3": UP},
    stacks="mlp.experts",
    together=True,
)


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with MixtralConfig's defaults."""
    check_activation(config, llama.NAME, SILU)
    model = read_sizes(config, llama.NAME, DEFAULTS, llama.SCALINGS)
    model = with_said_head_dim(model, config)
    model = with_experts(model, config, "num_local_experts", 8, 2)
    return with_window(model, config)


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint may hold, with its shape; experts in two forms."""
    shared = decoder_rules(config, (*ATTENTION, FEED_FORWARD_NORM, ROUTER))
    # The router beside stacks has another name, too.
    beside = [
        Rule(
            f"model.layers.{layer}.mlp.gate.weight",
            f"blk.{layer}.ffn_gate_inp.weight",
            (config.n_expert, config.n_embd),
        )
        for layer in range(config.n_layer)
    ]
    return [*llama.rotated(shared, config), *expert_rules(config, EXPERTS), *beside]


ARCHITECTURES = (
    Architecture(
        name=llama.NAME,
        classes=("MixtralForCausalLM",),
        read=read,
        rules=rules,
        fields=mistral.fields,
        vocabulary=vocabulary_fields,
        style=llama.STYLE,
        computed=llama.computed,
    ),
)
