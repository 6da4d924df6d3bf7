"""Kinds of weights that take the quantisers through their corners, and the peer with the bytes.

A kind is float32 `[n, 256]`: n rows of one K block or of eight small ones. For types that are only
read there are blocks of random bytes instead.
"""

import ctypes
import faulthandler
import importlib.util
import mmap
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch

from gpukit_kernels import QUANTS, QuantType, quantize
from gpukit_kernels.facts import FACTS

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Rng = np.random.Generator

WIDTH = 256

# Types of which llama.cpp ends the process where no error is finite; its bytes of such a row.
ENDING = {name: FACTS[name].id for name in FACTS if name.startswith(("IQ1", "IQ2", "IQ3"))}
ENDED = 0xFF
# Blocks of each kind and type in comparisons of encoders; rows of types that look for points of
# lattices, for seconds in the reference. llama.cpp ends the process for some, each of which is
# tried then.
ENCODED, SOUGHT = 512, 64


def _normal(n: int, rng: Rng) -> Floats:
    return rng.standard_normal((n, WIDTH), dtype=np.float32)


def _bf16(n: int, rng: Rng) -> Floats:
    upper = (_normal(n, rng).view(np.uint32) + 0x8000) & 0xFFFF0000
    return upper.view(np.float32)


def _heavy(n: int, rng: Rng) -> Floats:
    return rng.standard_t(1.5, (n, WIDTH)).astype(np.float32)


