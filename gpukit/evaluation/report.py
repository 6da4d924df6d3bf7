"""A measurement as one document: what was measured and how, every number, and what makes it clear.

    facts    pairs of words: text, importance, device, versions, …
    models   one each: its numbers, where it comes from, what each tensor lost, its worst tokens
    pareto   the numbers of those models that no other beats in both size and divergence

The page (`report_page.py`) shows this and holds it as JSON.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpukit.evaluation.tensor_errors import TensorError
from gpukit.evaluation.worst_tokens import WorstToken
from gpukit_kernels.facts import MATCHED

FORMAT = 1


@dataclass(frozen=True)
class Measured:
    """One model of a report: its `numbers` as JSON, where it comes from (`revision`, `recipe`),
    what each tensor lost and its worst tokens."""

    numbers: Mapping[str, Any]
    revision: str | None
    recipe: str
    errors: tuple[TensorError, ...] = ()
    worst: tuple[WorstToken, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            **self.numbers,
            "revision": self.revision,
            "recipe": self.recipe,
            "tensors": [each.as_json() for each in self.errors],
            "worst": [each.as_json() for each in self.worst],
        }


def document(models: Sequence[Measured], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The document, JSON-ready: numbers that are not finite are `finite`'s words."""
    rows = [each.as_json() for each in models]
    found: dict[str, Any] = finite({
        "report": "gpukit perplexity",
        "format": FORMAT,
        "build": MATCHED,
        "facts": dict(facts),
        "models": rows,
        "pareto": pareto([(row["size"], row.get("kld", math.nan)) for row in rows]),
    })  # fmt: skip
    return found


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The numbers of the points (size, loss) that no other beats: none is as small and loses less,
    or loses as little and is smaller. In order of size; a loss that is no number takes no part."""
    known = [n for n, (_, loss) in enumerate(points) if math.isfinite(loss)]
    found: list[int] = []
    for number in sorted(known, key=lambda n: points[n]):
        if not found or points[number][1] < points[found[-1]][1]:
            found.append(number)
    return found


def finite(value: Any) -> Any:
    """`value` without numbers that JSON has none for: "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
