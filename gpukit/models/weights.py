"""Weights as a file holds them: rows in blocks, taken by GGUF name and checked on the way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from types import MappingProxyType

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.errors import GGUFError

# The one type that may have scales beside its blocks, in a tensor of its own.
SCALED = "NVFP4"


@dataclass(frozen=True)
class Weight:
    """A matrix in blocks: uint8 `[rows, row_bytes]` of `type`, rows of `width` values.

    A tensor of one dimension is one row. What blocks say is multiplied by `scale`, one number for
    all rows or, float32 `[n]`, one for each of as many equal parts of them.
    """

    blocks: Tensor
    type: str
    width: int
    scale: Tensor | None = None

    def rows(self, ids: Tensor) -> Tensor:
        """float32 `[len(ids), width]`: some rows, decoded."""
        found = kernels.dequantize(self.blocks[ids], self.type)
        if self.scale is None:
            return found
        each = ids.div(len(self.blocks) // len(self.scale), rounding_mode="floor")
        return found * self.scale[each.to(self.scale.device)][:, None]

    def product(self, x: Tensor) -> Tensor:
        """float32 `[..., rows]`: x `[..., width]` times the transpose."""
        out = kernels.matmul(x, self.blocks, self.type)
        if self.scale is None:
            return out
        return out * self.scale.repeat_interleave(len(self.blocks) // len(self.scale))

    def part(self, first: int, count: int) -> "Weight":
        """Some neighbouring rows, for tensors that hold several matrices; shares the memory."""
        scale = self.scale
        if scale is not None and len(scale) > 1:
            each = len(self.blocks) // len(scale)
            scale = scale[first // each : (first + count - 1) // each + 1]
        return Weight(self.blocks[first : first + count], self.type, self.width, scale)


@dataclass(frozen=True)
class Pair:
    """scale * B(A x), what a low-rank adapter adds to the product of x with rows of a tensor: those
    from `first` on, as many as `b` has. `a` is float32 `[rank, width]`, `b` `[rows, rank]`. With
    `factors` `[rows]` the sum is then multiplied, each row by its own."""

    a: Tensor
    b: Tensor
    scale: float
    first: int = 0
    factors: Tensor | None = None

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Change `out`, float32 `[..., rows of all]`, which is what x `[..., width]` has become."""
        part = out[..., self.first : self.first + len(self.b)]
        part += (x @ self.a.T @ self.b.T) * self.scale  # the order of llama.cpp
        if self.factors is not None:
            part *= self.factors

    def add_to_rows(self, out: Tensor, ids: Tensor) -> None:
        """The same for rows of the whole that were looked up: float32 `[len(ids), width]`."""
        out += (self.b[ids] @ self.a) * self.scale
        if self.factors is not None:
            out *= self.factors[ids, None]

    def within(self, site: "Site") -> "Pair | None":
        """What concerns the rows of `site`, counted from its first; None where that is nothing."""
        begin, end = self.first, self.first + len(self.b)
        start, stop = max(begin, site.first), min(end, site.first + site.rows)
        if start >= stop:
            return None
        rows = slice(start - begin, stop - begin)
        factors = None if self.factors is None else self.factors[rows]
        return replace(self, b=self.b[rows], first=start - site.first, factors=factors)


@dataclass(frozen=True)
class Site:
    """Where the weights of a linear map lie: `rows` rows of tensor `name` from `first` on.

    `matrices` is how many maps of so many rows the tensor has, each with inputs of its own.
    """

    name: str
    first: int
    rows: int
    matrices: int = 1


def with_scales(found: Mapping[str, Weight]) -> dict[str, Weight]:
    """`found` with the scales that are beside weights in NVFP4 as a part of them, without those for
    what they are multiplied with, which nothing here rounds."""
    weights = dict(found)
    for name, weight in found.items():
        stem = name.removesuffix(".weight")
        if weight.type != SCALED or stem == name:
            continue
        weights.pop(f"{stem}.input_scale", None)
        scale = weights.pop(f"{stem}.scale", None)
        if scale is not None:
            factors = scale.rows(torch.tensor([0], device=scale.blocks.device))[0]
            weights[name] = replace(weight, scale=factors)
    return weights


# Hears of each input of a linear map before the product: the rows that it meets, and float32
# `[..., width]`, which it may not change.
Observer = Callable[[Site, Tensor], None]


