"""Gated delta networks as checkpoints have them: sizes from config.json, rules of import, metadata.

In a checkpoint the value heads that share a pair of queries and keys are neighbours; in a GGUF head
h has the pair h % pairs. So rows, or columns, of value heads move. Facts: transformers'
Qwen3_5GatedDeltaNet, llama.cpp's converter and loader.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from gpukit.errors import CheckpointError, GGUFError
from gpukit.formats.gguf_fields import Field, ValueType, array, u32
from gpukit.models.config import DeltaSizes, ModelConfig
from gpukit.models.rules import ColumnOrder, Rule, Span, Transform
from gpukit.models.values import count, whole

KINDS = ("linear_attention", "full_attention")
# Without a word every so-manieth layer has attention.
EVERY = 4
MODULE = "linear_attn"
# The taps of the convolution, which a decoder has as floats.
TAPS = "ssm_conv1d.weight"


def with_delta(model: ModelConfig, config: Mapping[str, Any]) -> ModelConfig:
    """`model` with the delta networks of a config.json, whose defaults are those of Qwen 3.5;
    `CheckpointError` for what llama.cpp does not load."""
    sizes = {
        key: whole(config, f"linear_{key}", default)
        for key, default in (
            ("num_key_heads", 16), ("num_value_heads", 32), ("key_head_dim", 128),
            ("value_head_dim", 128), ("conv_kernel_dim", 4),
        )
    }  # fmt: skip
    keys, values = sizes["num_key_heads"], sizes["num_value_heads"]
    if values % keys:
        raise CheckpointError(
            f"config.json: linear_num_value_heads {values} is no multiple of linear_num_key_heads "
            f"{keys}"
        )
    if sizes["key_head_dim"] != sizes["value_head_dim"]:
        raise CheckpointError(
            f"config.json: linear_key_head_dim {sizes['key_head_dim']} is not "
            f"linear_value_head_dim {sizes['value_head_dim']}; a {model.arch} GGUF has one for both"
        )
    if sizes["conv_kernel_dim"] < 2:
        raise CheckpointError(
            f"config.json: linear_conv_kernel_dim is {sizes['conv_kernel_dim']}; a {model.arch} "
            "GGUF has 2 at least"
        )
    every = whole(config, "full_attention_interval", EVERY)
    recurrent = _recurrent(config, model)
    return replace(
        model,
        delta=DeltaSizes(keys, values, sizes["key_head_dim"], sizes["conv_kernel_dim"]),
        recurrent=recurrent or periodic(model.n_layer, every),
        # The converter has config.json from transformers, which takes it out for the list of kinds.
        attention_every=every if recurrent else EVERY,
    )


def periodic(n_layer: int, every: int) -> tuple[bool, ...]:
    """Delta networks in all but every so-manieth layer."""
    return tuple((layer + 1) % every != 0 for layer in range(n_layer))


def _recurrent(config: Mapping[str, Any], model: ModelConfig) -> tuple[bool, ...]:
    """Which layers are delta networks by config.json's layer_types; empty where there are none."""
    kinds = config.get("layer_types")
    if kinds is None:
        return ()
    if not isinstance(kinds, list) or not all(kind in KINDS for kind in kinds):
        raise CheckpointError(f"config.json: layer_types hold other than {' and '.join(KINDS)}")
    if len(kinds) != model.n_layer:
        raise CheckpointError(
            f"config.json: {len(kinds)} layer_types for {model.n_layer} num_hidden_layers"
        )
    return tuple(kind == KINDS[0] for kind in kinds)


def delta_fields(config: ModelConfig) -> list[Field]:
    """The metadata of delta networks, in the converter's order."""
    sizes, at = config.delta, config.arch
    assert sizes is not None
    guessing = [False] * len(config.unused_layers)
    recurrent = [*config.recurrent, *guessing]
    return [
        u32(f"{at}.ssm.conv_kernel", sizes.taps),
        u32(f"{at}.ssm.state_size", sizes.head_dim),
        u32(f"{at}.ssm.group_count", sizes.key_heads),
        u32(f"{at}.ssm.time_step_rank", sizes.value_heads),
        u32(f"{at}.ssm.inner_size", sizes.values),
        array(f"{at}.attention.recurrent_layers", ValueType.BOOL, recurrent),
        u32(f"{at}.full_attention_interval", config.attention_every),
    ]


