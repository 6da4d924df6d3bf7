"""The Triton twin of ternary.py."""

from gpukit_kernels.bits_triton import (
    given_half_bits_tl,
    inverse_tl,
    round_away_tl,
)
from gpukit_kernels.jit import tl, triton


@triton.jit
def ternary_tl(x):
    """d as fp16's bits, int32 `[TILE]`, and levels, int32 `[TILE, 256]`: ternary.ternary_scale and
    ternary.ternary_levels of float32 `[TILE, 256]`, 0 where the C's is no byte."""
    # The C's maximum forgets what came before a NaN, and is NaN where the last value is.
    place = tl.arange(0, x.shape[1])[None, :]
    last = tl.max(tl.where(x == x, -1, place), axis=1)
    magnitude = tl.where(place > last[:, None], tl.abs(x), 0.0)
    ends = tl.sum(tl.where(place == x.shape[1] - 1, tl.abs(x), 0.0), axis=1)
    d = tl.where(ends == ends, tl.max(magnitude, axis=1), ends)
    levels = (round_away_tl(x * inverse_tl(d)[:, None]) + 1) & 0xFF
    return given_half_bits_tl(d).to(tl.int32), levels
