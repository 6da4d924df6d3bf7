"""Several tensors of one shape made one: the methods of merging task vectors, as PEFT has them.

A method may first prune each tensor, to the largest values or by chance (DARE, which scales up what
is left), and may let the values elect a sign and leave out those of the other one (TIES).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gpukit.errors import ArgumentError, did_you_mean

Sign = Literal["total", "frequency"]
SIGNS: tuple[Sign, ...] = ("total", "frequency")


@dataclass(frozen=True)
class Method:
    """How tensors are mixed: what `prunes` them, whether they elect a sign, and whether what is
    mixed are whole deltas, which are then split again by a singular value decomposition."""

    prunes: Literal["magnitude", "chance"] | None = None
    elects: bool = False
    whole: bool = False


# By the names that PEFT gives them; `cat` mixes nothing.
METHODS = {
    "linear": Method(),
    "cat": Method(),
    "svd": Method(whole=True),
    "ties": Method("magnitude", elects=True),
    "ties_svd": Method("magnitude", elects=True, whole=True),
    "dare_linear": Method("chance"),
    "dare_linear_svd": Method("chance", whole=True),
    "dare_ties": Method("chance", elects=True),
    "dare_ties_svd": Method("chance", elects=True, whole=True),
    "magnitude_prune": Method("magnitude"),
    "magnitude_prune_svd": Method("magnitude", whole=True),
}


@dataclass(frozen=True)
class Combining:
    """What may be asked for when adapters are combined, as `combine.combine` says it.

    `ArgumentError` for an unknown method, and for settings that it has no use for or that are out
    of range.
    """

    method: str
    density: float | None = None
    rank: int | None = None
    seed: int | None = None
    majority_sign: Sign = "total"
    clamp: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ArgumentError(
                f"no method {self.method} to combine adapters{did_you_mean(self.method, METHODS)}; "
                f"there are {', '.join(METHODS)}"
            )
        if self.majority_sign not in SIGNS:
            raise ArgumentError(f"no majority {self.majority_sign}; there are {', '.join(SIGNS)}")
        self._check_chance()
        self._check_split()

    @property
    def is_random(self) -> bool:
        """Whether each run makes something else."""
        return METHODS[self.method].prunes == "chance" and self.seed is None

    def _check_chance(self) -> None:
        prunes, density = METHODS[self.method].prunes, self.density
        if prunes is not None and density is None:
            raise ArgumentError(
                f"{self.method} prunes: give the density, the part of the values to keep"
            )
        if prunes is None and density is not None:
            raise ArgumentError(f"{self.method} prunes nothing; leave the density {density} out")
        if density is not None and not 0 < density <= 1:
            raise ArgumentError(f"a density of {density}; it must be over 0 and at most 1")
        if self.seed is not None and prunes != "chance":
            raise ArgumentError(
                f"{self.method} leaves nothing to chance; leave the seed {self.seed} out"
            )

    def _check_split(self) -> None:
        for what, value in (("rank", self.rank), ("clamp", self.clamp)):
            if value is not None and not METHODS[self.method].whole:
                raise ArgumentError(f"{self.method} makes no SVD; leave the {what} {value} out")
        if self.rank is not None and self.rank < 1:
            raise ArgumentError(f"a rank of {self.rank}; it must be 1 or more")
        if self.clamp is not None and not 0 <= self.clamp <= 1:
            raise ArgumentError(f"a clamp at the quantile {self.clamp}; it must be within 0 and 1")


@dataclass(frozen=True)
class Mixer:
    """A method with its settings: the part of values that pruning leaves, what elects the sign (the
    sum of the values, or their number), and where chance comes from, drawn on the CPU."""

    method: Method
    density: float = 1.0
    sign: Sign = "total"
    chance: torch.Generator | None = None

    def __call__(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The sum of `tensors`, of one shape and dtype, each times its weight; where a sign is
        elected, the mean of those values that have it."""
        pruned = torch.stack([self._pruned(tensor) for tensor in tensors])
        # PEFT holds weights in float32 whatever the tensors are.
        factors = torch.tensor(weights, dtype=torch.float32, device=pruned.device)
        weighted = pruned * factors.view(-1, *(1,) * (pruned.ndim - 1))
        if not self.method.elects:
            return weighted.sum(0)
        signs = pruned.sign()
        votes = pruned.sum(0) if self.sign == "total" else signs.sum(0)
        elected = signs == torch.where(votes >= 0, 1, -1)
        return (weighted * elected).sum(0) / elected.sum(0).clamp(min=1)

    def _pruned(self, tensor: Tensor) -> Tensor:
        if self.method.prunes is None or self.density == 1:
            return tensor
        if self.method.prunes == "chance":
            each = torch.full(tensor.shape, self.density, dtype=tensor.dtype)
            kept = torch.bernoulli(each, generator=self.chance).to(tensor.device)
            return tensor * kept / self.density
        flat = tensor.reshape(-1)
        largest = flat.abs().topk(int(self.density * len(flat))).indices
        kept = torch.zeros_like(flat).index_fill_(0, largest, 1)
        return tensor * kept.view(tensor.shape)


def split(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best B and A of rank `rank` at most for the product of `b` `[rows, r]` and `a`
    `[r, width]`, computed in float64 without forming it; their dtype is that of `b`."""
    left, inner_left = torch.linalg.qr(b.to(torch.float64))
    right, inner_right = torch.linalg.qr(a.to(torch.float64).t())
    u, s, v = torch.linalg.svd(inner_left @ inner_right.t(), full_matrices=False)
    found_b, found_a = left @ (u * s)[:, :rank], v[:rank] @ right.t()
    return found_b.to(b.dtype), found_a.to(b.dtype)


def split_whole(delta: Tensor, rank: int, clamp: float | None) -> tuple[Tensor, Tensor]:
    """B and A of rank `rank` at most for the matrix `delta`. With `clamp` both are cut at that
    quantile of all their values."""
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    b, a = (u * s)[:, :rank], v[:rank]
    if clamp is not None:
        most = quantile(torch.cat((b.flatten(), a.flatten())), clamp)
        b, a = b.clamp(-most, most), a.clamp(-most, most)
    return b, a


def quantile(values: Tensor, part: float) -> Tensor:
    """The value below which `part` of `values` lie, between two of them by their distance;
    torch.quantile, which takes 16 million values at most, for any number."""
    at = torch.tensor(part, dtype=values.dtype) * (len(values) - 1)
    low = int(at.floor())
    ordered = values.sort().values
    first, second = ordered[low], ordered[min(low + 1, len(values) - 1)]
    return torch.lerp(first, second, (at - low).to(values.device))
