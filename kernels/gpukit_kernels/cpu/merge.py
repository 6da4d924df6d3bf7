"""Deltas merged on the CPU, a few rows at a time: decoded, summed and encoded within the cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpukit_kernels.bits import viewed
from gpukit_kernels.cpu import tiles
from gpukit_kernels.cpu.merger import Floats, Merger
from gpukit_kernels.factors import Factors
from gpukit_kernels.table import FLOATS, QuantType

# Weights that a thread has in hand: 256 KiB as float32.
CHUNK = 1 << 16

Sum = Callable[[Tensor, Sequence[Factors[Tensor]]], Tensor]
# Fill the second from the first: values `[blocks, block]` from blocks `[blocks, nbytes]`, and back.
Decode = Callable[[Tensor, QuantType, Tensor], None]
Encode = Callable[[Tensor, QuantType, Tensor], None]


def by_program(merger: Merger) -> Sum:
    """The sums of `merger`, in place."""

    def arrays(factors: Factors[Tensor]) -> Factors[Floats]:
        lengths = factors.magnitude
        b, a = factors.b.numpy(), factors.a.numpy()
        return Factors(b, a, factors.scale, None if lengths is None else lengths.numpy())

    def add(weight: Tensor, factors: Sequence[Factors[Tensor]]) -> Tensor:
        merger.merge(weight.numpy(), [arrays(f) for f in factors])
        return weight

    return add


@dataclass(frozen=True)
class Steps:
    """How rows are decoded, added to and encoded."""

    decode: Decode
    add: Sum
    encode: Encode


def merge_rows(
    weight: Tensor,
    row: QuantType,
    factors: Sequence[Factors[Tensor]],
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
