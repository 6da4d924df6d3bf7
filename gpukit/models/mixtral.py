"""Mixtral 8x7B and 8x22B: import from `MixtralForCausalLM` checkpoints.

In a GGUF they are Llamas with experts: those of a layer become one tensor a matrix, by number.
transformers 5 keeps them so in memory, gate and up together, and may save what it has there.
Facts: transformers' MixtralConfig (defaults), llama.cpp's converter (names, order of writing).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpukit.errors import CheckpointError
from gpukit.models import llama, mistral
from gpukit.models.config import ModelConfig
from gpukit.models.registry import Architecture
from gpukit.models.rules import Rule, Span
from gpukit.models.sizes import SILU, check_activation, read_sizes
from gpukit.models.tables import ATTENTION, FEED_FORWARD_NORM, Row, decoder_rules
from gpukit.models.values import MOST_EXPERTS, whole
from gpukit.models.windows import with_window
from gpukit.tokenizer import vocabulary_fields

DEFAULTS = {**mistral.DEFAULTS, "rms_norm_eps": 1e-5, "rope_theta": 1e6}

ROUTER: Row = ("block_sparse_moe.gate.weight", "ffn_gate_inp.weight", ("expert", "embd"))
# Names of experts' matrices in the checkpoint and in a GGUF, in the order of writing.
EXPERTS = (("w1", "ffn_gate_exps"), ("w2", "ffn_down_exps"), ("w3", "ffn_up_exps"))


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with MixtralConfig's defaults."""
    check_activation(config, llama.NAME, SILU)
    model = replace(
        read_sizes(config, llama.NAME, DEFAULTS, llama.SCALINGS),
        n_expert=whole(config, "num_local_experts", 8, most=MOST_EXPERTS),
        n_expert_used=whole(config, "num_experts_per_tok", 2),
        head_dim_said=config.get("head_dim") is not None,
    )
    if model.n_expert_used > model.n_expert:
        raise CheckpointError(
            f"config.json: num_experts_per_tok is {model.n_expert_used}, num_local_experts is "
            f"{model.n_expert}"
        )
    return with_window(model, config)


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint may hold, with its shape; experts in two forms."""
    shared = decoder_rules(config, (*ATTENTION, FEED_FORWARD_NORM, ROUTER))
    wide, narrow = (config.n_ff, config.n_embd), (config.n_embd, config.n_ff)
    experts = [
        Rule(
            f"model.layers.{layer}.block_sparse_moe.experts.{{}}.{source}.weight",
            f"blk.{layer}.{name}.weight",
            narrow if name == "ffn_down_exps" else wide,
            stack=config.n_expert,
            group=f"blk.{layer}.experts",
        )
        for layer in range(config.n_layer)
        for source, name in EXPERTS
    ]
    fused = [rule for layer in range(config.n_layer) for rule in _fused(layer, config)]
    return [*llama.rotated(shared, config), *experts, *fused]


def _fused(layer: int, config: ModelConfig) -> list[Rule]:
    """The router and experts of a layer as transformers 5 has them in memory."""
    count, ff, embd = config.n_expert, config.n_ff, config.n_embd
    at, to = f"model.layers.{layer}.mlp", f"blk.{layer}"
    both, shape = f"{at}.experts.gate_up_proj", (count, 2 * ff, embd)

    def half(first: int) -> tuple[Span, ...]:
        return tuple(Span(both, shape, 2 * ff * n + first, ff) for n in range(count))

    down = Span.whole(f"{at}.experts.down_proj", (count, embd, ff))
    group = f"{to}.experts"
    return [
        Rule(f"{at}.gate.weight", f"{to}.ffn_gate_inp.weight", (count, embd)),
        Rule(half(0), f"{to}.ffn_gate_exps.weight", (count, ff, embd), group=group),
        Rule((down,), f"{to}.ffn_down_exps.weight", (count, embd, ff), group=group),
        Rule(half(ff), f"{to}.ffn_up_exps.weight", (count, ff, embd), group=group),
    ]


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
