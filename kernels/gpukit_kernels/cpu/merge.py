"""Deltas merged on the CPU, a few rows at a time: decoded, summed and encoded within the cache."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpukit_kernels.bits import viewed
from gpukit_kernels.cpu import tiles
from gpukit_kernels.cpu.program import Library
from gpukit_kernels.merge import Factors
from gpukit_kernels.table import FLOATS, QuantType

# Weights that a thread has in hand: 256 KiB as float32.
CHUNK = 1 << 16

Sum = Callable[[Tensor, Sequence[Factors]], Tensor]
# Fill the second from the first: values `[blocks, block]` from blocks `[blocks, nbytes]`, and back.
Decode = Callable[[Tensor, QuantType, Tensor], None]
Encode = Callable[[Tensor, QuantType, Tensor], None]


class _Delta(ctypes.Structure):
    _fields_ = (
        ("w", ctypes.c_void_p), ("b", ctypes.c_void_p), ("a", ctypes.c_void_p),
        ("width", ctypes.c_int64), ("rank", ctypes.c_int64), ("scale", ctypes.c_float),
        ("adds", ctypes.c_int32),
    )  # fmt: skip


class Merger(Library):
    """The sums of `merge.c`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._delta = self._function("delta", "pnn")
        self._lengths = self._function("lengths", "pppnn")

    def merge(self, weight: Tensor, factors: Sequence[Factors]) -> Tensor:
        """`weight`, contiguous float32 `[rows, width]`, changed in place; as `merge.merge`."""
        needed = any(f.magnitude is not None for f in factors)
        base = weight.clone() if needed and len(factors) > 1 else weight
        for b, a, scale, magnitude in factors:
            if magnitude is None:
                self._add(weight, b, a, scale, adds=True)
                continue
            delta, found = torch.empty_like(weight), torch.empty(len(weight))
            self._add(delta, b, a, scale, adds=False)
            places = (base.data_ptr(), delta.data_ptr(), found.data_ptr())
            self._lengths(*places, *weight.shape)
            weight += delta
            weight *= (magnitude / found).unsqueeze(-1)
        return weight

    def _add(self, weight: Tensor, b: Tensor, a: Tensor, scale: float, *, adds: bool) -> None:
        b, a = b.contiguous(), a.contiguous()
        job = _Delta(
            weight.data_ptr(), b.data_ptr(), a.data_ptr(), weight.shape[1], b.shape[1], scale, adds
        )
        self._delta(ctypes.byref(job), 0, len(weight))


@dataclass(frozen=True)
class Steps:
    """How rows are decoded, added to and encoded."""

    decode: Decode
    add: Sum
    encode: Encode


def merge_rows(
    weight: Tensor,
    row: QuantType,
    factors: Sequence[Factors],
    out: Tensor,
    kind: QuantType,
    steps: Steps,
) -> None:
    """Fill uint8 `out [rows, row_bytes]`, blocks of `kind`, from uint8 `weight [rows, row_bytes]`,
    blocks of `row`, with the deltas of `factors`."""
    width = weight.shape[1] // row.nbytes * row.block

    def work(first: int, last: int) -> None:
        blocks, into = weight[first:last].reshape(-1), out[first:last].view(-1)
        if kind.name == "F32":
            values = into.view(torch.float32).view(last - first, width)
        else:
            values = torch.empty((last - first, width), device=weight.device)
        if row.name in FLOATS:
            values.view(-1).copy_(viewed(blocks, FLOATS[row.name]))
        else:
            steps.decode(blocks.view(-1, row.nbytes), row, values.view(-1, row.block))
        found = steps.add(values, [f.part(first, last - first) for f in factors])
        if kind.name not in FLOATS:
            steps.encode(found.view(-1, kind.block), kind, into.view(-1, kind.nbytes))
        elif kind.name != "F32" or found is not values:
            into.view(FLOATS[kind.name]).copy_(found.view(-1))

    tiles.spread(work, len(weight), max(CHUNK // max(width, 1), 1))
