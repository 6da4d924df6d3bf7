"""Several adapters made one, as PEFT's `add_weighted_adapter` does it.

Of adapters with deltas s·B·A and weights w, for each module by those that have it:

    cat                 A and B one behind the other: the sum of w·s·B·A, exactly
    svd                 that sum again, cut to a rank
    linear              (Σ √|w·s|·B)·(Σ ±√|w·s|·A), with products of one's B and another's A
    magnitude_prune     as linear, only the largest values of each A and B
    ties                as that, only values of the sign that the sum (or most) of them have
    dare_linear, dare_ties    as linear and ties, values left by chance
    *_svd               the same of s·B·A as a whole, cut to a rank
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from gpukit.adapters.adapter import Adapter
from gpukit.adapters.base import EMBEDDING, canonical
from gpukit.adapters.delta import Delta, LowRank, Replaced
from gpukit.adapters.mixing import METHODS, Combining, Mixer, Sign, split, split_whole
from gpukit.adapters.ties import same_numbers
from gpukit.adapters.values import Numbers, Values
from gpukit.errors import AdapterError, ArgumentError

# The order of modules in a layer as transformers builds it, which chance is drawn in.
_ORDER = (
    "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj",
    "gate_proj", "up_proj", "gate_up_proj", "down_proj",
)  # fmt: skip


@dataclass(frozen=True)
class _Site:
    """Rows of a tensor that adapters add to: `rows` of them from `first` on."""

    tensor: str
    first: int
    rows: int


@dataclass(frozen=True)
class _Part:
    """What one adapter adds there, and the weight that it has."""

    adapter: str
    record: LowRank
    weight: float

    @property
    def turned(self) -> bool:
        """Whether the base has the module the other way round, so that PEFT's A is what stands on
        the left here."""
        name = self.record.b.name.lower()
        return max(map(name.rfind, ("lora_a", "lora_embedding_a"))) > max(
            map(name.rfind, ("lora_b", "lora_embedding_b"))
        )


@dataclass(frozen=True)
class _Combination:
    method: str
    mixer: Mixer
    rank: int
    clamp: float | None
    device: torch.device
    dtype: torch.dtype

    def of(self, parts: Sequence[_Part]) -> tuple[Tensor, Tensor]:
        """B and A of what `parts` make together, as PEFT has them."""
        pairs = [self._read(part) for part in parts]
        scales = [part.record.scale for part in parts]
        weights = [part.weight for part in parts]
        if self.method == "cat":
            return _behind(pairs, weights, scales)
        if self.method == "svd" and self.clamp is None:
            # What a mixer makes of these weights.
            rounded = torch.tensor(weights, dtype=torch.float32).tolist()
            return split(*_behind(pairs, rounded, scales), self.rank)
        if self.mixer.method.whole:
            deltas = [b @ a * scale for (b, a), scale in zip(pairs, scales, strict=True)]
            # Chance goes through the values in the order that the weight has them in.
            turned = parts[0].turned
            mixed = self.mixer([d.t().contiguous() if turned else d for d in deltas], weights)
            return split_whole(mixed.t() if turned else mixed, self.rank, self.clamp)
        factors = [weight * scale for weight, scale in zip(weights, scales, strict=True)]
        # A minus stands with A only: with both it would be a plus.
        roots = [math.sqrt(abs(factor)) for factor in factors]
        signed = [math.copysign(root, factor) for root, factor in zip(roots, factors, strict=True)]
        a = self.mixer([a for _, a in pairs], signed)
        return self.mixer([b for b, _ in pairs], roots), a

    def _read(self, part: _Part) -> tuple[Tensor, Tensor]:
        record = part.record
        b, a = (v.read(self.dtype).to(self.device) for v in (record.b, record.a))
        return (a.t().contiguous(), b.t().contiguous()) if part.turned else (b, a)


def _behind(
    pairs: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float], scales: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Every B beside the other, and every A below, so that B·A is the sum of all w·s·B·A."""
    scaled = [a * w * s for (_, a), w, s in zip(pairs, weights, scales, strict=True)]
    return torch.cat([b for b, _ in pairs], 1), torch.cat(scaled)