def _scaled(low: int, high: int, group: int) -> Callable[[int, Rng], Floats]:
    def make(n: int, rng: Rng) -> Floats:
        powers = rng.integers(low, high, (n, WIDTH // group)).repeat(group, axis=1)
        return np.ldexp(_normal(n, rng), powers).astype(np.float32)

    return make


def _sparse(share: float, zero: float) -> Callable[[int, Rng], Floats]:
    def make(n: int, rng: Rng) -> Floats:
        kept = rng.random((n, WIDTH)) < share
        return np.where(kept, _normal(n, rng), np.float32(zero))

    return make


def _zeros_of_both_signs(n: int, rng: Rng) -> Floats:
    return np.where(rng.random((n, WIDTH)) < 0.5, np.float32(-0.0), np.float32(0.0))


def _not_finite(n: int, rng: Rng) -> Floats:
    values = _normal(n, rng)
    odd = np.array([np.nan, -np.nan, np.inf, -np.inf], dtype=np.float32)
    hit = rng.random((n, WIDTH)) < 0.01
    values[hit] = rng.choice(odd, int(hit.sum()))
    return values


FINITE: dict[str, Callable[[int, Rng], Floats]] = {
    "gaussian": _normal,
    "bf16": _bf16,
    "heavy-tailed": _heavy,
    "positive": lambda n, rng: np.abs(_normal(n, rng)),
    "negative": lambda n, rng: -np.abs(_normal(n, rng)),
    "shifted": lambda n, rng: _normal(n, rng) + np.float32(100),
    "constant": lambda n, rng: _normal(n, rng)[:, :1].repeat(WIDTH, axis=1),
    "integers": lambda n, rng: rng.integers(-8, 9, (n, WIDTH)).astype(np.float32),
    "zero": lambda n, rng: np.zeros((n, WIDTH), np.float32),
    "zeros of both signs": _zeros_of_both_signs,
    "sparse": _sparse(0.03, 0.0),
    "sparse with -0": _sparse(0.01, -0.0),
    "scale a row": _scaled(-60, 30, WIDTH),
    # Scales that fp16 rounds to zero, holds as subnormals, or overflows to infinity.
    "scale a group": _scaled(-30, 20, 32),
    # Squares and sums that underflow and overflow in float32.
    "extreme": _scaled(-148, 120, 16),
}

NOT_FINITE: dict[str, Callable[[int, Rng], Floats]] = {"not finite": _not_finite}


def make(kind: str, n: int, seed: int = 0) -> Floats:
    """float32 `[n, 256]` of `kind`, the same for the same seed."""
    with np.errstate(all="ignore"):
        return {**FINITE, **NOT_FINITE}[kind](n, np.random.default_rng([seed, len(kind)]))


def rows_of(name: str) -> int:
    """Rows of a kind in comparisons of encoders."""
    return SOUGHT if name in ENDING else max(64, ENCODED * QUANTS[name].block // WIDTH)


@cache
def references(name: str, weighted: bool) -> dict[str, torch.Tensor]:
    """Of each kind uint8 `[rows_of(name), row_bytes]`: what the torch reference makes of it, with
    importance if `weighted`, then of what is finite only. Once a process: what is compared with
    llama.cpp and what compiled code is compared with."""
    kinds = [*FINITE, *([] if weighted else NOT_FINITE)]
    made = [torch.from_numpy(make(kind, rows_of(name))) for kind in kinds]
    weights = torch.from_numpy(importance(WIDTH)) if weighted else None
    if name in ENDING:
        # Few rows, of which the reference's operations take the time: all kinds at once.
        found = quantize(torch.cat(made), name, weights, backend="eager").split(rows_of(name))
    else:
        found = tuple(quantize(values, name, weights, backend="eager") for values in made)
    return dict(zip(kinds, found, strict=True))


def importance(width: int, seed: int = 0) -> Floats:
    """float32 `[width]`: what an imatrix may hold, some columns and one whole block never used."""
    rng = np.random.default_rng([seed, width])
    found = (rng.standard_exponential(width) ** 3).astype(np.float32)
    found[rng.random(width) < 0.1] = 0
    found[:32] = 0
    return found


def random_blocks(name: str, count: int, seed: int = 0, least: float = 0.0) -> Bytes:
    """uint8 `[count, nbytes]`: random blocks of the type `name`, all of whose values are finite.

    With `least` the largest magnitude of a block lies between it and eight times as much.
    """
    kind = gguf.GGMLQuantizationType[name]
    rng = np.random.default_rng([seed, kind.value])
    shape = (count + 64, gguf.constants.GGML_QUANT_SIZES[kind][1])
    # A block of NVFP4 has four scales: of random ones hardly any four lie near each other.
    scales = _scales_of_nvfp4(least) if least and name == "NVFP4" else None
    found: list[Bytes] = []
    while not found or sum(map(len, found)) < count:
        blocks = rng.integers(0, 256, shape, dtype=np.uint8)
        if scales is not None:
            blocks[:, :4] = rng.choice(scales, (len(blocks), 4))
        with np.errstate(all="ignore"):
            largest = np.abs(gguf.quants.dequantize(blocks, kind)).max(axis=1)
        fits = np.isfinite(largest)
        if least:
            fits &= (largest >= least) & (largest <= 8 * least)
        found.append(blocks[fits])
    return np.concatenate(found)[:count]


def _scales_of_nvfp4(least: float) -> Bytes:
    """uint8: the scales with which the largest of the four-bit values is in that range."""
    every = np.arange(256, dtype=np.uint8)
    blocks = np.concatenate([np.tile(every[:, None], 4), np.full((256, 32), 0x77, np.uint8)], 1)
    with np.errstate(all="ignore"):
        largest = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.NVFP4).max(axis=1)
    return every[(largest >= least) & (largest <= 8 * least)]


def blocks_of(row: QuantType, rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """uint8 `[rows, row_bytes]`: gaussian values in blocks; random blocks of a type only read, or
    that needs importance."""
    if row.encode:
        random = torch.Generator().manual_seed(seed)
        return quantize(torch.randn(rows, width, generator=random), row, backend="eager")
    blocks = random_blocks(row.name, rows * (width // row.block), seed)
    return torch.from_numpy(blocks).view(rows, row.row_bytes(width))


class Peer:
    """llama.cpp's own quantisers, from the library inside xllamacpp."""

    def __init__(self, library: Path) -> None:
        self._ggml = ctypes.CDLL(str(library))
        self._ggml.ggml_row_size.restype = ctypes.c_size_t
        self._ggml.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
        self._ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
        self._ggml.ggml_quantize_chunk.argtypes = [
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
        ]

    def row_bytes(self, id: int, n: int) -> int:
        return int(self._ggml.ggml_row_size(id, n))

    def quantize(self, values: Floats, id: int, importance: Floats | None = None) -> Bytes:
        """uint8 `[rows, row_bytes]` of float32 `[rows, n]`, with float32 `importance` `[n]`.

        All ENDED are the bytes of rows that llama.cpp ends the process for.
        """
        values = np.ascontiguousarray(values, dtype=np.float32)
        if id not in ENDING.values():
            return self._quantized(values, id, importance)
        # Else each child would make the tables.
        self._ggml.ggml_quantize_init(id)
        row_bytes = self.row_bytes(id, values.shape[1])
        # What children share with us: the rows that are done, and how many were begun.
        with mmap.mmap(-1, 8 + len(values) * row_bytes) as shared:
            begun = np.frombuffer(shared, np.uint64, 1)
            out = np.frombuffer(shared, np.uint8, offset=8).reshape(len(values), row_bytes)
            out[:] = ENDED
            while begun[0] < len(values) and not self._goes_on(values, id, importance, begun, out):
                pass
            found = out.copy()
            del begun, out
        return found

    def _goes_on(
        self, values: Floats, id: int, importance: Floats | None, begun: Any, out: Bytes
    ) -> bool:
        """Whether a child came to the end of the rows that are left; else it was ended by one."""
        child = os.fork()
        if not child:
            # A stack's trace by a debugger takes seconds; pytest's has a stream of its own.
            faulthandler.disable()
            os.environ["GGML_NO_BACKTRACE"] = "1"
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1), os.dup2(silent, 2)
            for i in range(int(begun[0]), len(values)):
                begun[0] = i + 1
                out[i] = self._quantized(values[i : i + 1], id, importance)[0]
            os._exit(0)
        return os.waitpid(child, 0)[1] == 0

    def _quantized(self, values: Floats, id: int, importance: Floats | None) -> Bytes:
        rows, n = values.shape
        out = np.empty((rows, self.row_bytes(id, n)), np.uint8)
        written = self._ggml.ggml_quantize_chunk(
            id,
            values.ctypes.data,
            out.ctypes.data,
            0,
            rows,
            n,
            None if importance is None else importance.ctypes.data,
        )
        assert written == out.size
        return out

    def dequantize(self, blocks: Bytes, name: str, block: int) -> Floats:
        """float32 `[count, block]` of uint8 `[count, nbytes]`: the values that the C reads."""
        # The C's names: q4_0, q4_K, iq2_xxs.
        decode = self._ggml[f"dequantize_row_{name.lower().replace('_k', '_K')}"]
        decode.restype = None
        decode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        blocks = np.ascontiguousarray(blocks)
        out = np.full((len(blocks), block), np.nan, np.float32)
        decode(blocks.ctypes.data, out.ctypes.data, out.size)
        return out


def find_peer() -> Path | None:
    """The library inside xllamacpp, without importing the package."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        return None
    return next(Path(found.origin).parent.glob("xllamacpp*.so"), None)


def need_peer() -> Peer:
    """The peer; skips the test where xllamacpp is not installed."""
    library = find_peer()
    if library is None:
        pytest.skip("xllamacpp is not installed")
    return Peer(library)
