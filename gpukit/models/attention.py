"""Causal attention over the cache: shared heads, and a window and a cap where a layer has them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import gpukit_kernels as kernels
from gpukit.models.cache import KVCache, Unrelated
from gpukit.models.layers import Rotation
from gpukit.models.weights import Linear


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention: float32 `[count, heads * head_dim]`.

    q `[count, heads, head_dim]` are the last `count` positions of k and v `[kv_heads, length,
    head_dim]`; each kv head is shared by heads / kv_heads neighbours. With a window a position sees
    that many, itself included; with a cap a score x becomes cap * tanh(x / cap). With `sinks`
    `[heads]` a share goes to nothing, as to one more key with this score.
    """
    count, heads, head_dim = q.shape
    if window:
        # What no position sees any more.
        gone = max(k.shape[1] - count - window + 1, 0)
        k, v = k[:, gone:], v[:, gone:]
    kv_heads, length, _ = k.shape
    # The kv heads are the batch, those that share one are its heads: nothing is copied.
    q = q.view(count, kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    mask = _mask(count, length, window, q.device)
    if cap or sinks is not None:
        each = sinks.view(kv_heads, -1, 1, 1) if sinks is not None else [None] * kv_heads
        parts = zip(q, k, v, each, strict=True)
        out = torch.stack([_by_scores(*head, mask, scale, cap) for head in parts])
    else:
        shape = (kv_heads, heads // kv_heads, length, head_dim)
        whole = mask is not None and count == length <= (window or length)
        out = scaled_dot_product_attention(
            q, k[:, None].expand(shape), v[:, None].expand(shape), None if whole else mask,
            is_causal=whole, scale=scale,
        )  # fmt: skip
    return out.permute(2, 0, 1, 3).reshape(count, heads * head_dim)


def _mask(count: int, length: int, window: int, device: torch.device) -> Tensor | None:
    """bool `[count, length]`: what each of the last positions sees; None where that is all."""
    if count == 1:
        return None
    mask = torch.ones(count, length, dtype=torch.bool, device=device).tril(length - count)
    return mask.triu(length - count - window + 1) if 0 < window < length else mask


def _by_scores(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    mask: Tensor | None,
    scale: float,
    cap: float,
) -> Tensor:
    """Attention of the heads that share a kv head, so that only their scores are in memory; `sinks`
    are `[heads, 1, 1]`."""
    scores = (q @ k.transpose(0, 1)).mul_(scale / cap if cap else scale)
    if cap:
        scores = scores.tanh_().mul_(cap)
    if mask is not None:
        scores = scores.masked_fill_(~mask, float("-inf"))
    if sinks is None:
        return torch.softmax(scores, -1) @ v
    top = torch.maximum(scores.amax(-1, keepdim=True), sinks)
    shares = scores.sub_(top).exp_()
    return shares @ v / (shares.sum(-1, keepdim=True) + (sinks - top).exp_())


@dataclass(frozen=True)
class Growth:
    """What multiplies the queries of far positions: 1 + by * log(1 + position // length)."""

    by: float
    length: int

    def __call__(self, positions: Tensor) -> Tensor:
        """float32 `[count, 1, 1]` of whole numbers `[count]`."""
        times = torch.floor(positions / self.length)
        return (1 + self.by * torch.log(1 + times))[:, None, None]


@dataclass(frozen=True)
class Attention:
    """Attention with rotated queries and keys; `layer` is its place in the cache.

    `rotate` turns the pairs of a head, `norms` go over each head of queries and keys before, and
    `growth` multiplies queries; `sinks` float32 `[heads]` as `attend` has them. If it is `gated`,
    `q` has behind the queries of each head as many values whose sigmoids multiply what comes out.
    """

    layer: int
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    head_dim: int
    scale: float
    rotate: Rotation
    window: int = 0
    cap: float = 0.0
    norms: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None
    growth: Growth | None = None
    sinks: Tensor | None = None
    gated: bool = False

    def __call__(self, x: Tensor, turns: Tensor, cache: KVCache | Unrelated) -> Tensor:
        heads = (len(x), -1, self.head_dim)
        q, k = self.q(x).view(heads), self.k(x).view(heads)
        gate = None
        if self.gated:
            q, gate = q[:, ::2], q[:, 1::2]
        if self.norms is not None:
            q, k = self.norms[0](q), self.norms[1](k)
        if self.growth is not None:
            q = q * self.growth(cache.positions(len(x), x.device))
        q, k = self.rotate(q, turns, cache.dtype), self.rotate(k, turns, cache.dtype)
        found = cache.taken(self.layer, q, k, self.v(x).view(heads))
        out = attended(found, self.scale, self.window, self.cap, self.sinks)
        return self.o(out if gate is None else out * torch.sigmoid(gate.flatten(1)))


def attended(
    found: tuple[Tensor, Tensor, Tensor],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """float32 `[all positions, heads * head_dim]` of what a cache has found: queries, keys and
    values of sequences; the others as `attend` has them."""
    if found[1].dtype is not torch.float32:
        return kernels.attention(*found, scale, window, cap, sinks).flatten(0, 1)
    each = [
        attend(q, k.transpose(0, 1), v.transpose(0, 1), scale, window, cap, sinks)
        for q, k, v in zip(*found, strict=True)
    ]
    return each[0] if len(each) == 1 else torch.cat(each)
