"""One token through a decoder in few launches, which read from the device's memory where they are:
what is recorded once can be replayed for every token.

A decoder whose parts are not those that are known here has no `Step` and goes its usual way, as do
models with experts, which ask for each token on the host.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.models.attention import Attention
from gpukit.models.cache import KVCache
from gpukit.models.decoder import Block, Decoder, Head
from gpukit.models.layers import GatedFeedForward, RMSNorm, Rope, rotate_halves, rotate_pairs
from gpukit.models.step_products import Row, joined, multiply, prepares
from gpukit.models.weights import Embedding, Linear
from gpukit_kernels.attend_triton import Scratch, Shape, attend_triton
from gpukit_kernels.largest_triton import next_triton, tops_of
from gpukit_kernels.norm_triton import norm_triton
from gpukit_kernels.prepared_triton import prepare
from gpukit_kernels.vectors_triton import gated


@dataclass(frozen=True)
class Layer:
    """A block's parts, with what else its launches need; `after` are norms of what is added."""

    norm: RMSNorm
    attention: Attention
    after_attention: RMSNorm | None
    next_norm: RMSNorm
    feed_forward: GatedFeedForward
    after: RMSNorm | None
    norms: tuple[Tensor, Tensor] | None
    shape: Shape
    rope: Rope


@dataclass(frozen=True)
class Parts:
    """All that a step computes with."""

    decoder: Decoder
    embed: Embedding
    layers: Sequence[Layer]
    last_norm: RMSNorm
    head: Head


class Step:
    """The launches of one token, in memory that is theirs: `run` may be recorded.

    token     int64 `[1]`, what the next run takes up
    position  int32 `[1]`, where it goes in the cache
    logits    float32 `[vocab_size]`, of the last run; `keys` of them, int64, as `largest` says
    best      int64 `[1]`, the largest key; its token is the next `token`
    joined    of each layer the products that give queries, keys and values
    """

    def __init__(self, parts: Parts) -> None:
        config, device = parts.decoder.config, parts.decoder.device
        self._parts = parts
        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int32, device=device)
        self.best = torch.zeros(1, dtype=torch.int64, device=device)
        self.keys = torch.zeros(config.vocab_size, dtype=torch.int64, device=device)
        self._tops = torch.zeros(tops_of(config.vocab_size), dtype=torch.int64, device=device)
        self._logits = torch.zeros((1, config.vocab_size), device=device)
        self._x = torch.zeros((1, config.n_embd), device=device)
        self._more = torch.zeros((1, config.n_embd), device=device)
        shape = parts.layers[0].shape
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self._qkv = torch.zeros((1, q + 2 * kv), device=device)
        self._q, self._k, self._v = torch.split(self._qkv, [q, kv, kv], dim=1)
        self.joined = [
            joined((layer.attention.q, layer.attention.k, layer.attention.v))
            for layer in parts.layers
        ]
        self._hidden = torch.zeros((1, config.n_ff), device=device)
        self._scratch = Scratch.of(shape, device)
        self._rows = [_rows_of(layer, device) for layer in parts.layers]
        self._last = Row.read_by((parts.head.output,), device)

    @property
    def logits(self) -> Tensor:
        return self._logits[0]

    def turns(self, capacity: int, n_ctx: int) -> dict[Rope, Tensor]:
        """float32 `[capacity, n_rot / 2, 2]` of each RoPE: cosines and sines of every position."""
        return {
            rope: torch.view_as_real(rope.turns(0, capacity, n_ctx)[:, 0]).contiguous()
            for rope in {layer.rope for layer in self._parts.layers}
        }

    def run(self, cache: KVCache, turns: Mapping[Rope, Tensor]) -> None:
        """Take up `token` at `position` of `cache`, which has room for it; the likeliest token is
        the next."""
        parts, add, after = self._parts, None, None
        self._x.copy_(parts.embed(self.token))
        for layer, rows, products in zip(parts.layers, self._rows, self.joined, strict=True):
            self._norm(layer.norm, after, add, rows[0])
            self.project(products, rows[0])
            add = self._attend(layer, rows, cache, turns[layer.rope])
            self._norm(layer.next_norm, layer.after_attention, add, rows[2])
            self._gate(layer.feed_forward, rows[2], rows[3])
            add = self._into(layer.feed_forward.down, rows[3], layer.after)
            after = layer.after
        self._norm(parts.last_norm, after, add, self._last)
        multiply(parts.head.output, self._last, self._logits)
        if cap := parts.head.cap:
            self._logits.div_(cap).tanh_().mul_(cap)
        next_triton(self._logits[0], self.keys, self._tops, self.best, self.token)

    def _norm(self, norm: RMSNorm, after: RMSNorm | None, add: Tensor | None, row: Row) -> None:
        """The norm of x into `row`, x having got `add`, or that behind `after`."""
        norm_triton(
            self._x, norm.weight, norm.eps, add=add, post=None if after is None else after.weight,
            out=row.values, prepared=row.prepared,
        )  # fmt: skip

    def project(self, products: Sequence[Linear], row: Row) -> None:
        """Queries, keys and values of `row`, behind each other."""
        counts = [len(linear.weight.blocks) for linear in products]
        for linear, out in zip(products, torch.split(self._qkv, counts, dim=1), strict=True):
            multiply(linear, row, out)

    def _attend(
        self, layer: Layer, rows: Sequence[Row], cache: KVCache, turns: Tensor
    ) -> Tensor | None:
        attention = layer.attention
        row, whole = rows[1], layer.shape.in_groups
        if attention.growth is not None:
            self._q.mul_(attention.growth(self.position)[0])
        attend_triton(
            self._q, self._k, self._v, turns, *cache.layer(attention.layer), self.position,
            layer.shape, self._scratch, row.values, row.prepared if whole else None, layer.norms,
        )  # fmt: skip
        if row.values is not None and row.prepared is not None and not whole:
            prepare(row.values, row.prepared)
        return self._into(attention.o, row, layer.after_attention)

    def _into(self, linear: Linear, row: Row, after: RMSNorm | None) -> Tensor | None:
        """Add `linear` of `row` to x, or give it where its norm has to be added."""
        if after is None:
            multiply(linear, row, self._x, self._x)
            return None
        multiply(linear, row, self._more)
        return self._more

    def _gate(self, parts: GatedFeedForward, row: Row, into: Row) -> None:
        hidden = self._hidden if into.values is None else into.values
        gate, up = parts.gate, parts.up
        together = prepares(gate) and prepares(up) and gate.bias is None and up.bias is None
        if together and gate.weight.type == up.weight.type and row.prepared is not None:
            kind = kernels.by_name(gate.weight.type)
            gated(
                row.prepared, gate.weight.blocks, up.weight.blocks, kind, parts.activation, hidden
            )
        else:
            both = torch.empty_like(hidden), torch.empty_like(hidden)
            multiply(gate, row, both[0])
            multiply(up, row, both[1])
            hidden.copy_(kernels.gated(*both, parts.activation))
        if into.prepared is not None:
            prepare(hidden, into.prepared)


