"""GLM 4.5, 4.6 and 4.7: import from `Glm4MoeForCausalLM` checkpoints, and the decoder.

The first layers are dense; elsewhere experts are chosen by sigmoids with a correction, and some are
shared. The layers behind the last one, which guess further tokens, are kept and not run. Facts:
transformers' Glm4MoeConfig (defaults) and router, llama.cpp's converter, loader and graph.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpukit.errors import GGUFError
from gpukit.formats.gguf_fields import Field, boolean, f32, u32
from gpukit.models.config import ModelConfig
from gpukit.models.experts import (
    DOWN,
    GATE,
    GATINGS,
    UP,
    Names,
    expert_rules,
    with_experts,
    with_groups,
)
from gpukit.models.registry import Architecture
from gpukit.models.rope import rotated_part
from gpukit.models.rules import Rule
from gpukit.models.sizes import (
    SILU,
    check_activation,
    read_sizes,
    restore_sizes,
    size_fields,
    with_said_head_dim,
)
from gpukit.models.style import Style
from gpukit.models.tables import (
    ATTENTION,
    FEED_FORWARD,
    QK_NORMS,
    QKV_BIASES,
    SHARED_EXPERTS,
    Row,
    decoder_rules,
    layer_rules,
)
from gpukit.models.values import MOST_LAYERS, flag, natural, optional, real, whole
from gpukit.tokenizer import glm_vocabulary

NAME = "glm4moe"
DEFAULTS = {
    "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 10944, "num_hidden_layers": 46,
    "num_attention_heads": 96, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
ROTATED_PART = 0.5

NORM: Row = ("post_attention_layernorm.weight", "post_attention_norm.weight", ("embd",))
ROUTER: tuple[Row, ...] = (
    ("mlp.gate.weight", "ffn_gate_inp.weight", ("expert", "embd")),
    ("mlp.gate.e_score_correction_bias", "exp_probs_b.bias", ("expert",)),
)
NEXTN: tuple[Row, ...] = (
    ("eh_proj.weight", "nextn.eh_proj.weight", ("embd", "twice")),
    ("enorm.weight", "nextn.enorm.weight", ("embd",)),
    ("hnorm.weight", "nextn.hnorm.weight", ("embd",)),
)
NEXTN_ENDS: tuple[Row, ...] = (
    ("embed_tokens.weight", "nextn.embed_tokens.weight", ("vocab", "embd")),
    ("shared_head.head.weight", "nextn.shared_head_head.weight", ("vocab", "embd")),
    ("shared_head.norm.weight", "nextn.shared_head_norm.weight", ("embd",)),
)
EXPERTS = Names(
    one="mlp.experts.{}.{}",
    matrices={"down_proj": DOWN, "gate_proj": GATE, "up_proj": UP},
    stacks="mlp.experts",
    together=True,
)


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with Glm4MoeConfig's defaults."""
    check_activation(config, NAME, SILU)
    model = with_said_head_dim(read_sizes(config, NAME, DEFAULTS), config)
    model = with_experts(model, config, "n_routed_experts", 128, 8)
    return replace(
        with_groups(model, config),
        n_rot=rotated_part(config, model.head_dim, ROTATED_PART),
        qk_norms=flag(config, "use_qk_norm"),
        n_ff_expert=whole(config, "moe_intermediate_size", 1408),
        n_expert_shared=whole(config, "n_shared_experts", 1),
        n_dense=natural(config, "first_k_dense_replace", 1),
        n_nextn=_nextn(config, model.n_layer),
        expert_gating="sigmoid",
        experts_normed=flag(config, "norm_topk_prob", True),
        expert_scale=real(config, "routed_scaling_factor", 1.0),
    )


def _nextn(config: Mapping[str, Any], n_layer: int) -> int | None:
    key = "num_nextn_predict_layers"
    if config.get(key) is None:
        return None
    return natural(config, key, most=MOST_LAYERS - n_layer)


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint may hold, with its shape; experts in two forms."""
    attention = (
        *ATTENTION,
        *(QKV_BIASES if config.attention_bias else ()),
        *(QK_NORMS if config.qk_norms else ()),
        NORM,
    )
    layers, dense = range(config.n_layer), min(config.n_dense, config.n_layer)
    found = decoder_rules(config, attention)
    for layer in layers[:dense]:
        found += layer_rules(config, layer, FEED_FORWARD[1:])
    for layer in layers[dense:]:
        found += layer_rules(config, layer, (*ROUTER, *SHARED_EXPERTS))
    found += expert_rules(config, EXPERTS, layers[dense:])
    for layer in config.unused_layers:
        found += _nextn_rules(config, layer, attention)
    return found


def _nextn_rules(config: ModelConfig, layer: int, attention: tuple[Row, ...]) -> list[Rule]:
    """A layer that guesses a further token; transformers leaves it out when it saves a model."""
    rows = (*NEXTN, *attention, *ROUTER, *SHARED_EXPERTS)
    found = [*layer_rules(config, layer, rows), *expert_rules(config, EXPERTS, [layer])]
    asked = [replace(rule, required=False, beside=found[0].sources[0]) for rule in found]
    ends = [replace(rule, required=False) for rule in layer_rules(config, layer, NEXTN_ENDS)]
    return [*asked, *ends]


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order."""
    nextn = [] if config.n_nextn is None else [u32(f"{NAME}.nextn_predict_layers", config.n_nextn)]
    return [
        *size_fields(config),
        u32(f"{NAME}.rope.dimension_count", config.n_rot),
        u32(f"{NAME}.expert_feed_forward_length", config.expert_ff),
        u32(f"{NAME}.expert_shared_count", config.n_expert_shared),
        u32(f"{NAME}.leading_dense_block_count", config.n_dense),
        u32(f"{NAME}.expert_gating_func", GATINGS[config.expert_gating]),
        f32(f"{NAME}.expert_weights_scale", config.expert_scale),
        boolean(f"{NAME}.expert_weights_norm", config.experts_normed),
        *nextn,
    ]


def restore(found: Mapping[str, Field], name: str) -> ModelConfig:
    """The configuration that a GGUF's metadata describes."""
    config = restore_sizes(found, name, partial=True)
    gating = optional(found, f"{name}.expert_gating_func") or GATINGS["sigmoid"]
    kinds = {number: kind for kind, number in GATINGS.items()}
    if gating not in kinds:
        raise GGUFError(
            f"{name}.expert_gating_func is {gating:g}; {', '.join(map(str, kinds))} can be run"
        )
    normed = found.get(f"{name}.expert_weights_norm")
    return replace(
        config,
        n_dense=int(optional(found, f"{name}.leading_dense_block_count")),
        n_expert_shared=int(optional(found, f"{name}.expert_shared_count")),
        expert_gating=kinds[int(gating)],
        experts_normed=normed is not None and bool(normed.value),
        expert_scale=optional(found, f"{name}.expert_weights_scale") or 1.0,
    )


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("Glm4MoeForCausalLM",),
        read=read,
        rules=rules,
        fields=fields,
        vocabulary=glm_vocabulary,
        style=Style(qk_norms="optional", second_norm="post_attention_norm"),
        restoring=restore,
    ),
)
