"""What most architectures say of themselves: config.json -> ModelConfig <-> metadata.

An architecture passes its class's defaults and changes what it does otherwise. Facts: transformers'
configuration classes, llama.cpp's converter (order of keys) and loader (defaults of metadata).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpukit.errors import CheckpointError, GGUFError
from gpukit.formats.file_types import FILE_TYPE
from gpukit.formats.gguf_fields import Field, ValueType, array, f32, u32
from gpukit.models.config import ModelConfig
from gpukit.models.experts import with_stored_experts
from gpukit.models.rope import rope_fields, stored_yarn, with_rope
from gpukit.models.values import (
    MOST_LAYERS,
    count,
    flag,
    optional,
    real,
    stored,
    whole,
)
from gpukit.models.windows import with_stored_window

SILU = ("silu", "swish")


def read_sizes(
    config: Mapping[str, Any],
    arch: str,
    defaults: Mapping[str, Any],
    scalings: Sequence[str] = ("linear", "yarn"),
    *,
    rounded: bool = True,
) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5; `defaults` are those of its class,
    by the names in config.json (no head_dim or key-value heads: hidden/heads, and as many);
    `scalings` are the kinds of RoPE scaling that GGUFs of `arch` can hold, and `rounded` says
    whether YaRN rounds its limits when they are run.

    `CheckpointError` for values that make no sense or cannot be run.
    """
    _refuse_others(config)
    n_embd = whole(config, "hidden_size", defaults["hidden_size"])
    n_head = whole(config, "num_attention_heads", defaults["num_attention_heads"])
    n_head_kv = _kv_heads(config, n_head, defaults)
    head_dim = whole(config, "head_dim", defaults.get("head_dim") or max(n_embd // n_head, 1))
    if config.get("head_dim") is None and "head_dim" not in defaults and n_embd % n_head:
        raise CheckpointError(f"config.json: hidden_size {n_embd} is no multiple of {n_head} heads")
    if n_head % n_head_kv:
        raise CheckpointError(
            f"config.json: {n_head} heads are no multiple of {n_head_kv} key-value heads"
        )
    if head_dim % 2:
        raise CheckpointError(f"config.json: head_dim {head_dim} is odd; RoPE rotates pairs")
    model = ModelConfig(
        arch=arch,
        n_layer=whole(config, "num_hidden_layers", defaults["num_hidden_layers"], most=MOST_LAYERS),
        n_ctx=whole(config, "max_position_embeddings", defaults["max_position_embeddings"]),
        n_embd=n_embd,
        n_ff=whole(config, "intermediate_size", defaults["intermediate_size"]),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        rms_eps=real(config, "rms_norm_eps", defaults["rms_norm_eps"]),
        rope_theta=defaults.get("rope_theta", 10000.0),
        vocab_size=whole(config, "vocab_size", defaults["vocab_size"]),
        tied=flag(config, "tie_word_embeddings", defaults.get("tie_word_embeddings", False)),
        attention_bias=flag(config, "attention_bias"),
        mlp_bias=flag(config, "mlp_bias"),
    )
    return with_rope(model, config, scalings, rounded)


def _kv_heads(config: Mapping[str, Any], n_head: int, defaults: Mapping[str, Any]) -> int:
    # A null means as many as heads; only a missing key means the class's default.
    missing = "num_key_value_heads" not in config
    default = defaults.get("num_key_value_heads", n_head) if missing else n_head
    return whole(config, "num_key_value_heads", default)


def _refuse_others(config: Mapping[str, Any]) -> None:
    """`CheckpointError` for what would run as another model."""
    if config.get("is_causal") is False:
        raise CheckpointError("config.json: is_causal is false; only causal attention can be run")
    if flag(config, "use_bidirectional_attention"):
        raise CheckpointError(
            "config.json: use_bidirectional_attention is true; only causal attention can be run"
        )


def check_activation(
    config: Mapping[str, Any], arch: str, known: Sequence[str], key: str = "hidden_act"
) -> None:
    """`CheckpointError` for an activation other than the one that GGUFs of `arch` are run with."""
    activation = config.get(key)
    if activation is not None and activation not in known:
        raise CheckpointError(
            f"config.json: {key} is {activation!r}; a {arch} GGUF is run with {known[0]}"
        )


def with_said_head_dim(model: ModelConfig, config: Mapping[str, Any]) -> ModelConfig:
    """`model`, whose GGUF has keys for head_dim only where config.json says it."""
    return replace(model, head_dim_said=config.get("head_dim") is not None)


def check_square(model: ModelConfig) -> ModelConfig:
    """`model`; `CheckpointError` where its heads together are not as wide as what they read, which
    llama.cpp asks for."""
    if model.n_head * model.head_dim != model.n_embd:
        raise CheckpointError(
            f"config.json: {model.n_head} heads of head_dim {model.head_dim} are not hidden_size "
            f"{model.n_embd}, which a {model.arch} GGUF asks for"
        )
    return model


def size_fields(config: ModelConfig) -> list[Field]:
    """The metadata of `config`, in the converter's order."""
    at = config.arch
    width = [_each(f"{at}.feed_forward_length", config.n_ff, config.ffs)] if config.n_ff else []
    fields = [
        u32(f"{at}.block_count", config.n_layer + (config.n_nextn or 0)),
        u32(f"{at}.context_length", config.n_ctx),
        u32(f"{at}.embedding_length", config.n_embd),
        *width,
        u32(f"{at}.attention.head_count", config.n_head),
        _each(f"{at}.attention.head_count_kv", config.n_head_kv, config.kv_heads),
        *rope_fields(config),
        f32(f"{at}.attention.layer_norm_rms_epsilon", config.rms_eps),
    ]
    if config.n_expert:
        fields.append(u32(f"{at}.expert_count", config.n_expert))
        fields.append(u32(f"{at}.expert_used_count", config.n_expert_used))
    if config.n_expert_groups:
        fields.append(u32(f"{at}.expert_group_count", config.n_expert_groups))
    if config.n_expert_groups_used:
        fields.append(u32(f"{at}.expert_group_used_count", config.n_expert_groups_used))
    if config.head_dim_said:
        fields.append(u32(f"{at}.attention.key_length", config.head_dim))
        fields.append(u32(f"{at}.attention.value_length", config.head_dim))
    return [*fields, u32(FILE_TYPE, 0)]


def _each(key: str, one: int, several: Sequence[int]) -> Field:
    """`one` for every layer, or that of each."""
    return array(key, ValueType.INT32, several) if several else u32(key, one)


def restore_sizes(found: Mapping[str, Field], arch: str, *, partial: bool = False) -> ModelConfig:
    """The configuration that a GGUF's metadata describes; `partial` says whether RoPE may rotate a
    part of a head. `GGUFError` for what is missing, makes no sense, or cannot be run."""
    layers = count(found, f"{arch}.block_count", most=MOST_LAYERS)
    nextn = int(optional(found, f"{arch}.nextn_predict_layers"))
    if nextn >= layers:
        raise GGUFError(f"{arch}.nextn_predict_layers is {nextn} of {layers} layers")
    n_ctx = count(found, f"{arch}.context_length")
    n_embd = count(found, f"{arch}.embedding_length")
    n_head = count(found, f"{arch}.attention.head_count")
    kind = found.get(f"{arch}.rope.scaling.type")
    tokens = found.get("tokenizer.ggml.tokens")
    config = ModelConfig(
        arch=arch,
        n_layer=layers - nextn,
        n_nextn=nextn,
        n_ctx=n_ctx,
        n_embd=n_embd,
        n_ff=_width(found, arch),
        n_head=n_head,
        n_head_kv=count(found, f"{arch}.attention.head_count_kv", n_head),
        head_dim=count(found, f"{arch}.attention.key_length", max(n_embd // n_head, 1)),
        rms_eps=stored(found, f"{arch}.attention.layer_norm_rms_epsilon"),
        rope_theta=stored(found, f"{arch}.rope.freq_base", 10000.0),
        vocab_size=count(found, f"{arch}.vocab_size", len(tokens.value) if tokens else None),
        rope_theta_local=optional(found, f"{arch}.rope.freq_base_swa"),
        rope_scaling=str(kind.value) if kind else "none",
        rope_factor=stored(found, f"{arch}.rope.scaling.factor", 1.0),
        rope_original_ctx=count(found, f"{arch}.rope.scaling.original_context_length", n_ctx),
        rope_yarn=stored_yarn(found, arch),
        rope_magnitude=stored(found, f"{arch}.rope.scaling.attn_factor", 1.0),
        attention_scale=optional(found, f"{arch}.attention.scale"),
        attention_cap=optional(found, f"{arch}.attn_logit_softcapping"),
        logit_cap=optional(found, f"{arch}.final_logit_softcapping"),
    )
    config = with_stored_experts(with_stored_window(config, found), found)
    _check_runnable(config, found)
    return _with_stored_rotation(config, found, partial)


def _width(found: Mapping[str, Field], arch: str) -> int:
    """The width of a dense feed forward; 0 where there are experts only."""
    key = f"{arch}.feed_forward_length"
    if key not in found and f"{arch}.expert_feed_forward_length" in found:
        return 0
    return count(found, key)


def _with_stored_rotation(
    config: ModelConfig, found: Mapping[str, Field], partial: bool
) -> ModelConfig:
    key, whole = f"{config.arch}.rope.dimension_count", config.head_dim
    n_rot = count(found, key, whole)
    if n_rot > whole or n_rot % 2 or (n_rot != whole and not partial):
        raise GGUFError(f"{key} is {n_rot}, the keys have {whole}")
    return replace(config, n_rot=n_rot)


def _check_runnable(config: ModelConfig, found: Mapping[str, Field]) -> None:
    at = config.arch
    if config.rope_scaling not in ("none", "linear", "yarn"):
        raise GGUFError(
            f"{at}.rope.scaling.type is {config.rope_scaling!r}; none, linear and yarn can be run"
        )
    if config.n_head % config.n_head_kv:
        raise GGUFError(
            f"{config.n_head} attention heads are no multiple of {config.n_head_kv} key-value heads"
        )
    if config.head_dim % 2:
        raise GGUFError(f"{at}.attention.key_length is {config.head_dim}; RoPE rotates pairs")
    size = count(found, f"{at}.attention.value_length", config.head_dim)
    if size != config.head_dim:
        raise GGUFError(f"{at}.attention.value_length is {size}, the keys have {config.head_dim}")
