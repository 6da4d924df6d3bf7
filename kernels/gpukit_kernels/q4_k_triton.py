"""Q4_K by loads of 16 bytes, for blocks that begin at a multiple of four.

A thread takes 16 bytes of levels, which hold 16 values of each of two groups, and the 16 bytes
before the levels of their block: the scales. Nothing crosses a lane before the end.
"""

from gpukit_kernels.bits_triton import store_float_tl
from gpukit_kernels.dots_triton import load4_tl
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.pieces_triton import words2_tl
from gpukit_kernels.table import VectorParts


@triton.jit
def words4_tl(pointer, mask):
    """Four `[Q]`: the four neighbours at each of `[Q]` pointers; 0 where masked."""
    Q: tl.constexpr = pointer.shape[0]
    found = tl.load(pointer[:, None] + tl.arange(0, 4)[None, :], mask=mask[:, None], other=0)
    even, odd = tl.split(tl.reshape(found, (Q, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _half_tl(word):
    return word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def steps_tl(head, pair):
    """Steps and offsets of groups 2 pair and 2 pair + 1, float32 `[Q]` each, of the first 16 bytes
    of a block."""
    d = _half_tl(head[0])
    dmin = _half_tl(head[0] >> 16)
    shift = (pair & 1) * 16
    first, second, third = head[1] >> shift, head[2] >> shift, head[3] >> shift
    upper = pair >= 2
    scale = tl.where(upper, (third & 0x0F0F) | ((first & 0xC0C0) >> 2), first & 0x3F3F)
    low = tl.where(upper, ((third >> 4) & 0x0F0F) | ((second & 0xC0C0) >> 2), second & 0x3F3F)
    return (
        d * (scale & 0xFF).to(tl.float32),
        d * ((scale >> 8) & 0xFF).to(tl.float32),
        dmin * (low & 0xFF).to(tl.float32),
        dmin * ((low >> 8) & 0xFF).to(tl.float32),
    )


@triton.jit
def nibble_tl(word, upper, magic, BIT: tl.constexpr, LEVEL: tl.constexpr = 15):
    """float32: the four bits of `word` from BIT on, or those of LEVEL, times 2^BIT, or
    2^(BIT - 12) from bit 20 on; `upper` is `word >> 12`."""
    AT: tl.constexpr = BIT if BIT <= 16 else BIT - 12
    level = ((word if BIT <= 16 else upper) & (LEVEL << AT)) | magic
    return level.to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def nibble_step_tl(step, BIT: tl.constexpr):
    """`step` without the power of two that `nibble_tl` leaves; the product has the same bits."""
    AT: tl.constexpr = BIT if BIT <= 16 else BIT - 12
    return step * (1.0 / (1 << AT))


@triton.jit
def few_kernel(x, blocks, out, rows, width, magic, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """float32 `out [m, rows]` of `x [m, width]`: a program is one row of x and ROWS of W."""
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    m = tl.program_id(1).to(tl.int64)
    per_row = width // 256
    words = blocks.to(tl.pointer_type(tl.int32)) + first_row * per_row * 36
    x += m * width
    totals = ()
    for _ in tl.static_range(ROWS):
        totals = totals + (tl.zeros((QUADS,), tl.float32),)  # noqa: RUF005
    # Rows beyond the last read the last again; nothing of them is stored.
    last = (rows - 1 - first_row).to(tl.int32)
    for first in range(0, per_row * 8, QUADS):
        quad = first + tl.arange(0, QUADS)
        mask = quad < per_row * 8
        block, part = quad // 8, quad % 8
        pair = part // 2
        levels, heads = (), ()
        for r in tl.static_range(ROWS):
            at = words + tl.minimum(r, last) * per_row * 36 + block * 36
            levels = levels + (words4_tl(at + 4 + part * 4, mask),)  # noqa: RUF005
            heads = heads + (words4_tl(at, mask),)  # noqa: RUF005
        place = x + block * 256 + pair * 64 + part % 2 * 16
        new = totals
        low, high = (), ()
        for i in tl.static_range(4):
            low = low + (words4_tl(place + 4 * i, mask),)  # noqa: RUF005
            high = high + (words4_tl(place + 32 + 4 * i, mask),)  # noqa: RUF005
        totals = ()
        for r in tl.static_range(ROWS):
            totals = totals + (  # noqa: RUF005
                new[r] + _quad_tl(levels[r], steps_tl(heads[r], pair), low, high, magic),
            )
    for r in tl.static_range(ROWS):
        row = first_row + r
        tl.store(out + m * rows + row, tl.sum(totals[r], axis=0), mask=row < rows)


@triton.jit
def _quad_tl(levels, steps, low, high, magic):
    """float32 `[Q]`: the sum of 32 products a thread."""
    total = tl.zeros_like(steps[0])
    for b in tl.static_range(4):
        step = nibble_step_tl(steps[0], 8 * b)
        other = nibble_step_tl(steps[1], 8 * b + 4)
        for i in tl.static_range(4):
            upper = levels[i] >> 12
            value = nibble_tl(levels[i], upper, magic, 8 * b) * step - steps[2]
            total += value * low[i][b]
            value = nibble_tl(levels[i], upper, magic, 8 * b + 4) * other - steps[3]
            total += value * high[i][b]
    return total


@triton.jit
def read_tl(blocks, first, block, part, _, mask):
    """Eight words of a part: sixteen bytes of levels, and the block's first sixteen."""
    at = blocks.to(tl.pointer_type(tl.int32)) + first * 36 + block * 36
    return load4_tl(at + 4 + part * 4, mask) + load4_tl(at, mask)


@triton.jit
def unpack_tl(found, part):
    """Low levels, then high ones; two steps and two offsets."""
    low, high = (), ()
    for i in tl.static_range(4):
        low = low + (found[i] & 0x0F0F0F0F,)  # noqa: RUF005
        high = high + ((found[i] >> 4) & 0x0F0F0F0F,)  # noqa: RUF005
    steps = steps_tl((found[4], found[5], found[6], found[7]), part // 2)
    return low + high, (steps[0], steps[1]), (steps[2], steps[3])


@triton.jit
def place_tl(part):
    """Where the first sixteen values begin within their block; the others are 32 further on."""
    return part // 2 * 16 + part % 2 * 4


@triton.jit
def q5_k_read_tl(blocks, first, block, part, _, mask):
    """Twelve words: as `read_tl`, and the high bits of the levels, eight groups a byte."""
    at = blocks.to(tl.pointer_type(tl.int32)) + first * 44 + block * 44
    levels = load4_tl(at + 12 + part * 4, mask)
    return levels + load4_tl(at, mask) + load4_tl(at + 4 + part % 2 * 4, mask)


@triton.jit
def q5_k_unpack_tl(found, part):
    """As `unpack_tl`."""
    shift = part // 2 * 2
    low, high = (), ()
    for i in tl.static_range(4):
        bits = found[8 + i] >> shift
        low = low + ((found[i] & 0x0F0F0F0F) | ((bits & 0x01010101) << 4),)  # noqa: RUF005
        bits = (bits << 3) & 0x10101010
        high = high + (((found[i] >> 4) & 0x0F0F0F0F) | bits,)  # noqa: RUF005
    steps = steps_tl((found[4], found[5], found[6], found[7]), part // 2)
    return low + high, (steps[0], steps[1]), (steps[2], steps[3])


Q5_K_VECTORS = VectorParts(
    q5_k_read_tl, q5_k_unpack_tl, place_tl,
    parts=8, pieces=2, stride=8, words=4, top=31, minima=True, align=4,
)  # fmt: skip
VECTORS = VectorParts(
    read_tl, unpack_tl, place_tl, parts=8, pieces=2, stride=8, words=4, top=15, minima=True, align=4
)


@triton.jit
def decode_kernel(blocks, out, count, magic, TILE: tl.constexpr):
    """`count` blocks to values; a program decodes TILE of them, a thread eight bytes of levels."""
    _decode_tl(blocks, out, count, magic, TILE, False)


@triton.jit
def decode5_kernel(blocks, out, count, magic, TILE: tl.constexpr):
    """`decode_kernel` of Q5_K, whose fifth bits stand between scales and levels."""
    _decode_tl(blocks, out, count, magic, TILE, True)


@triton.jit
def _decode_tl(blocks, out, count, magic, TILE: tl.constexpr, FIFTH: tl.constexpr):
    WORDS: tl.constexpr = 44 if FIFTH else 36
    first = tl.program_id(0).to(tl.int64) * TILE
    words = blocks.to(tl.pointer_type(tl.int32)) + first * WORDS
    part = tl.arange(0, TILE * 16)
    block, pair, place = part // 16, part // 4 % 4, part % 4
    mask = block < tl.minimum(count - first, TILE).to(tl.int32)
    at = words + block * WORDS
    steps = steps_tl(words4_tl(at, mask), pair)
    levels = words2_tl(at + (WORDS - 32) + pair * 8 + place * 2, mask)
    fifths = words2_tl(at + 4 + place * 2, mask) if FIFTH else levels
    low, high = (), ()
    for b in tl.static_range(4):
        # With a fifth bit levels are bytes of words of their own, for groups with the same shifts.
        step = nibble_step_tl(steps[0], 8 * b)
        other = nibble_step_tl(steps[1], 8 * b if FIFTH else 8 * b + 4)
        for i in tl.static_range(2):
            if FIFTH:
                bits = fifths[i] >> (2 * pair)
                even = (levels[i] & 0x0F0F0F0F) | ((bits << 4) & 0x10101010)
                odd = ((levels[i] >> 4) & 0x0F0F0F0F) | ((bits << 3) & 0x10101010)
                value = nibble_tl(even, even >> 12, magic, 8 * b, 31) * step - steps[2]
                another = nibble_tl(odd, odd >> 12, magic, 8 * b, 31) * other - steps[3]
            else:
                word = levels[i]
                value = nibble_tl(word, word >> 12, magic, 8 * b) * step - steps[2]
                another = nibble_tl(word, word >> 12, magic, 8 * b + 4) * other - steps[3]
            low = low + (value,)  # noqa: RUF005
            high = high + (another,)  # noqa: RUF005
    target = out + first * 256 + (block * 256 + pair * 64 + place * 8)[:, None]
    target += tl.arange(0, 8)[None, :]
    store_float_tl(target, _eight_tl(low), mask[:, None])
    store_float_tl(target + 32, _eight_tl(high), mask[:, None])


@triton.jit
def _eight_tl(v):
    """`[P, 8]` of eight `[P]`: bytes 0 to 3 of a first and of a second word, taking turns."""
    # Value b + 4 w is v[2 b + w].
    halves = tl.join(tl.join(v[0], v[1]), tl.join(v[4], v[5]))  # bits 2 and 1 of the place
    others = tl.join(tl.join(v[2], v[3]), tl.join(v[6], v[7]))
    return tl.reshape(tl.join(halves, others), (v[0].shape[0], 8))