def combine(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    method: str,
    *,
    density: float | None = None,
    rank: int | None = None,
    seed: int | None = None,
    majority_sign: Sign = "total",
    clamp: float | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Mapping[str, tuple[Delta, ...]]:
    """The records of one adapter that `adapters` with `weights` make by `method`, one of `METHODS`,
    for each tensor; their values are held in memory, computed in `dtype` on `device`. Copies of the
    base's embedding or head beside deltas of them are records, too, and are read when needed.

    `density`, of methods that prune, is the part of the values that is left, in (0, 1]; `rank` that
    of the result of an SVD, by default the largest of all adapters; `clamp` a quantile that the
    values of an SVD are cut at; `majority_sign` what elects a sign, the "total" of the values or
    their "frequency". With `seed` chance is that of PEFT whose generator was seeded with it when
    the new adapter had been set up (that draws numbers, too); without one it is new each time. One
    adapter alone is linear by every method.

    Two things are not as in PEFT: a module whose weights lie in several tensors of the base is
    pruned tensor by tensor, and a combination whose first adapter is rank-stabilised is not scaled
    by the root of its rank once more. `ArgumentError` for what cannot be asked for; `AdapterError`
    for an adapter that is DoRA, or that replaces or adds anything but B·A, for ranks that differ
    where the method needs one rank, and for values that are not finite.
    """
    Combining(method, density, rank, seed, majority_sign, clamp)  # refuses what cannot be
    _check_weights(adapters, weights)
    for adapter in adapters:
        _check_plain(adapter, adapters[0])
    sites = _sites(adapters, weights)
    method = "linear" if len(adapters) == 1 else method
    largest = max((p.record.rank for parts in sites.values() for p in parts), default=1)
    chance = torch.Generator()
    if seed is None:
        chance.seed()
    else:
        chance.manual_seed(seed)
    mixer = Mixer(METHODS[method], 1.0 if density is None else density, majority_sign, chance)
    how = _Combination(method, mixer, rank or largest, clamp, torch.device(device), dtype)
    found: dict[str, tuple[Delta, ...]] = _copies(adapters)
    for site in sorted(sites, key=_order):
        parts = sites[site]
        if method != "cat" and not how.mixer.method.whole:
            _check_ranks(site, parts, method)
        found[site.tensor] = (*found.get(site.tensor, ()), _record(site, parts, how))
    return found


def _record(site: _Site, parts: Sequence[_Part], how: _Combination) -> LowRank:
    b, a = how.of(parts)
    if parts[0].turned:
        b, a = a.t(), b.t()
    name = f"{how.method} of {' and '.join(part.adapter for part in parts)} for {site.tensor}"
    path = parts[0].record.a.path
    return LowRank(_held(name, path, b), _held(name, path, a), 1.0, site.first)


def _held(name: str, path: Path, tensor: Tensor) -> Values:
    values = tensor.contiguous().cpu().numpy()

    def fetch(first: int, count: int) -> Numbers:
        return values[first : first + count]

    kind = "F64" if tensor.dtype is torch.float64 else "F32"
    return Values(name, path, kind, values.shape, fetch)


def _sites(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[_Site, list[_Part]]:
    """What each adapter does to each part of a tensor."""
    found: dict[_Site, list[_Part]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for tensor, records in adapter.deltas.items():
            for record in _low_rank(adapter, tensor, records):
                site = _Site(tensor, record.first, record.rows)
                found.setdefault(site, []).append(_Part(adapter.name, record, weight))
    _check_apart(found)
    return found


def _copies(adapters: Sequence[Adapter]) -> dict[str, tuple[Delta, ...]]:
    """The copies of the base's embedding and head that PEFT saves beside deltas of them."""
    found: dict[str, tuple[str, Replaced]] = {}
    for adapter in adapters:
        for tensor, records in adapter.deltas.items():
            for record in records:
                if not isinstance(record, Replaced):
                    continue
                owner, copy = found.setdefault(tensor, (adapter.name, record))
                if not same_numbers(copy.values, record.values):
                    raise AdapterError(
                        f"{owner} and {adapter.name} come with two different {tensor}; merge one "
                        "of them"
                    )
    return {tensor: (copy,) for tensor, (_, copy) in found.items()}


def _low_rank(adapter: Adapter, tensor: str, records: Sequence[Delta]) -> Iterator[LowRank]:
    beside = any(isinstance(record, LowRank) for record in records)
    for record in records:
        if isinstance(record, Replaced) and beside:
            continue  # see `_copies`
        if not isinstance(record, LowRank):
            raise AdapterError(
                f"{adapter.name} replaces {tensor} or adds to it otherwise than by B·A; methods "
                "combine B·A only: merge it alone, or without --combine"
            )
        if record.magnitude is not None:
            raise AdapterError(
                f"{adapter.name} is DoRA at {tensor}; lengths cannot be combined: merge it alone, "
                "or without --combine"
            )
        yield record


def _check_apart(sites: Mapping[_Site, Sequence[_Part]]) -> None:
    """`AdapterError` where adapters cut a tensor differently."""
    ordered = sorted(sites, key=lambda site: (site.tensor, site.first, site.rows))
    for one, other in pairwise(ordered):
        if one.tensor == other.tensor and other.first < one.first + one.rows:
            raise AdapterError(
                f"{sites[one][0].adapter} and {sites[other][0].adapter} have rows {one.first} and "
                f"{other.first} of {one.tensor} in matrices of {one.rows} and {other.rows} rows; "
                "only the same modules can be combined"
            )


def _check_weights(adapters: Sequence[Adapter], weights: Sequence[float]) -> None:
    if not adapters or len(adapters) != len(weights):
        raise ArgumentError(f"{len(adapters)} adapters with {len(weights)} weights; each needs one")
    for adapter, weight in zip(adapters, weights, strict=True):
        if not math.isfinite(weight):
            raise ArgumentError(f"{adapter.name}: a weight of {weight}; give a finite number")


def _check_plain(adapter: Adapter, first: Adapter) -> None:
    """`AdapterError` for an adapter that changes more than numbers, or another head than others."""
    if adapter.vocabulary is not None:
        raise AdapterError(
            f"{adapter.name} resizes the vocabulary to {adapter.vocabulary} tokens; methods "
            "combine B·A only: merge it alone, or without --combine"
        )
    if adapter.added != first.added:
        raise AdapterError(
            f"{first.name} and {adapter.name} disagree about whether head and embedding are one; "
            "merge one of them"
        )


def _check_ranks(site: _Site, parts: Sequence[_Part], method: str) -> None:
    first = parts[0]
    for part in parts:
        if part.record.rank != first.record.rank:
            others = [name for name in ("cat", "svd", f"{method}_svd") if name in METHODS]
            raise AdapterError(
                f"{first.adapter} has rank {first.record.rank} at {site.tensor}, {part.adapter} "
                f"{part.record.rank}; {method} needs one rank: use {' or '.join(others)}"
            )


def _order(site: _Site) -> tuple[int, int, str, int]:
    """Where a module stands in the model: the embedding, layer by layer, whatever follows."""
    name = canonical(site.tensor)
    match = re.search(r"\blayers\.(\d+)\.", name)
    layer = int(match[1]) if match else -1 if EMBEDDING in name else 1 << 31
    module = name.split(".")[-2] if "." in name else name
    within = _ORDER.index(module) if module in _ORDER else len(_ORDER)
    return layer, within, name, site.first
