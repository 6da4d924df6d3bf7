"""Blocks to 16-bit values by the parts of `VectorParts`: a thread has a part, and stores what it
holds side by side; the values are the reference's, bit for bit.

`stored_tl` and `store_parts_tl` are also for products of many rows (`dense_triton`).
"""

from gpukit_kernels.bits_triton import INTERPRETED, bfloat_bits_tl
from gpukit_kernels.jit import tl, triton


@triton.jit
def parts_values_kernel(blocks, out, count,
                        READ: tl.constexpr, UNPACK: tl.constexpr, PLACE: tl.constexpr,
                        BLOCK: tl.constexpr, PARTS: tl.constexpr, PIECES: tl.constexpr,
                        STRIDE: tl.constexpr, WORDS: tl.constexpr, WORD_STRIDE: tl.constexpr,
                        CENTER: tl.constexpr, MINIMA: tl.constexpr, SIGNED: tl.constexpr,
                        THREADS: tl.constexpr):  # fmt: skip
    """`count` blocks to values of `out`'s type; a program decodes THREADS parts."""
    first = tl.program_id(0).to(tl.int64) * (THREADS // PARTS)
    at = tl.arange(0, THREADS)
    block, part = at // PARTS, at % PARTS
    left = tl.minimum(count - first, THREADS // PARTS).to(tl.int32)
    # Beyond the last block it is read again, and nothing is stored.
    found = READ(blocks, first, tl.minimum(block, left - 1), part, count, None)
    words, steps, offsets = UNPACK(found, part)
    place = out + first * BLOCK + (block * (BLOCK // 4) + PLACE(part)) * 4
    for i in tl.static_range(PIECES):
        values = ()
        for w in tl.static_range(WORDS):
            for b in tl.static_range(4):
                word = words[i * WORDS + w]
                level = (word << (24 - 8 * b)) >> 24 if SIGNED else (word >> (8 * b)) & 255
                value = steps[i] * (level - CENTER).to(tl.float32)
                if MINIMA:
                    value -= offsets[i]
                values = values + (stored_tl(value, out),)  # noqa: RUF005
        store_parts_tl(place + i * STRIDE * 4, values, block < left, WORDS, WORD_STRIDE)


@triton.jit
def stored_tl(v, out):
    """float32 `v` rounded to what `out` points to; bfloat16 in the interpreter as its bits."""
    if INTERPRETED and out.dtype.element_ty == tl.bfloat16:
        # The interpreter's conversion is not exact; a GPU's is, up to the bits of a NaN.
        return bfloat_bits_tl(v)
    return v.to(out.dtype.element_ty)


@triton.jit
def store_parts_tl(place, values, mask, WORDS: tl.constexpr, STRIDE: tl.constexpr):
    """Store WORDS times four of `stored_tl` `[Q]`, each four side by side, STRIDE fours apart."""
    if STRIDE == 1 and WORDS % 4 == 0:
        for i in tl.static_range(WORDS // 4):
            _store_tl(place + 16 * i, _sixteen_tl(values, 16 * i), mask)
    elif STRIDE == 1 and WORDS == 2:
        _store_tl(place, _eight_tl(values, 0), mask)
    else:
        for i in tl.static_range(WORDS):
            _store_tl(place + 4 * STRIDE * i, _four_tl(values, 4 * i), mask)


@triton.jit
def _store_tl(place, values, mask):
    """Store `[Q, N]` from `place` `[Q]` on."""
    target = place[:, None] + tl.arange(0, values.shape[1])[None, :]
    if INTERPRETED and values.dtype == tl.int16:
        target = target.to(tl.pointer_type(tl.int16))
    tl.store(target, values, mask=None if mask is None else mask[:, None])


@triton.jit
def _four_tl(v, first: tl.constexpr):
    """`[Q, 4]` of four `[Q]` in `v` from `first` on."""
    # Halves of the index are joined from the highest to the lowest.
    even = tl.join(v[first], v[first + 2])
    odd = tl.join(v[first + 1], v[first + 3])
    return tl.reshape(tl.join(even, odd), (v[0].shape[0], 4))


@triton.jit
def _eight_tl(v, first: tl.constexpr):
    """`[Q, 8]`, as `_four_tl`."""
    pairs = ()
    for i in tl.static_range(4):
        pairs = pairs + (tl.join(v[first + i], v[first + i + 4]),)  # noqa: RUF005
    even, odd = tl.join(pairs[0], pairs[2]), tl.join(pairs[1], pairs[3])
    return tl.reshape(tl.join(even, odd), (v[0].shape[0], 8))


@triton.jit
def _sixteen_tl(v, first: tl.constexpr):
    """`[Q, 16]` of sixteen `[Q]` in `v` from `first` on."""
    pairs = ()
    for i in tl.static_range(8):
        pairs = pairs + (tl.join(v[first + i], v[first + i + 8]),)  # noqa: RUF005
    fours = ()
    for i in tl.static_range(4):
        fours = fours + (tl.join(pairs[i], pairs[i + 4]),)  # noqa: RUF005
    even, odd = tl.join(fours[0], fours[2]), tl.join(fours[1], fours[3])
    return tl.reshape(tl.join(even, odd), (v[0].shape[0], 16))
