"""Writes safetensors files: the header is planned first, then data goes to its places.

Format: 8 bytes header length, JSON header, data (https://github.com/huggingface/safetensors).
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gpukit.errors import ArgumentError
from gpukit.formats.gguf_fields import UNQUANTIZED, TensorSpec
from gpukit.formats.placed_writer import Layout, PlacedWriter
from gpukit.formats.safetensors import DTYPE_BITS

# The header is filled up with spaces so that data begins at a multiple of this.
ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: dtype as the format spells it, shape outermost dimension first."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * DTYPE_BITS[self.dtype] // 8


def plan_layout(tensors: Sequence[TensorSpec]) -> Layout:
    """The header's bytes and the tensors' places; `ArgumentError` for types that the format has
    no name for."""
    for tensor in tensors:
        if tensor.type not in UNQUANTIZED:
            raise ArgumentError(
                f"{tensor.name} would be {tensor.type}, which safetensors files cannot hold; "
                "choose --type F32, F16 or BF16"
            )
    # Types are spelled alike.
    return plan_entries([Entry(t.name, t.type, tuple(reversed(t.ne))) for t in tensors])


def plan_entries(tensors: Sequence[Entry]) -> Layout:
    """The header's bytes and the tensors' places, in this order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at, places = 0, []
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        places.append(at)
        at += tensor.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    start = 8 + len(text)
    return Layout(
        struct.pack("<Q", len(text)) + text, tuple(start + place for place in places), start + at
    )


class SafetensorsWriter(PlacedWriter):
    """One safetensors file being written; see `PlacedWriter`. Tensors keep their GGUF names."""

    def __init__(self, path: Path, tensors: Sequence[TensorSpec], *, digest: bool = False) -> None:
        super().__init__(path, tensors, plan_layout(tensors), digest=digest)
