"""A Hugging Face folder as a source of another: names and layout stay, steps change the rows."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.adapters.delta import Delta, Replaced
from gpukit.errors import CheckpointError
from gpukit.events import Event, Warned
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.folder import read_files
from gpukit.formats.safetensors import DTYPE_BITS, StoredTensor
from gpukit.formats.safetensors_writer import Entry
from gpukit.models.fp8 import FP8, find_scales
from gpukit.sources.base import Part, Source, SourceTensor
from gpukit.sources.merged import Deltas
from gpukit.sources.steps import STORED, Scaling, Step, torch_type

if TYPE_CHECKING:
    from torch import Tensor

# What becomes of 8-bit floats: their scales go into the values.
DEQUANTIZED = "BF16"


@dataclass(frozen=True)
class Changes:
    """How the tensors of a result differ from those of the checkpoint.

    changed   names of those that steps change; all others are copied. None: any may be
    added     tensors that the checkpoint lacks, or has only as a copy, and which of its tensors
              each begins as
    resized   how many rows a tensor has afterwards; rows past those stored are zeros for the steps
    dropped   names of tensors that are left out
    merged    names of those that the last step changes, which tells what adapters did
    """

    changed: Collection[str] | None = None
    added: Mapping[str, str] = field(default_factory=dict)
    resized: Mapping[str, int] = field(default_factory=dict)
    dropped: Collection[str] = ()
    merged: Collection[str] = ()


UNCHANGED = Changes()


def changes_of(
    checkpoint: Checkpoint, records: Mapping[str, Sequence[Delta]], added: Mapping[str, str]
) -> Changes:
    """What a step that applies `records` to the tensors of `checkpoint` changes; `added` as an
    `Adapter` has it."""
    resized = {}
    for name, deltas in records.items():
        stored = checkpoint.tensors[added.get(name, name)]
        for record in deltas:
            if isinstance(record, Replaced) and record.values.shape[0] != stored.shape[0]:
                resized[name] = record.values.shape[0]
    return Changes(changed=frozenset(records), added=added, resized=resized)


@dataclass(frozen=True)
class _Tensor:
    """What `entry` begins as, and whether only its bytes are known."""

    entry: Entry
    stored: StoredTensor
    raw: bool

    @property
    def width(self) -> int:
        """Values of a row as steps see it."""
        return self.entry.shape[-1] if len(self.entry.shape) > 1 else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of such a row as it is stored."""
        return self.width * DTYPE_BITS[self.stored.dtype] // 8


