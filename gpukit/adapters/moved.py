"""Deltas of a checkpoint's tensors as those of a GGUF's: renamed, rows moved, experts stacked.

For a base that is a GGUF, and for writing GGUF adapters. Rows that an import moves are moved here
in B, in lengths, and in what takes the place of a tensor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np

from gpukit.adapters.delta import Added, Delta, LowRank, Replaced, ReplacedRows
from gpukit.adapters.values import Numbers, Values
from gpukit.errors import AdapterError
from gpukit.models.rules import ColumnOrder, Span, Transform


class Made(Protocol):
    """A tensor of a GGUF with the spans that it is made of: a `Rule` or a `PlannedTensor`."""

    @property
    def name(self) -> str: ...
    @property
    def spans(self) -> tuple[Span, ...]: ...


def moved(
    tensors: Sequence[Made], deltas: Mapping[str, Sequence[Delta]]
) -> Mapping[str, tuple[Delta, ...]]:
    """For each of `tensors` the records of what `deltas` do to its sources.

    `AdapterError` for what is done to a tensor that none is made of, and for parts of a tensor that
    cannot be moved by themselves.
    """
    found: dict[str, list[Delta]] = {}
    used = set()
    for rule in tensors:
        at = 0
        for span in rule.spans:
            for record in deltas.get(span.source, ()):
                used.add(span.source)
                part = _of_span(rule, span, record, at)
                if part is not None:
                    found.setdefault(rule.name, []).append(part)
            at += span.rows
    left = sorted(deltas.keys() - used)
    if left:
        raise AdapterError(f"{left[0]}: the adapter changes it, and a GGUF has no place for it")
    return {name: tuple(records) for name, records in found.items()}


def _of_span(rule: Made, span: Span, record: Delta, at: int) -> Delta | None:
    """What `record` does to the rows of `span`, which are those of the GGUF's tensor from `at` on;
    None where that is nothing."""
    if isinstance(record, Replaced | ReplacedRows):
        if len(rule.spans) > 1 or (isinstance(record, ReplacedRows) and span.transform):
            raise AdapterError(f"{rule.name}: made of several tensors, none of which is replaced")
        return _changed(record, span.transform)
    first, end = record.first, record.first + _rows(record)
    start, stop = max(first, span.first), min(end, span.first + span.rows)
    if start >= stop:
        return None
    if span.transform is not None and stop - start < span.rows:
        raise AdapterError(f"{rule.name}: {stop - start} of {span.rows} rows cannot be moved alone")
    part = _cut(record, start - first, stop - start, at + start - span.first)
    return _changed(part, span.transform)


def _rows(record: LowRank | Added) -> int:
    return record.rows if isinstance(record, LowRank) else record.values.shape[0]


def _cut(record: LowRank | Added, first: int, count: int, at: int) -> LowRank | Added:
    """What concerns `count` of the record's rows from `first` on, for the rows from `at` on."""
    if isinstance(record, Added):
        return replace(record, values=record.values.rows(first, count), first=at)
    lengths = record.magnitude
    if lengths is not None and not record.by_column:
        lengths = lengths.rows(first, count)
    elif lengths is not None and count < record.rows:
        raise AdapterError(f"{lengths.name}: lengths of columns are those of whole tensors")
    return replace(record, b=record.b.rows(first, count), first=at, magnitude=lengths)


def _changed(record: Delta, transform: Transform | None) -> Delta:
    """`record` with its rows, or columns, where `transform` moves them."""
    if transform is None:
        return record
    if not isinstance(record, LowRank):
        return replace(record, values=_through(record.values, transform))
    lengths = record.magnitude
    of_columns = isinstance(transform, ColumnOrder)
    if lengths is not None and record.by_column == of_columns:
        lengths = _through(lengths, transform)
    if of_columns:
        return replace(record, a=_through(record.a, transform), magnitude=lengths)
    return replace(record, b=_through(record.b, transform), magnitude=lengths)


def _through(values: Values, transform: Transform) -> Values:
    return values.changed(partial(_apply, transform=transform))


def _apply(values: Numbers, transform: Transform) -> Numbers:
    """A matrix, or a tensor of one dimension, which is one row, through a transform of an import;
    numbers of float64 stay so."""
    lines = values.reshape(1, -1) if values.ndim == 1 else values
    return np.asarray(transform(lines)).reshape(values.shape)
