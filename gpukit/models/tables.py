"""Tensors of a decoder as tables: name in the checkpoint, name in a GGUF, shape as names of sizes.

An architecture takes the rows that it has, and adds its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from gpukit.models.config import ModelConfig
from gpukit.models.rules import Rule

# Tensors that carry nothing, by the ends of their names.
SKIPPED = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")

# What is no text in a model that sees, by the beginnings of names.
VISION = tuple(
    f"{at}{part}." for at in ("", "model.") for part in ("vision_tower", "multi_modal_projector")
)

# Checkpoint name, GGUF name, shape (outermost first; see `sizes`).
Row = tuple[str, str, tuple[str, ...]]

ATTENTION: tuple[Row, ...] = (
    ("input_layernorm.weight", "attn_norm.weight", ("embd",)),
    ("self_attn.q_proj.weight", "attn_q.weight", ("q", "embd")),
    ("self_attn.k_proj.weight", "attn_k.weight", ("kv", "embd")),
    ("self_attn.v_proj.weight", "attn_v.weight", ("kv", "embd")),
    ("self_attn.o_proj.weight", "attn_output.weight", ("embd", "q")),
)
FEED_FORWARD_NORM: Row = ("post_attention_layernorm.weight", "ffn_norm.weight", ("embd",))
FEED_FORWARD: tuple[Row, ...] = (
    FEED_FORWARD_NORM,
    ("mlp.gate_proj.weight", "ffn_gate.weight", ("ff", "embd")),
    ("mlp.up_proj.weight", "ffn_up.weight", ("ff", "embd")),
    ("mlp.down_proj.weight", "ffn_down.weight", ("embd", "ff")),
)
QKV_BIASES: tuple[Row, ...] = (
    ("self_attn.q_proj.bias", "attn_q.bias", ("q",)),
    ("self_attn.k_proj.bias", "attn_k.bias", ("kv",)),
    ("self_attn.v_proj.bias", "attn_v.bias", ("kv",)),
)
OUTPUT_BIAS: tuple[Row, ...] = (("self_attn.o_proj.bias", "attn_output.bias", ("embd",)),)
FEED_FORWARD_BIASES: tuple[Row, ...] = (
    ("mlp.gate_proj.bias", "ffn_gate.bias", ("ff",)),
    ("mlp.up_proj.bias", "ffn_up.bias", ("ff",)),
    ("mlp.down_proj.bias", "ffn_down.bias", ("embd",)),
)
# Around the feed forward of Gemma 2 and 3; the norm before it has another name than elsewhere.
FEED_FORWARD_IN_NORMS: tuple[Row, ...] = (
    ("post_attention_layernorm.weight", "post_attention_norm.weight", ("embd",)),
    ("pre_feedforward_layernorm.weight", "ffn_norm.weight", ("embd",)),
    *FEED_FORWARD[1:],
    ("post_feedforward_layernorm.weight", "post_ffw_norm.weight", ("embd",)),
)
# Phi-3 keeps matrices that see the same input in one.
FUSED: tuple[Row, ...] = (
    ATTENTION[0],
    ("self_attn.qkv_proj.weight", "attn_qkv.weight", ("qkv", "embd")),
    ATTENTION[4],
    FEED_FORWARD_NORM,
    ("mlp.gate_up_proj.weight", "ffn_up.weight", ("gate_up", "embd")),
    FEED_FORWARD[3],
)
SHARED_EXPERTS: tuple[Row, ...] = (
    ("mlp.shared_experts.gate_proj.weight", "ffn_gate_shexp.weight", ("shared", "embd")),
    ("mlp.shared_experts.up_proj.weight", "ffn_up_shexp.weight", ("shared", "embd")),
    ("mlp.shared_experts.down_proj.weight", "ffn_down_shexp.weight", ("embd", "shared")),
)
QK_NORMS: tuple[Row, ...] = (
    ("self_attn.q_norm.weight", "attn_q_norm.weight", ("head",)),
    ("self_attn.k_norm.weight", "attn_k_norm.weight", ("head",)),
)


def text_name(name: str) -> str:
    """The name of a tensor of the text as where there is nothing but text."""
    return name.replace("language_model.", "")


def sizes(config: ModelConfig) -> dict[str, int]:
    """What the names of sizes stand for."""
    return {
        "embd": config.n_embd,
        "twice": 2 * config.n_embd,
        "vocab": config.vocab_size,
        "q_gate": 2 * config.n_head * config.head_dim,
        "q": config.n_head * config.head_dim,
        "kv": config.n_head_kv * config.head_dim,
        "qkv": (config.n_head + 2 * config.n_head_kv) * config.head_dim,
        "head": config.head_dim,
        "heads": config.n_head,
        "ff": config.n_ff,
        "gate_up": 2 * config.n_ff,
        "one": 1,
        "looked_up": config.n_embd_layer,
        "all_looked_up": config.n_layer * config.n_embd_layer,
        "expert": config.n_expert,
        "expert_ff": config.expert_ff,
        "expert_gate_up": 2 * config.expert_ff,
        "shared": config.shared_ff,
    }


def decoder_rules(
    config: ModelConfig, layer: Iterable[Row], *, optional: Sequence[Row] = ()
) -> list[Rule]:
    """Every tensor that a checkpoint may hold: embedding, last norm and head (not if tied), and for
    each layer the rows of `layer`; those of `optional` are used where they are there."""
    vocabulary = (config.vocab_size, config.n_embd)
    rules = [
        Rule("model.embed_tokens.weight", "token_embd.weight", vocabulary),
        Rule("model.norm.weight", "output_norm.weight", (config.n_embd,)),
        Rule("lm_head.weight", "output.weight", vocabulary, required=not config.tied),
    ]
    for number in range(config.n_layer):
        rules += layer_rules(config, number, layer)
        rules += [replace(rule, required=False) for rule in layer_rules(config, number, optional)]
    return rules


def layer_rules(config: ModelConfig, number: int, rows: Iterable[Row]) -> list[Rule]:
    """The tensors `rows` of layer `number`."""
    known = sizes(config)
    return [
        Rule(
            f"model.layers.{number}.{source}",
            f"blk.{number}.{name}",
            tuple(known[size] for size in shape),
        )
        for source, name, shape in rows
    ]
