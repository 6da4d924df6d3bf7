"""One token through a decoder in few launches, which read from the device's memory where they are:
what is recorded once can be replayed for every token.

A decoder whose parts are not those that are known here has no `Step` and goes its usual way, as do
models with experts, which ask for each token on the host.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.models.attention import Attention
from gpukit.models.cache import KVCache
from gpukit.models.decoder import Block, Decoder, Head
from gpukit.models.layers import GatedFeedForward, RMSNorm, Rope, rotate_halves, rotate_pairs
from gpukit.models.weights import Embedding, Linear
from gpukit_kernels.attend_triton import Scratch, Shape, attend_triton
from gpukit_kernels.norm_triton import norm_triton
from gpukit_kernels.prepared_triton import Prepared, prepare
from gpukit_kernels.vectors_triton import gated, has_prepared, multiply_prepared


@dataclass(frozen=True)
class Row:
    """A row of values `[1, n]` between launches: as float32, prepared for products, or both."""

    values: Tensor | None
    prepared: Prepared | None

    @staticmethod
    def read_by(readers: tuple[Linear, ...], device: torch.device) -> "Row":
        """What `readers` read, still without values."""
        width = readers[0].weight.width
        fast = [prepares(linear) for linear in readers]
        return Row(
            None if all(fast) else torch.empty((1, width), device=device),
            Prepared.from_shape(1, width, device) if any(fast) else None,
        )


def prepares(linear: Linear) -> bool:
    """Whether `linear` is multiplied with prepared rows."""
    return (
        not linear.pairs
        and linear.weight.width % 32 == 0
        and has_prepared(kernels.by_name(linear.weight.type))
    )


def multiply(linear: Linear, row: Row, out: Tensor, add: Tensor | None = None) -> None:
    """`linear` of `row` into `out` `[1, rows]`, plus `add`, which may be `out`."""
    if prepares(linear) and row.prepared is not None:
        kind = kernels.by_name(linear.weight.type)
        bias = None if linear.bias is None else linear.bias[None]
        more = bias if add is None else add
        multiply_prepared(row.prepared, linear.weight.blocks, kind, add=more, out=out)
        if bias is not None and add is not None:
            out += bias
        return
    found = linear(row.values)
    if add is None:
        out.copy_(found)
    else:
        torch.add(found, add, out=out)


@dataclass(frozen=True)
class Layer:
    """A block and its place, with what is computed in between."""

    block: Block
    attention: Attention
    feed_forward: GatedFeedForward
    shape: Shape
    rope: Rope


class Step:
    """The launches of one token, in memory that is theirs: `run` may be recorded.

    token     int64 `[1]`, whose place is
    position  int32 `[1]`, one more behind each run
    logits    float32 `[vocab_size]`, of the last run
    """

    def __init__(
        self, decoder: Decoder, embed: Embedding, head: Head, layers: list[Layer]
    ) -> None:
        config, device = decoder.config, decoder.device
        self._embed, self._head, self._layers = embed, head, layers
        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int32, device=device)
        self._logits = torch.zeros((1, config.vocab_size), device=device)
        self._x = torch.zeros((1, config.n_embd), device=device)
        self._more = torch.zeros((1, config.n_embd), device=device)
        shape = layers[0].shape
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self._qkv = torch.zeros((1, q + 2 * kv), device=device).split((q, kv, kv), 1)
        self._hidden = torch.zeros((1, config.n_ff), device=device)
        self._scratch = Scratch.of(shape, device)
        self._rows = [
            (
                Row.read_by((a.q, a.k, a.v), device), Row.read_by((a.o,), device),
                Row.read_by((f.gate, f.up), device), Row.read_by((f.down,), device),
            )
            for a, f in ((layer.attention, layer.feed_forward) for layer in layers)
        ]  # fmt: skip
        self._last = Row.read_by((head.output,), device)

    @property
    def logits(self) -> Tensor:
        return self._logits[0]

    def turns(self, capacity: int, n_ctx: int) -> dict[Rope, Tensor]:
        """float32 `[capacity, n_rot / 2, 2]` of each RoPE: cosines and sines of every position."""
        return {
            rope: torch.view_as_real(rope.turns(0, capacity, n_ctx)[:, 0]).contiguous()
            for rope in {layer.rope for layer in self._layers}
        }

    def run(self, cache: KVCache, turns: dict[Rope, Tensor]) -> None:
        """Take up `token` at `position` of `cache`, which has room for it."""
        self._x.copy_(self._embed(self.token))
        add = None
        for number, layer in enumerate(self._layers):
            add = self._block(number, layer, add, cache, turns[layer.rope])
        norm = self._head.norm
        self._norm(norm, self._layers[-1].block.after_feed_forward, add, self._last)
        multiply(self._head.output, self._last, self._logits)
        if cap := self._head.cap:
            self._logits.div_(cap).tanh_().mul_(cap)
        self.position += 1

    def _norm(self, norm: RMSNorm, after: RMSNorm | None, add: Tensor | None, row: Row) -> None:
        post = None if after is None else after.weight
        norm_triton(
            self._x, norm.weight, norm.eps, add=add, post=post, out=row.values,
            prepared=row.prepared,
        )  # fmt: skip

    def _block(
        self, number: int, layer: Layer, add: Tensor | None, cache: KVCache, turns: Tensor
    ) -> Tensor | None:
        """Run a block; what is still to be added to x, of what the block before left."""
        block, attention = layer.block, layer.attention
        first, second, third, fourth = self._rows[number]
        before = self._layers[number - 1].block.after_feed_forward if number else None
        self._norm(block.attention_norm, before, add, first)
        for linear, out in zip((attention.q, attention.k, attention.v), self._qkv, strict=True):
            multiply(linear, first, out)
        norms = None
        if attention.norms is not None:
            norms = attention.norms[0].weight, attention.norms[1].weight
        keys, values = cache.layer(attention.layer)
        attend_triton(
            *(part[0] for part in self._qkv), turns, keys, values, self.position, layer.shape,
            self._scratch, second.values, second.prepared, norms,
        )  # fmt: skip
        add = self._into(attention.o, second, block.after_attention)
        self._norm(block.feed_forward_norm, block.after_attention, add, third)
        self._gate(layer.feed_forward, third, fourth)
        return self._into(layer.feed_forward.down, fourth, block.after_feed_forward)

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


def step_of(decoder: Decoder) -> Step | None:
    """The step of `decoder`; None where a part of it is not known here, or is observed."""
    embed, head = decoder.embed, decoder.head
    if not isinstance(embed, Embedding) or not isinstance(head, Head):
        return None
    layers = [
        _layer(decoder, block, rope)
        for block, rope in zip(decoder.blocks, decoder.ropes, strict=True)
    ]
    found = [layer for layer in layers if layer is not None]
    if len(found) != len(layers) or not found or not _plain(head.norm) or _heard(head.output):
        return None
    return Step(decoder, embed, head, found)


def _plain(*norms: Callable[[Tensor], Tensor] | None) -> bool:
    return all(norm is None or isinstance(norm, RMSNorm) for norm in norms)


def _heard(*linears: Linear) -> bool:
    return any(linear.observe is not None for linear in linears)


def _layer(decoder: Decoder, block: object, rope: Rope) -> Layer | None:
    if not isinstance(block, Block):
        return None
    attention, parts = block.attention, block.feed_forward
    if not isinstance(attention, Attention) or not isinstance(parts, GatedFeedForward):
        return None
    norms = (block.attention_norm, block.feed_forward_norm)
    after = (block.after_attention, block.after_feed_forward)
    linears = (attention.q, attention.k, attention.v, attention.o, parts.gate, parts.up, parts.down)
    if not _plain(*norms, *after, *(attention.norms or ())) or _heard(*linears):
        return None
    if attention.rotate not in (rotate_halves, rotate_pairs):
        return None
    config = decoder.config
    shape = Shape(
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
    return Layer(block, attention, parts, shape, rope)
