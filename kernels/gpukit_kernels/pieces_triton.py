"""Blocks to values by pieces of eight bytes: what a byte holds stays with the thread that loads it.

The levels of a type stand in bytes side by side, each with one of COUNT values that are SPAN apart.
A thread takes eight bytes and stores COUNT times eight values, 16 bytes of bfloat16 each.
"""

from gpukit_kernels.bits_triton import store_float_tl
from gpukit_kernels.jit import tl, triton


@triton.jit
def pieces_kernel(
    blocks,
    table,
    out,
    count,
    PIECES: tl.constexpr,
    SPAN: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    NBYTES: tl.constexpr,
    TILE: tl.constexpr,
):
    """`count` blocks to values; a program decodes TILE of them.

    PIECES(blocks, at, part, mask), or with a table PIECES(blocks, table, at, part, mask), gives
    COUNT tiles, float32 `[P, 8]`, a tuple: those of the bytes number `part` of the blocks at `at`,
    int32 `[P]` both.
    """
    each: tl.constexpr = BLOCK // (8 * COUNT)
    first = tl.program_id(0).to(tl.int64) * TILE
    piece = tl.arange(0, TILE * each)
    block, part = piece // each, piece % each
    mask = block < tl.minimum(count - first, TILE).to(tl.int32)
    if table is None:
        values = PIECES(blocks + first * NBYTES, block * NBYTES, part, mask)
    else:
        values = PIECES(blocks + first * NBYTES, table, block * NBYTES, part, mask)
    place = block * BLOCK + part // (SPAN // 8) * (COUNT * SPAN) + part % (SPAN // 8) * 8
    target = out + first * BLOCK + place[:, None] + tl.arange(0, 8)[None, :]
    for i in tl.static_range(COUNT):
        store_float_tl(target + i * SPAN, values[i], mask[:, None])


@triton.jit
def load_eight_tl(blocks, at, mask):
    """int32 `[P, 8]`: the eight bytes from `at` `[P]` on."""
    place = at[:, None] + tl.arange(0, 8)[None, :]
    return tl.load(blocks + place, mask=mask[:, None], other=0).to(tl.int32)


@triton.jit
def eight_bits_tl(byte, BIT: tl.constexpr):
    """int32 `[P, 8]`: bit j of `byte` `[P]`, at bit BIT of element j."""
    return ((byte << BIT)[:, None] >> tl.arange(0, 8)[None, :]) & (1 << BIT)


@triton.jit
def words2_tl(pointer, mask):
    """Two `[Q]`: the two neighbours at each of `[Q]` pointers; 0 where masked."""
    place = pointer[:, None] + tl.arange(0, 2)[None, :]
    return tl.split(tl.load(place, mask=mask[:, None], other=0))