@dataclass(frozen=True)
class Linear:
    """x @ W^T + b with W in blocks, the rows at `site`; `observe` hears of every x, and each of
    `pairs` adds to the product."""

    weight: Weight
    site: Site
    bias: Tensor | None = None
    observe: Callable[[Tensor], None] | None = None
    pairs: tuple[Pair, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """float32 `[..., rows]` of float32 `[..., width]`."""
        if self.observe is not None:
            self.observe(x)
        out = self.weight.product(x)
        for pair in self.pairs:
            pair.add_to(out, x)
        return out if self.bias is None else out + self.bias


@dataclass(frozen=True)
class Embedding:
    """The rows of tensor `name` by their numbers, with what `pairs` of all its rows add, times
    `factor`."""

    weight: Weight
    name: str
    pairs: tuple[Pair, ...] = ()
    factor: float = 1.0

    def __call__(self, ids: Tensor) -> Tensor:
        """float32 `[count, width]` of int64 `[count]`."""
        out = self.weight.rows(ids)
        for pair in self.pairs:
            pair.add_to_rows(out, ids)
        return out if self.factor == 1.0 else out * self.factor


class Weights:
    """The weights of a file by name; each is taken with the shape that it must have.

    Whatever a decoder computes with is made here, so it knows the name and rows that it has in the
    file. `observe` hears of the inputs of linear maps; `pairs` are what adapters add to them, by
    the names of tensors. `GGUFError`, with both numbers, for a weight that is missing or has
    another shape.
    """

    def __init__(
        self,
        found: Mapping[str, Weight],
        observe: Observer | None = None,
        pairs: Mapping[str, Sequence[Pair]] = MappingProxyType({}),
    ) -> None:
        self._found = found
        self._taken: set[str] = set()
        self._observe = observe
        self._pairs = pairs

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def matrix(self, name: str, rows: int, width: int) -> Weight:
        """The weight `name`, `[rows, width]`."""
        weight = self._found.get(name)
        if weight is None:
            raise GGUFError(f"{name} is missing; the file is no whole model")
        found = (weight.blocks.shape[0], weight.width)
        if found != (rows, width):
            raise GGUFError(
                f"{name} has {found[0]} rows of {found[1]}, the metadata say {rows} of {width}"
            )
        self._taken.add(name)
        return weight

    def vector(self, name: str, width: int) -> Tensor:
        """The weight `name` decoded: float32 `[width]`."""
        return self.matrix(name, 1, width).rows(torch.tensor([0]))[0]

    def embedding(self, name: str, rows: int, width: int) -> Embedding:
        """`name`.weight as rows to be looked up."""
        weight = self.matrix(f"{name}.weight", rows, width)
        return Embedding(weight, f"{name}.weight", tuple(self._pairs.get(f"{name}.weight", ())))

    def linear(self, name: str, rows: int, width: int) -> Linear:
        """`name`.weight with `name`.bias where there is one."""
        bias = self.vector(f"{name}.bias", rows) if f"{name}.bias" in self else None
        weight, site = self.matrix(f"{name}.weight", rows, width), Site(f"{name}.weight", 0, rows)
        return Linear(weight, site, bias, self._heard_at(site), self._pairs_at(site))

    def fused(self, name: str, counts: Sequence[int], width: int) -> tuple[Linear, ...]:
        """`name`.weight as maps of so many rows each, one behind the other, all of one input: the
        observer hears of it once, for the whole."""
        whole = Site(f"{name}.weight", 0, sum(counts))
        first, *others = self._parts(whole, counts, width)
        return (replace(first, observe=self._heard_at(whole)), *others)

    def experts(self, name: str, count: int, rows: int, width: int) -> tuple[Linear, ...]:
        """`name`.weight as `count` maps of `rows` rows, each of an input of its own, with rows of
        `name`.bias where there is one."""
        parts = self._parts(Site(f"{name}.weight", 0, count * rows), [rows] * count, width)
        sites = [replace(part.site, matrices=count) for part in parts]
        biases: Sequence[Tensor | None] = [None] * count
        if f"{name}.bias" in self:
            found = self.matrix(f"{name}.bias", count, rows)
            biases = list(found.rows(torch.arange(count, device=found.blocks.device)))
        return tuple(
            replace(part, site=site, bias=bias, observe=self._heard_at(site))
            for part, site, bias in zip(parts, sites, biases, strict=True)
        )

    def fused_experts(
        self, name: str, count: int, counts: Sequence[int], width: int
    ) -> tuple[tuple[Linear, ...], ...]:
        """`name`.weight as the maps that `fused` gives, `count` times, each of another input."""
        each, several = sum(counts), len(counts)
        parts = self._parts(Site(f"{name}.weight", 0, count * each), [*counts] * count, width)
        wholes = [Site(f"{name}.weight", n * each, each, count) for n in range(count)]
        return tuple(
            (replace(parts[n * several], observe=self._heard_at(whole)),
             *parts[n * several + 1 : (n + 1) * several])
            for n, whole in enumerate(wholes)
        )  # fmt: skip

    def _parts(self, whole: Site, counts: Sequence[int], width: int) -> list[Linear]:
        weight = self.matrix(whole.name, whole.rows, width)
        ends = accumulate(counts)
        sites = [Site(whole.name, end - n, n) for end, n in zip(ends, counts, strict=True)]
        return [
            Linear(weight.part(site.first, site.rows), site, pairs=self._pairs_at(site))
            for site in sites
        ]

    def _pairs_at(self, site: Site) -> tuple[Pair, ...]:
        parts = (pair.within(site) for pair in self._pairs.get(site.name, ()))
        return tuple(part for part in parts if part is not None)

    def _heard_at(self, site: Site) -> Callable[[Tensor], None] | None:
        return None if self._observe is None else partial(self._observe, site)

    def check_all_taken(self) -> None:
        """`GGUFError` for weights that nothing has taken: without them another model would run."""
        left = sorted(self._found.keys() - self._taken)
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise GGUFError(f"{left[0]}{more}: gpukit has no use for it in this architecture")
