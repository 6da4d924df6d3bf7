"""Writes safetensors files: the header is planned first, then data goes to its places.

Format: 8 bytes header length, JSON header, data (https://github.com/huggingface/safetensors).
"""

import json
import struct
from collections.abc import Sequence
from pathlib import Path

from gpukit.errors import ArgumentError
from gpukit.formats.gguf_fields import UNQUANTIZED, TensorSpec
from gpukit.formats.placed_writer import Layout, PlacedWriter

# The header is filled up with spaces so that data begins at a multiple of this.
ALIGNMENT = 8


def plan_layout(tensors: Sequence[TensorSpec]) -> Layout:
    """The header's bytes and the tensors' places; `ArgumentError` for types that the format has
    no name for."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at, places = 0, []
    for tensor in tensors:
        if tensor.type not in UNQUANTIZED:
            raise ArgumentError(
                f"{tensor.name} would be {tensor.type}, which safetensors files cannot hold; "
                "choose --type F32, F16 or BF16"
            )
        header[tensor.name] = {
            "dtype": tensor.type,  # spelled alike
            "shape": list(reversed(tensor.ne)),
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