class StoredSource(Source):
    """The tensors of an open `checkpoint` under their own names; each of `steps` has their rows.

    Floats have the type `dtype` (F32, F16 or BF16) afterwards, without it their own; 8-bit floats
    times their scales are BF16, and the scales are left out. All else is copied. `entries` are
    names, dtypes and shapes of the result, in the order of the checkpoint. The checkpoint stays
    open. `CheckpointError` for weights that are quantised in a way that nobody here can undo.
    """

    is_checkpoint = True
    fields = ()

    def __init__(
        self,
        checkpoint: Checkpoint,
        steps: Sequence[Step] = (),
        changes: Changes = UNCHANGED,
        dtype: str | None = None,
    ) -> None:
        self.path = checkpoint.folder
        self._checkpoint = checkpoint
        self._changes = changes
        told: list[Event] = []
        scales = find_scales(checkpoint, told.append)
        self.warnings = tuple(event.text for event in told if isinstance(event, Warned))
        self._steps = (Scaling(checkpoint, scales.by_weight), *steps)
        left_out = {*changes.dropped, *(n for n in checkpoint.tensors if n in scales)}
        self._tensors = [
            self._tensor(name, stored, dtype)
            for name, stored in self._named()
            if name not in left_out
        ]
        self.entries = tuple(tensor.entry for tensor in self._tensors)
        self.tensors = tuple(_source_tensor(tensor) for tensor in self._tensors)

    def _named(self) -> Iterator[tuple[str, StoredTensor]]:
        """The tensors of the result and those that they begin as."""
        stored, added = self._checkpoint.tensors, self._changes.added
        for name in (*added.values(), *self._changes.resized):
            if name not in stored and name not in added:
                raise CheckpointError(f"{self.path}: no tensor {name}, which is to be changed")
        for name, tensor in stored.items():
            yield name, stored[added.get(name, name)] if name in added else tensor
        for name, begin in added.items():
            if name not in stored:
                yield name, stored[begin]

    def _tensor(self, name: str, stored: StoredTensor, dtype: str | None) -> _Tensor:
        rows = self._changes.resized.get(name)
        shape = stored.shape if rows is None else (rows, *stored.shape[1:])
        if stored.dtype not in STORED or not prod(shape):
            return _Tensor(Entry(name, stored.dtype, shape), stored, True)
        own = DEQUANTIZED if stored.dtype in FP8 else stored.dtype
        return _Tensor(Entry(name, dtype or own, shape), stored, False)

    @property
    def label(self) -> str:
        floats = [t.stored.dtype for t in self._tensors if not t.raw]
        return max(set(floats), key=floats.count) if floats else "F32"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path, *read_files(self.path))

    def stored_type(self, index: int) -> str:
        tensor = self._tensors[index]
        if tensor.raw:
            return self.tensors[index].type
        # 8-bit floats have been widened when steps see them.
        return "F32" if tensor.stored.dtype in FP8 else tensor.stored.dtype

    def passes(self, index: int, kind: str) -> bool:
        tensor, changed = self._tensors[index], self._changes.changed
        if tensor.raw:
            return True
        name = tensor.entry.name
        same = kind == tensor.stored.dtype and tensor.entry.shape == tensor.stored.shape
        return same and changed is not None and name not in changed

    def stored_bytes(self, index: int, rows: int, row: int = 0) -> int:
        tensor = self._tensors[index]
        first, count = self._values_of(index, row, rows)
        if tensor.raw:
            return count
        whole = tensor.stored.nbytes
        each = tensor.row_bytes
        return max(0, min((first + count) * each, whole) - first * each)

    def _values_of(self, index: int, row: int, rows: int) -> tuple[int, int]:
        """Rows as the pipeline counts them, as steps count them: a tensor of one dimension is one
        row there, and has rows of one value here."""
        tensor = self._tensors[index]
        each = tensor.entry.elements if not tensor.raw and len(tensor.entry.shape) < 2 else 1
        return row * each, rows * each

    def read(self, index: int, row: int, buffer: memoryview) -> None:
        if not buffer:
            return
        tensor = self._tensors[index]
        first, _ = self._values_of(index, row, 0)
        start = first * (1 if tensor.raw else tensor.row_bytes)
        self._checkpoint.read_into(tensor.stored, buffer, start)

    @property
    def merges(self) -> bool:
        return bool(self._changes.merged)

    def changes(self, index: int) -> bool:
        tensor = self._tensors[index]
        return not tensor.raw and tensor.entry.name in self._changes.merged

    @property
    def only_torch(self) -> str | None:
        for step in self._steps[1:]:
            if not isinstance(step, Deltas):
                return f"{type(step).__name__} cannot be done"
        resized = (t.entry.name for t in self._tensors if t.entry.shape != t.stored.shape)
        return next((f"{name} cannot be resized" for name in resized), None)

    def made_of(self, index: int, row: int, rows: int) -> Iterator[Part]:
        tensor = self._tensors[index]
        first, count = self._values_of(index, row, rows)
        deltas = [step.records for step in self._steps if isinstance(step, Deltas)]
        records = [r for found in deltas for r in found.get(tensor.entry.name, ())]
        yield Part(tensor.stored.dtype, count, tensor.width, first, records)

    def values(
        self, index: int, row: int, rows: int, data: "Tensor", *, merged: bool = True
    ) -> "Tensor":
        import torch

        tensor = self._tensors[index]
        first, count = self._values_of(index, row, rows)
        part = data.view(torch_type(tensor.stored.dtype)).view(-1, tensor.width)
        if len(part) < count:
            part = torch.cat((part, part.new_zeros(count - len(part), tensor.width)))
        for step in self._steps if merged else self._steps[:-1]:
            part = step(tensor.entry.name, first, part)
        # The kernels round float32 into 16 bits; float64 is neither read nor made by them.
        if tensor.entry.dtype == "F64":
            part = part.to(torch.float64)
        elif part.dtype is torch.float64:
            part = part.to(torch.float32)
        return part.reshape(rows, -1)

    def close(self) -> None:
        """Nothing: the checkpoint belongs to the caller."""


def _source_tensor(tensor: _Tensor) -> SourceTensor:
    """`tensor` as the pipeline cuts it: a matrix, one row where it has one dimension, bytes where
    only these are known."""
    entry = tensor.entry
    if tensor.raw:
        return SourceTensor(entry.name, (1, entry.nbytes), "I8", 1)
    if len(entry.shape) < 2:
        return SourceTensor(entry.name, (entry.elements,), entry.dtype, 1)
    width = entry.shape[-1]
    return SourceTensor(entry.name, (width, entry.elements // width), entry.dtype, 1)
