"""Gemma 4, its text: import from `Gemma4ForCausalLM`, `Gemma4ForConditionalGeneration` and
`Gemma4UnifiedForConditionalGeneration` checkpoints; `gemma4_config.py` reads what they say of
themselves, `gemma4_blocks.py` makes the decoder.

Layers with a window and whole ones have heads of different sizes, and whole ones may have no values
of their own; the last layers may share keys and values; each layer may look up a row of its own for
a token; experts work beside a feed forward. Facts: llama.cpp's converter, loader and graph.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpukit.errors import CheckpointError, GGUFError
from gpukit.formats.folder import read_json
from gpukit.formats.gguf_fields import Field, ValueType, array, f32, u32
from gpukit.models.config import ModelConfig
from gpukit.models.gemma4_config import LOCAL_THETA, NAME, read, read_unified
from gpukit.models.registry import Architecture
from gpukit.models.rules import PlannedTensor, Rule
from gpukit.models.sizes import restore_sizes, size_fields
from gpukit.models.style import Style
from gpukit.models.tables import (
    ATTENTION,
    FEED_FORWARD_IN_NORMS,
    QK_NORMS,
    Row,
    decoder_rules,
    layer_rules,
    sizes,
    text_name,
)
from gpukit.models.unused import KEYS_AND_VALUES
from gpukit.models.values import MOST, count, optional
from gpukit.tokenizer import gemma4_vocabulary

if TYPE_CHECKING:
    from gpukit.models.decoder import Decoder
    from gpukit.models.weights import Weights

# What divides the frequency of a pair that does not turn.
STILL = 1e30
# What llama.cpp takes where metadata have no key.
LOGIT_CAP = 30.0

GATE: tuple[Row, ...] = (
    ("per_layer_input_gate.weight", "inp_gate.weight", ("looked_up", "embd")),
    ("per_layer_projection.weight", "proj.weight", ("embd", "looked_up")),
    ("post_per_layer_input_norm.weight", "post_norm.weight", ("embd",)),
)
EXPERTS: tuple[Row, ...] = (
    ("router.proj.weight", "ffn_gate_inp.weight", ("expert", "embd")),
    ("router.scale", "ffn_gate_inp.scale", ("embd",)),
    ("router.per_expert_scale", "ffn_down_exps.scale", ("expert",)),
    ("experts.gate_up_proj", "ffn_gate_up_exps.weight", ("expert", "expert_gate_up", "embd")),
    ("experts.down_proj", "ffn_down_exps.weight", ("expert", "embd", "expert_ff")),
    ("pre_feedforward_layernorm_2.weight", "pre_ffw_norm_2.weight", ("embd",)),
    ("post_feedforward_layernorm_1.weight", "post_ffw_norm_1.weight", ("embd",)),
    ("post_feedforward_layernorm_2.weight", "post_ffw_norm_2.weight", ("embd",)),
)
SCALE: Row = ("layer_scalar", "layer_output_scale.weight", ("one",))
LOOKED_UP: tuple[Row, ...] = (
    ("embed_tokens_per_layer.weight", "per_layer_token_embd.weight", ("vocab", "all_looked_up")),
    ("per_layer_model_projection.weight", "per_layer_model_proj.weight", ("all_looked_up", "embd")),
    ("per_layer_projection_norm.weight", "per_layer_proj_norm.weight", ("looked_up",)),
)
# What is no text, by the beginnings of names.
BESIDE = tuple(
    f"{at}{part}."
    for at in ("", "model.")
    for part in ("vision_tower", "audio_tower", "embed_vision", "embed_audio", "vision_embedder")
)


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint's text holds, with its shape; what shared layers have no use
    for may be there."""
    found = decoder_rules(config, ())
    known = sizes(config)
    for source, name, shape in LOOKED_UP if config.n_embd_layer else ():
        found.append(Rule(f"model.{source}", name, tuple(known[size] for size in shape)))
    for layer in range(config.n_layer):
        needed = layer_rules(config.at(layer), layer, _rows(layer, config))
        if config.kv_layer(layer) != layer:
            needed = [
                replace(rule, required=not rule.name.endswith(KEYS_AND_VALUES)) for rule in needed
            ]
        found += needed
    return found


def _rows(layer: int, config: ModelConfig) -> Iterator[Row]:
    no_values = config.keys_are_values and not config.window_of(layer)
    for row in (*ATTENTION, *QK_NORMS, *FEED_FORWARD_IN_NORMS, SCALE):
        if not (no_values and row[1] == "attn_v.weight"):
            yield row
    yield from GATE if config.n_embd_layer else ()
    yield from EXPERTS if config.n_expert else ()


