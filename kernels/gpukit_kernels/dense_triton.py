"""Many rows of x times W^T with W in blocks on a GPU: W decoded once, to float16, and the library's
product of float16 matrices with float32 sums.

A row of either operand is multiplied by a power of two that brings its largest magnitude between
2^14 and 2^15: nothing overflows, and what float16 loses below 2^-14 is 2^-39 of the row's largest.
So an operand is off by 2^-11 of itself at most (tf32 would be off by as much), or by 2^-40 of the
largest of its row; the powers are taken off again in float32, which is exact.
"""

from typing import Any

import torch
from torch import Tensor

from gpukit_kernels.dots_triton import byte_value_tl
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import store_fours_tl
from gpukit_kernels.launch import decode_blocks_tl, decode_triton, device_table, triton_pair
from gpukit_kernels.table import QuantType, VectorParts, by_name
from gpukit_kernels.verified import sample, verified, within

# Bytes of decoded weights, and of products, that lie beside the operands at a time.
SCRATCH = 1 << 28
# Values that a program decodes in a step.
STEP_VALUES = 2048
# Threads of a program that decodes by parts.
PART_THREADS = 128
# Side of a tile of products.
TILE = (16, 256)


@triton.jit
def halves_kernel(
    blocks,
    table,
    out,
    powers,
    width,
    DECODE: tl.constexpr,
    BLOCK: tl.constexpr,
    NBYTES: tl.constexpr,
    STEP: tl.constexpr,
):
    """float16 `out [rows, width]`: a row of blocks for each program, times a power of two whose
    inverse is stored in `powers [rows]`."""
    row = tl.program_id(0).to(tl.int64)
    per_row = width // BLOCK
    blocks += row * per_row * NBYTES
    out += row * width
    top = tl.zeros((STEP, BLOCK), tl.float32)
    for first in range(0, per_row, STEP):
        values = _decoded_tl(blocks, table, first, per_row, DECODE, BLOCK, NBYTES, STEP)
        top = _larger_tl(top, tl.abs(values))
    # In one dimension: where the lanes of an axis are no neighbours, Triton 3.6.0 leaves some out.
    power, inverse = _power_tl(tl.max(tl.reshape(top, (STEP * BLOCK,)), axis=0))
    for first in range(0, per_row, STEP):
        values = _decoded_tl(blocks, table, first, per_row, DECODE, BLOCK, NBYTES, STEP)
        block = first + tl.arange(0, STEP)
        place = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        tl.store(out + place, (values * power).to(tl.float16), mask=(block < per_row)[:, None])
    tl.store(powers + row, inverse)


@triton.jit
def _decoded_tl(
    blocks,
    table,
    first,
    per_row,
    DECODE: tl.constexpr,
    BLOCK: tl.constexpr,
    NBYTES: tl.constexpr,
    STEP: tl.constexpr,
):
    """float32 `[STEP, BLOCK]`: the blocks from `first` on, 0 beyond the row."""
    block = first + tl.arange(0, STEP)
    values = decode_blocks_tl(blocks, table, block * NBYTES, block < per_row, DECODE)
    return tl.where((block < per_row)[:, None], tl.reshape(values, (STEP, BLOCK)), 0.0)


