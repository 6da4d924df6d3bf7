"""A GGUF model as a source."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import gpukit_kernels as kernels
from gpukit.formats.gguf_fields import TensorSpec
from gpukit.formats.gguf_split import GGUFModel
from gpukit.sources.base import ModelSource, Part, SourceTensor
from gpukit.sources.block_scales import SCALES_CANNOT, BlockScales

if TYPE_CHECKING:
    from torch import Tensor

    from gpukit.adapters.target import Target
    from gpukit.sources.merged import Merge
    from gpukit.sources.merged_gguf import MergedGGUF


class GGUFSource(ModelSource):
    """A GGUF model of any architecture, in one file or in all parts of a split one, with the
    adapters of `merge` if there are any."""

    is_checkpoint = False

    def __init__(self, path: Path, merge: "Merge | None" = None) -> None:
        self.path = path
        self._model = GGUFModel(path)
        self._merged = self._opened(merge) if merge is not None else None
        self.warnings = self._merged.warnings if self._merged is not None else ()
        self.fields = tuple(self._model.fields.values())
        self._infos = tuple(self._model.tensors.values())
        self.tensors = tuple(SourceTensor(i.name, i.ne, i.type, 1) for i in self._infos)
        self._scales = self._found_scales()

    def _found_scales(self) -> BlockScales:
        try:
            return BlockScales(self.path, self._infos, self.read)
        except BaseException:
            self.close()
            raise

    def _opened(self, merge: "Merge") -> "MergedGGUF":
        # Reading adapters takes time to import.
        from gpukit.sources.merged_gguf import MergedGGUF

        try:
            return MergedGGUF(self._model, merge)
        except BaseException:
            self._model.close()
            raise

    @property
    def label(self) -> str:
        types = [info.type for info in self._infos if len(info.ne) >= 2]
        return max(set(types), key=types.count) if types else "F32"

    @property
    def parts(self) -> tuple[int, ...]:
        return self._model.parts

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self._model.paths, *(self._merged.files if self._merged is not None else ()))

    def stored_type(self, index: int) -> str:
        return self._infos[index].type

    def passes(self, index: int, kind: str) -> bool:
        return self._infos[index].type == kind and not self.changes(index)

    @property
    def merges(self) -> bool:
        return self._merged is not None

    def changes(self, index: int) -> bool:
        return self._merged is not None and self._infos[index].name in self._merged.step.records

    def target(self) -> "Target":
        # Reading adapters takes time to import.
        from gpukit.adapters.gguf import gguf_base
        from gpukit.adapters.target import Target

        base, shapes = gguf_base(self._model), {i.name: i.ne[::-1] for i in self._infos}
        return Target(base, str(self.get("general.architecture")), base.rules, shapes)

    def beside(self, index: int) -> Sequence[int]:
        return self._scales.beside(index)

    @property
    def only_torch(self) -> str | None:
        return SCALES_CANNOT if self._scales else None

    def stored_bytes(self, index: int, rows: int, row: int = 0) -> int:  # noqa: ARG002
        return rows * self._infos[index].row_bytes

    def read(self, index: int, row: int, buffer: memoryview) -> None:
        self._model.read_into(self._infos[index], buffer, self.stored_bytes(index, row))

    def made_of(self, index: int, row: int, rows: int) -> Iterator[Part]:
        info = self._infos[index]
        records = self._merged.step.records.get(info.name, ()) if self._merged is not None else ()
        yield Part(info.type, rows, info.ne[0] if info.ne else 1, row, records)

    def values(
        self, index: int, row: int, rows: int, data: "Tensor", *, merged: bool = True
    ) -> "Tensor":
        info = self._infos[index]
        found = self._scales.applied(index, row, decoded(info, rows, data))
        if not merged or self._merged is None or not self.changes(index):
            return found
        # A tensor of one dimension is one row here, and counts by values there.
        lines = found if len(info.ne) > 1 else found.view(-1, 1)
        return self._merged.step(info.name, row, lines).view(found.shape)

    def close(self) -> None:
        if self._merged is not None:
            self._merged.close()
        self._model.close()


def decoded(spec: TensorSpec, rows: int, data: "Tensor") -> "Tensor":
    """Rows of float32, float16 or bfloat16 `[rows, ne0]` of a tensor from its bytes in uint8
    `data`; `QuantError` for types that gpukit cannot decode."""
    import torch

    from gpukit.formats.dtypes import TORCH_TYPES

    dtype = TORCH_TYPES.get(spec.type)
    if dtype is None:
        found = kernels.dequantize(data.view(rows, spec.row_bytes), spec.type)
        return _without_nan_scales(found, data) if spec.type == "MXFP4" else found
    found = data.view(dtype).view(rows, spec.ne[0] if spec.ne else 1)
    return found.to(torch.float32) if found.dtype is torch.float64 else found


def _without_nan_scales(values: "Tensor", data: "Tensor") -> "Tensor":
    """`values` of the MXFP4 blocks `data`, NaN where the exponent is 255, which means NaN.

    llama.cpp refuses such a block; its levels 0 and 1 would decode as plain numbers.
    """
    row = kernels.by_name("MXFP4")
    nan = (data.view(-1, row.nbytes)[:, 0] == 255).repeat_interleave(row.block)
    return values.masked_fill(nan.view_as(values), float("nan"))
