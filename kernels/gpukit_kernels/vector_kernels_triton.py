"""The kernels of `vectors_triton`: prepared rows of x times W^T by integers.

A thread takes a part of a block of each row of W, a few words of levels with their steps, once for
all of up to four rows of x. What it takes of x all rows of W share. No value crosses a thread
before the end.
"""

from gpukit_kernels.dots_triton import dot4_tl, load2_tl, load4_tl, load_tl
from gpukit_kernels.jit import tl, triton


@triton.jit
def _levels_tl(place, mask, WORDS: tl.constexpr, STRIDE: tl.constexpr):
    """WORDS pairs of words of x: four int16 each, STRIDE fours from one to the next."""
    found = ()
    if STRIDE == 1 and WORDS % 2 == 0:
        for i in tl.static_range(WORDS // 2):
            four = load4_tl(place + 4 * i, mask)
            found = found + ((four[0], four[1]), (four[2], four[3]))  # noqa: RUF005
    else:
        for i in tl.static_range(WORDS):
            found = found + (load2_tl(place + 2 * STRIDE * i, mask),)  # noqa: RUF005
    return found


@triton.jit
def _x_tl(
    levels, steps, sums, width, m, place, mask,
    PIECES: tl.constexpr, STRIDE: tl.constexpr, WORDS: tl.constexpr, WORD_STRIDE: tl.constexpr,
    CENTER: tl.constexpr, MINIMA: tl.constexpr,
):  # fmt: skip
    """What rows of W share of row `m` of x, of each piece: words, step, sum, and CENTER times the
    sum of the levels."""
    row = m.to(tl.int64)
    words = levels.to(tl.pointer_type(tl.int32)) + row * (width // 2)
    steps += row * (width // 32)
    sums += row * (width // 16)
    found = ()
    for i in tl.static_range(PIECES):
        first = place + i * STRIDE
        x = _levels_tl(words + first * 2, mask, WORDS, WORD_STRIDE)
        start = tl.zeros_like(place)
        if CENTER != 0:
            # Four signed bytes of -CENTER.
            centers = start + ((256 - CENTER) * 0x01010101 - (1 << 32))
            for w in tl.static_range(WORDS):
                start = dot4_tl(x[w], centers, start, True)
        total = load_tl(sums + first // 4, mask) if MINIMA else 0.0
        found = found + ((x, load_tl(steps + first // 8, mask), total, start),)  # noqa: RUF005
    return found


@triton.jit
def row_totals_tl(
    x, rows, last, weights, width, count,
    READ: tl.constexpr, UNPACK: tl.constexpr, PLACE: tl.constexpr,
    BLOCK: tl.constexpr, PARTS: tl.constexpr, PIECES: tl.constexpr,
    STRIDE: tl.constexpr, WORDS: tl.constexpr, WORD_STRIDE: tl.constexpr,
    CENTER: tl.constexpr, MINIMA: tl.constexpr, SIGNED: tl.constexpr, EVEN: tl.constexpr,
    M: tl.constexpr, ROWS: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """M * ROWS float32 `[THREADS]`, to be summed: products of M rows of x from `x[3]` on with ROWS
    rows of W; `rows` has the first block of each, `weights` whose it is.

    Rows of x beyond `last` are the last again.
    """
    per_row = width // BLOCK
    totals = ()
    for _ in tl.static_range(M * ROWS):
        totals = totals + (tl.zeros((THREADS,), tl.float32),)  # noqa: RUF005
    for first in range(0, per_row * PARTS, THREADS):
        at = first + tl.arange(0, THREADS)
        mask = None if EVEN else at < per_row * PARTS
        block, part = at // PARTS, at % PARTS
        place = block * (BLOCK // 4) + PLACE(part)
        found = ()
        for r in tl.static_range(ROWS):
            found = found + (READ(weights[r], rows[r], block, part, count, mask),)  # noqa: RUF005
        shared = ()
        for m in tl.static_range(M):
            shared = shared + (  # noqa: RUF005
                _x_tl(x[0], x[1], x[2], width, tl.minimum(x[3] + m, last), place, mask,
                      PIECES, STRIDE, WORDS, WORD_STRIDE, CENTER, MINIMA),
            )  # fmt: skip
        before = totals
        totals = ()
        for r in tl.static_range(ROWS):
            words, steps, offsets = UNPACK(found[r], part)
            for m in tl.static_range(M):
                total = before[r * M + m]
                for i in tl.static_range(PIECES):
                    dot = shared[m][i][3]
                    for w in tl.static_range(WORDS):
                        dot = dot4_tl(shared[m][i][0][w], words[i * WORDS + w], dot, SIGNED)
                    total += dot.to(tl.float32) * (shared[m][i][1] * steps[i])
                    if MINIMA:
                        total -= offsets[i] * shared[m][i][2]
                totals = totals + (total,)  # noqa: RUF005
    return totals


@triton.jit
def _firsts_tl(m, M: tl.constexpr, ROWS: tl.constexpr):
    """The first row of x and the first of W of this program.

    Neighbours take the same rows of W, which are read from memory once. All programs are in a line:
    across it there may be 65535 only, and vocabularies have more than four times as many rows.
    """
    across = (m + M - 1) // M
    return tl.program_id(0) % across * M, tl.program_id(0) // across * ROWS


@triton.jit
def multiply_kernel(
    levels, steps, sums, blocks, add, out, m, rows, width,
    READ: tl.constexpr, UNPACK: tl.constexpr, PLACE: tl.constexpr,
    BLOCK: tl.constexpr, PARTS: tl.constexpr, PIECES: tl.constexpr,
    STRIDE: tl.constexpr, WORDS: tl.constexpr, WORD_STRIDE: tl.constexpr,
    CENTER: tl.constexpr, MINIMA: tl.constexpr, SIGNED: tl.constexpr, EVEN: tl.constexpr,
    M: tl.constexpr, ROWS: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """float32 `out [m, rows]`, plus `add` unless None: a program is M rows of x and ROWS of W."""
    first_m, first_row = _firsts_tl(m, M, ROWS)
    weights, starts = (), ()
    for r in tl.static_range(ROWS):
        # Rows beyond the last read the last again; nothing of them is stored.
        row = tl.minimum(first_row + r, rows - 1).to(tl.int64)
        weights, starts = weights + (blocks,), starts + (row * (width // BLOCK),)  # noqa: RUF005
    count = tl.cast(rows, tl.int64) * (width // BLOCK)
    totals = row_totals_tl(
        (levels, steps, sums, first_m), starts, m - 1, weights, width, count,
        READ, UNPACK, PLACE, BLOCK, PARTS, PIECES, STRIDE, WORDS, WORD_STRIDE, CENTER, MINIMA,
        SIGNED, EVEN, M, ROWS, THREADS,
    )  # fmt: skip
    for i in tl.static_range(M * ROWS):
        row, column = first_m + i % M, first_row + i // M
        mask = (row < m) & (column < rows)
        place = row.to(tl.int64) * rows + column
        value = tl.sum(totals[i], axis=0)
        if add is not None:
            value += tl.load(add + place, mask=mask, other=0.0)
        tl.store(out + place, value, mask=mask)


@triton.jit
def gated_kernel(
    levels, steps, sums, gate, up, out, m, rows, width, SILU: tl.constexpr,
    READ: tl.constexpr, UNPACK: tl.constexpr, PLACE: tl.constexpr,
    BLOCK: tl.constexpr, PARTS: tl.constexpr, PIECES: tl.constexpr,
    STRIDE: tl.constexpr, WORDS: tl.constexpr, WORD_STRIDE: tl.constexpr,
    CENTER: tl.constexpr, MINIMA: tl.constexpr, SIGNED: tl.constexpr, EVEN: tl.constexpr,
    M: tl.constexpr, ROWS: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """float32 `out [m, rows]`: act(gate x) * (up x); a program has ROWS / 2 rows of each."""
    HALF: tl.constexpr = ROWS // 2
    first_m, first_row = _firsts_tl(m, M, HALF)
    weights, starts = (), ()
    for r in tl.static_range(ROWS):
        row = tl.minimum(first_row + r % HALF, rows - 1).to(tl.int64)
        weights = weights + (gate if r < HALF else up,)  # noqa: RUF005
        starts = starts + (row * (width // BLOCK),)  # noqa: RUF005
    count = tl.cast(rows, tl.int64) * (width // BLOCK)
    totals = row_totals_tl(
        (levels, steps, sums, first_m), starts, m - 1, weights, width, count,
        READ, UNPACK, PLACE, BLOCK, PARTS, PIECES, STRIDE, WORDS, WORD_STRIDE, CENTER, MINIMA,
        SIGNED, EVEN, M, ROWS, THREADS,
    )  # fmt: skip
    for i in tl.static_range(M * HALF):
        row, column = first_m + i % M, first_row + i // M
        mask = (row < m) & (column < rows)
        value = activated_tl(tl.sum(totals[i], axis=0), SILU)
        value *= tl.sum(totals[M * HALF + i], axis=0)
        tl.store(out + row.to(tl.int64) * rows + column, value, mask=mask)


@triton.jit
def activated_tl(v, SILU: tl.constexpr):
    """float32: silu of `v`, or gelu by tanh: both are v times a logistic function."""
    # v / 2 * (1 + tanh(u)) is v / (1 + exp(-2 u)), u = sqrt(2 / pi) * (v + 0.044715 v^3).
    inner = v if SILU else 1.5957691216057308 * (v + 0.044715 * v * v * v)
    return v / (1.0 + tl.exp(-inner))
