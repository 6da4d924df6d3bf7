"""Which combinations of a source, an adapter and a type a rule of the plan is for."""

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpukit.batches.schema import Match


def matches(match: "Match", source: str, adapter: str, kind: str) -> bool:
    """Whether a combination is among those that `match` means."""
    pairs = ((match.source, source), (match.adapter, adapter), (match.type, kind))
    return all(
        any(fnmatchcase(word.lower(), pattern.lower()) for pattern in patterns)
        for patterns, word in pairs
    )
