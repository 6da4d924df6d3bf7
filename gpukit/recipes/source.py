"""Where values come from: a Hugging Face folder or a GGUF model, row slab by row slab."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.errors import ArgumentError, one_line
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.gguf_fields import Field, TensorSpec
from gpukit.formats.gguf_reader import is_gguf
from gpukit.formats.gguf_split import GGUFModel
from gpukit.models.base import ImportPlan, PlannedTensor, auto_type, float_type
from gpukit.models.fp8 import FP8, read_scale, scaled
from gpukit.models.importer import plan_import, some

TORCH_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
STORED_TYPES = {**TORCH_TYPES, **FP8}
# Endings of files that are a part of a checkpoint.
WEIGHTS = (".safetensors", ".bin", ".pth")


@dataclass(frozen=True)
class SourceTensor(TensorSpec):
    """A tensor of the model to be: GGUF name and dimensions, the type that a plain conversion
    would give it, and how many rows a slab must hold a multiple of."""

    row_group: int


class Source(ABC):
    """An open model: metadata, tensors, and their values on demand.

    `read` fills a buffer from the disk (any thread); `values` turns the bytes into rows.
    """

    path: Path
    fields: tuple[Field, ...]
    tensors: tuple[SourceTensor, ...]
    is_checkpoint: bool
    warnings: tuple[str, ...] = ()  # lines for the user, such as what nothing uses

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a metadata field."""
        return next((f.value for f in self.fields if f.key == key), default)

    @property
    @abstractmethod
    def label(self) -> str:
        """The file type of the source in a word, such as BF16."""

    @abstractmethod
    def stored_type(self, index: int) -> str:
        """What tensor `index` is now, such as BF16."""

    @property
    def parts(self) -> tuple[int, ...]:
        """The number of tensors in each file of a model that is split into several."""
        return (len(self.tensors),)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files or folders that are read, which nothing may be written to."""
        return (self.path,)

    def passes(self, index: int, kind: str) -> bool:  # noqa: ARG002
        """Whether the stored bytes of tensor `index` are those that a file has for type `kind`."""
        return False

    @abstractmethod
    def stored_bytes(self, index: int, rows: int) -> int:
        """Bytes on disk of `rows` rows of tensor `index`; 0 for computed tensors."""

    @abstractmethod
    def read(self, index: int, row: int, buffer: memoryview) -> None:
        """Fill `buffer` with the stored bytes from `row` on."""

    @abstractmethod
    def values(self, index: int, row: int, rows: int, data: Tensor) -> Tensor:
        """Rows of float32, float16 or bfloat16 `[rows, ne0]` from what `read` left in uint8 `data`.

        They are where `data` is, and may share its memory. `QuantError` for types that gpukit
        cannot decode.
        """

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_source(path: Path, pre: str | None = None) -> Source:
    """The model at `path`: a folder with a checkpoint, or a GGUF file; the errors of its reader.

    `pre` names the pre-tokenizer of a folder with a byte-level BPE.
    """
    if path.is_dir():
        return CheckpointSource(path, pre)
    if not path.exists():
        raise ArgumentError(f"{path}: no such file or folder")
    if path.suffix in WEIGHTS and not is_gguf(path):
        raise ArgumentError(
            f"{path}: weights without their model; name the folder that has config.json beside them"
        )
    if pre is not None:
        raise ArgumentError(f"{path}: a GGUF has its pre-tokenizer; --pre is for model folders")
    return GGUFSource(path)


class CheckpointSource(Source):
    """A Hugging Face folder, renamed and transformed on the way."""

    is_checkpoint = True

    def __init__(self, path: Path, pre: str | None = None) -> None:
        self.path = path
        self._checkpoint = Checkpoint(path)
        try:
            plan = plan_import(self._checkpoint, pre=pre)
        except BaseException:
            self._checkpoint.close()
            raise
        self.fields = plan.fields
        self._planned = plan.tensors
        self._scales = plan.scales.by_weight
        self._auto = auto_type(plan.tensors)
        self.warnings = tuple(self._left_out(plan))
        self.tensors = tuple(self._tensor(planned) for planned in plan.tensors)

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

    def _tensor(self, planned: PlannedTensor) -> SourceTensor:
        # What stays as it is in a quantised file has the type of a plain conversion.
        wanted = planned.dtype if planned.dtype != "F32" else self._auto
        kind = float_type(planned.name, planned.ne, wanted)
        return SourceTensor(planned.name, planned.ne, kind, planned.row_group)

    @property
    def label(self) -> str:
        types = [planned.dtype for planned in self._planned if len(planned.ne) >= 2]
        return types[0] if types else "F32"

    @property
    def auto(self) -> str:
        """The file type that llama.cpp's converter chooses by itself."""
        return self._auto

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
        """Rows of `planned` as they are stored, the first being row `row`, in a type of the
        kernels."""
        if any(name in self._scales for name in planned.sources):
            parts = self._of_sources(planned, row, stored)
            return torch.cat([self._scaled(name, first, part) for name, first, part in parts])
        wide = stored.dtype is torch.float64 or stored.dtype in FP8.values()
        return stored.to(torch.float32) if wide else stored

    def _of_sources(
        self, planned: PlannedTensor, row: int, stored: Tensor
    ) -> Iterator[tuple[str, int, Tensor]]:
        """Each source's name, the first of its own rows, and these rows."""
        of_one = prod(planned.ne[1:]) // len(planned.sources)
        done = 0
        while done < len(stored):
            number, first = divmod(row + done, of_one)
            part = stored[done : done + of_one - first]
            yield planned.sources[number], first, part
            done += len(part)

    def _scaled(self, name: str, row: int, stored: Tensor) -> Tensor:
        scale = self._scales.get(name)
        if scale is None:
            return stored.to(torch.float32)
        return scaled(stored, row, scale, read_scale(self._checkpoint, scale))

    def close(self) -> None:
        self._checkpoint.close()


