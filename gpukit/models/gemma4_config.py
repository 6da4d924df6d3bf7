"""The configuration of a Gemma 4's text, from a config.json; what a GGUF, or llama.cpp, cannot say
is refused.

Facts: transformers' Gemma4TextConfig (defaults) and modeling_gemma4; llama.cpp's converter and
cache (whose keys and values are shared).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpukit.errors import CheckpointError
from gpukit.models.config import ModelConfig
from gpukit.models.experts import with_experts
from gpukit.models.gemma import GELU_TANH
from gpukit.models.rope import PLAIN, rope_kind
from gpukit.models.sizes import check_activation, read_sizes
from gpukit.models.values import flag, natural, real, section, whole
from gpukit.models.windows import periodic, windowed_layers

NAME = "gemma4"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 262144, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "rope_theta": 1e6,
}  # fmt: skip
# What the classes of the text say otherwise; models that are called unified see without a tower.
TEXT = {"sliding_window": 512, "hidden_size_per_layer_input": 256}
UNIFIED = {
    "sliding_window": 1024, "max_position_embeddings": 262144, "hidden_size_per_layer_input": 0,
}  # fmt: skip
PERIOD, LOCAL_THETA, WHOLE_HEAD_DIM = 6, 10000.0, 512
ROPE = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}
PROPORTIONAL = "proportional"


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration of the text in a config.json, with Gemma4TextConfig's defaults."""
    return _read(config, TEXT)


def read_unified(config: Mapping[str, Any]) -> ModelConfig:
    """The same with the defaults of Gemma4UnifiedTextConfig."""
    return _read(config, UNIFIED)