def with_stored_delta(config: ModelConfig, found: Mapping[str, Field]) -> ModelConfig:
    """`config` with the delta networks that a GGUF's metadata describe; `GGUFError` for what does
    not belong together."""
    at = config.arch
    sizes = DeltaSizes(
        key_heads=count(found, f"{at}.ssm.group_count"),
        value_heads=count(found, f"{at}.ssm.time_step_rank"),
        head_dim=count(found, f"{at}.ssm.state_size"),
        taps=count(found, f"{at}.ssm.conv_kernel"),
    )
    inner = count(found, f"{at}.ssm.inner_size")
    if inner != sizes.values or sizes.value_heads % sizes.key_heads or sizes.taps < 2:
        raise GGUFError(
            f"{at}.ssm: {sizes.key_heads} pairs of queries and keys, {sizes.value_heads} heads of "
            f"{sizes.head_dim}, inner size {inner}, {sizes.taps} taps do not belong together"
        )
    every = count(found, f"{at}.full_attention_interval", EVERY)
    said = found.get(f"{at}.attention.recurrent_layers")
    recurrent = periodic(config.n_layer, every)
    if said is not None:
        layers = config.n_layer + len(config.unused_layers)
        if said.type is not ValueType.ARRAY or len(said.value) != layers:
            raise GGUFError(f"{said.key} has no {layers} entries, one for each layer")
        recurrent = tuple(bool(value) for value in said.value[: config.n_layer])
    return replace(config, delta=sizes, recurrent=recurrent, attention_every=every)


def delta_net_rules(config: ModelConfig, layer: int) -> list[Rule]:
    """The tensors of the delta network that layer `layer` has."""
    sizes, embd = config.delta, config.n_embd
    assert sizes is not None
    order = head_order(sizes)
    channels, each, pairs = sizes.channels, sizes.head_dim, sizes.channels - sizes.values
    heads = sizes.value_heads

    def rule(
        source: str,
        name: str,
        shape: tuple[int, ...],
        rows: int = 1,
        before: int = 0,
        transform: Transform | None = None,
        stored: tuple[int, ...] | None = None,
    ) -> Rule:
        at = f"model.layers.{layer}.{MODULE}.{source}"
        spans = head_spans(at, stored or shape, order, rows, before)
        return Rule(spans, f"blk.{layer}.{name}", shape, transform=transform)

    at, to = f"model.layers.{layer}.{MODULE}", f"blk.{layer}"
    columns = [head * each + i for head in order for i in range(each)]
    moved = None if columns == sorted(columns) else ColumnOrder(tuple(columns))
    return [
        rule("in_proj_qkv.weight", "attn_qkv.weight", (channels, embd), each, pairs),
        rule("in_proj_z.weight", "attn_gate.weight", (sizes.values, embd), each),
        rule("in_proj_b.weight", "ssm_beta.weight", (heads, embd)),
        rule("in_proj_a.weight", "ssm_alpha.weight", (heads, embd)),
        rule(
            "conv1d.weight", TAPS, (channels, sizes.taps), each, pairs,
            stored=(channels, 1, sizes.taps),
        ),
        rule("A_log", "ssm_a", (heads,), transform=minus_exp),
        rule("dt_bias", "ssm_dt.bias", (heads,)),
        Rule(f"{at}.norm.weight", f"{to}.ssm_norm.weight", (each,)),
        Rule(
            f"{at}.out_proj.weight", f"{to}.ssm_out.weight", (embd, sizes.values), transform=moved
        ),
    ]  # fmt: skip


def head_order(sizes: DeltaSizes) -> list[int]:
    """For each value head of a GGUF the one of the checkpoint."""
    shared = sizes.value_heads // sizes.key_heads
    return [
        head % sizes.key_heads * shared + head // sizes.key_heads
        for head in range(sizes.value_heads)
    ]


def head_spans(
    source: str, shape: tuple[int, ...], order: Sequence[int], rows: int, before: int
) -> tuple[Span, ...]:
    """All rows of `source`: `before` of them, then those of the heads in `order`, `rows` each."""
    starts = [before + head * rows for head in order]
    if all(first + rows == second for first, second in pairwise(starts)):
        return (Span.whole(source, shape),)
    ahead = (Span(source, shape, 0, before),) if before else ()
    return (*ahead, *(Span(source, shape, start, rows) for start in starts))


def minus_exp(slab: Any) -> Any:
    """-e^x, float16 of float16 and float32 of the others, rounded correctly: PyTorch's float32
    exponential, which llama.cpp's converter takes, has other last bits on other CPUs."""
    if isinstance(slab, np.ndarray):
        found = -np.exp(slab.astype(np.float64)).astype(np.float32)
        return found.astype(np.float16) if slab.dtype == np.float16 else found
    import torch

    values = -torch.exp(slab.to(torch.float64)).to(torch.float32)
    return values.half() if slab.dtype is torch.float16 else values
