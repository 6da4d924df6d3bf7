"""x @ W^T with W in blocks on a GPU: which kernels multiply, and those that are exact.

A few rows of x are multiplied by integers (`vectors_triton`), many by the tensor cores
(`dense_triton`); here are kernels that decode weights in registers and round products to float32
only. All sum in float32.
"""

import torch
from torch import Tensor

from gpukit_kernels import dense_triton, products, vectors_triton
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.launch import MAGIC, decode_blocks_tl, device_table, triton_pair
from gpukit_kernels.table import QuantType

# Rows of x up to which W is decoded again for each of them, where it is not multiplied by integers:
# below, a tile of the tensor cores, 16 rows at least, would stand mostly empty.
FEW_ROWS = 4
# The same for products by integers, four rows of x at a time.
VECTOR_ROWS_OF_X = 16

# Rows of W and values of each that a program of the first kernel decodes in a step: sixteen values
# a thread, and some thousand programs for a weight of a large model.
VECTOR_ROWS = 4
VECTOR_WIDTH = 512
# Threads of a program of a type's own kernel for a few rows, of which each has 16 bytes of levels.
QUADS = 128


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


def matmul_triton(x: Tensor, blocks: Tensor, row: QuantType, exact: bool = False) -> Tensor:
    """float32 `[m, rows]` of float32 `x [m, n]` and uint8 `blocks [rows, row_bytes]`.

    Up to `VECTOR_ROWS_OF_X` rows of x, x is rounded to int16 with a step for each 32 values
    (`vectors_triton` derives the error), where there is a kernel for the type; beyond, both
    operands are rounded to float16 (`dense_triton`). With `exact`, and up to `FEW_ROWS` rows where
    there is no such kernel, products are only rounded to float32, and summed. So they are where
    those kernels do not do on the device what the reference does (`verified`).
    """
    x, blocks = x.contiguous(), blocks.contiguous()
    if not x.shape[0] * blocks.shape[0]:
        return torch.empty((len(x), len(blocks)), dtype=torch.float32, device=x.device)
    if exact:
        return _multiply_exactly(x, blocks, row)
    m, width = x.shape
    if m <= VECTOR_ROWS_OF_X and vectors_triton.has_prepared(row, x.device, m, width):
        return vectors_triton.multiply_prepared(vectors_triton.prepare(x), blocks, row)
    if m <= FEW_ROWS:
        return _multiply_exactly(x, blocks, row)
    if dense_triton.is_right(row, x.device):
        return dense_triton.multiply_dense(x, blocks, row)
    return products.multiply(x, blocks, row)


def _multiply_exactly(x: Tensor, blocks: Tensor, row: QuantType) -> Tensor:
    """`matmul_triton` with `exact`, whose time goes by the rows of x."""
    (count, width), rows = x.shape, blocks.shape[0]
    out = torch.empty((count, rows), dtype=torch.float32, device=x.device)
    pair = triton_pair(row)
    with torch.cuda.device_of(x):
        if pair.few and blocks.data_ptr() % 4 == 0:
            pair.few[(triton.cdiv(rows, VECTOR_ROWS), count)](
                x, blocks, out, rows, width, MAGIC, ROWS=VECTOR_ROWS, QUADS=QUADS
            )
            return out
        matmul_few_kernel[(triton.cdiv(rows, VECTOR_ROWS), count)](
            x, blocks, device_table(pair, blocks.device), out, rows, width,
            DECODE=pair.decode, BLOCK=row.block, NBYTES=row.nbytes,
            ROWS=VECTOR_ROWS, STEP=VECTOR_WIDTH // row.block, num_warps=few_warps(row),
        )  # fmt: skip
    return out


def few_warps(row: QuantType) -> int:
    """Warps of a program of the kernel for any type: looking values up takes registers."""
    return 8 if triton_pair(row).table else 4