def _read(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> ModelConfig:
    text = {**defaults, **config, **section(config, "text_config")}
    # The whole model says whether its text has a head of its own.
    if "text_config" in config:
        text["tie_word_embeddings"] = flag(config, "tie_word_embeddings", True)
    check_activation(text, NAME, GELU_TANH, "hidden_activation")
    _refuse_others(text)
    ropes = section(text, "rope_parameters")
    alone = {"rope_parameters": None, "rope_scaling": None, "use_bidirectional_attention": None}
    model = read_sizes({**text, **alone}, NAME, {**DEFAULTS, **defaults})
    window = whole(text, "sliding_window", defaults["sliding_window"])
    model = _with_layers(replace(_with_rope(model, ropes), window=window), text)
    if flag(text, "enable_moe_block"):
        model = with_experts(model, text, "num_experts", used_key="top_k_experts")
        model = replace(model, n_ff_expert=whole(text, "moe_intermediate_size"))
    cap = text.get("final_logit_softcapping")
    model = replace(
        model,
        attention_scale=1.0,
        logit_cap=0.0 if cap is None else real(text, "final_logit_softcapping"),
        n_embd_layer=natural(text, "hidden_size_per_layer_input", 0),
    )
    if model.n_embd_layer:
        _check_looked_up(text, model)
    return model


def _refuse_others(config: Mapping[str, Any]) -> None:
    """`CheckpointError` for what a GGUF cannot say."""
    if (seen := config.get("use_bidirectional_attention")) not in (None, False, "vision"):
        raise CheckpointError(
            f"config.json: use_bidirectional_attention is {seen!r}; a {NAME} GGUF has causal "
            "attention of text"
        )
    if flag(config, "attention_bias"):
        raise CheckpointError(f"config.json: attention_bias is true; a {NAME} GGUF has no biases")


def _check_looked_up(config: Mapping[str, Any], model: ModelConfig) -> None:
    tokens = whole(config, "vocab_size_per_layer_input", model.vocab_size)
    if tokens != model.vocab_size:
        raise CheckpointError(
            f"config.json: vocab_size_per_layer_input is {tokens}, vocab_size {model.vocab_size}; "
            f"a {NAME} GGUF has as many rows in both tables"
        )


def _with_rope(model: ModelConfig, ropes: Mapping[str, Any]) -> ModelConfig:
    if ropes and "full_attention" not in ropes:
        raise CheckpointError("config.json: rope_parameters has no full_attention")
    rope = section(ropes, "full_attention") or ROPE
    local = section(ropes, "sliding_attention")
    if rope_kind(local) not in PLAIN or rope_kind(rope) not in (*PLAIN, PROPORTIONAL):
        kinds = f"{rope_kind(rope)!r} of full_attention, {rope_kind(local)!r} of sliding_attention"
        raise CheckpointError(
            f"config.json: RoPE {kinds}; a {NAME} GGUF has {PROPORTIONAL} or default, and default"
        )
    is_part = rope_kind(rope) == PROPORTIONAL
    part = real(rope, "partial_rotary_factor", 1.0) if is_part else 1.0
    if part > 1:
        raise CheckpointError(f"config.json: partial_rotary_factor is {part}; 1 is a whole head")
    return replace(
        model,
        rope_scaling=PROPORTIONAL,
        rope_theta=real(rope, "rope_theta", DEFAULTS["rope_theta"]),
        rope_theta_local=real(local, "rope_theta", LOCAL_THETA),
        rope_part=part,
        rope_factor=real(rope, "factor", 1.0) if is_part else 1.0,
    )


def _with_layers(model: ModelConfig, config: Mapping[str, Any]) -> ModelConfig:
    """`model` with what its layers have each in their own way."""
    windowed = windowed_layers(config, model) or periodic(model.n_layer, PERIOD)
    windowed = (*windowed[:-1], False)  # as in transformers, whatever config.json says
    if not any(windowed):
        raise CheckpointError(
            f"config.json: no layer has a window; llama.cpp runs no {NAME} GGUF without one"
        )
    head_dim, heads = _whole_layers(config, windowed)
    shared = natural(config, "num_kv_shared_layers", 0)
    values = flag(config, "attention_k_eq_v")
    # What config.json has for all is that of layers with a window.
    model = replace(
        model,
        windowed=windowed,
        head_dim=head_dim,
        head_dim_local=model.head_dim,
        keys_are_values=values,
        n_kv_shared=shared,
    )
    if values and heads is not None:
        each = (model.n_head_kv if local else heads for local in windowed)
        model = replace(model, kv_heads=tuple(each))
    if flag(config, "use_double_wide_mlp"):
        own = model.n_layer - shared
        ffs = (model.n_ff * (1 if layer < own else 2) for layer in range(model.n_layer))
        model = replace(model, ffs=tuple(ffs))
    _check_heads(model)
    _check_shared(model)
    return model


def _whole_layers(config: Mapping[str, Any], windowed: Sequence[bool]) -> tuple[int, int | None]:
    """head_dim and key-value heads of layers without a window, from keys of their own or, as
    transformers saves them, from those of each layer; None where nothing says the second."""
    saved = section(config, "per_layer_config")
    if not saved:
        heads, key = config.get("num_global_key_value_heads"), "num_global_key_value_heads"
        head_dim = whole(config, "global_head_dim", WHOLE_HEAD_DIM)
        return head_dim, None if heads is None else whole(config, key)
    each = {key: section(saved, key) for key in saved}
    first = next(iter(each.values()))
    known = first.keys() <= {"head_dim", "num_key_value_heads"}
    alike = all(one == first for one in each.values())
    if not known or not alike or each.keys() != {str(n) for n, w in enumerate(windowed) if not w}:
        raise CheckpointError(
            "config.json: per_layer_config has other than one head_dim and num_key_value_heads for "
            f"all layers of full_attention; a {NAME} GGUF can say no more"
        )
    heads = whole(first, "num_key_value_heads") if "num_key_value_heads" in first else None
    return whole(first, "head_dim", whole(config, "head_dim", DEFAULTS["head_dim"])), heads


def _check_heads(model: ModelConfig) -> None:
    for layer in range(model.n_layer):
        own = model.at(layer)
        if own.head_dim % 2 or own.n_head % own.n_head_kv:
            raise CheckpointError(
                f"config.json: layer {layer} has {own.n_head} heads and {own.n_head_kv} key-value "
                f"heads of {own.head_dim} values; a multiple and an even number are needed"
            )


def _check_shared(model: ModelConfig) -> None:
    """`CheckpointError` where llama.cpp would take the keys and values of another layer than
    transformers, which takes those of the last layer of the same kind that has its own."""
    own = model.n_layer - model.n_kv_shared
    if own < 2:
        raise CheckpointError(
            f"config.json: num_kv_shared_layers is {model.n_kv_shared} of {model.n_layer} layers; "
            "llama.cpp runs models of which two have keys and values of their own"
        )
    for layer in range(own, model.n_layer):
        kind = model.windowed[layer]
        alike = [other for other in range(own) if model.windowed[other] == kind]
        if not alike or alike[-1] != model.kv_layer(layer):
            raise CheckpointError(
                f"config.json: layer_types: llama.cpp lets layer {layer} share keys and values of "
                f"layer {model.kv_layer(layer)}, transformers "
                f"{f'of layer {alike[-1]}' if alike else 'finds none of its kind'}"
            )
