"""The Triton twins of bits.py and of the searches' arithmetic: small jit helpers with one job each.

Exactness: kernels are launched with `enable_fp_fusion=False` (no FMA), divide with `tl.div_rn` and
take roots with `tl.sqrt_rn`; plain `/` and `tl.sqrt` are approximate.
"""

import triton
import triton.language as tl


@triton.jit
def nearest_int_tl(v):
    """int32: bits.nearest_int."""
    return ((v + 12582912.0).to(tl.int32, bitcast=True) & 0x7FFFFF) - 0x400000


@triton.jit
def nearest_level_tl(v, LOW: tl.constexpr, HIGH: tl.constexpr):
    """float32: bits.nearest_level."""
    return tl.minimum(tl.maximum(nearest_int_tl(v), LOW), HIGH).to(tl.float32)


@triton.jit
def truncate_tl(v):
    """int32: `v` towards zero; what does not fit becomes the least int, as on x86."""
    fits = tl.abs(v) < 2147483648.0
    return tl.where(fits, tl.where(fits, v, 0.0).to(tl.int32), -2147483648)


@triton.jit
def round_away_tl(v):
    """int32: bits.round_away."""
    whole = truncate_tl(v)
    rest = tl.abs(v - whole.to(tl.float32))
    away = tl.where(v < 0.0, -1, 1)
    return whole + tl.where((rest >= 0.5) & (rest < 1.0), away, 0)


@triton.jit
def half_bits_tl(v):
    """int16: bits.half_bits."""
    plain = v.to(tl.float16).to(tl.int16, bitcast=True)
    sign = (v.to(tl.int32, bitcast=True) >> 16) & 0x8000
    return tl.where(v != v, (sign | 0x7E00).to(tl.int16), plain)


@triton.jit
def half_round_tl(v):
    """float32: bits.half_round."""
    return v.to(tl.float16).to(tl.float32)


@triton.jit
def inverse_tl(d):
    """float32: 1 / d, 0 where d is 0."""
    return tl.where(d != 0.0, tl.div_rn(tl.full(d.shape, 1.0, tl.float32), d), 0.0)


@triton.jit
def load_half_tl(pointer, mask):
    """float32: the fp16 at two-byte aligned `pointer` (uint8)."""
    word = tl.load(pointer.to(tl.pointer_type(tl.uint16)), mask=mask, other=0)
    return word.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def store_half_tl(pointer, v, mask):
    """Store `v` rounded to fp16 at two-byte aligned `pointer` (uint8)."""
    tl.store(pointer.to(tl.pointer_type(tl.int16)), half_bits_tl(v), mask=mask)


@triton.jit
def first_largest_tl(x, BLOCK: tl.constexpr):
    """float32 `[TILE]` of `[TILE, BLOCK]`: the first value of largest magnitude, with its sign."""
    a = tl.abs(x)
    element = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    first = tl.min(tl.where(a == tl.max(a, 1)[:, None], element, BLOCK), 1)  # [TILE]
    return tl.sum(tl.where(element == first[:, None], x, 0.0), 1)


@triton.jit
def pairs_tl(v, TILE: tl.constexpr, HALF: tl.constexpr):
    """The first and the second half of `[TILE, 2 * HALF]`, `[TILE, HALF]` each."""
    return tl.split(tl.permute(tl.reshape(v, (TILE, 2, HALF)), (0, 2, 1)))


@triton.jit
def spread_tl(v, TILE: tl.constexpr, GROUPS: tl.constexpr):
    """`[TILE * GROUPS]` of `[TILE]`: each block's value for each of its groups."""
    return tl.reshape(tl.broadcast_to(v[:, None], (TILE, GROUPS)), (TILE * GROUPS,))
