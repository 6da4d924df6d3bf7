"""From a word to an adapter and its weight: PATH[:WEIGHT], as the command line takes it."""

import re
from math import isfinite
from pathlib import Path

from gpukit.adapters.unmerged import WeightedAdapter
from gpukit.errors import ArgumentError
from gpukit.events import Report, ignore
from gpukit.recipes.references import adapter_path, locate_adapter

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)

# A path or an id of the hub, with :WEIGHT behind it if it is a text; or the two apart.
AdapterWord = str | Path | tuple[str | Path, float]


def split_weight(word: AdapterWord, *, folder: Path = Path()) -> tuple[str | Path, float]:
    """The adapter's word and its weight, 1 where none is given; `ArgumentError` for one that is no
    finite number, NotFoundError and `ArgumentError` as `locate_adapter`. Nothing is fetched."""
    if isinstance(word, tuple):
        path, weight = word
    else:
        path, weight = word, 1.0
        head, colon, tail = str(word).rpartition(":")
        if (
            isinstance(word, str)
            and colon
            and NUMBER.fullmatch(tail)
            and not _is_there(word, folder)
        ):
            path, weight = head, float(tail)
    if not isfinite(weight):
        raise ArgumentError(f"{str(path)[:100]}: a weight of {weight} makes no sense; 1 is usual")
    locate_adapter(path, folder=folder)
    return path, weight


def weighted_adapter(
    word: AdapterWord, *, folder: Path = Path(), report: Report = ignore
) -> WeightedAdapter:
    """The adapter that `word` means, relative paths from `folder` on, fetched first where it is on
    the hub. Errors as `split_weight`, and `HubError`."""
    path, weight = split_weight(word, folder=folder)
    return WeightedAdapter(adapter_path(path, folder=folder, report=report), weight)


def _is_there(word: str, folder: Path) -> bool:
    """Whether the whole of `word`, its colon included, is a path."""
    try:
        return (folder / word).exists()
    except (OSError, ValueError):
        return False
