"""A model folder as llama.cpp's converter sees it: any class that it knows, as a source."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gpukit.errors import AdapterError, ArgumentError
from gpukit.formats.file_types import CONVERTED
from gpukit.formats.folder import check_files, read_files
from gpukit.formats.gguf_fields import TensorSpec, type_sizes
from gpukit.models.registry import architectures
from gpukit.sources.base import ModelSource, Part, SourceTensor
from gpukit.sources.block_scales import SCALES_CANNOT, BlockScales
from gpukit.sources.converter_process import Converter, ConverterProcess
from gpukit.sources.gguf import decoded

if TYPE_CHECKING:
    from torch import Tensor

    from gpukit.adapters.target import Target


class ConverterSource(ModelSource):
    """The model in folder `path`, planned and made by the converter of `how`, row slab by row slab.

    Its tensors have the types of the converter's own file. Errors as `ConverterProcess`, and
    `ArgumentError` for what is no folder.
    """

    is_checkpoint = True

    def __init__(self, path: Path, how: Converter) -> None:
        self.path = path
        if not path.is_dir():
            raise ArgumentError(
                f"{path}: no model folder, which is what --converter converts; leave it out"
            )
        check_files(path)
        self._outtype = how.outtype.upper()
        self._child = ConverterProcess(how, path)
        header, told = self._child.header, self._child.told
        self.fields = tuple(header.fields.values())
        self.tensors = tuple(
            SourceTensor(info.name, info.ne, info.type, 1) for info in header.tensors.values()
        )
        self._stored = [
            TensorSpec(tensor.name, tensor.ne, said["stored"])
            for tensor, said in zip(self.tensors, told, strict=True)
        ]
        self.warnings = tuple(self._noted())
        self._scales = BlockScales(path, self._stored, self.read)

    def _noted(self) -> Iterator[str]:
        """What the user should know of a conversion of this kind."""
        yield from self._child.warnings
        rounded = [
            tensor
            for tensor, said in zip(self.tensors, self._child.told, strict=True)
            if said["leaf"] in ("float32", "float64") and tensor.type in ("F16", "BF16")
        ]
        if rounded and self._outtype == "AUTO":
            yield (
                f"{self.path}: {len(rounded)} tensors are F32, and the converter makes "
                f"{rounded[0].type} of them before they are quantised"
            )
        if not self.is_known:
            yield (
                f"{self.path}: gpukit run, perplexity and imatrix cannot run architecture "
                f"{self.architecture!r}; llama.cpp and Ollama can, where they are new enough"
            )

    @property
    def architecture(self) -> str:
        return str(self.get("general.architecture"))

    @property
    def is_known(self) -> bool:
        """Whether gpukit has the architecture itself, and so can run the model."""
        return self.architecture in {known.name for known in architectures()}

    @property
    def label(self) -> str:
        types = [tensor.type for tensor in self.tensors if len(tensor.ne) >= 2]
        return max(set(types), key=types.count) if types else "F32"

    @property
    def files(self) -> tuple[Path, ...]:
        # A GGUF beside the weights is what some conversion before this one made of them.
        return (self.path, *(file for file in read_files(self.path) if file.suffix != ".gguf"))

    def converted_type(self, index: int, wanted: str) -> str:
        kind = self.tensors[index].type
        # What the converter leaves as it is whatever it is told has another type here, too.
        if kind not in ("F16", "BF16") or self._outtype != "AUTO" or wanted not in CONVERTED:
            return kind
        whole = self.tensors[index].ne[0] % type_sizes()[wanted].block == 0
        return wanted if whole else "F16"

    def stored_type(self, index: int) -> str:
        return self._stored[index].type

    def passes(self, index: int, kind: str) -> bool:
        return self._stored[index].type == kind

    def beside(self, index: int) -> Sequence[int]:
        return self._scales.beside(index)

    @property
    def only_torch(self) -> str | None:
        return SCALES_CANNOT if self._scales else None

    def target(self) -> "Target":
        refuse_adapters(self.path)

    def stored_bytes(self, index: int, rows: int, row: int = 0) -> int:  # noqa: ARG002
        return rows * self._stored[index].row_bytes

    def read(self, index: int, row: int, buffer: memoryview) -> None:
        rows = len(buffer) // max(self._stored[index].row_bytes, 1)
        self._child.read(index, row, rows, buffer)

    def made_of(self, index: int, row: int, rows: int) -> Iterator[Part]:
        stored = self._stored[index]
        yield Part(stored.type, rows, stored.ne[0] if stored.ne else 1, row)

    def values(
        self,
        index: int,
        row: int,
        rows: int,
        data: "Tensor",
        *,
        merged: bool = True,  # noqa: ARG002
    ) -> "Tensor":
        return self._scales.applied(index, row, decoded(self._stored[index], rows, data))

    def close(self) -> None:
        self._child.close()


def refuse_adapters(path: Path) -> NoReturn:
    """`AdapterError`: where the converter's tensors come from nobody here knows."""
    raise AdapterError(
        f"{path}: an adapter cannot be merged into what --converter converts: merge it into a "
        "folder first (gpukit merge BASE FOLDER --adapter DIR), then convert that"
    )
