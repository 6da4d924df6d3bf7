"""Several adapters of one base: whether they go together, and what they do together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite

from gpukit.adapters.adapter import Adapter
from gpukit.adapters.delta import Added, Delta, LowRank, Replaced, ReplacedRows
from gpukit.adapters.ties import same_numbers
from gpukit.errors import AdapterError
from gpukit.formats.floats import float32

Records = tuple[Delta, ...]


def combined(adapters: Sequence[Adapter]) -> Mapping[str, Records]:
    """The records of all `adapters` for each tensor, in the order of `adapters`.

    `AdapterError` where two have one name or contradict each other: both replace a tensor or the
    row of a token, one would undo what another does, or they disagree about vocabulary or head.
    A copy of the base's embedding beside a delta of it, as PEFT saves one, counts once.
    """
    _check_names(adapters)
    found: dict[str, Records] = {}
    owner: dict[str, str] = {}
    for adapter in adapters:
        if (adapter.vocabulary, adapter.added) != (adapters[0].vocabulary, adapters[0].added):
            raise AdapterError(
                f"{adapters[0].name} and {adapter.name} disagree about the vocabulary or the head "
                f"({adapters[0].vocabulary or 'as it was'}, {adapter.vocabulary or 'as it was'}); "
                "merge one of them"
            )
        for tensor, records in adapter.deltas.items():
            if tensor in found:
                who = f"{owner[tensor]} and {adapter.name}"
                found[tensor] = _joined(found[tensor], records, tensor, who)
            else:
                found[tensor], owner[tensor] = records, adapter.name
    return found


def weighted(adapter: Adapter, weight: float) -> Adapter:
    """`adapter` with `weight` times what it adds; `AdapterError` where it does more than add.

    What a delta stands on, as PEFT saves embedding and head beside theirs, stays as it is."""
    if weight == 1:
        return adapter
    if not isfinite(weight):
        raise AdapterError(f"{adapter.name}: its weight is {weight}; a finite number is needed")
    scaled = {
        tensor: tuple(
            record
            if isinstance(record, Replaced) and _low_rank(records)
            else _weighted(adapter, tensor, record, weight)
            for record in records
        )
        for tensor, records in adapter.deltas.items()
    }
    return replace(adapter, deltas=scaled)


def _weighted(adapter: Adapter, tensor: str, record: Delta, weight: float) -> Delta:
    if isinstance(record, Added) or (isinstance(record, LowRank) and record.magnitude is None):
        scale = record.scale * weight
        if not isfinite(float32(scale)):
            raise AdapterError(
                f"{adapter.name}: {tensor}: a weight of {weight:g} times the scale {record.scale:g}"
                " (alpha / rank) is more than float32 holds; give it less weight"
            )
        return replace(record, scale=scale)
    what = "brings rows to a length (DoRA)" if isinstance(record, LowRank) else "replaces numbers"
    raise AdapterError(
        f"{adapter.name}: {tensor}: the adapter {what}, which has no weight of {weight:g}; leave "
        "the weight out"
    )


def _check_names(adapters: Sequence[Adapter]) -> None:
    names = [adapter.name for adapter in adapters]
    for name in names:
        if names.count(name) > 1:
            raise AdapterError(f"two adapters are called {name}: give one another name or leave it")


def _joined(first: Records, second: Records, tensor: str, who: str) -> Records:
    """What both do to `tensor`, one after the other."""
    if both := _rows(first) & _rows(second):
        raise AdapterError(f"{who} both replace row {min(both)} of {tensor}; merge one of them")
    if _stands_alone(first) or _stands_alone(second):
        raise AdapterError(f"{who} both change {tensor}, one as a whole; merge one of them")
    if (_rows(first) and _low_rank(second)) or (_low_rank(first) and _rows(second)):
        raise AdapterError(f"{who} both change rows of {tensor}; merge one of them")
    copies = [r for r in (*first, *second) if isinstance(r, Replaced)]
    if len(copies) > 1 and not same_numbers(copies[0].values, copies[1].values):
        raise AdapterError(f"{who} come with two different {tensor}; merge one of them")
    return (*copies[:1], *(r for r in (*first, *second) if not isinstance(r, Replaced)))


def _stands_alone(records: Records) -> bool:
    """Whether a tensor is replaced, and not by the base's own with a delta beside it."""
    return any(isinstance(r, Replaced) for r in records) and not _low_rank(records)


def _rows(records: Records) -> set[int]:
    return {row for r in records if isinstance(r, ReplacedRows) for row in r.rows}


def _low_rank(records: Records) -> bool:
    return any(isinstance(record, LowRank) for record in records)
