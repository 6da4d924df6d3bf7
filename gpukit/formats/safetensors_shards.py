"""Writes the weights of a Hugging Face folder: one safetensors file, or shards and their index.

Names, order and metadata are those that transformers' `save_pretrained` gives them.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpukit.errors import ArgumentError
from gpukit.formats import atomic
from gpukit.formats.placed_writer import PlacedWriter
from gpukit.formats.placed_writers import PlacedWriters
from gpukit.formats.safetensors_writer import Entry, plan_entries

# Bytes of a shard, as huggingface_hub has them.
MAX_SHARD_SIZE = 5 * 10**9
# All are open while they are written.
MOST_SHARDS = 500
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"

# In a file those come first that stand first here, so that each begins at a multiple of its size.
_DTYPES = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E8M0",
    "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E4M3", "F8_E5M2", "I8", "U8", "F6_E3M2", "F6_E2M3", "F4",
    "BOOL",
)  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """A file of weights by its name, with its tensors in the file's order."""

    name: str
    tensors: tuple[Entry, ...]


def plan_shards(tensors: Iterable[Entry], limit: int = MAX_SHARD_SIZE) -> tuple[Shard, ...]:
    """Files of at most `limit` bytes of data each, filled in the order of `tensors`; one with a
    larger tensor holds this one alone. `ArgumentError` where they are too many."""
    groups: list[list[Entry]] = []
    current: list[Entry] = []
    filled = 0
    for tensor in tensors:
        if tensor.nbytes > limit:
            groups.append([tensor])
            continue
        if current and filled + tensor.nbytes > limit:
            groups.append(current)
            current, filled = [], 0
        current.append(tensor)
        filled += tensor.nbytes
    if current:
        groups.append(current)
    count = len(groups)
    if count > MOST_SHARDS:
        raise ArgumentError(
            f"shards of {limit} bytes make {count} files, at most {MOST_SHARDS} are written; "
            "choose a larger size"
        )
    return tuple(
        Shard(_name(number, count), tuple(sorted(group, key=_place)))
        for number, group in enumerate(groups, 1)
    )


def _name(number: int, count: int) -> str:
    return WEIGHTS if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _place(tensor: Entry) -> tuple[int, str]:
    return _DTYPES.index(tensor.dtype), tensor.name


def index_text(shards: Sequence[Shard]) -> str:
    """model.safetensors.index.json."""
    tensors = [(tensor, shard.name) for shard in shards for tensor in shard.tensors]
    content = {
        "metadata": {
            "total_parameters": sum(tensor.elements for tensor, _ in tensors),
            "total_size": sum(tensor.nbytes for tensor, _ in tensors),
        },
        "weight_map": {tensor.name: name for tensor, name in tensors},
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


class ShardsWriter(PlacedWriters):
    """The files `shards` in `folder` being written, and their index where they are several; use
    it as a `PlacedWriter`, tensors numbered through. Where it ends with an error none is left."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        super().__init__(
            PlacedWriter(folder / shard.name, shard.tensors, plan_entries(shard.tensors))
            for shard in shards
        )
        self._folder = folder
        self._shards = tuple(shards)

    def publish(self) -> None:
        super().publish()
        if len(self._shards) > 1:
            atomic.atomic_write(self._folder / INDEX, index_text(self._shards).encode())
