"""Metadata and tensors of a GGUF of no model."""

from pathlib import Path
from typing import Any

import numpy as np

from gpukit.formats.gguf_fields import (
    Field,
    TensorSpec,
    ValueType,
    array,
    boolean,
    f32,
    i32,
    string,
    u16,
    u32,
    u64,
)
from gpukit.formats.gguf_writer import GGUFWriter

V = ValueType
FIELDS = [
    string("general.architecture", "llama"),
    string("general.name", "Ünïcode ▁ 𝄞"),
    string("empty", ""),
    Field("u8", V.UINT8, 255),
    Field("i8", V.INT8, -128),
    u16("u16", 65535),
    Field("i16", V.INT16, -32768),
    u32("u32", 0xFFFFFFFF),
    i32("i32", -(1 << 31)),
    f32("f32", 1e-5),
    boolean("yes", True),
    boolean("no", False),
    u64("u64", (1 << 64) - 1),
    Field("i64", V.INT64, -(1 << 63)),
    Field("f64", V.FLOAT64, 0.1),
    array("strings", V.STRING, ["a", "", "ß", "▁the"]),
    array("floats", V.FLOAT32, [0.5, -1.25, float("inf")]),
    array("ints", V.INT32, [1, -2, 3]),
    array("bools", V.BOOL, [True, False]),
]
TENSORS = [
    TensorSpec("token_embd.weight", (256, 5), "Q4_K"),
    TensorSpec("blk.0.attn_norm.weight", (7,), "F32"),
    TensorSpec("blk.0.attn_q.weight", (32, 3), "Q8_0"),
    TensorSpec("odd", (5, 1, 3), "BF16"),
    TensorSpec("four", (2, 3, 2, 2), "F16"),
]


def contents(tensors: list[TensorSpec] = TENSORS) -> list[bytes]:
    generator = np.random.default_rng(7)
    return [generator.integers(0, 256, t.nbytes, dtype=np.uint8).tobytes() for t in tensors]


def written(path: Path, **options: Any) -> GGUFWriter:
    with GGUFWriter(path, FIELDS, TENSORS, **options) as writer:
        for index, data in enumerate(contents()):
            writer.write(index, data)
    return writer
