"""Copies of the base's own tensors in an adapter, which change nothing.

PEFT saves embedding and head whole beside their deltas, whether they were changed or not.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import prod

import numpy as np
import torch

from gpukit.adapters.adapter import Adapter
from gpukit.adapters.base import Base
from gpukit.adapters.delta import Delta, LowRank, Replaced
from gpukit.adapters.ties import COMPARED
from gpukit.adapters.values import Numbers, Values
from gpukit.errors import one_line
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.dtypes import TORCH_TYPES
from gpukit.formats.floats import FLOATS, widened
from gpukit.formats.safetensors import StoredTensor

Records = tuple[Delta, ...]


def without_copies(adapter: Adapter, base: Base, checkpoint: Checkpoint | None) -> Adapter:
    """`adapter` without what takes the place of a tensor of `base` and is the same, looked up in
    `checkpoint`. Without one, what stands beside a delta is taken for a copy, and a warning says
    so: PEFT does not train it."""
    told: list[str] = []
    found: dict[str, Records] = {}
    for name, records in adapter.deltas.items():
        kept = tuple(r for r in records if not _is_copy(adapter, base, checkpoint, name, r, told))
        if kept:
            found[name] = kept
    return replace(adapter, deltas=found, warnings=(*adapter.warnings, *told))


def _is_copy(
    adapter: Adapter,
    base: Base,
    checkpoint: Checkpoint | None,
    name: str,
    record: Delta,
    told: list[str],
) -> bool:
    if not isinstance(record, Replaced) or record.values.shape != base.tensors.get(name):
        return False
    if checkpoint is not None:
        stored = stored_values(checkpoint).get(name)
        return stored is not None and _same(record.values, stored)
    beside = any(isinstance(other, LowRank) for other in adapter.deltas[name])
    if beside:
        told.append(
            one_line(
                f"{adapter.file.path}: {record.values.name} is taken for a copy of the base's "
                f"{name}; give the base as a model folder to have them compared"
            )
        )
    return beside


def stored_values(checkpoint: Checkpoint) -> Mapping[str, Values]:
    """The tensors of `checkpoint` whose numbers are floats."""
    return {
        t.name: Values(t.name, t.path, t.dtype, t.shape, partial(_fetch, checkpoint, t))
        for t in checkpoint
        if t.dtype in FLOATS and t.shape
    }


def _fetch(checkpoint: Checkpoint, tensor: StoredTensor, first: int, count: int) -> Numbers:
    each = tensor.nbytes // max(1, tensor.shape[0])
    data = np.empty(count * each, dtype=np.uint8)
    if len(data):
        checkpoint.read_into(tensor, data.data, first * each)
    return widened(data.view(FLOATS[tensor.dtype])).reshape(count, *tensor.shape[1:])


def _same(copy: Values, stored: Values) -> bool:
    """Whether `copy` is `stored`, rounded to its dtype; a slab of rows is read at a time."""
    dtype = TORCH_TYPES.get(copy.dtype, torch.float32)
    step = max(1, COMPARED // max(1, prod(copy.shape[1:])))
    for at in range(0, copy.shape[0], step):
        rows, known = (
            torch.from_numpy(values.fetch(at, min(step, copy.shape[0] - at))).to(dtype)
            for values in (copy, stored)
        )
        if not known.equal(rows):
            return False
    return True
