"""Launches the encoders of types whose blocks name rows of a codebook, which lies in memory."""

from torch import Tensor

from gpukit_kernels.bits_triton import load_float_tl
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.table import QuantType

# Of a program, for one block: a thread has a row of eight values, or two of four, and what all wait
# for, the longest list, is that of one block's rows.
WARPS = 1


@triton.jit
def nearest_kernel(
    values,
    importance,
    book,
    out,
    count,
    row_blocks,
    part_blocks,
    ENCODE: tl.constexpr,
    BLOCK: tl.constexpr,
    NBYTES: tl.constexpr,
    TILE: tl.constexpr,
):
    """`count` rows of BLOCK values to blocks, TILE a program; `importance` is None, or has a row of
    `row_blocks` blocks for each `part_blocks` blocks of values."""
    first = tl.program_id(0).to(tl.int64) * TILE
    block = tl.arange(0, TILE)
    mask = block < tl.minimum(count - first, TILE).to(tl.int32)
    element = tl.arange(0, BLOCK)[None, :]
    x = load_float_tl(values + first * BLOCK + block[:, None] * BLOCK + element, mask[:, None])
    weights = importance
    if importance is not None:
        column = (first + block) // part_blocks * row_blocks + (first + block) % row_blocks
        place = importance + column[:, None] * BLOCK + element
        weights = tl.load(place, mask=mask[:, None], other=0.0)
    ENCODE(x, weights, book, out + first * NBYTES, block * NBYTES, mask)


def encode_nearest(values: Tensor, row: QuantType, importance: Tensor | None, out: Tensor) -> None:
    """Fill `out`, uint8 `[blocks, nbytes]`, with `values`, contiguous, as blocks; `importance` as
    `launch.encode_triton` has it."""
    pair = row.triton
    assert pair
    assert pair.nearest
    width = values.shape[-1]
    parts = 1 if importance is None else importance.numel() // width
    nearest_kernel[(triton.cdiv(len(out), pair.tile),)](
        values,
        None if importance is None else importance.contiguous(),
        pair.nearest.book(values.device),
        out,
        len(out),
        width // row.block,
        len(out) // parts,
        ENCODE=pair.nearest.encode,
        BLOCK=row.block,
        NBYTES=row.nbytes,
        TILE=pair.tile,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )
