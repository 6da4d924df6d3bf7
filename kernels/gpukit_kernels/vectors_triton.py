"""A few rows of x times W^T with W in blocks on a GPU, by integers: bound by reading W.

x is prepared first (`prepared_triton`): int16 levels and a step for each 32 values. A thread takes
a part of a block, a few words of levels with their steps, once for all of up to four rows of x, and
sums integer products; a sum becomes float32 times both steps, and the rest is float32.

The error is that of x: a product is off by half a step of its group of x at most, so the result by
the sum over groups of max|x in group| / 65534 * sum|W in group|, and by what summing in float32
costs, as in every product. With 16 bits for x that is far below what a rounding of both operands to
tf32 costs (2^-10 of each product), for all but groups whose largest value is 64 times their others.

Every function may be called while a CUDA graph is recorded: nothing is read back.
"""

from typing import Any

import torch
from torch import Tensor

from gpukit_kernels.errors import QuantError
from gpukit_kernels.jit import triton
from gpukit_kernels.launch import triton_pair
from gpukit_kernels.prepared_triton import Prepared, prepare, store_prepared_tl
from gpukit_kernels.table import QuantType, VectorParts
from gpukit_kernels.vector_kernels_triton import gated_kernel, multiply_kernel

__all__ = ["Prepared", "gated", "has_prepared", "multiply_prepared", "prepare", "store_prepared_tl"]

# Rows of x that share one reading of W.
TOGETHER = 4
# Rows of W that a program has, and threads, each with a part of each row.
ROWS = 4
THREADS = 128
ACTIVATIONS = ("silu", "gelu_tanh")


def has_prepared(row: QuantType) -> bool:
    """Whether the two products below know the type."""
    return row.triton is not None and row.triton.vectors is not None


def multiply_prepared(
    p: Prepared,
    blocks: Tensor,
    row: QuantType,
    *,
    add: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """float32 `[m, rows]`: x, prepared, times the transpose of W, uint8 `[rows, row_bytes]`.

    `add`, float32 `[m, rows]`, is added to it. With `out` nothing is allocated; it may be `add`.
    `QuantError` for a type that has no such kernel, and for shapes that do not agree.
    """
    parts, blocks, out = _checked(p, blocks, row, out)
    if not out.numel():
        return out
    if add is not None and (add.shape != out.shape or not add.is_contiguous()):
        raise QuantError(f"add is {list(add.shape)}, the product is {list(out.shape)}")
    rows, m = blocks.shape[0], p.rows
    shape = launch_shape(parts, row, p.width, m, rows)
    grid = (triton.cdiv(m, shape["M"]), triton.cdiv(rows, shape["ROWS"]))
    with torch.cuda.device_of(blocks):
        multiply_kernel[grid](
            p.levels, p.steps, p.sums, blocks, add, out, m, rows, p.width, **shape
        )
    return out


def gated(
    p: Prepared,
    gate: Tensor,
    up: Tensor,
    row: QuantType,
    activation: str,
    out: Tensor | None = None,
) -> Tensor:
    """float32 `[m, rows]`: activation(x @ gate^T) * (x @ up^T), in one launch.

    `activation` is "silu" or "gelu_tanh"; the rest as for `multiply_prepared`.
    """
    if activation not in ACTIVATIONS:
        raise QuantError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    if gate.shape != up.shape:
        raise QuantError(f"gate is {list(gate.shape)}, up is {list(up.shape)}")
    parts, gate, out = _checked(p, gate, row, out)
    _, up, out = _checked(p, up, row, out)
    if not out.numel():
        return out
    rows, m = gate.shape[0], p.rows
    shape = launch_shape(parts, row, p.width, m, rows)
    grid = (triton.cdiv(m, shape["M"]), triton.cdiv(rows, shape["ROWS"] // 2))
    with torch.cuda.device_of(gate):
        gated_kernel[grid](
            p.levels, p.steps, p.sums, gate, up, out, m, rows, p.width,
            SILU=activation == "silu", **shape,
        )  # fmt: skip
    return out


def _checked(
    p: Prepared, blocks: Tensor, row: QuantType, out: Tensor | None
) -> tuple[VectorParts, Tensor, Tensor]:
    """The type's parts; blocks that begin where its loads may; what the product is stored in."""
    parts = triton_pair(row).vectors
    if parts is None:
        raise QuantError(f"{row.name} has no products of prepared rows")
    wanted = row.row_bytes(p.width)
    if blocks.ndim != 2 or blocks.shape[1] != wanted:
        raise QuantError(
            f"blocks are {list(blocks.shape)}; x of {p.width} needs rows of {wanted} bytes"
        )
    blocks = blocks.contiguous()
    if blocks.data_ptr() % parts.align:
        blocks = blocks.clone()
    shape = (p.rows, blocks.shape[0])
    if out is None:
        out = torch.empty(shape, dtype=torch.float32, device=blocks.device)
    elif out.shape != shape or out.dtype is not torch.float32 or not out.is_contiguous():
        raise QuantError(f"out is {out.dtype} {list(out.shape)}; float32 {list(shape)} is needed")
    return parts, blocks, out


def launch_shape(
    parts: VectorParts,
    row: QuantType,
    width: int,
    m: int,
    rows: int,  # noqa: ARG001
) -> dict[str, Any]:
    """The constants and options that a kernel is launched with."""
    threads = THREADS
    return {
        **parts.constants(row.block),
        "EVEN": width // row.block * parts.parts % threads == 0,
        "M": min(m, TOGETHER),
        "ROWS": ROWS,
        "THREADS": threads,
        "num_warps": threads // 32,
    }
