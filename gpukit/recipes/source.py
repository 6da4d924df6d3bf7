"""Where values come from: a Hugging Face folder or a GGUF model, row slab by row slab."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import gpukit_kernels as kernels
from gpukit.errors import ArgumentError
from gpukit.formats.gguf_fields import Field, TensorSpec
from gpukit.formats.gguf_reader import is_gguf
from gpukit.formats.gguf_split import GGUFModel

if TYPE_CHECKING:
    from torch import Tensor

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
    auto: str | None = None  # what llama.cpp's converter makes of a checkpoint by itself
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
    def values(self, index: int, row: int, rows: int, data: "Tensor") -> "Tensor":
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
        # What imports checkpoints computes with torch.
        from gpukit.recipes.checkpoint_source import CheckpointSource

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

    def values(self, index: int, row: int, rows: int, data: "Tensor") -> "Tensor":  # noqa: ARG002
        import torch

        from gpukit.recipes.dtypes import TORCH_TYPES

        info = self._infos[index]
        dtype = TORCH_TYPES.get(info.type)
        if dtype is None:
            found = kernels.dequantize(data.view(rows, info.row_bytes), info.type)
            return _without_nan_scales(found, data) if info.type == "MXFP4" else found
        found = data.view(dtype).view(rows, info.ne[0] if info.ne else 1)
        return found.to(torch.float32) if found.dtype is torch.float64 else found

    def close(self) -> None:
        self._model.close()


def _without_nan_scales(values: "Tensor", data: "Tensor") -> "Tensor":
    """`values` of the MXFP4 blocks `data`, NaN where the exponent is 255, which means NaN.

    llama.cpp refuses such a block; its levels 0 and 1 would decode as plain numbers.
    """
    row = kernels.by_name("MXFP4")
    nan = (data.view(-1, row.nbytes)[:, 0] == 255).repeat_interleave(row.block)
    return values.masked_fill(nan.view_as(values), float("nan"))
