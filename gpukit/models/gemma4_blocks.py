"""What the decoder of a Gemma 4 has beside the usual parts: attention with the keys and values of
another layer, experts beside the feed forward, and what each layer looks up of a token.

Facts: transformers' modeling_gemma4, llama.cpp's graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.models.assemble import ROTATIONS, assemble, gated, norm
from gpukit.models.attention import attended
from gpukit.models.cache import KVCache, Unrelated
from gpukit.models.config import ModelConfig
from gpukit.models.decoder import Block, Decoder
from gpukit.models.layers import Experts, GatedFeedForward, RMSNorm, Rotation, unchanged
from gpukit.models.routing import Routing
from gpukit.models.style import Style
from gpukit.models.weights import Embedding, Linear, Weights


def build(config: ModelConfig, weights: Weights, style: Style) -> Decoder:
    """The decoder that runs; `GGUFError` for weights that are missing or of another shape."""
    # Without it whole layers would turn as others do.
    weights.vector("rope_freqs.weight", config.head_dim // 2)
    decoder = assemble(config, weights, style, _layer)
    width = config.n_embd_layer
    if not width:
        return decoder
    table = weights.embedding("per_layer_token_embd", config.vocab_size, config.n_layer * width)
    looked_up = LookedUp(
        table=replace(table, factor=width**0.5),
        projection=weights.linear("per_layer_model_proj", config.n_layer * width, config.n_embd),
        norm=norm("per_layer_proj_norm", width, config, weights),
    )
    return replace(decoder, beside=looked_up)


@dataclass(frozen=True)
class LookedUp:
    """What each layer gets of a token: its row in a table, and what a projection makes of its
    embedding, added up so that their deviation stays."""

    table: Embedding
    projection: Linear
    norm: RMSNorm

    def __call__(self, ids: Tensor, x: Tensor) -> Tensor:
        """float32 `[layers, count, width]` of ids `[count]` and their embeddings x."""
        shape = (len(x), -1, len(self.norm.weight))
        found = self.norm((self.projection(x) * x.shape[1] ** -0.5).view(shape))
        return ((found + self.table(ids).view(shape)) * 2**-0.5).transpose(0, 1).contiguous()


@dataclass(frozen=True)
class Keys:
    """The keys of a layer, and its values, which without a map of their own are the keys before
    their norm; values have a norm without a weight (that of `plain` is 1 everywhere)."""

    k: Linear
    v: Linear | None
    norm: RMSNorm
    plain: RMSNorm

    def __call__(self, x: Tensor, heads: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        k = self.k(x).view(heads)
        v = k if self.v is None else self.v(x).view(heads)
        return self.norm(k), self.plain(v)


@dataclass(frozen=True)
class SharedAttention:
    """Attention over the keys and values of `layer`, which without `keys` is another one, before
    this."""

    layer: int
    q: Linear
    norm: RMSNorm
    keys: Keys | None
    o: Linear
    head_dim: int
    scale: float
    rotate: Rotation
    window: int = 0

    def __call__(self, x: Tensor, turns: Tensor, cache: KVCache | Unrelated) -> Tensor:
        heads = (len(x), -1, self.head_dim)
        q = self.rotate(self.norm(self.q(x).view(heads)), turns, cache.dtype)
        if self.keys is None:
            found = cache.shared(self.layer, q)
        else:
            k, v = self.keys(x, heads)
            found = cache.taken(self.layer, q, self.rotate(k, turns, cache.dtype), v)
        return self.o(attended(found, self.scale, self.window))


@dataclass(frozen=True)
class BothFeedForwards:
    """A feed forward for every position and experts beside it, each between norms of its own."""

    norm: RMSNorm
    dense: GatedFeedForward
    after_dense: RMSNorm
    experts: Experts
    after_experts: RMSNorm

    def __call__(self, x: Tensor) -> Tensor:
        dense = self.after_dense(self.dense(self.norm(x)))
        return dense + self.after_experts(self.experts(x))


@dataclass(frozen=True)
class Gate:
    """x and what a gate lets through of what the layer has looked up."""

    gate: Linear
    projection: Linear
    norm: RMSNorm

    def __call__(self, x: Tensor, beside: Tensor) -> Tensor:
        let = kernels.gated(self.gate(x), beside, "gelu_tanh")
        return x + self.norm(self.projection(let))


@dataclass(frozen=True)
class Layer:
    """A block, the gate behind it, and what multiplies all that comes out."""

    block: Block
    gate: Gate | None
    scale: Tensor | None

    def __call__(
        self, x: Tensor, turns: Tensor, cache: KVCache | Unrelated, *beside: Tensor
    ) -> Tensor:
        x = self.block(x, turns, cache)
        if self.gate is not None:
            x = self.gate(x, *beside)
        return x if self.scale is None else x * self.scale


def _layer(layer: int, config: ModelConfig, weights: Weights, style: Style) -> Layer:
    at, own = f"blk.{layer}", config.at(layer)

    def named(name: str) -> RMSNorm:
        return norm(f"{at}.{name}", config.n_embd, config, weights)

    before: Callable[[Tensor], Tensor] = named("ffn_norm")
    dense = gated(at, "", own.n_ff, config, weights, style)
    feed_forward: Callable[[Tensor], Tensor] = dense
    if config.n_expert:
        feed_forward = BothFeedForwards(
            norm=named("ffn_norm"),
            dense=dense,
            after_dense=named("post_ffw_norm_1"),
            experts=_experts(at, config, weights, style),
            after_experts=named("post_ffw_norm_2"),
        )
        before = unchanged
    block = Block(
        attention_norm=named("attn_norm"),
        attention=_attention(layer, own, weights, style),
        feed_forward_norm=before,
        feed_forward=feed_forward,
        after_attention=named("post_attention_norm"),
        after_feed_forward=named("post_ffw_norm"),
    )
    scale = f"{at}.layer_output_scale.weight"
    return Layer(
        block=block,
        gate=_gate(at, config, weights) if config.n_embd_layer else None,
        scale=weights.vector(scale, 1) if scale in weights else None,
    )


def _attention(layer: int, own: ModelConfig, weights: Weights, style: Style) -> SharedAttention:
    at, embd, head_dim = f"blk.{layer}", own.n_embd, own.head_dim
    kv = own.n_head_kv * head_dim
    of = own.kv_layer(layer)
    keys = None
    if of == layer:
        k_norm = norm(f"{at}.attn_k_norm", head_dim, own, weights)
        own_values = f"{at}.attn_v.weight" in weights
        keys = Keys(
            k=weights.linear(f"{at}.attn_k", kv, embd),
            v=weights.linear(f"{at}.attn_v", kv, embd) if own_values else None,
            norm=k_norm,
            plain=replace(k_norm, weight=torch.ones_like(k_norm.weight)),
        )
    return SharedAttention(
        layer=of,
        q=weights.linear(f"{at}.attn_q", own.n_head * head_dim, embd),
        norm=norm(f"{at}.attn_q_norm", head_dim, own, weights),
        keys=keys,
        o=weights.linear(f"{at}.attn_output", embd, own.n_head * head_dim),
        head_dim=head_dim,
        scale=own.attention_scale,
        rotate=ROTATIONS[style.rotate],
        window=own.window_of(layer),
    )


def _gate(at: str, config: ModelConfig, weights: Weights) -> Gate:
    embd, width = config.n_embd, config.n_embd_layer
    return Gate(
        gate=weights.linear(f"{at}.inp_gate", width, embd),
        projection=weights.linear(f"{at}.proj", embd, width),
        norm=norm(f"{at}.post_norm", embd, config, weights),
    )


def _experts(at: str, config: ModelConfig, weights: Weights, style: Style) -> Experts:
    embd, ff, count = config.n_embd, config.expert_ff, config.n_expert
    down = weights.experts(f"{at}.ffn_down_exps", count, embd, ff)
    # The router sees x over its root mean square, times a weight, over the root of its width.
    seen = weights.vector(f"{at}.ffn_gate_inp.scale", embd) * embd**-0.5
    factors = f"{at}.ffn_down_exps.scale"
    return Experts(
        router=weights.linear(f"{at}.ffn_gate_inp", count, embd),
        experts=tuple(
            GatedFeedForward(gate, up, last, style.activation)
            for (gate, up), last in zip(_gates_and_ups(at, config, weights), down, strict=True)
        ),
        routing=Routing(
            used=config.n_expert_used,
            factors=weights.vector(factors, count) if factors in weights else None,
        ),
        seen=RMSNorm(seen, config.rms_eps),
        norm=norm(f"{at}.pre_ffw_norm_2", embd, config, weights),
    )


def _gates_and_ups(at: str, config: ModelConfig, weights: Weights) -> Sequence[tuple[Linear, ...]]:
    """The two maps of each expert, which a file has in one tensor or in two."""
    embd, ff, count = config.n_embd, config.expert_ff, config.n_expert
    if f"{at}.ffn_gate_up_exps.weight" in weights:
        return weights.fused_experts(f"{at}.ffn_gate_up_exps", count, (ff, ff), embd)
    gates = weights.experts(f"{at}.ffn_gate_exps", count, ff, embd)
    return list(zip(gates, weights.experts(f"{at}.ffn_up_exps", count, ff, embd), strict=True))
