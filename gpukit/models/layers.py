"""The pieces that decoders are put together from; activations are float32."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from gpukit.models.cache import KVCache
from gpukit.models.weights import Linear


@dataclass(frozen=True)
class RMSNorm:
    """x over the root of its mean square along the last dimension, times the weight."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Rope:
    """Rotary position embedding of neighbouring pairs, the form that GGUF's Llamas are in.

    The angle of pair i at position p is p * base^(-2 i / head_dim) / divisor_i / factor, taken in
    float32 in the order of transformers. With divisors the last roundings may differ, which moves
    an angle by about p * frequency * 2^-22: below 1e-4 radians up to p = 131 072 for frequencies
    below 0.0031 (wavelengths over 2048), which are those with a divisor other than 1.
    """

    def __init__(
        self,
        head_dim: int,
        base: float,
        device: torch.device,
        *,
        factor: float = 1.0,
        divisors: Tensor | None = None,
    ) -> None:
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        frequencies = (1.0 / base**exponents).to(device)
        if divisors is not None:
            frequencies = frequencies / divisors
        self._frequencies = frequencies / factor

    def turns(self, first: int, count: int) -> Tensor:
        """complex64 `[count, 1, head_dim / 2]`: e^(i angle) for the positions from `first` on."""
        positions = torch.arange(first, first + count, device=self._frequencies.device)
        angles = positions.to(torch.float32)[:, None, None] * self._frequencies
        return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """`x` `[count, heads, head_dim]` with each pair (2 i, 2 i + 1) turned by its angle."""
    pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention: float32 `[count, heads * head_dim]`.

    q `[count, heads, head_dim]` are the last `count` positions of k and v `[kv_heads, length,
    head_dim]`; each kv head is shared by heads / kv_heads neighbours.
    """
    count, heads, head_dim = q.shape
    kv_heads, length, _ = k.shape
    # The kv heads are the batch, those that share one are its heads: nothing is copied.
    shape = (kv_heads, heads // kv_heads, length, head_dim)
    q = q.view(count, kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    mask = None
    if 1 < count < length:
        mask = torch.ones(count, length, dtype=torch.bool, device=q.device).tril(length - count)
    out = scaled_dot_product_attention(
        q, k[:, None].expand(shape), v[:, None].expand(shape), mask,
        is_causal=1 < count == length, scale=scale,
    )  # fmt: skip
    return out.permute(2, 0, 1, 3).reshape(count, heads * head_dim)


@dataclass(frozen=True)
class Attention:
    """Attention with rotated queries and keys; `layer` is its place in the cache."""

    layer: int
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    head_dim: int
    scale: float

    def __call__(self, x: Tensor, turns: Tensor, cache: KVCache) -> Tensor:
        heads = (len(x), -1, self.head_dim)
        q = rotate(self.q(x).view(heads), turns)
        k = rotate(self.k(x).view(heads), turns)
        keys, values = cache.extend(self.layer, k, self.v(x).view(heads))
        return self.o(attend(q, keys, values, self.scale))


@dataclass(frozen=True)
class GatedFeedForward:
    """down(activation(gate(x)) * up(x))."""

    gate: Linear
    up: Linear
    down: Linear
    activation: Callable[[Tensor], Tensor] = silu

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)).mul_(self.up(x)))
