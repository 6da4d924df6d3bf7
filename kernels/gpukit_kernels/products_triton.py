"""x @ W^T with W in blocks on a GPU: weights are decoded in registers, and only blocks are read.

One kernel for a few rows of x, which is bound by reading W; one for many, on the tensor cores. Both
sum in float32.
"""

import torch
from torch import Tensor

from gpukit_kernels.jit import tl, triton
from gpukit_kernels.launch import MAGIC, decode_blocks_tl, device_table, triton_pair
from gpukit_kernels.table import QuantType

# Rows of x up to which W is decoded again for each of them: below, a tile of the tensor cores, 16
# rows at least, would stand mostly empty.
FEW_ROWS = 4

# Rows of W and values of each that a program of the first kernel decodes in a step: sixteen values
# a thread, and some thousand programs for a weight of a large model.
VECTOR_ROWS = 4
VECTOR_WIDTH = 512
# Threads of a program of a type's own kernel for a few rows, of which each has 16 bytes of levels.
QUADS = 128

# Side of a tile of the second kernel, rows of W and at most of x. A K block is 256 values of each
# row, the others take 64; larger tiles of 256 spill registers or outgrow an A100's shared memory.
TILE_K = 32
TILE = 64
MANY_WARPS = 8


@triton.jit
def decode_rows_tl(
    blocks,
    table,
    first,
    rows,
    per_row,
    DECODE: tl.constexpr,
    BLOCK: tl.constexpr,
    NBYTES: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
):
    """float32 `[ROWS, STEP * BLOCK]`: blocks `first` to `first + STEP` of each row, 0 beyond."""
    row = tl.arange(0, ROWS)
    block = first + tl.arange(0, STEP)
    mask = (row < rows)[:, None] & (block < per_row)[None, :]
    at = (row[:, None] * per_row + block[None, :]) * NBYTES  # [ROWS, STEP]
    at = tl.reshape(at, (ROWS * STEP,))
    mask = tl.reshape(mask, (ROWS * STEP,))
    values = decode_blocks_tl(blocks, table, at, mask, DECODE)
    return tl.reshape(values, (ROWS, STEP * BLOCK))


@triton.jit
def matmul_few_kernel(
    x,
    blocks,
    table,
    out,
    rows,
    width,
    DECODE: tl.constexpr,
    BLOCK: tl.constexpr,
    NBYTES: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
):
    """float32 `out [m, rows]` of `x [m, width]`: a program is one row of x and ROWS of W."""
    # 64 bits to the program's rows, 32 from there.
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    m = tl.program_id(1).to(tl.int64)
    per_row = width // BLOCK
    blocks += first_row * per_row * NBYTES
    x += m * width
    total = tl.zeros((ROWS, STEP * BLOCK), tl.float32)
    for first in range(0, per_row, STEP):
        weights = decode_rows_tl(
            blocks, table, first, rows - first_row, per_row, DECODE, BLOCK, NBYTES, ROWS, STEP
        )
        k = first * BLOCK + tl.arange(0, STEP * BLOCK)
        total += weights * tl.load(x + k, mask=k < width, other=0.0)[None, :]
    row = first_row + tl.arange(0, ROWS)
    tl.store(out + m * rows + row, tl.sum(total, axis=1), mask=row < rows)


@triton.jit
def matmul_many_kernel(
    x,
    blocks,
    table,
    out,
    count,
    rows,
    width,
    DECODE: tl.constexpr,
    BLOCK: tl.constexpr,
    NBYTES: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
):
    """float32 `out [count, rows]` of `x [count, width]`: a program is COUNT rows of x, ROWS of W.

    Operands are rounded to tf32: eight bits of exponent, so that no activation overflows, and ten
    of mantissa.
    """
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    first_m = tl.program_id(1).to(tl.int64) * COUNT
    per_row = width // BLOCK
    blocks += first_row * per_row * NBYTES
    x += first_m * width
    m = tl.arange(0, COUNT)
    total = tl.zeros((COUNT, ROWS), tl.float32)
    for first in range(0, per_row, STEP):
        weights = decode_rows_tl(
            blocks, table, first, rows - first_row, per_row, DECODE, BLOCK, NBYTES, ROWS, STEP
        )
        k = first * BLOCK + tl.arange(0, STEP * BLOCK)
        mask = (m < count - first_m)[:, None] & (k < width)[None, :]
        values = tl.load(x + m[:, None] * width + k[None, :], mask=mask, other=0.0)
        total = tl.dot(values, tl.trans(weights), total, input_precision="tf32")
    row = first_row + tl.arange(0, ROWS)
    mask = (m < count - first_m)[:, None] & (row < rows)[None, :]
    tl.store(out + (first_m + m)[:, None] * rows + row[None, :], total, mask=mask)


def matmul_triton(x: Tensor, blocks: Tensor, row: QuantType) -> Tensor:
    """float32 `[m, rows]` of float32 `x [m, n]` and uint8 `blocks [rows, row_bytes]`.

    Up to `FEW_ROWS` rows of x products are rounded to float32 and summed; beyond, each operand is
    first off by up to 2^-10 of itself, since tf32 keeps ten bits of the mantissa.
    """
    x, blocks = x.contiguous(), blocks.contiguous()
    (count, width), rows = x.shape, blocks.shape[0]
    out = torch.empty((count, rows), dtype=torch.float32, device=x.device)
    if not out.numel():
        return out
    pair = triton_pair(row)
    table = device_table(pair, blocks.device)
    shape = {"DECODE": pair.decode, "BLOCK": row.block, "NBYTES": row.nbytes}
    with torch.cuda.device_of(x):
        if count <= FEW_ROWS and pair.few and blocks.data_ptr() % 4 == 0:
            # Neighbours take the same rows of W, which are read from memory once.
            pair.few[(count, triton.cdiv(rows, VECTOR_ROWS))](
                x, blocks, out, rows, width, MAGIC, ROWS=VECTOR_ROWS, QUADS=QUADS
            )
        elif count <= FEW_ROWS:
            grid = (triton.cdiv(rows, VECTOR_ROWS), count)
            step = VECTOR_WIDTH // row.block
            matmul_few_kernel[grid](
                x, blocks, table, out, rows, width, **shape, ROWS=VECTOR_ROWS, STEP=step,
                num_warps=few_warps(row),
            )  # fmt: skip
        else:
            side, tile, step, warps = many_tile(row, count)
            grid = (triton.cdiv(rows, side), triton.cdiv(count, tile))
            matmul_many_kernel[grid](
                x,
                blocks,
                table,
                out,
                count,
                rows,
                width,
                **shape,
                COUNT=tile,
                ROWS=side,
                STEP=step,
                num_warps=warps,
                num_stages=1,
            )
    return out


def few_warps(row: QuantType) -> int:
    """Warps of a program of the first kernel: looking values up takes registers."""
    return 8 if triton_pair(row).table else 4


def many_tile(row: QuantType, count: int) -> tuple[int, int, int, int]:
    """Rows of W, of x, blocks of a row, and warps, of a tile of the second kernel; x has `count`
    rows."""
    side, warps = TILE_K if row.block == 256 else TILE, MANY_WARPS
    tile = 16 if count <= 16 else side
    if count <= 16 and triton_pair(row).narrow:
        side, warps = side // 2, warps // 2
    return side, tile, max(1, 64 // row.block), warps
