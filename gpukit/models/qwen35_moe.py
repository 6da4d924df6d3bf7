"""Qwen 3.5 and 3.6 with experts (35B-A3B, 122B-A10B, 397B-A17B), their text: import from
`Qwen3_5MoeForCausalLM` and `Qwen3_5MoeForConditionalGeneration` checkpoints, and the decoder.

As the dense ones, with experts in every layer, and one that is shared and has a gate. Facts:
transformers' Qwen3_5MoeTextConfig (defaults) and router, llama.cpp's converter, loader and graph.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpukit.formats.gguf_fields import Field, u32
from gpukit.models import qwen35
from gpukit.models.config import ModelConfig
from gpukit.models.experts import DOWN, GATE, UP, Names, expert_rules, with_experts
from gpukit.models.registry import Architecture
from gpukit.models.rules import Rule
from gpukit.models.sizes import read_sizes
from gpukit.models.tables import Row, layer_rules
from gpukit.models.values import natural, optional, whole
from gpukit.tokenizer import plain_vocabulary

NAME = "qwen35moe"
DEFAULTS = {
    "vocab_size": 248320, "hidden_size": 2048, "intermediate_size": 1, "num_hidden_layers": 40,
    "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
}  # fmt: skip

FEED_FORWARD: tuple[Row, ...] = (
    ("mlp.gate.weight", "ffn_gate_inp.weight", ("expert", "embd")),
    ("mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight", ("one", "embd")),
    ("mlp.shared_expert.gate_proj.weight", "ffn_gate_shexp.weight", ("shared", "embd")),
    ("mlp.shared_expert.up_proj.weight", "ffn_up_shexp.weight", ("shared", "embd")),
    ("mlp.shared_expert.down_proj.weight", "ffn_down_shexp.weight", ("embd", "shared")),
)
EXPERTS = Names(
    one="mlp.experts.{}.{}",
    matrices={"down_proj": DOWN, "gate_proj": GATE, "up_proj": UP},
    stacks="mlp.experts",
    together=False,
)
SHARED = "expert_shared_feed_forward_length"


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration of the text in a config.json of transformers 5, with
    Qwen3_5MoeTextConfig's defaults."""
    text = qwen35.text_of(config)
    model = replace(
        qwen35.with_hybrid(read_sizes(text, NAME, DEFAULTS), text),
        n_ff=natural(text, "intermediate_size", 0),
        n_ff_expert=whole(text, "moe_intermediate_size", 512),
        n_ff_shared=whole(text, "shared_expert_intermediate_size", 512),
    )
    return with_experts(model, text, "num_experts", 256, 8)


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint may hold, with its shape; experts in two forms."""
    found = qwen35.hybrid_rules(config, FEED_FORWARD) + expert_rules(config, EXPERTS)
    for number, layer in enumerate(config.unused_layers):
        rows = (*qwen35.NORMS, *qwen35.GATED_ATTENTION, *FEED_FORWARD)
        own = layer_rules(config, layer, rows) + expert_rules(config, EXPERTS, [layer])
        found += qwen35.nextn_rules(config, number, own)
    return qwen35.shifted_norms(found)


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order."""
    widths = [
        u32(f"{NAME}.expert_feed_forward_length", config.expert_ff),
        u32(f"{NAME}.{SHARED}", config.shared_ff),
    ]
    return qwen35.hybrid_fields(config, widths)


def restore(found: Mapping[str, Field], name: str) -> ModelConfig:
    """The configuration that a GGUF's metadata describes."""
    config = qwen35.restore(found, name)
    return replace(config, n_ff_shared=int(optional(found, f"{name}.{SHARED}")) or config.n_ff)


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
        read=read,
        rules=rules,
        fields=fields,
        vocabulary=plain_vocabulary,
        style=qwen35.STYLE,
        restoring=restore,
        skipped_parts=qwen35.VISION,
        renamed=qwen35.renamed,
    ),
)
