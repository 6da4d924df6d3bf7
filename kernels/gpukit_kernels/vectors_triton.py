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

from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpukit_kernels.errors import QuantError
from gpukit_kernels.jit import triton
from gpukit_kernels.launch import triton_pair
from gpukit_kernels.prepared_triton import Prepared, prepare, store_prepared_tl
from gpukit_kernels.table import QuantType, VectorParts
from gpukit_kernels.vector_kernels_triton import gated_kernel, multiply_kernel
from gpukit_kernels.verified import sample, verified, within

__all__ = [
    "Prepared",
    "allowed_error",
    "gated",
    "has_prepared",
    "multiply_prepared",
    "prepare",
    "store_prepared_tl",
]

# Rows of x that share one reading of W.
TOGETHER = 4
# Rows of W that a program has, and threads, each with a part of each row.
ROWS = 4
THREADS = 128
ACTIVATIONS = ("silu", "gelu_tanh")


def has_prepared(
    row: QuantType, device: torch.device | None = None, m: int = 1, width: int = 0
) -> bool:
    """Whether the two products below know the type.

    With `device` also whether they have been found right there, by a sample at the first question
    of a process, for `m` rows of x and rows of `width` (`verified`): ask before a CUDA graph is
    recorded. Where the interpreter runs the kernels nothing is compared.
    """
    parts = row.triton.vectors if row.triton is not None else None
    if parts is None or device is None or device.type == "cpu":
        return parts is not None
    together = max(min(m, TOGETHER), 1)
    sized = THREADS // parts.parts * row.block
    even = width % sized == 0
    kernel = f"the product of {together} prepared rows{'' if even else ' of odd width'}"
    trial = partial(_trial, row, together, sized if even else sized + row.block)
    return verified(
        kernel, row.name, device, lambda: trial(device), lambda: trial(None)[0],
        lambda got, wanted: within(trial(None)[1])(got, wanted),
    )  # fmt: skip


def _trial(row: QuantType, m: int, width: int, device: torch.device | None) -> Any:
    """Products and gated products of a sample side by side, by the kernels on `device`; without
    one float64, by the definition, and what each may be off by."""
    rows = 16
    blocks, weights = sample(row, rows, width)
    x = torch.randn((m, width), generator=torch.Generator().manual_seed(1))
    other = blocks.flip(0)
    if device is not None:
        p, here, beside = prepare(x.to(device)), blocks.to(device), other.to(device)
        made = multiply_prepared(p, here, row), gated(p, here, beside, row, "silu")
        return torch.cat(made, dim=1)
    product, off = x.double() @ weights.double().t(), allowed_error(x, weights)
    up, gate = product.flip(1), torch.nn.functional.silu(product)
    # The slope of silu is 1.1 at most; the exponential's error is far below 2^-16.
    slope = 1.1 * off
    spread = slope * up.abs() + (gate.abs() + slope) * off.flip(1) + 2.0**-16 * (gate * up).abs()
    return torch.cat([product, gate * up], dim=1), torch.cat([off, spread], dim=1)


def allowed_error(x: Tensor, weights: Tensor) -> Tensor:
    """float64 `[m, rows]`: what a product by integers of `x [m, n]` with the decoded `weights
    [rows, n]` may be off by.

    Half a step of each group of x, as the module's head says, and for sums in float32 n + 16
    roundings of a group's largest product each: steps and offsets are summed apart, and may be a
    few times larger than the values that they make.
    """
    top = x.double().abs().view(len(x), -1, 32).amax(dim=2)
    groups = weights.double().abs().view(len(weights), -1, 32)
    steps = top @ groups.sum(dim=2).t() * ((1 + 2.0**-8) / 65534)
    return steps + (x.shape[1] + 16) * 2.0**-24 * (top @ (32 * groups.amax(dim=2)).t())


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
    shape = launch_shape(parts, row, p.width, m)
    grid = (triton.cdiv(m, shape["M"]) * triton.cdiv(rows, shape["ROWS"]),)
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
    shape = launch_shape(parts, row, p.width, m)
    grid = (triton.cdiv(m, shape["M"]) * triton.cdiv(rows, shape["ROWS"] // 2),)
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
    parts: VectorParts, row: QuantType, width: int, m: int, tile: tuple[int, int] = (ROWS, THREADS)
) -> dict[str, Any]:
    """The constants and options that a kernel is launched with: `tile` is the rows of W that a
    program has, and its threads."""
    rows, threads = tile
    return {
        **parts.constants(row.block),
        "EVEN": width // row.block * parts.parts % threads == 0,
        "M": min(m, TOGETHER),
        "ROWS": rows,
        "THREADS": threads,
        "num_warps": threads // 32,
    }
