"""Several importance matrices as one: their sums added up, as llama-imatrix --in-file does."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gpukit.errors import ArgumentError, one_line
from gpukit.evaluation.importance import in_all
from gpukit.formats.gguf_fields import TensorSpec
from gpukit.formats.imatrix import Collection, Floats, Sums

# Where a collection comes from, for messages, and what it holds.
Named = tuple[str, Collection]


def merged(parts: Sequence[Named], chunk_size: int) -> Collection:
    """The sum of `parts`, at least one, of the first's chunk size; `chunk_size` is what files of
    the older form are taken to have, which do not say, where no other part says it.

    `ArgumentError` for parts that were made of different models.
    """
    sizes = [found.chunk_size for _, found in parts if found.chunk_size]
    size = sizes[0] if sizes else chunk_size
    whole = [(where, _in_rows(found, size)) for where, found in parts]
    _check_alike(whole)
    entries: dict[str, Sums] = {}
    first: dict[str, str] = {}
    for where, found in whole:
        for name, sums in found.entries.items():
            if name in entries:
                entries[name] = _added(entries[name], sums, name, (first[name], where))
            else:
                entries[name], first[name] = sums, where
    for name, sums in entries.items():
        if not np.isfinite(sums.squares[sums.counts > 0]).all():
            raise ArgumentError(
                f"{one_line(name)}: the sum of all is too large for float32; add up fewer"
            )
    datasets = tuple(name for _, found in whole for name in found.datasets)
    result = Collection(entries, datasets, 0, size)
    return Collection(entries, datasets, in_all(result), size)


def differing_sizes(parts: Iterable[Named]) -> list[str]:
    """A line where parts have chunks of different sizes, of which one is noted."""
    sizes = {found.chunk_size: where for where, found in reversed(list(parts)) if found.chunk_size}
    if len(sizes) < 2:
        return []
    each = ", ".join(f"{size} ({where})" for size, where in reversed(sizes.items()))
    return [f"chunks of different sizes: {each}; the first is noted, sums are exact whatever it is"]


def _in_rows(found: Collection, chunk_size: int) -> Collection:
    """The older form's means times calls as sums over rows, whose number is an estimate."""
    if found.chunk_size:
        return found
    with np.errstate(over="ignore"):
        entries = {
            name: Sums(sums.squares * np.float32(chunk_size), sums.counts * chunk_size)
            for name, sums in found.entries.items()
        }
    return Collection(entries, found.datasets, found.chunks, chunk_size)


def _check_alike(parts: Sequence[Named]) -> None:
    """Dense tensors of blocks are in all parts or in none: whatever text is read, they are heard.
    Experts may be silent, and the head is collected on demand."""
    names = [{name for name in found.entries if _always(name)} for _, found in parts]
    for (where, _), own in zip(parts, names, strict=True):
        if lacking := names[0] ^ own:
            name = min(lacking)
            has, lacks = (parts[0][0], where) if name in names[0] else (where, parts[0][0])
            raise ArgumentError(
                f"{lacks}: has nothing on {one_line(name)}, {has} has: importance of different "
                "models does not go together"
            )


def _always(name: str) -> bool:
    return name.startswith("blk.") and "_exps." not in name


def _added(one: Sums, other: Sums, name: str, where: tuple[str, str]) -> Sums:
    if one.squares.size != other.squares.size:
        raise _unlike(name, where, one.squares.size, other.squares.size, "columns")
    # One count for all: an older form's, or of a file before experts had counts of their own.
    matrices = max(len(one.counts), len(other.counts))
    a, b = _spread(one, matrices), _spread(other, matrices)
    if len(a.counts) != len(b.counts):
        raise _unlike(name, where, len(one.counts), len(other.counts), "matrices")
    values = None
    if a.sums is not None and b.sums is not None:
        values = _sum(a.sums, b.sums)
    return Sums(_sum(a.squares, b.squares), a.counts + b.counts, values)


def _sum(a: Floats, b: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return (a.astype(np.float64) + b).astype(np.float32)


def _spread(sums: Sums, matrices: int) -> Sums:
    if len(sums.counts) != 1 or matrices == 1 or sums.squares.size % matrices:
        return sums
    shape = (matrices, -1)
    return Sums(
        sums.squares.reshape(shape),
        np.repeat(sums.counts, matrices),
        None if sums.sums is None else sums.sums.reshape(shape),
    )


def _unlike(name: str, where: tuple[str, str], one: int, other: int, what: str) -> ArgumentError:
    return ArgumentError(
        f"{where[1]}: {one_line(name)} has {other} {what}, {one} in {where[0]}: importance of "
        "different models does not go together"
    )


def check_fits(part: Named, tensors: Mapping[str, TensorSpec], model: str) -> None:
    """`ArgumentError` where a collection is none of the model that has `tensors`, by name."""
    where, found = part
    for name, sums in found.entries.items():
        spec = tensors.get(name)
        if spec is None:
            raise ArgumentError(
                f"{where}: {one_line(name)} is no tensor of {model}: it was made for another model"
            )
        matrices = spec.ne[2] if len(spec.ne) > 2 else 1
        if sums.squares.size != spec.ne[0] * matrices or len(sums.counts) not in (1, matrices):
            raise ArgumentError(
                f"{where}: {one_line(name)} has {sums.squares.size} columns of "
                f"{len(sums.counts)} matrices, {model} has {spec.ne[0] * matrices} of {matrices}: "
                "it was made for another model"
            )
