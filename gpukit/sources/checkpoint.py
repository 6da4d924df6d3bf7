"""A Hugging Face folder as a source: what its tensors become, and their values."""

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from gpukit.errors import one_line
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.file_types import float_type
from gpukit.formats.folder import read_files
from gpukit.models.fp8 import FP8
from gpukit.models.importer import plan_import, some
from gpukit.models.rules import ImportPlan, PlannedTensor, auto_type
from gpukit.sources.base import Source, SourceTensor
from gpukit.sources.dtypes import TORCH_TYPES
from gpukit.sources.steps import Scaling, Step

STORED_TYPES = {**TORCH_TYPES, **FP8}


class CheckpointSource(Source):
    """A Hugging Face folder, renamed and transformed on the way.

    Each of `steps` has the rows of every tensor in turn, before their layout changes.
    """

    is_checkpoint = True

    def __init__(self, path: Path, pre: str | None = None, steps: Sequence[Step] = ()) -> None:
        self.path = path
        self._checkpoint = Checkpoint(path)
        try:
            plan = plan_import(self._checkpoint, pre=pre)
        except BaseException:
            self._checkpoint.close()
            raise
        self.fields = plan.fields
        self._planned = plan.tensors
        self._steps = (Scaling(self._checkpoint, plan.scales.by_weight), *steps)
        self.auto = auto = auto_type(plan.tensors)
        self.warnings = tuple(self._left_out(plan))
        self.tensors = tuple(self._tensor(planned, auto) for planned in plan.tensors)

    def _left_out(self, plan: ImportPlan) -> Iterator[str]:
        """What of the folder has no part in the GGUF, a line for each reason."""
        if plan.left_out:
            tensors = one_line(some(plan.left_out))
            yield (
                f"{self.path}: {tensors} left out: a {plan.config.arch} GGUF has no place for them"
            )
        for name in self._checkpoint.unread:
            yield one_line(
                f"{self.path / name}: not read: the index of the weights does not list it"
            )

    def _tensor(self, planned: PlannedTensor, auto: str) -> SourceTensor:
        # What stays as it is in a quantised file has the type of a plain conversion.
        wanted = planned.dtype if planned.dtype != "F32" else auto
        kind = float_type(planned.name, planned.ne, wanted)
        return SourceTensor(planned.name, planned.ne, kind, planned.row_group)

    @property
    def label(self) -> str:
        types = [planned.dtype for planned in self._planned if len(planned.ne) >= 2]
        return types[0] if types else "F32"

    @property
    def files(self) -> tuple[Path, ...]:
        # A GGUF beside the weights is what some conversion before this one made of them.
        return (self.path, *(f for f in read_files(self.path) if f.suffix != ".gguf"))

    def stored_type(self, index: int) -> str:
        return self._planned[index].dtype

    def _dtype(self, index: int) -> torch.dtype:
        stored = self._checkpoint.tensors[self._planned[index].sources[0]]
        return STORED_TYPES[stored.dtype]

    def stored_bytes(self, index: int, rows: int) -> int:
        if self._planned[index].values is not None:
            return 0
        return rows * self.tensors[index].ne[0] * self._dtype(index).itemsize

    def read(self, index: int, row: int, buffer: memoryview) -> None:
        planned = self._planned[index]
        if planned.values is not None:
            return
        start, done = self.stored_bytes(index, row), 0
        each = self._checkpoint.tensors[planned.sources[0]].nbytes
        while done < len(buffer):
            number, at = divmod(start + done, each)
            count = min(each - at, len(buffer) - done)
            stored = self._checkpoint.tensors[planned.sources[number]]
            self._checkpoint.read_into(stored, buffer[done : done + count], at)
            done += count

    def values(self, index: int, row: int, rows: int, data: Tensor) -> Tensor:
        planned = self._planned[index]
        if planned.values is not None:
            return planned.values.view(-1, planned.ne[0])[row : row + rows].to(data.device)
        found = self._decoded(planned, row, data.view(self._dtype(index)).view(rows, planned.ne[0]))
        return planned.transform(found) if planned.transform is not None else found

    def _decoded(self, planned: PlannedTensor, row: int, stored: Tensor) -> Tensor:
        """Rows of `planned` behind all steps, the first being row `row`, in a type of the
        kernels."""
        found = [
            self._stepped(name, first, part).view(-1, planned.ne[0])
            for name, first, part in self._of_sources(planned, row, stored)
        ]
        rows = torch.cat(found) if len(found) > 1 else found[0]
        return rows.to(torch.float32) if rows.dtype is torch.float64 else rows

    def _of_sources(
        self, planned: PlannedTensor, row: int, stored: Tensor
    ) -> Iterator[tuple[str, int, Tensor]]:
        """Each source's name, the first of its own rows, and these rows."""
        if len(planned.ne) == 1:
            yield planned.sources[0], 0, stored.view(-1, 1)
            return
        of_one = prod(planned.ne[1:]) // len(planned.sources)
        done = 0
        while done < len(stored):
            number, first = divmod(row + done, of_one)
            part = stored[done : done + of_one - first]
            yield planned.sources[number], first, part
            done += len(part)

    def _stepped(self, name: str, row: int, rows: Tensor) -> Tensor:
        for step in self._steps:
            rows = step(name, row, rows)
        return rows

    def close(self) -> None:
        self._checkpoint.close()
