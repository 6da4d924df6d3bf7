"""Writes importance matrices as llama-imatrix does, whole or not at all: GGUF, or the older .dat.

    GGUF   general.type imatrix, imatrix.datasets, .chunk_count, .chunk_size, .stats_schema, then of
           each weight, by name, float32:
             W.in_sum2 [columns, matrices]  sums of squares       W.counts [1, matrices]  rows
             W.in_sum  [columns, matrices]  sums, where known     W.stats  [12]
    .dat   int32 entries; of each int32 length, name, int32 calls, int32 values and float32 mean
           squares times calls; int32 chunks, int32 length, the last text's name; little endian

llama.cpp before August 2026 writes no in_sum, stats and schema and reads past them. Dimensions of 1
at the end are left out, as ggml does. Source: llama.cpp, tools/imatrix/imatrix.cpp.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from gpukit.formats.atomic import atomic_write
from gpukit.formats.gguf_fields import Field, TensorSpec, ValueType, array, string, u32
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.formats.imatrix import (
    CHUNK_SIZE,
    CHUNKS,
    COUNTS,
    DATASETS,
    SQUARES,
    STATS,
    SUMS,
    Collection,
    Floats,
    Sums,
)

SCHEMA_KEY = "imatrix.stats_schema"
# What the twelve values of W.stats are, in this order.
SCHEMA = (
    "sum_sq", "mean", "elements", "std_deviation", "skewness", "kurtosis", "gain", "h_norm",
    "l2_dist", "cossim", "pearson", "covariance",
)  # fmt: skip


def write_gguf(
    path: Path,
    collection: Collection,
    statistics: Mapping[str, Floats] | None = None,
    more: Sequence[Field] = (),
) -> None:
    """Write `collection` in llama.cpp's form, with `statistics`, float32 `[12]` a weight in the
    order of `SCHEMA`, and `more` metadata at the end; `DiskError` where the disk refuses."""
    fields = [
        string("general.type", "imatrix"),
        array(DATASETS, ValueType.STRING, collection.datasets),
        u32(CHUNKS, collection.chunks),
        u32(CHUNK_SIZE, collection.chunk_size),
    ]
    if statistics is not None:
        fields.append(array(SCHEMA_KEY, ValueType.STRING, SCHEMA))
    found = [
        tensor
        for name in in_order(collection.entries)
        for tensor in _tensors(name, collection.entries[name], statistics)
    ]
    specs = [TensorSpec(name, _trimmed(values), "F32") for name, values in found]
    with GGUFWriter(path, [*fields, *more], specs) as writer:
        for index, (_, values) in enumerate(found):
            writer.write(index, np.ascontiguousarray(values, "<f4").data)


def in_order(entries: Mapping[str, Sums]) -> list[str]:
    """The names by their bytes."""
    return sorted(entries, key=str.encode)


def _tensors(
    name: str, sums: Sums, statistics: Mapping[str, Floats] | None
) -> Iterator[tuple[str, Floats]]:
    yield name + SQUARES, sums.squares
    yield name + COUNTS, sums.counts.astype(np.float32)[:, None]
    if sums.sums is not None:
        yield name + SUMS, sums.sums
    if statistics is not None:
        yield name + STATS, statistics[name]


def _trimmed(values: Floats) -> tuple[int, ...]:
    ne = values.shape[::-1]
    while len(ne) > 1 and ne[-1] == 1:
        ne = ne[:-1]
    return ne


def write_dat(path: Path, collection: Collection) -> None:
    """Write `collection` in the older form, which has no counts of single experts: weights that
    nothing came to are left out; `DiskError` where the disk refuses."""
    kept = [name for name in in_order(collection.entries) if collection.entries[name].counts.any()]
    out = bytearray(struct.pack("<i", len(kept)))
    for name in kept:
        sums = collection.entries[name]
        # Rounded up: no calls would mean that the values are no sums.
        calls = -(-int(sums.counts.max()) // collection.chunk_size)
        values = sums.means() * np.float32(calls)
        out += _text(name) + struct.pack("<ii", calls, values.size)
        out += np.ascontiguousarray(values, "<f4").tobytes()
    last = collection.datasets[-1] if collection.datasets else ""
    atomic_write(path, bytes(out) + struct.pack("<i", collection.chunks) + _text(last))


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<i", len(data)) + data
