"""Sums over what a plan writes: by type, and by class of tensors with the error that they got."""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass
class Fidelity:
    """Sums over values of one tensor: of (x - decoded)^2, of x^2, and how many were compared."""

    error: float = 0.0
    square: float = 0.0
    count: int = 0

    def add(self, other: "Fidelity") -> None:
        self.error += other.error
        self.square += other.square
        self.count += other.count

    @property
    def relative_rms(self) -> float | None:
        """The root mean square of the error over that of the values; None where there are none."""
        if not self.count:
            return None
        return math.sqrt(self.error / self.square) if self.square else 0.0


class Counted(Protocol):
    """A tensor as far as sums look at it."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def n_elements(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class TypeTotal:
    """Sums over the tensors of one type; `relative_rms` as in `ClassTotal`."""

    type: str
    tensors: int
    weights: int
    nbytes: int
    relative_rms: float | None = None

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.weights if self.weights else 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "tensors": self.tensors,
            "weights": self.weights,
            "nbytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "relative_rms_error": self.relative_rms,
        }


@dataclass(frozen=True)
class ClassTotal:
    """Sums over the tensors that have one name but for the layer, as `blk.*.attn_q.weight`.

    `types` are those that they have, `relative_rms` the root mean square of what was lost over that
    of the values, `compared` the number of values that it comes from; None and 0 for tensors that
    only moved. `carried` is how many of them are the blocks of the source, bit for bit.
    """

    name: str
    types: tuple[str, ...]
    tensors: int
    weights: int
    nbytes: int
    relative_rms: float | None
    compared: int
    carried: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "types": list(self.types),
            "tensors": self.tensors,
            "weights": self.weights,
            "nbytes": self.nbytes,
            "relative_rms_error": self.relative_rms,
            "compared_weights": self.compared,
            "carried_tensors": self.carried,
        }


def type_totals(
    specs: Sequence[Counted], fidelity: Sequence[Fidelity] | None = None
) -> list[TypeTotal]:
    """Sums by type, largest first."""
    groups = _grouped([spec.type for spec in specs])
    found = []
    for kind, members in groups.items():
        error = _together(fidelity, members)
        found.append(TypeTotal(kind, *_sums(specs, members), error.relative_rms))
    return sorted(found, key=lambda total: -total.nbytes)


def class_totals(
    specs: Sequence[Counted], fidelity: Sequence[Fidelity], carried: Collection[int] = ()
) -> list[ClassTotal]:
    """Sums by class, in the order in which they first stand in the file; `carried` are the numbers
    of those whose blocks are the source's."""
    found = []
    for name, members in classes(specs).items():
        error = _together(fidelity, members)
        types = tuple(dict.fromkeys(specs[i].type for i in members))
        sums, kept = _sums(specs, members), sum(member in carried for member in members)
        found.append(ClassTotal(name, types, *sums, error.relative_rms, error.count, kept))
    return found


def classes(specs: Sequence[Counted]) -> dict[str, list[int]]:
    """The numbers of the tensors of each class, which have one name but for the layer."""
    return _grouped([re.sub(r"\b(blk|layers)\.\d+\.", r"\1.*.", spec.name) for spec in specs])


def _grouped(keys: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return groups


def _sums(specs: Sequence[Counted], members: Sequence[int]) -> tuple[int, int, int]:
    some = [specs[i] for i in members]
    return len(some), sum(s.n_elements for s in some), sum(s.nbytes for s in some)


def _together(fidelity: Sequence[Fidelity] | None, members: Sequence[int]) -> Fidelity:
    total = Fidelity()
    if fidelity is not None:
        for index in members:
            total.add(fidelity[index])
    return total
