"""Tensors of an adapter's file: name, dtype and shape from the header, numbers when asked for."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.errors import AdapterError, one_line
from gpukit.formats.closing import Closing
from gpukit.formats.dtypes import TORCH_TYPES
from gpukit.formats.gguf_fields import TensorInfo
from gpukit.formats.gguf_reader import GGUFFile, is_gguf
from gpukit.formats.pytorch import PytorchFile
from gpukit.formats.safetensors import SafetensorsFile, StoredTensor

# What is kept of a file whose tensors are used in many parts, such as a matrix an expert.
KEPT_TENSORS = 4
KEPT_BYTES = 256 << 20


@dataclass(frozen=True)
class Values:
    """A tensor of an adapter, or a view of one: `shape` is known, the numbers are read by `read`.

    `fetch` gives the rows from the first number on, as many as the second says, as they are stored.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    fetch: Callable[[int, int], Tensor] = field(repr=False, compare=False)

    def read(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All numbers in `dtype`; `AdapterError` where one of them is NaN or infinite."""
        return self.read_rows(0, self.shape[0], dtype)

    def read_rows(self, first: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """`count` rows of the outermost dimension from `first` on; errors as `read`."""
        found = self.fetch(first, count).to(dtype)
        finite = torch.isfinite(found)
        if not finite.all():
            at = (~finite).nonzero()[0].tolist()
            what = str(found[tuple(at)].item())
            raise AdapterError(
                f"{self.path}: {self.name} holds {what} at {[at[0] + first, *at[1:]]}: its "
                "training diverged or the file is damaged; use another checkpoint of it"
            )
        return found

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Values":
        """The view that `change` makes of the whole tensor."""
        shape = change(torch.empty(self.shape, device="meta")).shape
        whole = self.shape[0]

        def fetch(first: int, count: int) -> Tensor:
            return change(self.fetch(0, whole))[first : first + count]

        return replace(self, shape=tuple(shape), fetch=fetch)

    @property
    def t(self) -> "Values":
        """The transposed matrix."""
        return self.changed(_transposed)

    def rows(self, first: int, count: int) -> "Values":
        """`count` rows from `first` on; the tensor itself where these are all."""
        if (first, count) == (0, self.shape[0]):
            return self

        def fetch(begin: int, number: int) -> Tensor:
            return self.fetch(first + begin, max(0, min(number, count - begin)))

        return replace(self, shape=(count, *self.shape[1:]), fetch=fetch)


def _transposed(values: Tensor) -> Tensor:
    return values.t()


class WeightFile(Closing):
    """An open file of an adapter's weights, `values` by name in the file's order.

    The errors are those of its reader; `AdapterError` for a dtype that no delta has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = _opened(path)
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()
        try:
            self.values: Mapping[str, Values] = dict(self._listed())
        except BaseException:
            self.file.close()
            raise

    def _listed(self) -> Iterator[tuple[str, Values]]:
        for name, tensor in self.file.tensors.items():
            if isinstance(tensor, TensorInfo):
                dtype, shape = tensor.type, tuple(reversed(tensor.ne))
                known = tuple(TORCH_TYPES) + tuple(kernels.QUANTS)
            else:
                dtype, shape, known = tensor.dtype, tensor.shape, tuple(TORCH_TYPES)
            if dtype not in known:
                raise AdapterError(
                    one_line(f"{self.path}: {name} is {dtype}; ")
                    + f"{', '.join(TORCH_TYPES)} can be merged: save the adapter in one of them"
                )
            # A single number counts as a row of one.
            yield name, Values(name, self.path, dtype, shape or (1,), partial(self._fetch, tensor))

    def _fetch(self, tensor: StoredTensor | TensorInfo, first: int, count: int) -> Tensor:
        with self._lock:
            kept = self._kept.get(tensor.name)
        if kept is None:
            rows = _leading(tensor)
            if (first, count) != (0, rows) or tensor.nbytes > KEPT_BYTES:
                return self._read(tensor, first, count)
            kept = self._read(tensor, 0, rows)
            with self._lock:
                self._kept[tensor.name] = kept
                while len(self._kept) > KEPT_TENSORS:
                    self._kept.popitem(last=False)
        return kept[first : first + count]

    def _read(self, tensor: StoredTensor | TensorInfo, first: int, count: int) -> Tensor:
        """Rows as they are stored, those of a quantised type decoded into float32."""
        each = tensor.nbytes // max(1, _leading(tensor))
        data = torch.empty(count * each, dtype=torch.uint8)
        if len(data):
            self._fill(tensor, data.numpy().data, first * each)
        if isinstance(tensor, StoredTensor):
            return data.view(TORCH_TYPES[tensor.dtype]).view(count, *tensor.shape[1:])
        shape = (count, *tuple(reversed(tensor.ne))[1:])
        if tensor.type in TORCH_TYPES:
            return data.view(TORCH_TYPES[tensor.type]).view(shape)
        lines = prod(shape[:-1]) if len(shape) > 1 else 1
        decoded = kernels.dequantize(data.view(lines, tensor.row_bytes), tensor.type)
        return decoded.view(shape)

    def _fill(self, tensor: StoredTensor | TensorInfo, buffer: memoryview, start: int) -> None:
        match self.file, tensor:
            case GGUFFile() as file, TensorInfo() as info:
                file.read_into(info, buffer, start)
            case (SafetensorsFile() | PytorchFile()) as file, StoredTensor() as stored:
                file.read_into(stored, buffer, start)

    def close(self) -> None:
        self._kept.clear()
        self.file.close()


def _leading(tensor: StoredTensor | TensorInfo) -> int:
    shape = tensor.shape if isinstance(tensor, StoredTensor) else tuple(reversed(tensor.ne))
    return shape[0] if shape else 1


def _opened(path: Path) -> SafetensorsFile | PytorchFile | GGUFFile:
    match path.suffix:
        case ".safetensors":
            return SafetensorsFile(path)
        case _ if is_gguf(path):  # a blob of the store has no ending
            return GGUFFile(path)
        case _:
            return PytorchFile(path)