@triton.jit
def parts_kernel(blocks, out, powers, rows, width,
                 READ: tl.constexpr, UNPACK: tl.constexpr, PLACE: tl.constexpr,
                 BLOCK: tl.constexpr, PARTS: tl.constexpr, PIECES: tl.constexpr,
                 STRIDE: tl.constexpr, WORDS: tl.constexpr, WORD_STRIDE: tl.constexpr,
                 CENTER: tl.constexpr, MINIMA: tl.constexpr, SIGNED: tl.constexpr,
                 TOP: tl.constexpr, EVEN: tl.constexpr, THREADS: tl.constexpr):  # fmt: skip
    """As `halves_kernel`, of a type that `vectors_triton` knows: steps bound the magnitudes, so
    levels are read once."""
    row = tl.program_id(0).to(tl.int64)
    per_row = width // BLOCK
    count = tl.cast(rows, tl.int64) * per_row
    out += row * width
    top = tl.zeros((THREADS,), tl.float32)
    for first in range(0, per_row * PARTS, THREADS):
        at = first + tl.arange(0, THREADS)
        mask = None if EVEN else at < per_row * PARTS
        found = READ(blocks, row * per_row, at // PARTS, at % PARTS, count, mask)
        _, steps, offsets = UNPACK(found, at % PARTS)
        for i in tl.static_range(PIECES):
            bound = tl.abs(steps[i]) * TOP
            if MINIMA:
                bound += tl.abs(offsets[i])
            top = _larger_tl(top, bound)
    power, inverse = _power_tl(tl.max(top, axis=0))
    tl.store(powers + row, inverse)
    for first in range(0, per_row * PARTS, THREADS):
        at = first + tl.arange(0, THREADS)
        mask = None if EVEN else at < per_row * PARTS
        block, part = at // PARTS, at % PARTS
        found = READ(blocks, row * per_row, block, part, count, mask)
        words, steps, offsets = UNPACK(found, part)
        place = out + (block * (BLOCK // 4) + PLACE(part)) * 4
        for i in tl.static_range(PIECES):
            step = steps[i] * power
            start = -CENTER * step
            if MINIMA:
                start -= offsets[i] * power
            values = ()
            for w in tl.static_range(WORDS):
                for b in tl.static_range(4):
                    level = byte_value_tl(words[i * WORDS + w], b, SIGNED)
                    values = values + ((level * step + start).to(tl.float16),)  # noqa: RUF005
            store_fours_tl(place + i * STRIDE * 4, values, mask, WORDS, WORD_STRIDE)


@triton.jit
def _larger_tl(top, v):
    """float32: the larger one; a NaN, which no power of two would mend, is not."""
    return tl.where(v > top, v, top)


@triton.jit
def _power_tl(top):
    """The power of two that brings `top` between 2^14 and 2^15, and its inverse, float32."""
    exponent = (top.to(tl.int32, bitcast=True) >> 23) - 127
    # 126 for a row of zeros: what is left of them has no use for more.
    shift = tl.minimum(14 - exponent, 126)
    power = ((127 + shift) << 23).to(tl.float32, bitcast=True)
    return power, ((127 - shift) << 23).to(tl.float32, bitcast=True)


@triton.jit
def restore_kernel(
    product, x_powers, w_powers, out, m, rows, stride, M: tl.constexpr, ROWS: tl.constexpr
):
    """float32 `out [m, rows]`, rows `stride` apart: `product` without the operands' powers."""
    line = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    mask = (line < m)[:, None] & (column < rows)[None, :]
    first = tl.load(x_powers + line, mask=line < m, other=0.0)[:, None]
    second = tl.load(w_powers + column, mask=column < rows, other=0.0)[None, :]
    line = line.to(tl.int64)[:, None]
    value = tl.load(product + line * rows + column[None, :], mask=mask, other=0.0)
    tl.store(out + line * stride + column[None, :], value * first * second, mask=mask)


def halves(blocks: Tensor, row: QuantType, width: int) -> tuple[Tensor, Tensor]:
    """float16 `[rows, width]` of uint8 `[rows, row_bytes]`, and float32 `[rows]`: what to multiply
    each row by to have its values again."""
    pair = triton_pair(row)
    out = torch.empty((len(blocks), width), dtype=torch.float16, device=blocks.device)
    powers = torch.empty(len(blocks), dtype=torch.float32, device=blocks.device)
    parts = pair.vectors
    with torch.cuda.device_of(blocks):
        if parts is not None and blocks.data_ptr() % parts.align == 0:
            parts_kernel[(len(blocks),)](
                blocks, out, powers, len(blocks), width, **part_constants(parts, row, width),
                num_warps=PART_THREADS // 32,
            )  # fmt: skip
            return out, powers
        table, step = device_table(pair, blocks.device), STEP_VALUES // row.block
        halves_kernel[(len(blocks),)](
            blocks, table, out, powers, width,
            DECODE=pair.decode, BLOCK=row.block, NBYTES=row.nbytes, STEP=step,
            num_warps=pair.row_warps,
        )  # fmt: skip
    return out, powers


def part_constants(parts: VectorParts, row: QuantType, width: int) -> dict[str, Any]:
    """The constants of `parts_kernel` for rows of `width` values."""
    even = width // row.block * parts.parts % PART_THREADS == 0
    constants = parts.constants(row.block)
    return {**constants, "TOP": parts.top, "EVEN": even, "THREADS": PART_THREADS}


def multiply_dense(x: Tensor, blocks: Tensor, row: QuantType) -> Tensor:
    """float32 `[m, rows]` of float32 `x [m, n]` and uint8 `blocks [rows, row_bytes]`.

    W is taken in pieces of rows, so that scratch beside the operands stays below twice `SCRATCH`.
    """
    (m, width), rows = x.shape, blocks.shape[0]
    out = torch.empty((m, rows), dtype=torch.float32, device=x.device)
    if not out.numel() or not width:
        return out.zero_()
    left, x_powers = halves(x.contiguous().view(torch.uint8), by_name("F32"), width)
    at = 0
    for piece in blocks.contiguous().split(max(1, min(SCRATCH // (2 * width), SCRATCH // (4 * m)))):
        right, w_powers = halves(piece, row, width)
        product = _product(left, right)
        grid = (triton.cdiv(m, TILE[0]), triton.cdiv(len(piece), TILE[1]))
        with torch.cuda.device_of(x):
            restore_kernel[grid](
                product,
                x_powers,
                w_powers,
                out[:, at:],
                m,
                len(piece),
                rows,
                M=TILE[0],
                ROWS=TILE[1],
            )
        at += len(piece)
    return out


def multiply_decoded(x: Tensor, blocks: Tensor, row: QuantType) -> Tensor:
    """As `multiply_dense`, by torch of float32 values, some times slower: for where that is wrong.

    Scratch beside the operands stays below `SCRATCH`.
    """
    width = x.shape[1]
    out = torch.zeros((len(x), len(blocks)), dtype=torch.float32, device=x.device)
    at = 0
    for piece in blocks.contiguous().split(max(1, SCRATCH // (4 * max(width, 1)))):
        if width:
            values = decode_triton(piece.view(-1, row.nbytes), row, torch.float32)
            torch.mm(x, values.view(-1, width).t(), out=out[:, at : at + len(piece)])
        at += len(piece)
    return out


def _product(left: Tensor, right: Tensor) -> Tensor:
    """float32 `left @ right^T` of float16 matrices, summed in float32."""
    if left.is_cuda:
        return torch.mm(left, right.t(), out_dtype=torch.float32)
    return left.to(torch.float32) @ right.to(torch.float32).t()


def is_right(row: QuantType, device: torch.device) -> bool:
    """Whether `multiply_dense` has been found right for the type on `device` (`verified`); where
    the interpreter runs its kernels nothing is compared."""
    if device.type == "cpu":
        return True
    return verified(
        "the product of many rows",
        row.name,
        device,
        lambda: _trial(row, device),
        lambda: _trial(row, None)[0],
        lambda got, wanted: within(_trial(row, None)[1])(got, wanted),
    )


def _trial(row: QuantType, device: torch.device | None) -> Any:
    """The product of a sample by `multiply_dense` on `device`; without one float64, by the
    definition, and what it may be off by."""
    blocks, weights = sample(row, 16, 4096)
    x = torch.randn((17, 4096), generator=torch.Generator().manual_seed(1))
    if device is not None:
        return multiply_dense(x.to(device), blocks.to(device), row)
    return x.double() @ weights.double().t(), allowed_error(x, weights)


def allowed_error(x: Tensor, weights: Tensor) -> Tensor:
    """float64 `[m, rows]`: what a product of `x [m, n]` with the decoded `weights [rows, n]` may be
    off by: 2^-11 of either operand, 2^-40 of the largest of its row, and n roundings of sums."""
    x, weights = x.double().abs(), weights.double().abs()
    room = x @ weights.t() * (2.0**-10 + 2.0**-22 + x.shape[1] * 2.0**-24)
    left = x.amax(dim=1)[:, None] * weights.sum(dim=1)[None, :]
    right = x.sum(dim=1)[:, None] * weights.amax(dim=1)[None, :]
    return room + 2.0**-39 * (left + right)
