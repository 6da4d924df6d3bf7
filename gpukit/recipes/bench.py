"""Times the kernels of each type on one device, beside a copy in the same run."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

import gpukit_kernels as kernels
from gpukit.errors import ArgumentError, did_you_mean
from gpukit_kernels import QuantType
from gpukit_kernels.devices import Device

WHATS = ("quantize", "dequantize")
WIDTH = 4096
# Weights of a timed call: enough for a GPU to be busy; a CPU's tiles and caches are full with less.
WEIGHTS = {"cuda": 1 << 28, "cpu": 1 << 24}


@dataclass(frozen=True)
class Rate:
    """How fast one type goes: `seconds` for `weights`, which move `nbytes`, read and written.

    `copy_share` is its part of what a copy of the values moves in a second, `issue_share` of the
    device's float32 operations a second what the encoder's own operations take; None where that
    is not known.
    """

    type: str
    backend: str
    weights: int
    nbytes: int
    seconds: float
    copy_share: float
    issue_share: float | None

    @property
    def weights_per_second(self) -> float:
        return self.weights / self.seconds

    @property
    def bytes_per_second(self) -> float:
        return self.nbytes / self.seconds

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "weights_per_second": self.weights_per_second,
            "bytes_per_second": self.bytes_per_second,
        }


@dataclass(frozen=True)
class Bench:
    """A device, what a copy moves there (bytes read and written a second), and what is timed."""

    what: str
    device: torch.device
    weights: int
    copy: float
    types: tuple[QuantType, ...]

    def rates(self) -> Iterator[Rate]:
        """The rate of each type, one after the other."""
        for row in self.types:
            yield self._rate(row)

    def as_json(self) -> dict[str, Any]:
        """All rates, which are measured now, as one JSON-ready document."""
        return {
            "what": self.what,
            "device": str(self.device),
            "copy_bytes_per_second": self.copy,
            "rates": [rate.as_json() for rate in self.rates()],
        }

    def _rate(self, row: QuantType) -> Rate:
        x = _values(self.weights, self.device)
        blocked = self.weights // row.block * row.nbytes
        if self.what == "quantize":
            backend = kernels.plan_backend(row, 1 << 40, self.device)
            needed = _importance(row, x)
            seconds = kernels.timed(
                lambda: kernels.quantize(x, row, needed, backend=backend), self.device
            )
            moved = x.nbytes + blocked
        else:
            backend = "triton" if self.device.type == "cuda" else "eager"
            blocks = _blocks(row, x)
            seconds = kernels.timed(lambda: kernels.dequantize(blocks, row), self.device)
            moved = blocked + 4 * self.weights
        issue = kernels.issue_rate(self.device) if self.what == "quantize" else None
        each = kernels.operations(row, row.facts.needs_importance) if issue else 0.0
        share = each * self.weights / seconds / issue if issue else None
        return Rate(
            row.name, backend, self.weights, moved, seconds, moved / seconds / self.copy, share
        )


def plan_bench(
    what: str, types: Sequence[str] = (), device: Device = "auto", weights: int | None = None
) -> Bench:
    """What will be timed; `ArgumentError` for what is no type, device or work.

    No `types` means all: those that can be written for `quantize`.
    """
    if what not in WHATS:
        hint = did_you_mean(what, WHATS)
        raise ArgumentError(f"{what!r} cannot be timed; known: {', '.join(WHATS)}{hint}")
    place = kernels.device(device)
    rows = [kernels.by_name(name) for name in types] or list(kernels.QUANTS.values())
    if what == "quantize":
        if types and (lacking := [row.name for row in rows if not row.encodable]):
            raise ArgumentError(f"{lacking[0]} can only be read; time it with dequantize")
        rows = [row for row in rows if row.encodable]
    count = max((weights or WEIGHTS[place.type]) // WIDTH, 1) * WIDTH
    x = _values(count, place)
    target = torch.empty_like(x)
    copied = kernels.timed(lambda: target.copy_(x), place)
    return Bench(what, place, count, 2 * x.nbytes / copied, tuple(rows))


def _values(weights: int, place: torch.device) -> torch.Tensor:
    """BF16 `[weights / WIDTH, WIDTH]`, gaussian."""
    random = torch.Generator(device=place).manual_seed(0)
    x = torch.empty(weights // WIDTH, WIDTH, dtype=torch.bfloat16, device=place)
    return x.normal_(0, 0.02, generator=random)


def _importance(row: QuantType, x: torch.Tensor) -> torch.Tensor | None:
    """An importance of 1 for each column where `row` has no blocks without."""
    return torch.ones(x.shape[-1], device=x.device) if row.facts.needs_importance else None


def _blocks(row: QuantType, x: torch.Tensor) -> torch.Tensor:
    """Blocks with as many weights as `x`; of a type that is only read, of random bytes."""
    rows, width = x.shape
    if row.encodable:
        # A part, repeated: encoding may take a hundred times as long as what is timed.
        part = kernels.quantize(x[: max(rows // 64, 1)], row, _importance(row, x))
        return part.repeat(-(-rows // len(part)), 1)[:rows].contiguous()
    random = torch.Generator().manual_seed(0)
    size = (rows, row.row_bytes(width))
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=random).to(x.device)
