"""Adapters beside a model: what its decoder adds to the products with its own weights.

    y = W x + s·B(A x)                                what is low-rank, at any place of a GGUF
    y = (W x + s·B(A x)) · m / |W + s·B·A|            DoRA, a length m a row
    norms, biases, the embedding, the head            what takes the place or is added is put there

The weights themselves stay as they are stored, in blocks. What has no such form (DoRA of an
embedding, whose lengths are those of columns, or another vocabulary) has to be merged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from gpukit.adapters.adapter import Adapter
from gpukit.adapters.base import Base
from gpukit.adapters.delta import Delta, LowRank, Replaced
from gpukit.adapters.gguf import HEAD
from gpukit.adapters.moved import Made, moved
from gpukit.adapters.together import combined
from gpukit.errors import AdapterError
from gpukit.models.rules import Rule
from gpukit.models.weights import Pair, Weight

REMEDY = "merge it with gpukit merge and run the result"
# Rows whose lengths are taken at a time.
SLAB = 1024


@dataclass(frozen=True)
class Beside:
    """What adapters do, by the names of a GGUF's tensors: `pairs` are added to products, their
    `factors` still DoRA's lengths (`with_factors`); `changes` are made to the weights. With
    `own_head` the head, which was the embedding, is a tensor of its own that begins as a copy."""

    pairs: Mapping[str, tuple[Pair, ...]]
    changes: Mapping[str, tuple[Delta, ...]]
    own_head: bool


def beside(
    base: Base, tensors: Sequence[Made], adapters: Sequence[Adapter], device: torch.device
) -> Beside:
    """What `adapters` of `base` do to `tensors`, of which a GGUF of it consists, on `device`.

    `AdapterError` for what cannot be done beside the weights, with the remedy; for adapters that
    contradict each other; for numbers that are NaN or infinite.
    """
    for adapter in adapters:
        if adapter.vocabulary is not None:
            raise AdapterError(
                f"{adapter.file.path}: makes the vocabulary {adapter.vocabulary} tokens large, "
                f"which a model as it is stored cannot have; {REMEDY}"
            )
    added: Mapping[str, str] = next((each.added for each in adapters if each.added), {})
    ends = {*added.keys(), *added.values()}
    # Whether head and embedding part ways is no matter to those that leave both alone.
    deltas = combined([a if ends & a.deltas.keys() else replace(a, added=added) for a in adapters])
    own_head = base.head is None and bool(added)
    if own_head:
        tensors = (*tensors, _head(base))
    pairs: dict[str, tuple[Pair, ...]] = {}
    changes: dict[str, tuple[Delta, ...]] = {}
    for name, records in moved(tensors, deltas).items():
        low_rank = [record for record in records if isinstance(record, LowRank)]
        others = tuple(record for record in records if not isinstance(record, LowRank))
        _check(name, records, low_rank, others)
        if low_rank:
            pairs[name] = tuple(_pair(record, device) for record in low_rank)
        if others:
            changes[name] = others
    return Beside(pairs, changes, own_head)


def _head(base: Base) -> Rule:
    """The head of a model that has none but its embedding."""
    head, embedding = base.with_head.head, base.embedding
    assert head is not None, "only such a model gets one"
    assert embedding is not None, "only such a model gets one"
    return Rule(head, HEAD, base.tensors[embedding])


def _check(
    name: str, records: Sequence[Delta], low_rank: Sequence[LowRank], others: Sequence[Delta]
) -> None:
    """`AdapterError` where `records` of tensor `name` have no unmerged form."""
    for record in low_rank:
        if record.by_column and record.magnitude is not None:
            where = f"{record.magnitude.path}: {record.magnitude.name}"
            raise AdapterError(f"{where}: lengths of columns have no unmerged form; {REMEDY}")
    # A whole tensor with deltas behind it is one; what comes behind a delta would lose it.
    if low_rank and others and not (len(others) == 1 and isinstance(records[0], Replaced)):
        raise AdapterError(
            f"{name}: rows or a whole tensor that take the place of one with a delta have no "
            f"unmerged form; {REMEDY}"
        )


def _pair(record: LowRank, device: torch.device) -> Pair:
    a, b = record.a.read().to(device), record.b.read().to(device)
    lengths = None if record.magnitude is None else record.magnitude.read().to(device)
    return Pair(a.contiguous(), b.contiguous(), record.scale, record.first, lengths)


def with_factors(pair: Pair, name: str, weight: Weight) -> Pair:
    """`pair` with what each row of `weight`, tensor `name`, is multiplied by: DoRA's length over
    the one that it has; `AdapterError` for a row of length 0, which has none."""
    if pair.factors is None:
        return pair
    lengths = torch.empty_like(pair.factors)
    for at in range(0, len(lengths), SLAB):
        rows = torch.arange(at, min(at + SLAB, len(lengths)), device=lengths.device)
        found = weight.rows(pair.first + rows) + (pair.b[rows] @ pair.a) * pair.scale
        lengths[rows] = found.square().sum(1).sqrt()
    if not (lengths > 0).all():
        row = pair.first + int(lengths.argmin())
        raise AdapterError(f"{name}: row {row} has length 0, and DoRA (use_dora) needs one")
    return replace(pair, factors=pair.factors / lengths)