def computed(config: ModelConfig) -> Sequence[PlannedTensor]:
    """rope_freqs.weight: what each frequency of whole layers is divided by."""
    pairs = config.head_dim // 2
    turned = int(config.rope_part * config.head_dim // 2)
    divisors = [config.rope_factor] * turned + [STILL] * (pairs - turned)
    values = np.array(divisors, np.float32)
    return (PlannedTensor("rope_freqs.weight", (pairs,), (), "F32", values=values),)


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order, and a cap of 0 where there is none."""
    at = f"{NAME}.attention"
    experts = [u32(f"{NAME}.expert_feed_forward_length", config.expert_ff)]
    return [
        *size_fields(config),
        f32(f"{NAME}.final_logit_softcapping", config.logit_cap),
        u32(f"{at}.sliding_window", config.window),
        u32(f"{at}.shared_kv_layers", config.n_kv_shared),
        u32(f"{NAME}.embedding_length_per_layer_input", config.n_embd_layer),
        array(f"{at}.sliding_window_pattern", ValueType.BOOL, config.windowed),
        u32(f"{at}.key_length_swa", config.head_dim_local),
        u32(f"{at}.value_length_swa", config.head_dim_local),
        *(experts if config.n_expert else ()),
        u32(f"{NAME}.rope.dimension_count", config.head_dim),
        u32(f"{NAME}.rope.dimension_count_swa", config.head_dim_local),
    ]


def suppressed(folder: Path) -> list[Field]:
    """The tokens that generation_config.json keeps out of every answer, where it names some."""
    path = folder / "generation_config.json"
    tokens = (read_json(path) or {}).get("suppress_tokens")
    if tokens is None:
        return []
    if not isinstance(tokens, list) or not all(_is_id(token) for token in tokens) or not tokens:
        raise CheckpointError(f"{path}: suppress_tokens is {str(tokens)[:60]}; ids are needed")
    return [array("tokenizer.ggml.suppress_tokens", ValueType.INT32, tokens)]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST


def restore(found: Mapping[str, Field], arch: str) -> ModelConfig:
    """The configuration that a GGUF's metadata describes."""
    heads, ffs = f"{arch}.attention.head_count_kv", f"{arch}.feed_forward_length"
    each = {key: _each(found, key) for key in (heads, ffs)}
    alone = {key: u32(key, values[0]) for key, values in each.items() if values}
    config = restore_sizes({**found, **alone}, arch)
    cap = f"{arch}.final_logit_softcapping"
    config = replace(
        config,
        attention_scale=1.0,
        head_dim_local=count(found, f"{arch}.attention.key_length_swa", config.head_dim),
        kv_heads=each[heads],
        ffs=each[ffs],
        n_kv_shared=int(optional(found, f"{arch}.attention.shared_kv_layers")),
        n_embd_layer=int(optional(found, f"{arch}.embedding_length_per_layer_input")),
        rope_theta_local=config.rope_theta_local or LOCAL_THETA,
        logit_cap=config.logit_cap if cap in found else LOGIT_CAP,
    )
    _check_restored(config, found)
    return config


def _each(found: Mapping[str, Field], key: str) -> tuple[int, ...]:
    """The values at `key`, one a layer; none where there is one for all."""
    field = found.get(key)
    if field is None or field.type is not ValueType.ARRAY:
        return ()
    values = tuple(field.value)
    if not values or not all(isinstance(value, int) and value > 0 for value in values):
        raise GGUFError(f"{key} is {str(field.value)[:60]}; positive whole numbers are needed")
    return values


def _check_restored(config: ModelConfig, found: Mapping[str, Field]) -> None:
    at, layers = config.arch, config.n_layer
    if not config.windowed or not config.window:
        raise GGUFError(f"no {at}.attention.sliding_window or its pattern in the metadata")
    for values in (config.kv_heads, config.ffs):
        if values and len(values) != layers:
            raise GGUFError(f"{len(values)} numbers of heads or widths for {layers} layers")
    own = layers - config.n_kv_shared
    lent = {config.kv_layer(layer) for layer in range(own, layers)}
    if own < 2 or any(config.windowed[layer] != (layer == own - 2) for layer in lent):
        raise GGUFError(
            f"{at}.attention.shared_kv_layers is {config.n_kv_shared} of {layers}; before them the "
            "last layer has to be a whole one, and the one before one with a window"
        )
    for key, length in (
        ("attention.value_length_swa", config.head_dim_local),
        ("rope.dimension_count_swa", config.head_dim_local),
    ):
        if (value := count(found, f"{at}.{key}", length)) != length:
            raise GGUFError(f"{at}.{key} is {value}, the keys have {length}")
    if any(config.n_head % config.at(layer).n_head_kv for layer in range(layers)):
        raise GGUFError(f"{config.n_head} attention heads are no multiple of all key-value heads")


def build(config: ModelConfig, weights: "Weights", style: Style) -> "Decoder":
    """The decoder that runs; `GGUFError` for weights that are missing or of another shape."""
    # Who only imports a model needs no torch.
    from gpukit.models.gemma4_blocks import build as blocks

    return blocks(config, weights, style)


TEXT = Architecture(
    name=NAME,
    classes=("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
    read=read,
    rules=rules,
    fields=fields,
    vocabulary=gemma4_vocabulary,
    style=Style(activation="gelu_tanh", scaled=True, post_norms=True, qk_norms=True),
    restoring=restore,
    building=build,
    computed=computed,
    skipped_parts=BESIDE,
    renamed=text_name,
)
UNIFIED = replace(
    TEXT,
    classes=("Gemma4UnifiedForConditionalGeneration",),
    read=read_unified,
    folder_fields=suppressed,
)
ARCHITECTURES = (TEXT, UNIFIED)
