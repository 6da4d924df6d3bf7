"""What merging did to a model: how large the change is, and how much of it the new types keep."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from gpukit.planning.totals import Counted, classes

# Below it the direction of a change is mostly that of rounding: less than half of its square is the
# adapter's.
FAINT = 0.7


@dataclass
class Change:
    """Sums over values of one tensor: squares of the weights W, of the deltas Δ, of what they do to
    the stored values, D = Q(W + Δ) - Q(W), products of D and Δ, and how many were looked at."""

    weight: float = 0.0
    delta: float = 0.0
    stored: float = 0.0
    along: float = 0.0
    count: int = 0

    def add(self, other: "Change") -> None:
        for field in fields(self):
            name = field.name
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True)
class ChangeTotal:
    """The tensors of one class that adapters changed, `types` those that they are stored in.

    `relative` is ‖Δ‖ / ‖W‖; `kept` is ‖D‖ / ‖Δ‖, where D is what the stored values change by, and
    `direction` the cosine of the angle between the two; None where nothing changed. `looked_at`
    values were compared.
    """

    name: str
    types: tuple[str, ...]
    tensors: int
    relative: float | None
    kept: float | None
    direction: float | None
    looked_at: int

    def as_json(self) -> dict[str, Any]:
        return {
            "types": list(self.types),
            "tensors": self.tensors,
            "relative_change": self.relative,
            "kept": self.kept,
            "direction": self.direction,
            "compared_weights": self.looked_at,
        }


def change_totals(specs: Sequence[Counted], changes: Sequence[Change]) -> list[ChangeTotal]:
    """Sums by class, in the order in which they first stand in the file; none for a class that no
    adapter concerns."""
    found = []
    for name, members in classes(specs).items():
        total = Change()
        changed = [i for i in members if changes[i].count]
        for index in changed:
            total.add(changes[index])
        if changed:
            types = tuple(dict.fromkeys(specs[i].type for i in changed))
            found.append(
                ChangeTotal(
                    name,
                    types,
                    len(changed),
                    _root(total.delta, total.weight),
                    _root(total.stored, total.delta),
                    _cosine(total),
                    total.count,
                )
            )
    return found


def faint(totals: Sequence[ChangeTotal]) -> list[str]:
    """A line for the user about the classes whose stored values say little of the change, if there
    are any."""
    found = [t for t in totals if t.direction is not None and t.direction < FAINT]
    if not found:
        return []
    worst = min(found, key=lambda total: total.direction or 0.0)
    types = ", ".join(dict.fromkeys(kind for total in found for kind in total.types))
    return [
        f"the adapters' change is smaller than what {types} tells apart in {len(found)} of "
        f"{len(totals)} classes of tensors: in {worst.name}, changed by "
        f"{100 * (worst.relative or 0):.2g} %, the stored values' change points its way by "
        f"{worst.direction or 0:.2f} (1 is fully); choose a larger type, or apply the adapter "
        "unmerged"
    ]


def _root(above: float, below: float) -> float | None:
    return math.sqrt(above / below) if below else None


def _cosine(total: Change) -> float | None:
    if not total.delta:
        return None
    lengths = math.sqrt(total.delta * total.stored)
    return total.along / lengths if lengths else 0.0
