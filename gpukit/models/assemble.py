"""Puts a decoder together from the weights of a file; an architecture says in a `Style` how."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gpukit.models.attention import Attention, Growth
from gpukit.models.config import ModelConfig
from gpukit.models.decoder import Block, BlockFunction, Decoder, Head
from gpukit.models.delta_net import DeltaNet
from gpukit.models.layers import (
    Experts,
    GatedFeedForward,
    OverHeads,
    RMSNorm,
    Rope,
    Rotation,
    rotate_halves,
    rotate_pairs,
    unchanged,
)
from gpukit.models.rope import yarn_divisors, yarn_magnitude
from gpukit.models.routing import Routing
from gpukit.models.style import Style
from gpukit.models.weights import Weights

# (number of a layer, configuration, weights, style) -> what runs as that layer
BlockMaker = Callable[[int, ModelConfig, Weights, Style], BlockFunction]
ROTATIONS: dict[str, Rotation] = {"halves": rotate_halves, "pairs": rotate_pairs}


def assemble(
    config: ModelConfig, weights: Weights, style: Style, block: BlockMaker | None = None
) -> Decoder:
    """The decoder that runs, its blocks as `block` makes them, or in the usual way; `GGUFError` for
    weights that are missing or of another shape."""
    vocab, n_embd = config.vocab_size, config.n_embd
    embedding = weights.embedding("token_embd", vocab, n_embd)
    head = "output" if "output.weight" in weights else "token_embd"
    output = weights.linear(head, vocab, n_embd)
    last_norm = norm("output_norm", n_embd, config, weights)
    device = embedding.weight.blocks.device
    return Decoder(
        config=config,
        device=device,
        embed=replace(embedding, factor=n_embd**0.5 if style.scaled else config.embedding_scale),
        ropes=_ropes(config, weights, style, device),
        blocks=[
            (block or usual_block)(layer, config, weights, style) for layer in range(config.n_layer)
        ],
        head=Head(last_norm, output, config.logit_cap, config.logit_divisor),
    )


def norm(name: str, width: int, config: ModelConfig, weights: Weights) -> RMSNorm:
    """The norm with the weight `name`."""
    return RMSNorm(weights.vector(f"{name}.weight", width), config.rms_eps)


def _ropes(config: ModelConfig, weights: Weights, style: Style, device: torch.device) -> list[Rope]:
    """That of each layer."""
    rope = _rope(config, weights, device)
    local_dim = config.head_dim_local or config.head_dim
    local = Rope(local_dim, config.rope_theta_local or config.rope_theta, device)
    none = Rope(config.n_rot or config.head_dim, 1.0, device, factor=math.inf)

    def of(layer: int) -> Rope:
        if style.unrotated_every and (layer + 1) % style.unrotated_every == 0:
            return none
        return local if config.rope_theta_local and config.window_of(layer) else rope

    return [of(layer) for layer in range(config.n_layer)]


def _rope(config: ModelConfig, weights: Weights, device: torch.device) -> Rope:
    n_rot, divisors, long = config.n_rot or config.head_dim, None, None
    if "rope_freqs.weight" in weights:
        divisors = weights.vector("rope_freqs.weight", n_rot // 2)
    elif "rope_factors_long.weight" in weights:
        divisors = weights.vector("rope_factors_short.weight", n_rot // 2)
        long = config.rope_original_ctx, weights.vector("rope_factors_long.weight", n_rot // 2)
    magnitude = config.rope_magnitude
    if config.rope_scaling == "yarn":
        divisors, magnitude = yarn_divisors(config).to(device), yarn_magnitude(config) * magnitude
    return Rope(
        n_rot, config.rope_theta, device,
        factor=config.rope_factor if config.rope_scaling == "linear" else 1.0,
        divisors=divisors, long=long, magnitude=magnitude,
    )  # fmt: skip


def usual_block(layer: int, config: ModelConfig, weights: Weights, style: Style) -> Block:
    """A layer of attention and feed forward, with their norms."""
    at = f"blk.{layer}"

    def named(name: str) -> RMSNorm:
        return norm(f"{at}.{name}", config.n_embd, config, weights)

    return Block(
        attention_norm=named("attn_norm") if style.pre_norms else unchanged,
        attention=_mixing(layer, config, weights, style),
        feed_forward_norm=named(style.second_norm) if style.pre_norms else unchanged,
        feed_forward=_feed_forward(layer, config, weights, style),
        after_attention=named("post_attention_norm") if style.post_norms else None,
        after_feed_forward=named("post_ffw_norm") if style.post_norms else None,
        scale=config.residual_scale,
    )


def _mixing(layer: int, config: ModelConfig, weights: Weights, style: Style) -> BlockFunction:
    """What of a layer looks at other positions."""
    if config.is_recurrent(layer):
        return DeltaNet.of(layer, config, weights)
    return _attention(layer, config, weights, style)


def _attention(layer: int, config: ModelConfig, weights: Weights, style: Style) -> Attention:
    at, embd, head_dim = f"blk.{layer}", config.n_embd, config.head_dim
    q, kv = config.n_head * head_dim, config.n_head_kv * head_dim
    if style.fused:
        parts = weights.fused(f"{at}.attn_qkv", (q, kv, kv), embd)
    else:
        parts = (
            weights.linear(f"{at}.attn_q", q * (1 + style.output_gate), embd),
            weights.linear(f"{at}.attn_k", kv, embd),
            weights.linear(f"{at}.attn_v", kv, embd),
        )
    return Attention(
        layer=layer,
        q=parts[0],
        k=parts[1],
        v=parts[2],
        o=weights.linear(f"{at}.attn_output", embd, q),
        head_dim=head_dim,
        scale=config.attention_scale or head_dim**-0.5,
        rotate=ROTATIONS[style.rotate],
        window=config.window_of(layer),
        cap=config.attention_cap,
        norms=_head_norms(at, config, weights, style),
        growth=Growth(config.attention_growth, config.rope_original_ctx)
        if config.attention_growth
        else None,
        sinks=weights.vector(f"{at}.attn_sinks.weight", config.n_head) if style.sinks else None,
        gated=style.output_gate,
    )


def _head_norms(
    at: str, config: ModelConfig, weights: Weights, style: Style
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None:
    """Those of queries and keys, over `[count, heads, head_dim]`."""
    names, size = (f"{at}.attn_q_norm", f"{at}.attn_k_norm"), config.head_dim
    there = f"{names[0]}.weight" in weights
    if not style.qk_norms or (style.qk_norms == "optional" and not there):
        return None
    if not style.wide_norms:
        q, k = (norm(name, size, config, weights) for name in names)
        return q, k
    heads = (config.n_head, config.n_head_kv)
    wide = zip(names, heads, strict=True)
    first, second = (OverHeads(norm(name, n * size, config, weights)) for name, n in wide)
    return first, second


def _feed_forward(
    layer: int, config: ModelConfig, weights: Weights, style: Style
) -> Callable[[Tensor], Tensor]:
    at, embd, ff = f"blk.{layer}", config.n_embd, config.n_ff
    if config.n_expert and layer >= config.n_dense:
        return _experts(at, config, weights, style)
    if not style.fused:
        return gated(at, "", ff, config, weights, style)
    gate, up = weights.fused(f"{at}.ffn_up", (ff, ff), embd)
    down = weights.linear(f"{at}.ffn_down", embd, ff)
    return GatedFeedForward(gate, up, down, style.activation)


def gated(
    at: str, kind: str, ff: int, config: ModelConfig, weights: Weights, style: Style
) -> GatedFeedForward:
    """That of three matrices of a layer, whose names end in `kind`."""
    return GatedFeedForward(
        gate=weights.linear(f"{at}.ffn_gate{kind}", ff, config.n_embd),
        up=weights.linear(f"{at}.ffn_up{kind}", ff, config.n_embd),
        down=weights.linear(f"{at}.ffn_down{kind}", config.n_embd, ff),
        activation=style.activation,
    )


def _experts(at: str, config: ModelConfig, weights: Weights, style: Style) -> Experts:
    embd, ff, count = config.n_embd, config.expert_ff, config.n_expert
    maps = zip(
        weights.experts(f"{at}.ffn_gate_exps", count, ff, embd),
        weights.experts(f"{at}.ffn_up_exps", count, ff, embd),
        weights.experts(f"{at}.ffn_down_exps", count, embd, ff),
        strict=True,
    )
    shared, gate = config.shared_ff, f"{at}.ffn_gate_inp_shexp"
    return Experts(
        router=weights.linear(f"{at}.ffn_gate_inp", count, embd),
        experts=tuple(
            GatedFeedForward(gate, up, down, style.activation) for gate, up, down in maps
        ),
        routing=_routing(at, config, weights),
        shared=gated(at, "_shexp", shared, config, weights, style) if shared else None,
        shared_gate=weights.linear(gate, 1, embd) if f"{gate}.weight" in weights else None,
    )


def _routing(at: str, config: ModelConfig, weights: Weights) -> Routing:
    bias = f"{at}.exp_probs_b.bias"
    return Routing(
        used=config.n_expert_used,
        gating=config.expert_gating,
        normed=config.experts_normed,
        scale=config.expert_scale,
        bias=weights.vector(bias, config.n_expert) if bias in weights else None,
        groups=config.n_expert_groups,
        groups_used=config.n_expert_groups_used,
    )
