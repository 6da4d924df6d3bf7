"""Tensors of an adapter's file: name, dtype and shape from the header, numbers when asked for."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import gpukit_kernels as kernels
from gpukit.errors import AdapterError, one_line
from gpukit.formats.closing import Closing
from gpukit.formats.floats import FLOATS, widened
from gpukit.formats.gguf_fields import TensorInfo
from gpukit.formats.gguf_reader import GGUFFile, is_gguf
from gpukit.formats.pytorch import PytorchFile
from gpukit.formats.safetensors import SafetensorsFile, StoredTensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Numbers as they are stored; bfloat16 as float32.
Numbers = NDArray[Any]

# What is kept of a file whose tensors are used in many parts, such as a matrix an expert.
KEPT_TENSORS = 4
KEPT_BYTES = 256 << 20


@dataclass(frozen=True)
class Values:
    """A tensor of an adapter, or a view of one: `shape` is known, the numbers are read by `read`.

    `fetch` gives the rows from the first number on, as many as the second says, as they are stored,
    bfloat16 as float32.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    fetch: Callable[[int, int], Numbers] = field(repr=False, compare=False)

    def read(self, dtype: "torch.dtype | None" = None) -> "Tensor":
        """All numbers in `dtype`, float32 without one; `AdapterError` where one of them is NaN or
        infinite."""
        return self.read_rows(0, self.shape[0], dtype)

    def read_rows(self, first: int, count: int, dtype: "torch.dtype | None" = None) -> "Tensor":
        """`count` rows of the outermost dimension from `first` on; errors as `read`."""
        import torch

        found = torch.from_numpy(self.fetch(first, count)).to(dtype or torch.float32)
        self._check_finite(first, torch.isfinite(found).numpy(), found)
        return found

    def array(self, first: int, count: int) -> NDArray[np.float32]:
        """As `read_rows`, float32 of NumPy."""
        found = self.fetch(first, count).astype(np.float32, copy=False)
        self._check_finite(first, np.isfinite(found), found)
        return found

    def _check_finite(
        self, first: int, finite: NDArray[np.bool_], found: "Tensor | Numbers"
    ) -> None:
        if finite.all():
            return
        at = [int(index) for index in np.argwhere(~finite)[0]]
        raise AdapterError(
            f"{self.path}: {self.name} holds {float(found[tuple(at)])} at "
            f"{[at[0] + first, *at[1:]]}: its training diverged or the file is damaged; use "
            "another checkpoint of it"
        )

    def changed(
        self, change: Callable[[Numbers], Numbers], shape: tuple[int, ...] | None = None
    ) -> "Values":
        """The view of `shape`, its own without one, that `change` makes of the whole tensor."""
        whole = self.shape[0]

        def fetch(first: int, count: int) -> Numbers:
            return change(self.fetch(0, whole))[first : first + count]

        return replace(self, shape=self.shape if shape is None else shape, fetch=fetch)

    def matrix(self, number: int) -> "Values":
        """One matrix of a stack."""
        return self.rows(number, 1).changed(_only, self.shape[1:])

    @property
    def t(self) -> "Values":
        """The transposed matrix."""
        return self.changed(np.transpose, self.shape[::-1])

    def rows(self, first: int, count: int) -> "Values":
        """`count` rows from `first` on; the tensor itself where these are all."""
        if (first, count) == (0, self.shape[0]):
            return self

        def fetch(begin: int, number: int) -> Numbers:
            return self.fetch(first + begin, max(0, min(number, count - begin)))

        return replace(self, shape=(count, *self.shape[1:]), fetch=fetch)


def _only(values: Numbers) -> Numbers:
    return np.squeeze(values, 0)


class WeightFile(Closing):
    """An open file of an adapter's weights, `values` by name in the file's order.

    The errors are those of its reader; `AdapterError` for a dtype that no delta has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = _opened(path)
        self._kept: OrderedDict[str, Numbers] = OrderedDict()
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
                known = (*FLOATS, *kernels.type_facts())
            else:
                dtype, shape, known = tensor.dtype, tensor.shape, tuple(FLOATS)
            if dtype not in known:
                raise AdapterError(
                    one_line(f"{self.path}: {name} is {dtype}; ")
                    + f"{', '.join(FLOATS)} can be merged: save the adapter in one of them"
                )
            # A single number counts as a row of one.
            yield name, Values(name, self.path, dtype, shape or (1,), partial(self._fetch, tensor))

    def _fetch(self, tensor: StoredTensor | TensorInfo, first: int, count: int) -> Numbers:
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

    def _read(self, tensor: StoredTensor | TensorInfo, first: int, count: int) -> Numbers:
        """Rows as they are stored, those of a quantised type decoded into float32."""
        each = tensor.nbytes // max(1, _leading(tensor))
        data = np.empty(count * each, dtype=np.uint8)
        if len(data):
            self._fill(tensor, data.data, first * each)
        if isinstance(tensor, StoredTensor):
            return widened(data.view(FLOATS[tensor.dtype])).reshape(count, *tensor.shape[1:])
        shape = (count, *tuple(reversed(tensor.ne))[1:])
        if tensor.type in FLOATS:
            return widened(data.view(FLOATS[tensor.type])).reshape(shape)
        return _decoded(data, tensor).reshape(shape)

    def _fill(self, tensor: StoredTensor | TensorInfo, buffer: memoryview, start: int) -> None:
        match self.file, tensor:
            case GGUFFile() as file, TensorInfo() as info:
                file.read_into(info, buffer, start)
            case (SafetensorsFile() | PytorchFile()) as file, StoredTensor() as stored:
                file.read_into(stored, buffer, start)

    def close(self) -> None:
        self._kept.clear()
        self.file.close()


def _decoded(data: NDArray[np.uint8], tensor: TensorInfo) -> Numbers:
    import torch

    blocks = torch.from_numpy(data).view(-1, tensor.row_bytes)
    return np.asarray(kernels.dequantize(blocks, tensor.type).numpy())


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