class GGUFSource(Source):
    """A GGUF model of any architecture, in one file or in all parts of a split one."""

    is_checkpoint = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._model = GGUFModel(path)
        self.fields = tuple(self._model.fields.values())
        self._infos = tuple(self._model.tensors.values())
        self.tensors = tuple(SourceTensor(i.name, i.ne, i.type, 1) for i in self._infos)

    @property
    def label(self) -> str:
        types = [info.type for info in self._infos if len(info.ne) >= 2]
        return max(set(types), key=types.count) if types else "F32"

    @property
    def parts(self) -> tuple[int, ...]:
        return self._model.parts

    @property
    def files(self) -> tuple[Path, ...]:
        return self._model.paths

    def stored_type(self, index: int) -> str:
        return self._infos[index].type

    def passes(self, index: int, kind: str) -> bool:
        return self._infos[index].type == kind

    def stored_bytes(self, index: int, rows: int) -> int:
        return rows * self._infos[index].row_bytes

    def read(self, index: int, row: int, buffer: memoryview) -> None:
        self._model.read_into(self._infos[index], buffer, self.stored_bytes(index, row))

    def values(self, index: int, row: int, rows: int, data: Tensor) -> Tensor:  # noqa: ARG002
        info = self._infos[index]
        dtype = TORCH_TYPES.get(info.type)
        if dtype is None:
            found = kernels.dequantize(data.view(rows, info.row_bytes), info.type)
            return _without_nan_scales(found, data) if info.type == "MXFP4" else found
        found = data.view(dtype).view(rows, info.ne[0] if info.ne else 1)
        return found.to(torch.float32) if found.dtype is torch.float64 else found

    def close(self) -> None:
        self._model.close()


def _without_nan_scales(values: Tensor, data: Tensor) -> Tensor:
    """`values` of the MXFP4 blocks `data`, NaN where the exponent is 255, which means NaN.

    llama.cpp refuses such a block; its levels 0 and 1 would decode as plain numbers.
    """
    row = kernels.by_name("MXFP4")
    nan = (data.view(-1, row.nbytes)[:, 0] == 255).repeat_interleave(row.block)
    return values.masked_fill(nan.view_as(values), float("nan"))
