"""The pieces that decoders are put together from; activations are float32. Attention has a file of
its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.models.routing import Routing
from gpukit.models.weights import Linear

# Rows that go through a feed forward on the CPU together, or up to twice as many.
TOGETHER = 128


@dataclass(frozen=True)
class RMSNorm:
    """x over the root of its mean square along the last dimension, times the weight."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x, self.weight, self.eps)


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


@dataclass(frozen=True)
class OverHeads:
    """`norm` over the values of all heads at once, of float32 `[count, heads, head_dim]`."""

    norm: RMSNorm

    def __call__(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(1)).view(x.shape)


def unchanged(x: Tensor) -> Tensor:
    """`x`: where others have a norm."""
    return x


class Rotation(Protocol):
    """How the pairs of a head are turned; `dtype` is what comes out."""

    def __call__(self, x: Tensor, turns: Tensor, dtype: torch.dtype = ...) -> Tensor: ...


def rotate_pairs(x: Tensor, turns: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`x` `[count, heads, head_dim]` with each pair (2 i, 2 i + 1) turned by its angle."""
    return kernels.rotate(x, turns, neighbours=True, dtype=dtype)


def rotate_halves(x: Tensor, turns: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`x` `[count, heads, head_dim]` with each pair (i, i + n_rot / 2) turned by its angle; values
    behind the first n_rot stay."""
    return kernels.rotate(x, turns, neighbours=False, dtype=dtype)


@dataclass(frozen=True)
class GatedFeedForward:
    """down of gate(x) and up(x), put together as `kernels.gated` does. Many rows on the CPU go
    some at a time: what is between is a third of all that a prompt needs. Each row's result is the
    same."""

    gate: Linear
    up: Linear
    down: Linear
    activation: kernels.Activation = "silu"

    def __call__(self, x: Tensor) -> Tensor:
        parts = len(x) // TOGETHER
        if parts > 1 and x.device.type == "cpu" and self.gate.observe is None:
            return torch.cat([self._rows(some) for some in x.tensor_split(parts)])
        return self._rows(x)

    def _rows(self, x: Tensor) -> Tensor:
        return self.down(kernels.gated(self.gate(x), self.up(x), self.activation))


@dataclass(frozen=True)
class Experts:
    """The sum of some experts, each times its share: `routing` says which, from the logits of the
    router. An expert runs once for all positions that chose it; `shared` runs for every one, its
    share is the sigmoid of `shared_gate`, and 1 without. The router sees x as `seen` makes it,
    experts as `norm` does.
    """

    router: Linear
    experts: tuple[GatedFeedForward, ...]
    routing: Routing
    shared: GatedFeedForward | None = None
    seen: Callable[[Tensor], Tensor] = unchanged
    norm: Callable[[Tensor], Tensor] = unchanged
    shared_gate: Linear | None = None

    def __call__(self, x: Tensor) -> Tensor:
        shares, chosen = self.routing(self.router(self.seen(x)))
        x = self.norm(x)
        out = torch.zeros_like(x)
        for number in sorted(set(chosen.flatten().tolist())):
            position, place = torch.nonzero(chosen == number, as_tuple=True)
            part = self.experts[number](x[position])
            out.index_add_(0, position, part * shares[position, place, None])
        if self.shared is None:
            return out
        part = self.shared(x)
        if self.shared_gate is not None:
            part = part * torch.sigmoid(self.shared_gate(x))
        return out + part
