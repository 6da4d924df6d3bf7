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

from gpukit_kernels.dots_triton import dot4_tl, load2_tl, load4_tl, load_tl
from gpukit_kernels.errors import QuantError
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.launch import triton_pair
from gpukit_kernels.prepared_triton import Prepared, prepare, store_prepared_tl
from gpukit_kernels.table import QuantType, VectorParts

__all__ = ["Prepared", "gated", "has_prepared", "multiply_prepared", "prepare", "store_prepared_tl"]

# Rows of x that share one reading of W.
TOGETHER = 4
# Rows of W that a program has, and threads, each with a part of each row.
ROWS = 4
THREADS = 128
ACTIVATIONS = ("silu", "gelu_tanh")


@triton.jit
def _levels_tl(place, mask, WORDS: tl.constexpr, STRIDE: tl.constexpr):
    """Pairs of words of x, `WORDS` of them: four int16 each, `STRIDE` fours from one to the next."""
    found = ()
    if STRIDE == 1 and WORDS % 2 == 0:
        for i in tl.static_range(WORDS // 2):
            four = load4_tl(place + 4 * i, mask)
            found = found + ((four[0], four[1]), (four[2], four[3]))  # noqa: RUF005
    else:
        for i in tl.static_range(WORDS):
            found = found + (load2_tl(place + 2 * STRIDE * i, mask),)  # noqa: RUF005
    return found


@triton.jit
def _x_tl(levels, steps, sums, width, m, place, mask,
          PIECES: tl.constexpr, STRIDE: tl.constexpr, WORDS: tl.constexpr, WORD_STRIDE: tl.constexpr,
          CENTER: tl.constexpr, MINIMA: tl.constexpr):  # fmt: skip
    """What rows of W share of row `m` of x, of each piece: words, step, sum, and CENTER times the
    sum of the levels."""
    row = m.to(tl.int64)
    words = levels.to(tl.pointer_type(tl.int32)) + row * (width // 2)
    steps += row * (width // 32)
    sums += row * (width // 16)
    found = ()
    for i in tl.static_range(PIECES):
        first = place + i * STRIDE
        x = _levels_tl(words + first * 2, mask, WORDS, WORD_STRIDE)
        start = tl.zeros_like(place)
        if CENTER != 0:
            centers = start - CENTER * 0x01010101
            for w in tl.static_range(WORDS):
                start = dot4_tl(x[w], centers, start, True)
        if MINIMA:
            total = load_tl(sums + first // 4, mask)
        else:
            total = 0.0
        found = found + ((x, load_tl(steps + first // 8, mask), total, start),)  # noqa: RUF005
    return found


@triton.jit
def row_totals_tl(x, rows, last, weights, width, count,
                  READ: tl.constexpr, UNPACK: tl.constexpr, PLACE: tl.constexpr,
                  BLOCK: tl.constexpr, PARTS: tl.constexpr, PIECES: tl.constexpr, STRIDE: tl.constexpr,
                  WORDS: tl.constexpr, WORD_STRIDE: tl.constexpr, CENTER: tl.constexpr,
                  MINIMA: tl.constexpr, SIGNED: tl.constexpr, EVEN: tl.constexpr,
                  M: tl.constexpr, ROWS: tl.constexpr, THREADS: tl.constexpr):  # fmt: skip
    """M * ROWS float32 `[THREADS]`, to be summed: products of M rows of x from `x[3]` on with ROWS
    rows of W; `rows` has the first block of each, `weights` whose it is.

    Rows of x beyond `last` are the last again.
    """
    per_row = width // BLOCK
    totals = ()
    for _ in tl.static_range(M * ROWS):
        totals = totals + (tl.zeros((THREADS,), tl.float32),)  # noqa: RUF005
    for first in range(0, per_row * PARTS, THREADS):
        at = first + tl.arange(0, THREADS)
        mask = None if EVEN else at < per_row * PARTS
        block, part = at // PARTS, at % PARTS
        place = block * (BLOCK // 4) + PLACE(part)
        found = ()
        for r in tl.static_range(ROWS):
            found = found + (READ(weights[r], rows[r], block, part, count, mask),)  # noqa: RUF005
        shared = ()
        for m in tl.static_range(M):
            shared = shared + (  # noqa: RUF005
                _x_tl(x[0], x[1], x[2], width, tl.minimum(x[3] + m, last), place, mask,
                      PIECES, STRIDE, WORDS, WORD_STRIDE, CENTER, MINIMA),
            )  # fmt: skip
        before = totals
        totals = ()
        for r in tl.static_range(ROWS):
            words, steps, offsets = UNPACK(found[r], part)
            for m in tl.static_range(M):
                total = before[r * M + m]
                for i in tl.static_range(PIECES):
                    dot = shared[m][i][3]
                    for w in tl.static_range(WORDS):
                        dot = dot4_tl(shared[m][i][0][w], words[i * WORDS + w], dot, SIGNED)
                    total += dot.to(tl.float32) * (shared[m][i][1] * steps[i])
                    if MINIMA:
                        total -= offsets[i] * shared[m][i][2]
                totals = totals + (total,)  # noqa: RUF005
    return totals


@triton.jit
def multiply_kernel(levels, steps, sums, blocks, add, out, m, rows, width,
                    READ: tl.constexpr, UNPACK: tl.constexpr, PLACE: tl.constexpr,
                    BLOCK: tl.constexpr, PARTS: tl.constexpr, PIECES: tl.constexpr, STRIDE: tl.constexpr,
                    WORDS: tl.constexpr, WORD_STRIDE: tl.constexpr, CENTER: tl.constexpr,
                    MINIMA: tl.constexpr, SIGNED: tl.constexpr, EVEN: tl.constexpr,
                    M: tl.constexpr, ROWS: tl.constexpr, THREADS: tl.constexpr):  # fmt: skip
    """float32 `out [m, rows]`, plus `add` unless None: a program is M rows of x and ROWS of W."""
    # Neighbours take the same rows of W, which are read from memory once.
    first_m = tl.program_id(0) * M
    first_row = tl.program_id(1) * ROWS
    weights, starts = (), ()
    for r in tl.static_range(ROWS):
        # Rows beyond the last read the last again; nothing of them is stored.
        row = tl.minimum(first_row + r, rows - 1).to(tl.int64)
        weights, starts = weights + (blocks,), starts + (row * (width // BLOCK),)  # noqa: RUF005
    totals = row_totals_tl(
        (levels, steps, sums, first_m), starts, m - 1, weights, width, rows * (width // BLOCK).to(tl.int64),
        READ, UNPACK, PLACE, BLOCK, PARTS, PIECES, STRIDE, WORDS, WORD_STRIDE, CENTER, MINIMA,
        SIGNED, EVEN, M, ROWS, THREADS,
    )  # fmt: skip
    for i in tl.static_range(M * ROWS):
        row, column = first_m + i % M, first_row + i // M
        mask = (row < m) & (column < rows)
        place = row.to(tl.int64) * rows + column
        value = tl.sum(totals[i], axis=0)
        if add is not None:
            value += tl.load(add + place, mask=mask, other=0.0)
        tl.store(out + place, value, mask=mask)


@triton.jit
def gated_kernel(levels, steps, sums, gate, up, out, m, rows, width, SILU: tl.constexpr,
                 READ: tl.constexpr, UNPACK: tl.constexpr, PLACE: tl.constexpr,
                 BLOCK: tl.constexpr, PARTS: tl.constexpr, PIECES: tl.constexpr, STRIDE: tl.constexpr,
                 WORDS: tl.constexpr, WORD_STRIDE: tl.constexpr, CENTER: tl.constexpr,
                 MINIMA: tl.constexpr, SIGNED: tl.constexpr, EVEN: tl.constexpr,
                 M: tl.constexpr, ROWS: tl.constexpr, THREADS: tl.constexpr):  # fmt: skip
    """float32 `out [m, rows]`: act(gate x) * (up x); a program has ROWS / 2 rows of each."""
    first_m = tl.program_id(0) * M
    HALF: tl.constexpr = ROWS // 2
    first_row = tl.program_id(1) * HALF
    weights, starts = (), ()
    for r in tl.static_range(ROWS):
        row = tl.minimum(first_row + r % HALF, rows - 1).to(tl.int64)
        weights = weights + (gate if r < HALF else up,)  # noqa: RUF005
        starts = starts + (row * (width // BLOCK),)  # noqa: RUF005
    totals = row_totals_tl(
        (levels, steps, sums, first_m), starts, m - 1, weights, width, rows * (width // BLOCK).to(tl.int64),
        READ, UNPACK, PLACE, BLOCK, PARTS, PIECES, STRIDE, WORDS, WORD_STRIDE, CENTER, MINIMA,
        SIGNED, EVEN, M, ROWS, THREADS,
    )  # fmt: skip
    for i in tl.static_range(M * HALF):
        row, column = first_m + i % M, first_row + i // M
        mask = (row < m) & (column < rows)
        value = _activated_tl(tl.sum(totals[i], axis=0), SILU)
        value *= tl.sum(totals[M * HALF + i], axis=0)
        tl.store(out + row.to(tl.int64) * rows + column, value, mask=mask)


@triton.jit
def _activated_tl(v, SILU: tl.constexpr):
    """float32: silu of `v`, or gelu by tanh: both are v times a logistic function."""
    if SILU:
        inner = v
    else:
        # v / 2 * (1 + tanh(u)) is v / (1 + exp(-2 u)), u = sqrt(2 / pi) * (v + 0.044715 v^3).
        inner = 1.5957691216057308 * (v + 0.044715 * v * v * v)
    return v / (1.0 + tl.exp(-inner))


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
