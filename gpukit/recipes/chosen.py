"""From words to adapters: what every verb makes of those that it is told to merge."""

from collections.abc import Iterable, Sequence
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.errors import ArgumentError, unlike
from gpukit.events import Report, ignore
from gpukit.formats.floats import float32
from gpukit.given import list_of
from gpukit.recipes.references import fetched_adapter, locate_adapter
from gpukit.remote.hub import HubModel

if TYPE_CHECKING:
    from gpukit.adapters.mixing import Combining
    from gpukit.sources.merged import Merge

# DIR, or DIR:WEIGHT, a path, or a path and a weight.
Word = str | Path | tuple[str | Path, float]


def split_weight(word: Word) -> tuple[str | Path, float]:
    """The adapter's own word and its weight, 1 where none is told. What is there as it stands has
    no weight in its name."""
    if isinstance(word, tuple):
        if len(word) != 2 or not isinstance(word[1], Real):
            raise ArgumentError(unlike("an adapter and its weight, as ('my-lora', 0.5),", word))
        return word
    path, colon, weight = str(word).rpartition(":")
    if isinstance(word, Path) or not colon or not path or Path(word).exists():
        return word, 1.0
    try:
        return path, float(weight)
    except ValueError:
        return word, 1.0


def listed(words: Iterable[Word] | str | Path) -> tuple[Word, ...]:
    """The words for adapters, or the only one; `ArgumentError` for what are none."""
    if isinstance(words, str | Path):
        return (words,)
    return list_of(words, "adapters: a list such as ['my-lora']")


def located(words: Iterable[Word] | str | Path) -> list[tuple[Path | HubModel, float]]:
    """Where each adapter of `words` is, and its weight; asks nobody but this machine.

    The errors of `locate_adapter`; `ArgumentError` for a weight that is no finite number, or none
    in float32.
    """
    found = []
    for word, weight in map(split_weight, listed(words)):
        if not isfinite(weight):
            raise ArgumentError(f"{str(word)[:100]}: a weight of {weight}; a finite one is needed")
        if not isfinite(float32(weight)):
            raise ArgumentError(
                f"{str(word)[:100]}: a weight of {weight:g}; it is used as float32, which has "
                "numbers up to 3.4e+38"
            )
        found.append((locate_adapter(word), weight))
    return found


def chosen(
    words: Sequence[Word] | str | Path,
    *,
    combine: "Combining | None" = None,
    merge_base: str = "full",
    strict: bool = False,
    moe_layout: str | None = None,
    report: Report = ignore,
) -> "Merge | None":
    """The adapters of `words` in order, fetched where they are on the hub; None for none.

    The errors of `located`, and `HubError`; `ArgumentError` for an adapter that stands twice and
    for a layout or a base that nobody knows.
    """
    if not words:
        return None
    parts = located(words)
    found = [(fetched_adapter(place, report), weight) for place, weight in parts]
    # Reading adapters takes time to import.
    from gpukit.adapters.experts import Layout
    from gpukit.sources.merged import BASES, Chosen, Merge

    if merge_base not in BASES:
        raise ArgumentError(f"merge_base {merge_base!r} is unknown; known: {', '.join(BASES)}")
    known = {layout.value: layout for layout in Layout}
    layout = known.get(moe_layout) if moe_layout is not None else None
    if moe_layout is not None and layout is None:
        raise ArgumentError(f"moe_layout {moe_layout!r} is unknown; known: {', '.join(known)}")
    places = [path.resolve() for path, _ in found]
    for (path, _), place in zip(found, places, strict=True):
        if places.count(place) > 1:
            raise ArgumentError(f"{path}: the same adapter twice; give it once, with its weight")
    names = [path.name for path, _ in found]
    adapters = (
        Chosen(path, weight, str(path) if names.count(path.name) > 1 else None)
        for path, weight in found
    )
    return Merge(tuple(adapters), strict=strict, layout=layout, combining=combine, base=merge_base)
