"""A Hugging Face folder as a source: what its tensors become, and their values."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.adapters.base import Base
from gpukit.adapters.delta import Delta
from gpukit.adapters.target import Target
from gpukit.errors import AdapterError, one_line
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.file_types import FILE_TYPES, FileType, float_type
from gpukit.formats.folder import read_files
from gpukit.formats.gguf_fields import TensorSpec
from gpukit.formats.safetensors import StoredTensor
from gpukit.models.importer import plan_import, some
from gpukit.models.rules import ImportPlan, PlannedTensor, Span, auto_type
from gpukit.models.views import CARRIED, row_bytes
from gpukit.sources.base import ModelSource, Part, SourceTensor
from gpukit.sources.block_scales import INPUT_SCALE, SCALE, SCALED, WEIGHT
from gpukit.sources.gguf import decoded
from gpukit.sources.merged import Merge, MergedCheckpoint
from gpukit.sources.steps import Scaling, Step, torch_type

if TYPE_CHECKING:
    from torch import Tensor


# The file type that the converter notes where it carries blocks of a type.
FILES_OF = {"MXFP4": "MXFP4_MOE", "NVFP4": "NVFP4"}


class CheckpointSource(ModelSource):
    """A Hugging Face folder, with the adapters of `merge` if there are any, renamed and
    transformed on the way.

    Each of `steps`, then the adapters, has the rows of every tensor before their layout changes.
    """

    is_checkpoint = True

    def __init__(
        self,
        path: Path,
        pre: str | None = None,
        merge: Merge | None = None,
        steps: Sequence[Step] = (),
        mtp: bool | None = None,
    ) -> None:
        self.path = path
        self._checkpoint = MergedCheckpoint(path, merge) if merge else Checkpoint(path)
        own = self._checkpoint.base_steps if isinstance(self._checkpoint, MergedCheckpoint) else ()
        self._steps: tuple[Step, ...] = (*steps, *own)
        try:
            plan = plan_import(self._checkpoint, pre=pre, mtp=mtp)
            self._check_views(plan)
        except BaseException:
            self._checkpoint.close()
            raise
        self.fields = plan.fields
        self._planned = plan.tensors
        self._views = plan.views
        self._factors = plan.factors
        self._scaling = Scaling(self._checkpoint, plan.scales.by_weight)
        self.auto = auto = auto_type(plan.tensors)
        self.warnings = tuple(self._left_out(plan))
        self.tensors = tuple(self._tensor(planned, auto) for planned in plan.tensors)
        self._places = {tensor.name: index for index, tensor in enumerate(self.tensors)}

    def _check_views(self, plan: ImportPlan) -> None:
        """`AdapterError` for adapters of what is stored in another form than a GGUF has it."""
        if not isinstance(self._checkpoint, MergedCheckpoint):
            return
        for view in plan.views.values():
            for source in view.sources:
                if source.name in self._checkpoint.changed:
                    raise AdapterError(
                        f"{self.path}: an adapter changes {source.name}, which is put together in "
                        "another way for a GGUF; merge it into a folder first (gpukit merge BASE "
                        "FOLDER --adapter DIR), then convert that"
                    )

    def _left_out(self, plan: ImportPlan) -> Iterator[str]:
        """What of the folder has no part in the GGUF, a line for each reason."""
        if isinstance(self._checkpoint, MergedCheckpoint):
            yield from self._checkpoint.warnings
        yield from plan.warnings
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

    def converted_type(self, index: int, wanted: str) -> str:
        dtype = self._planned[index].dtype
        return dtype if dtype in CARRIED else super().converted_type(index, wanted)

    def converted_file(self, wanted: FileType) -> FileType:
        carried = {planned.dtype for planned in self._planned} & FILES_OF.keys()
        return FILE_TYPES[FILES_OF[carried.pop()]] if carried and wanted.is_float else wanted

    def passes(self, index: int, kind: str) -> bool:
        return kind == self._planned[index].dtype and kind in CARRIED

    def beside(self, index: int) -> Sequence[int]:
        planned = self._planned[index]
        if planned.dtype != SCALED or not planned.name.endswith(WEIGHT):
            return ()
        stem = planned.name.removesuffix(WEIGHT)
        names = (stem + SCALE, stem + INPUT_SCALE)
        return [self._places[name] for name in names if name in self._places]

    @property
    def label(self) -> str:
        types = [planned.dtype for planned in self._planned if len(planned.ne) >= 2]
        return types[0] if types else "F32"

    @property
    def files(self) -> tuple[Path, ...]:
        # A GGUF beside the weights is what some conversion before this one made of them.
        own = (f for f in read_files(self.path) if f.suffix != ".gguf")
        opened = self._checkpoint
        adapters = opened.adapters if isinstance(opened, MergedCheckpoint) else ()
        return (self.path, *own, *(path for adapter in adapters for path in adapter.files))

    def stored_type(self, index: int) -> str:
        return self._planned[index].dtype

    def target(self) -> Target:
        shapes = {planned.name: planned.ne[::-1] for planned in self._planned}
        name, base = str(self.get("general.architecture")), Base.of(self._checkpoint)
        return Target(base, name, self._planned, shapes, self._checkpoint)

    def _cut(self, index: int, row: int, rows: int) -> Iterator[tuple[Span, int, int]]:
        """What makes `rows` rows of tensor `index` from `row` on: each span with the first of its
        source's rows and how many of them."""
        planned = self._planned[index]
        # A tensor of one dimension is one row, its spans count values.
        each = planned.ne[0] if len(planned.ne) == 1 else 1
        begin, end, at = row * each, (row + rows) * each, 0
        for span in planned.spans:
            first, last = max(begin - at, 0), min(end - at, span.rows)
            if first < last:
                yield span, span.first + first, last - first
            at += span.rows

    def _stored(self, span: Span) -> StoredTensor:
        view = self._views.get(span.source)
        return self._checkpoint.tensors[span.source] if view is None else view.tensor

    def _width(self, span: Span) -> int:
        return span.shape[-1] if len(span.shape) > 1 else 1

    def _nbytes(self, span: Span, rows: int) -> int:
        return rows * row_bytes(self._stored(span))

    def stored_bytes(self, index: int, rows: int, row: int = 0) -> int:
        return sum(self._nbytes(span, count) for span, _, count in self._cut(index, row, rows))

    def read(self, index: int, row: int, buffer: memoryview) -> None:
        done = 0
        for span, first, count in self._cut(index, row, self.tensors[index].rows - row):
            if done == len(buffer):
                return
            size = min(self._nbytes(span, count), len(buffer) - done)
            at, part = self._nbytes(span, first), buffer[done : done + size]
            view = self._views.get(span.source)
            if view is None:
                self._checkpoint.read_into(self._stored(span), part, at)
            else:
                view.read_into(self._checkpoint.read_into, part, at)
            done += size

    @property
    def merges(self) -> bool:
        return isinstance(self._checkpoint, MergedCheckpoint)

    def changes(self, index: int) -> bool:
        if not isinstance(self._checkpoint, MergedCheckpoint):
            return False
        records = self._checkpoint.step.records
        return any(span.source in records for span in self._planned[index].spans)

    @property
    def only_torch(self) -> str | None:
        for step in self._steps:
            return f"{type(step).__name__} cannot be done"
        return None

    def made_of(self, index: int, row: int, rows: int) -> Iterator[Part]:
        planned = self._planned[index]
        if planned.values is not None:
            values = planned.values.reshape(-1, planned.ne[0])[row : row + rows]
            yield Part("F32", rows, planned.ne[0], values=values)
        for span, first, count in self._cut(index, row, rows):
            records: Sequence[Delta] = ()
            if isinstance(self._checkpoint, MergedCheckpoint):
                records = self._checkpoint.step.records.get(span.source, ())
            width = self._width(span)
            yield Part(self._stored(span).dtype, count, width, first, records, span.transform)

    def values(
        self, index: int, row: int, rows: int, data: "Tensor", *, merged: bool = True
    ) -> "Tensor":
        import torch

        from gpukit_kernels.bits import viewed

        planned = self._planned[index]
        if planned.values is not None:
            values = planned.values.reshape(-1, planned.ne[0])[row : row + rows]
            return torch.from_numpy(values).to(data.device)
        found, done = [], 0
        for span, first, count in self._cut(index, row, rows):
            size = self._nbytes(span, count)
            part, stored = data[done : done + size], self._stored(span)
            if stored.dtype in CARRIED:
                spec = TensorSpec(stored.name, (self._width(span),), stored.dtype)
                part = decoded(spec, count, part) * self._factors.get(span.source, 1.0)
            else:
                part = viewed(part, torch_type(stored.dtype)).view(count, self._width(span))
            part = self._scaling(span.source, first, part)
            for step in self._steps:
                part = step(span.source, first, part)
            if merged and isinstance(self._checkpoint, MergedCheckpoint):
                part = self._checkpoint.step(span.source, first, part)
            found.append(_finished(part, span, planned))
            done += size
        along = 1 if len(planned.ne) == 1 else 0
        return torch.cat(found, along) if len(found) > 1 else found[0]

    def close(self) -> None:
        self._checkpoint.close()


def _finished(rows: "Tensor", span: Span, planned: PlannedTensor) -> "Tensor":
    """Rows of a span behind all steps in the type of the kernels that `planned` has, or in float32,
    and in the layout of a GGUF."""
    if len(planned.ne) == 1:
        rows = rows.view(1, -1)
    if rows.dtype is not torch_type("F32") and planned.dtype not in CARRIED:
        rows = rows.to(torch_type(planned.dtype))
    found: Tensor = rows if span.transform is None else span.transform(rows)
    return found
