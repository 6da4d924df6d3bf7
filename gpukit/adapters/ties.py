"""Embedding and head where they are one tensor: whether they still are behind the adapter."""

from collections.abc import Mapping, Sequence
from math import prod

from gpukit.adapters.delta import Delta, Replaced, ReplacedRows
from gpukit.adapters.fit import Fit
from gpukit.adapters.values import Values

# Values of two tensors that are compared at a time.
COMPARED = 1 << 22


def settle(fit: Fit, *, together: bool) -> Mapping[str, str]:
    """Make the records of `fit` right for embedding and head; what the merged model has in addition
    to the base, as `Adapter.added`.

    `together` says that the adapter trained both as one, so that they stay one.
    """
    base = fit.base
    embedding, head = base.embedding, base.head
    if not base.tied or embedding is None or head is None:
        return {}
    first, second = fit.deltas.get(embedding, []), fit.deltas.get(head, [])
    if not first and not second:
        return {}
    if together or _rows_alone(first, second) or _same(first, second):
        fit.deltas[head] = first or second
        fit.deltas[embedding] = first or second
        return {}
    alone = "embedding" if not second else "head" if not first else "embedding and head apart"
    fit.warn(
        f"trained the {alone} of a model whose head is its embedding: behind it there "
        "are two (tie_word_embeddings false)"
    )
    return {head: embedding}


def _rows_alone(first: Sequence[Delta], second: Sequence[Delta]) -> bool:
    """Whether nothing but tokens of the embedding were trained, or the same of both: PEFT keeps
    such tensors tied."""
    if not first or not all(isinstance(r, ReplacedRows) for r in (*first, *second)):
        return False
    rows = [r.rows for r in first if isinstance(r, ReplacedRows)]
    return not second or rows == [r.rows for r in second if isinstance(r, ReplacedRows)]


def _same(first: Sequence[Delta], second: Sequence[Delta]) -> bool:
    """Whether both are replaced, by the same numbers."""
    match first, second:
        case [Replaced(one)], [Replaced(other)]:
            return same_numbers(one, other)
    return False


def same_numbers(one: Values, other: Values) -> bool:
    """Whether two tensors hold the same; a slab of rows of each is read at a time."""
    if one.shape != other.shape:
        return False
    step = max(1, COMPARED // max(1, prod(one.shape[1:])))
    return all(
        one.read_rows(at, count).equal(other.read_rows(at, count))
        for at in range(0, one.shape[0], step)
        if (count := min(step, one.shape[0] - at))
    )


def vocabulary(fit: Fit) -> int | None:
    """How many tokens the merged model has where that is not what the base has; `AdapterError`
    where embedding and head disagree."""
    found = {}
    for name in filter(None, (fit.base.embedding, fit.base.head)):
        rows = [r.values.shape[0] for r in fit.deltas.get(name, ()) if isinstance(r, Replaced)]
        found[name] = rows[0] if rows else fit.base.tensors[name][0]
    if len(set(found.values())) > 1:
        sizes = ", ".join(f"{name} {rows}" for name, rows in found.items())
        raise fit.fail(
            f"resizes the vocabulary of one of embedding and head ({sizes} tokens); save the "
            "adapter again with save_embedding_layers=True"
        )
    changed = {rows for name, rows in found.items() if rows != fit.base.tensors[name][0]}
    return changed.pop() if changed else None
