"""Deltas merged on the CPU by the program of `merge.c`, in NumPy's arrays: without torch.

Bytes are those of `merge.merge`, which whoever leaves the program has compared with it.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from gpukit_kernels.cpu import plain
from gpukit_kernels.cpu.program import KINDS, Library
from gpukit_kernels.factors import Factors

Floats = NDArray[numpy.float32]

# Weights that a thread has in hand: 512 KiB as float32, within the second-level cache.
CHUNK = 1 << 17


class _Delta(ctypes.Structure):
    _fields_ = (
        ("w", ctypes.c_void_p), ("b", ctypes.c_void_p), ("a", ctypes.c_void_p),
        ("width", ctypes.c_int64), ("rank", ctypes.c_int64), ("scale", ctypes.c_float),
        ("adds", ctypes.c_int32),
    )  # fmt: skip


class Merger(Library):
    """The sums of `merge.c`. All arrays are contiguous; bfloat16 is uint16."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._delta = self._function("delta", "pnn")
        self._lengths = self._function("lengths", "pppnn")
        self._widen = self._function("widen", "pnpn")
        self._narrow = self._function("narrow", "pnpn")
        self._largest = self._function("largest", "pn", ctypes.c_int64)

    def merge(self, weight: Floats, factors: Sequence[Factors[Floats]]) -> Floats:
        """`weight`, float32 `[rows, width]`, changed in place; as `merge.merge`."""
        needed = any(f.magnitude is not None for f in factors)
        base = weight.copy() if needed and len(factors) > 1 else weight
        for b, a, scale, magnitude in factors:
            if magnitude is None:
                self._add(weight, b, a, scale, adds=True)
                continue
            delta, found = numpy.empty_like(weight), numpy.empty(len(weight), numpy.float32)
            self._add(delta, b, a, scale, adds=False)
            places = (base.ctypes.data, delta.ctypes.data, found.ctypes.data)
            self._lengths(*places, *weight.shape)
            # Nothing of length 0 has a length: what comes out is refused as not finite.
            with numpy.errstate(all="ignore"):
                weight += delta
                weight *= (magnitude / found)[:, None]
        return weight

    def _add(self, weight: Floats, b: Floats, a: Floats, scale: float, *, adds: bool) -> None:
        b, a = numpy.ascontiguousarray(b), numpy.ascontiguousarray(a)
        places = (weight.ctypes.data, b.ctypes.data, a.ctypes.data)
        job = _Delta(*places, weight.shape[1], b.shape[1], scale, adds)
        self._delta(ctypes.byref(job), 0, len(weight))

    def widen(self, values: NDArray[Any], out: Floats) -> None:
        """Fill float32 `out` from as many float32, float16 or bfloat16 `values`."""
        if values.dtype == numpy.float32:
            out[...] = values
        else:
            kind = KINDS[values.dtype.name]
            self._widen(values.ctypes.data, kind, out.ctypes.data, values.size)

    def narrow(self, values: Floats, out: NDArray[Any]) -> None:
        """Fill `out`, float32, float16 or bfloat16, from as many float32 `values`, rounded to
        nearest even."""
        if out.dtype == numpy.float32:
            out[...] = values
        else:
            self._narrow(values.ctypes.data, KINDS[out.dtype.name], out.ctypes.data, out.size)

    def largest(self, values: Floats) -> float:
        """The largest magnitude of float32 `values`, NaN or infinity where there is one."""
        bits = self._largest(values.ctypes.data, values.size)
        return float(numpy.array(bits, dtype=numpy.int32).view(numpy.float32))


def merged_rows(
    values: NDArray[Any],
    factors: Sequence[Factors[Floats]],
    merger: Merger,
    dtype: numpy.dtype[Any],
    threads: int = 1,
) -> tuple[NDArray[Any], float]:
    """`values` `[rows, width]` with the deltas of `factors`, rounded into `dtype` after; and the
    largest magnitude before, NaN or infinity where there is one. Types are those of `widen`."""
    out = numpy.empty(values.shape, dtype=dtype)
    tops = [0.0]

    def work(first: int, last: int) -> None:
        into = out[first:last]
        some = into if dtype == numpy.float32 else numpy.empty(into.shape, dtype=numpy.float32)
        merger.widen(values[first:last], some)
        merger.merge(some, [f.part(first, last - first) for f in factors])
        tops.append(merger.largest(some))
        if some is not into:
            merger.narrow(some, into)

    plain.spread(work, len(values), max(CHUNK // max(values.shape[1], 1), 1), threads)
    return out, float(numpy.max(tops))


def narrowed(
    values: NDArray[Any], dtype: numpy.dtype[Any], merger: Merger, threads: int = 1
) -> NDArray[Any]:
    """`values` rounded into `dtype`, float16 or bfloat16 (uint16); types are those of `widen`."""
    flat, found = values.reshape(-1), numpy.empty(values.shape, dtype=dtype)
    out = found.reshape(-1)

    def work(first: int, last: int) -> None:
        some = numpy.empty(last - first, dtype=numpy.float32)
        merger.widen(flat[first:last], some)
        merger.narrow(some, out[first:last])

    plain.spread(work, len(flat), CHUNK, threads)
    return found
