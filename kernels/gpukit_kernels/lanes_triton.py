"""Tiles as lanes, one a block or group, in Triton, and back."""

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
def spread_tl(v, TILE: tl.constexpr, GROUPS: tl.constexpr):
    """`[TILE * GROUPS]` of `[TILE]`: each block's value for each of its groups."""
    return tl.reshape(tl.broadcast_to(v[:, None], (TILE, GROUPS)), (TILE * GROUPS,))


@triton.jit
def byte_words_tl(levels, COUNT: tl.constexpr):
    """int32 `[lanes, COUNT]`: of a tuple of 4 * COUNT int32 lanes in 0..255, four bytes a word."""
    words = ()
    for i in tl.static_range(COUNT):
        low = levels[4 * i] | (levels[4 * i + 1] << 8)
        high = (levels[4 * i + 2] << 16) | (levels[4 * i + 3] << 24)
        words = words + (low | high,)  # noqa: RUF005
    return rows_tl(words, COUNT)
