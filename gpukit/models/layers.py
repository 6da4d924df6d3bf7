"""The pieces that decoders are put together from; activations are float32. Attention has a file of
its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

from gpukit.models.weights import Linear


@dataclass(frozen=True)
class RMSNorm:
    """x over the root of its mean square along the last dimension, times the weight."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Rope:
    """Rotary position embedding: the turns of each pair of a head's values at each position.

    The angle of pair i at position p is p * base^(-2 i / n_rot) / divisor_i / factor, taken in
    float32 in the order of transformers. With divisors the last roundings may differ, which moves
    an angle by about p * frequency * 2^-22: below 1e-4 radians up to p = 131 072 for frequencies
    below 0.0031 (wavelengths over 2048), which are those with a divisor other than 1.

    Contexts of more than `long[0]` positions have the divisors `long[1]`; what is turned is
    multiplied by `magnitude`.
    """

    def __init__(
        self,
        n_rot: int,
        base: float,
        device: torch.device,
        *,
        factor: float = 1.0,
        divisors: Tensor | None = None,
        long: tuple[int, Tensor] | None = None,
        magnitude: float = 1.0,
    ) -> None:
        exponents = torch.arange(0, n_rot, 2, dtype=torch.float32) / n_rot
        frequencies = (1.0 / base**exponents).to(device)
        self._short = (frequencies if divisors is None else frequencies / divisors) / factor
        self._long_from = None if long is None else long[0]
        self._long = self._short if long is None else frequencies / long[1]
        self._magnitude = magnitude

    def turns(self, first: int, count: int, n_ctx: int) -> Tensor:
        """complex64 `[count, 1, n_rot / 2]`: magnitude * e^(i angle) for the positions from `first`
        on, in a context of `n_ctx`."""
        is_long = self._long_from is not None and n_ctx > self._long_from
        frequencies = self._long if is_long else self._short
        positions = torch.arange(first, first + count, device=frequencies.device)
        angles = positions.to(torch.float32)[:, None, None] * frequencies
        return torch.polar(torch.full_like(angles, self._magnitude), angles)


def rotate_pairs(x: Tensor, turns: Tensor) -> Tensor:
    """`x` `[count, heads, head_dim]` with each pair (2 i, 2 i + 1) turned by its angle."""
    pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)


def rotate_halves(x: Tensor, turns: Tensor) -> Tensor:
    """`x` `[count, heads, head_dim]` with each pair (i, i + n_rot / 2) turned by its angle; values
    behind the first n_rot stay."""
    n = turns.shape[-1]
    pairs = torch.complex(x[..., :n], x[..., n : 2 * n]) * turns
    return torch.cat((pairs.real, pairs.imag, x[..., 2 * n :]), -1)


@dataclass(frozen=True)
class GatedFeedForward:
    """down(activation(gate(x)) * up(x))."""

    gate: Linear
    up: Linear
    down: Linear
    activation: Callable[[Tensor], Tensor] = silu

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)).mul_(self.up(x)))


@dataclass(frozen=True)
class Experts:
    """The sum of some experts, each times its share: those with the highest probabilities of the
    router, which are brought to a sum of 1. An expert runs once for all positions that chose it.
    """

    router: Linear
    experts: tuple[GatedFeedForward, ...]
    used: int

    def __call__(self, x: Tensor) -> Tensor:
        shares, chosen = torch.softmax(self.router(x), -1).topk(self.used)
        shares = shares / shares.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for number in sorted(set(chosen.flatten().tolist())):
            position, place = torch.nonzero(chosen == number, as_tuple=True)
            part = self.experts[number](x[position])
            out.index_add_(0, position, part * shares[position, place, None])
        return out
