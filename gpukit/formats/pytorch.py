"""Reads the weights in files of torch.save (`.bin`, `.pth`), never running code from them.

Such a file is a zip archive with a pickle of the dictionary of tensors and one record of bytes for
each storage. Before torch reads it (mapped, weights only), the archive must be stored without
compression and the pickle may name nothing but tensors, storages and dtypes: what it claims is then
bounded by the file's own size. Archives of torch before 1.6 are refused.

Format: https://pytorch.org/docs/stable/notes/serialization.html
"""

import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gpukit.errors import PytorchError
from gpukit.formats.closing import Closing
from gpukit.formats.pointers import POINTER, is_pointer
from gpukit.formats.positioned import open_to_read
from gpukit.formats.safetensors import StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

# What a pickle of tensors refers to, as "module name".
HARMLESS = re.compile(
    r"collections OrderedDict"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter)"
    r"|torch\.nn\.parameter Parameter"
    r"|torch(\.cuda)? [A-Z]\w*Storage"
    r"|torch\.storage (Typed|Untyped)Storage"
    r"|torch (float|bfloat|u?int|complex)\d+\w*|torch bool|torch Size"
)
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip


class PytorchFile(Closing):
    """An open file of torch.save that holds a dictionary of tensors; `tensors` in its order.

    Raises `PytorchError` (one line, with the file's name) for anything else, before any of it runs.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self.size = self.path.stat().st_size
            self._check_pickle(self._pickle())
        except FileNotFoundError:
            raise PytorchError(f"{self.path}: no such file") from None
        except OSError as error:
            raise PytorchError(f"{self.path}: cannot be read: {error.strerror}") from None
        self._values: dict[str, Tensor] = {}
        self.tensors: Mapping[str, StoredTensor] = dict(self._listed(self._loaded()))

    def _fail(self, what: str) -> NoReturn:
        raise PytorchError(f"{self.path}: {what}")

    def _pickle(self) -> bytes:
        """The pickle in the archive, which is checked as far as torch trusts it."""
        try:
            with (
                os.fdopen(open_to_read(self.path), "rb") as file,
                zipfile.ZipFile(file) as archive,
            ):
                entries = archive.infolist()
                self._check_entries(entries)
                pickles = [e for e in entries if e.filename.split("/", 1)[-1] == "data.pkl"]
                if len(pickles) != 1:
                    self._fail(f"{len(pickles)} entries of its archive are called data.pkl, not 1")
                return archive.read(pickles[0])
        except (OSError, PytorchError):
            raise
        except Exception as error:  # zipfile raises many types for what is no archive
            if is_pointer(self.path):
                self._fail(POINTER)
            self._fail(
                f"no zip archive of torch.save ({error}): fetch it again, as safetensors if there "
                "are any, or save it again with torch 1.6 or later"
            )

    def _check_entries(self, entries: list[zipfile.ZipInfo]) -> None:
        seen = set()
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                self._fail(f"{entry.filename} is compressed, which torch.save never does")
            if entry.filename in seen:
                self._fail(f"{entry.filename} stands twice in the archive")
            seen.add(entry.filename)

    def _check_pickle(self, data: bytes) -> None:
        try:
            wanted = [_global(name.name, value) for name, value, _ in pickletools.genops(data)]
        except Exception as error:  # any type, for bytes that are no pickle
            self._fail(f"malformed: its data.pkl is no pickle: {error}")
        for name in filter(None, wanted):
            if not HARMLESS.fullmatch(name):
                self._fail(
                    f"refused: its pickle wants {name.replace(' ', '.')[:100]}, and only tensors "
                    "are loaded: fetch the model as safetensors"
                )

    def _loaded(self) -> dict[Any, Any]:
        import torch

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # whatever the library raises for pickles that make no sense
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            self._fail(f"malformed: torch cannot load it: {reason}")
        if not isinstance(found, dict):
            self._fail(f"holds a {type(found).__name__}, not a dictionary of tensors")
        return found

    def _listed(self, found: Mapping[Any, Any]) -> Iterator[tuple[str, StoredTensor]]:
        for name, value in found.items():
            if not isinstance(name, str):
                self._fail(f"{str(name)[:80]!r} is no name of a tensor")
            tensor = self._plain(name, value)
            dtype = DTYPES.get(str(tensor.dtype).removeprefix("torch."))
            if dtype is None:
                self._fail(f"{name}: {tensor.dtype} cannot be read; known: {', '.join(DTYPES)}")
            shape = tuple(value.shape)
            nbytes = prod(shape) * tensor.element_size()
            if nbytes > tensor.untyped_storage().nbytes():
                self._fail(
                    f"{name}: {list(shape)} values take {nbytes} bytes, its storage has "
                    f"{tensor.untyped_storage().nbytes()}"
                )
            self._values[name] = tensor
            yield name, StoredTensor(name, dtype, shape, 0, nbytes, self.path)

    def _plain(self, name: str, value: Any) -> "Tensor":
        """`value` where it is nothing but a tensor of numbers in memory order."""
        import torch

        if (
            type(value) not in (torch.Tensor, torch.nn.Parameter)
            or value.layout is not torch.strided
            or value.device.type != "cpu"
            or value.is_quantized
            or value.is_complex()
            or value.is_neg()
        ):
            self._fail(f"{name} is a {type(value).__name__}, not a plain tensor of weights")
        found: Tensor = value.detach()
        return found if found.dim() else found.view(1)

    def read_into(self, tensor: StoredTensor, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with the tensor's bytes from `start` on; safe from several threads."""
        import torch

        if start < 0 or start + len(buffer) > tensor.nbytes:
            raise ValueError(f"{tensor.name}: {start} + {len(buffer)} bytes of {tensor.nbytes}")
        if not buffer:
            return
        self._check_size(tensor)
        value = self._values[tensor.name]
        # Whole rows, since a transposed tensor has its bytes elsewhere.
        row = tensor.nbytes // value.shape[0]
        first, last = start // row, -(-(start + len(buffer)) // row)
        part = value[first:last].contiguous().view(-1).view(torch.uint8)
        begin = start - first * row
        torch.frombuffer(buffer, dtype=torch.uint8).copy_(part[begin : begin + len(buffer)])

    def _check_size(self, tensor: StoredTensor) -> None:
        """Reading mapped bytes that are gone would end the process."""
        try:
            size = self.path.stat().st_size if self._values else -1
        except OSError as error:
            raise PytorchError(f"{self.path}: {tensor.name}: {error.strerror}") from None
        if size != self.size:
            self._fail(
                f"{tensor.name}: the file had {self.size} bytes when it was opened and has "
                f"{max(size, 0)} now; it has changed or is closed"
            )

    def close(self) -> None:
        self._values = {}


def _global(operation: str, value: Any) -> str | None:
    """What an operation of a pickle imports, as "module name"."""
    if operation == "STACK_GLOBAL":  # pickles of torch.save spell every name out
        return "computed names"
    return str(value) if operation in ("GLOBAL", "INST") else None
