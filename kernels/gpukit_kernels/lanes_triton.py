"""Tiles as lanes, one a block or group, in Triton, and back."""

from gpukit_kernels.bits_triton import load_float_tl, store_word16_tl, store_words32_tl
from gpukit_kernels.jit import tl, triton


@triton.jit
def lanes_tl(x, N: tl.constexpr):
    """A tuple of N tensors `[L]` of `[L, N]`, element i of every row; N is a power of two up to 32.

    Each step parts the rows into even and odd elements. Compiled, the tile goes through shared
    memory once, from where memory access is coalesced to where a thread holds a whole row.
    """
    rows: tl.constexpr = x.shape[0]
    parts = (x,)
    for k in tl.static_range(5):
        if (1 << k) < N:
            evens = ()
            odds = ()
            for i in tl.static_range(1 << k):
                even, odd = tl.split(tl.reshape(parts[i], (rows, N >> (k + 1), 2)))
                evens = evens + (even,)  # noqa: RUF005  (Triton 3.6 knows no stars)
                odds = odds + (odd,)  # noqa: RUF005
            parts = evens + odds
    lanes = ()
    for i in tl.static_range(N):
        lanes = lanes + (tl.reshape(parts[i], (rows,)),)  # noqa: RUF005
    return lanes


@triton.jit
def load_lanes_tl(values, at, mask):
    """A tuple of 32 float32 `[L]`: the values from `at` `[L]` on, float32, float16 or bfloat16.

    Eight at a time: compiled, a thread loads the 16 bytes of its own lane, and nothing crosses.
    """
    lanes = ()
    for part in tl.static_range(4):
        place = values + at[:, None] + (8 * part + tl.arange(0, 8))[None, :]
        lanes = lanes + lanes_tl(load_float_tl(place, mask[:, None]), 8)
    return lanes


@triton.jit
def rows_tl(lanes, N: tl.constexpr):
    """`[L, N]` of a tuple of N tensors `[L]`: the inverse of `lanes_tl`."""
    rows: tl.constexpr = lanes[0].shape[0]
    parts = lanes
    for k in tl.static_range(5):
        # From N / 2 down to one.
        if (N >> (k + 1)) > 0:
            joined = ()
            for i in tl.static_range(N >> (k + 1)):
                pair = tl.join(parts[i], parts[i + (N >> (k + 1))])
                joined = joined + (tl.reshape(pair, (rows, 2 << k)),)  # noqa: RUF005
            parts = joined
    return parts[0]


@triton.jit
def store_fours_tl(place, lanes, mask, COUNT: tl.constexpr, STRIDE: tl.constexpr):
    """Store a tuple of 4 * COUNT tensors `[L]` from `place` `[L]` on, each four side by side and
    STRIDE fours from the last, in as few stores as can be; COUNT is a power of two."""
    SIDE: tl.constexpr = 1 if STRIDE != 1 else min(COUNT, 4)
    for i in tl.static_range(COUNT // SIDE):
        some = ()
        for j in tl.static_range(4 * SIDE):
            some = some + (lanes[4 * SIDE * i + j],)  # noqa: RUF005
        target = (place + 4 * SIDE * STRIDE * i)[:, None] + tl.arange(0, 4 * SIDE)[None, :]
        rows = rows_tl(some, 4 * SIDE)
        tl.store(target, rows, mask=None if mask is None else mask[:, None])


@triton.jit
def spread_tl(v, TILE: tl.constexpr, GROUPS: tl.constexpr):
    """`[TILE * GROUPS]` of `[TILE]`: each block's value for each of its groups."""
    return tl.reshape(tl.broadcast_to(v[:, None], (TILE, GROUPS)), (TILE * GROUPS,))


@triton.jit
def byte_words_tl(levels, COUNT: tl.constexpr):
    """int32 `[lanes, COUNT]`: of a tuple of 4 * COUNT int32 lanes in 0..255, four bytes a word."""
    return rows_tl(byte_lanes_tl(levels, COUNT), COUNT)


@triton.jit
def byte_lanes_tl(levels, COUNT: tl.constexpr):
    """A tuple of COUNT int32 lanes: of 4 * COUNT in 0..255, four bytes a word."""
    words = ()
    for i in tl.static_range(COUNT):
        # Sums of what has no bit in common: a shift and a sum are one instruction.
        low = levels[4 * i] + (levels[4 * i + 1] << 8)
        high = levels[4 * i + 2] + (levels[4 * i + 3] << 8)
        words = words + (low + (high << 16),)  # noqa: RUF005
    return words


@triton.jit
def nibble_lanes_tl(words):
    """A tuple of four int32 lanes: bits.pack_nibbles of the low four bits of 32 levels, a tuple of
    eight words of four bytes."""
    found = ()
    for i in tl.static_range(4):
        low, high = words[i] & 0x0F0F0F0F, words[i + 4] & 0x0F0F0F0F
        found = found + (low + (high << 4),)  # noqa: RUF005
    return found


@triton.jit
def fifth_bits_tl(words):
    """int32 lanes: bit j is the fifth bit of level j of 32, eight words of four bytes."""
    found = tl.zeros_like(words[0])
    for i in tl.static_range(8):
        # The product brings the bits of the four bytes side by side, from bit 24 on.
        four = ((words[i] >> 4) & 0x01010101) * 0x01020408
        found = found | (((four >> 24) & 15) << (4 * i))
    return found


@triton.jit
def behind_half_tl(head, words):
    """A tuple of lanes, one more than `words`: the low 16 bits of `head`, then the words."""
    found = ((head & 0xFFFF) | (words[0] << 16),)
    for i in tl.static_range(1, len(words)):
        found = found + (((words[i - 1] >> 16) & 0xFFFF) | (words[i] << 16),)  # noqa: RUF005
    return found + ((words[len(words) - 1] >> 16) & 0xFFFF,)  # noqa: RUF005


@triton.jit
def store_behind_half_tl(out, at, head, words, mask, SIZE: tl.constexpr):
    """Store the low 16 bits of `head` and a tuple of int32 lanes, at most SIZE, a power of two, at
    `at`, which is even: whole words, and the half that is left."""
    COUNT: tl.constexpr = len(words)
    # What a word is counts from the memory's begin, not from that of `out`.
    off = (out.to(tl.int64) & 2).to(tl.int32)
    out, at = out - off, at + off
    odd = (at & 2) != 0
    behind = behind_half_tl(head, words)
    stored = ()
    for i in tl.static_range(COUNT):
        stored = stored + (tl.where(odd, words[i], behind[i]),)  # noqa: RUF005
    store_word16_tl(
        out, tl.where(odd, at, at + 4 * COUNT), tl.where(odd, head, behind[COUNT]), mask
    )
    rows = padded_rows_tl(stored, SIZE)
    store_words32_tl(out, (at + 2) & -4, rows, mask, None if COUNT == SIZE else COUNT)


@triton.jit
def padded_rows_tl(lanes, N: tl.constexpr):
    """`[L, N]` of a tuple of at most N lanes, with zeros behind them."""
    found = lanes
    for _ in tl.static_range(N - len(lanes)):
        found = found + (tl.zeros_like(lanes[0]),)  # noqa: RUF005
    return rows_tl(found, N)