def _rows_of(layer: Layer, device: torch.device) -> tuple[Row, Row, Row, Row]:
    """What each of a layer's four groups of products reads."""
    a, f = layer.attention, layer.feed_forward
    return (
        Row.read_by((a.q, a.k, a.v), device),
        Row.read_by((a.o,), device, both=not layer.shape.in_groups),
        Row.read_by((f.gate, f.up), device),
        Row.read_by((f.down,), device),
    )


def parts_of(decoder: Decoder) -> Parts | None:
    """What a step of `decoder` computes with; None where a part of it is not known here, is
    observed, or is on another device."""
    embed, head = decoder.embed, decoder.head
    if any(place != decoder.device for place in decoder.places):
        return None
    if not isinstance(embed, Embedding) or not isinstance(head, Head):
        return None
    layers = [
        _layer(decoder, block, rope)
        for block, rope in zip(decoder.blocks, decoder.ropes, strict=True)
    ]
    found = [layer for layer in layers if layer is not None]
    if len(found) < len(layers) or not found or head.output.observe is not None:
        return None
    if not isinstance(head.norm, RMSNorm) or head.divisor != 1:
        return None
    return Parts(decoder, embed, found, head.norm, head)


def _layer(decoder: Decoder, block: object, rope: Rope) -> Layer | None:
    if not isinstance(block, Block) or block.scale != 1:
        return None
    attention, feed_forward = block.attention, block.feed_forward
    norm, next_norm = block.attention_norm, block.feed_forward_norm
    after_attention, after = block.after_attention, block.after_feed_forward
    if not isinstance(attention, Attention) or not isinstance(feed_forward, GatedFeedForward):
        return None
    if attention.sinks is not None or attention.gated:
        return None
    if not isinstance(norm, RMSNorm) or not isinstance(next_norm, RMSNorm):
        return None
    if not isinstance(after_attention, RMSNorm | None) or not isinstance(after, RMSNorm | None):
        return None
    linears = (
        attention.q, attention.k, attention.v, attention.o,
        feed_forward.gate, feed_forward.up, feed_forward.down,
    )  # fmt: skip
    norms, shape = _norms(attention), _shape(decoder, attention)
    if any(linear.observe is not None for linear in linears) or shape is None:
        return None
    if norms is None and attention.norms is not None:
        return None
    if attention.growth is not None and norms is not None:
        return None
    return Layer(
        norm, attention, after_attention, next_norm, feed_forward, after, norms, shape, rope
    )


def _norms(attention: Attention) -> tuple[Tensor, Tensor] | None:
    match attention.norms:
        case (RMSNorm() as q, RMSNorm() as k):
            return q.weight, k.weight
    return None


def _shape(decoder: Decoder, attention: Attention) -> Shape | None:
    if attention.rotate not in (rotate_halves, rotate_pairs):
        return None
    config = decoder.config
    return Shape(
        heads=config.n_head,
        kv_heads=config.n_head_kv,
        head_dim=attention.head_dim,
        rotated=config.n_rot or attention.head_dim,
        pairs=attention.rotate is rotate_pairs,
        scale=attention.scale,
        eps=config.rms_eps,
        window=attention.window,
        cap=attention.cap,
    )
