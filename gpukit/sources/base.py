"""Where values come from: a Hugging Face folder or a GGUF model, row slab by row slab."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpukit.formats.closing import Closing
from gpukit.formats.file_types import FileType, float_type
from gpukit.formats.gguf_fields import Field, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gpukit.adapters.delta import Delta
    from gpukit.adapters.target import Target
    from gpukit.models.rules import Transform


@dataclass(frozen=True)
class SourceTensor(TensorSpec):
    """A tensor of the model to be: GGUF name and dimensions, the type that a plain conversion
    would give it, and how many rows a slab must hold a multiple of."""

    row_group: int


@dataclass(frozen=True)
class Part:
    """What some rows of a tensor are made of: stored are `rows` of `width` values of `dtype`, the
    first of them row `first` of a weight that `records` are for; `transform` brings them into the
    layout of the model. Of what is computed there are the float32 `values`, and nothing is stored.
    """

    dtype: str
    rows: int
    width: int
    first: int = 0
    records: "Sequence[Delta]" = ()
    transform: "Transform | None" = None
    values: NDArray[np.float32] | None = None


class Source(Closing):
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

    def converted_type(self, index: int, wanted: str) -> str:
        """What llama.cpp's converter makes of tensor `index` where it writes type `wanted`."""
        tensor = self.tensors[index]
        return float_type(tensor.name, tensor.ne, wanted)

    def converted_file(self, wanted: FileType) -> FileType:
        """The file type that llama.cpp's converter notes where it writes `wanted`."""
        return wanted

    @property
    def merges(self) -> bool:
        """Whether adapters are merged on the way."""
        return False

    def changes(self, index: int) -> bool:  # noqa: ARG002
        """Whether they do something to tensor `index`."""
        return False

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

    def beside(self, index: int) -> Sequence[int]:  # noqa: ARG002
        """Tensors that belong to the stored blocks of tensor `index`, such as their scale: what
        `values` gives has them in it."""
        return ()

    @abstractmethod
    def stored_bytes(self, index: int, rows: int, row: int = 0) -> int:
        """Bytes on disk of `rows` rows of tensor `index` from `row` on; 0 for computed tensors."""

    @abstractmethod
    def read(self, index: int, row: int, buffer: memoryview) -> None:
        """Fill `buffer` with the stored bytes from `row` on."""

    @abstractmethod
    def made_of(self, index: int, row: int, rows: int) -> Iterator[Part]:
        """What makes `rows` rows of tensor `index` from `row` on, in the order of the rows and of
        what `read` leaves."""

    @property
    def only_torch(self) -> str | None:
        """What of it `values` does and `made_of` does not tell, in words; None where that is
        nothing."""
        return None

    @abstractmethod
    def values(
        self, index: int, row: int, rows: int, data: "Tensor", *, merged: bool = True
    ) -> "Tensor":
        """Rows of float32, float16 or bfloat16 `[rows, ne0]` from what `read` left in uint8 `data`,
        if not `merged` those of the base without adapters.

        They are where `data` is, and may share its memory. `QuantError` for types that gpukit
        cannot decode.
        """

    def float_rows(
        self, index: int, row: int, rows: int, place: "torch.device | str" = "cpu"
    ) -> "Tensor":
        """float32 `[rows, ne0]` on `place`: rows of a tensor, read and decoded; errors as those of
        `read` and `values`."""
        import torch

        data = torch.empty(self.stored_bytes(index, rows, row), dtype=torch.uint8)
        self.read(index, row, data.numpy().data)
        return self.values(index, row, rows, data.to(place)).float().view(rows, -1)


class ModelSource(Source):
    """A whole model, which adapters may be for."""

    @abstractmethod
    def target(self) -> "Target":
        """The model as adapters see it; `GGUFError` for an architecture that is unknown."""
