"""Attention of one new position of a sequence, all in one launch: norms of queries and keys, RoPE,
the new place in the cache, and attention split along the keys.

A program has some heads that share a kv head, and a part of the keys. Where the keys are parted,
the program that is done last puts the parts together, so nothing waits. How many keys there are is
read from the device's memory: the grid is the same for every length.
"""

from gpukit_kernels.jit import tl, triton
from gpukit_kernels.prepared_triton import store_prepared_tl

# What stands for minus infinity: differences of two of them are no NaN.
LOWEST = tl.constexpr(-1.0e30)


@triton.jit
def turned_tl(
    x, norm, turns, eps, DIM: tl.constexpr, PADDED: tl.constexpr, ROTATED: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """float32 `[PADDED]`: a head at `x` behind its norm and RoPE; 0 beyond DIM.

    Pair i has its cosine and sine at `turns + 2 i`.
    """
    d = tl.arange(0, PADDED)
    mask = d < DIM
    if PAIRS:
        pair, first, partner = d // 2, d % 2 == 0, d ^ 1
    else:
        pair, first = d % (ROTATED // 2), d < ROTATED // 2
        partner = tl.where(first, d + ROTATED // 2, d - ROTATED // 2)
    rotated = d < ROTATED
    values = tl.load(x + d, mask=mask, other=0.0)
    others = tl.load(x + partner, mask=rotated, other=0.0)
    if norm is not None:
        root = tl.rsqrt(tl.sum(values * values, axis=0) / DIM + eps)
        values = values * root * tl.load(norm + d, mask=mask, other=0.0)
        others = others * root * tl.load(norm + partner, mask=rotated, other=0.0)
    cosine = tl.load(turns + 2 * pair, mask=rotated, other=1.0)
    sine = tl.load(turns + 2 * pair + 1, mask=rotated, other=0.0)
    return values * cosine + tl.where(first, -others, others) * sine


@triton.jit
def attend_kernel(
    q, k, v, q_norm, k_norm, turns, keys, values, position, partial, arrived, out, levels,
    steps, sums, scale, eps, cap, capacity,
    WINDOW: tl.constexpr, HEADS: tl.constexpr, SHARING: tl.constexpr, DIM: tl.constexpr,
    PADDED: tl.constexpr, ROTATED: tl.constexpr, PAIRS: tl.constexpr, CAPPED: tl.constexpr,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """`out` `[heads * DIM]` of the products q, k and v; `keys` and `values` get a row more.

    Program (p, s) has heads p * HEADS and on, which share kv head p * HEADS // SHARING, and part s
    of the keys before the new one; the last part has the new one, too. `partial` holds
    `[heads, SPLITS, PADDED + 2]` between programs; `arrived` zeros, before and after.
    """
    first_head, split = tl.program_id(0) * HEADS, tl.program_id(1)
    kv_head = first_head // SHARING
    at = tl.load(position)
    start = tl.maximum(at + 1 - WINDOW, 0) if WINDOW else at * 0
    step: tl.constexpr = ROWS * LANES
    chunk = tl.maximum(tl.cdiv(tl.cdiv(at - start, SPLITS), step), 1) * step
    parts = tl.maximum(tl.cdiv(at - start, chunk), 1)
    if split >= parts:
        return
    turns += at.to(tl.int64) * ROTATED
    d, lane = tl.arange(0, PADDED), tl.arange(0, LANES)
    keys += kv_head.to(tl.int64) * capacity * DIM
    values += kv_head.to(tl.int64) * capacity * DIM
    # The new position, as the cache will give it back.
    new_k = turned_tl(k + kv_head * DIM, k_norm, turns, eps, DIM, PADDED, ROTATED, PAIRS)
    new_v = tl.load(v + kv_head * DIM + d, mask=d < DIM, other=0.0)
    new_k, new_v = new_k.to(keys.dtype.element_ty), new_v.to(values.dtype.element_ty)
    last = split == parts - 1
    if last and first_head % SHARING == 0:
        tl.store(keys + at.to(tl.int64) * DIM + d, new_k, mask=d < DIM)
        tl.store(values + at.to(tl.int64) * DIM + d, new_v, mask=d < DIM)
    new_k, new_v = new_k.to(tl.float32), new_v.to(tl.float32)
    own = (lane == 0) & last
    heads, tops, totals, found = (), (), (), ()
    for h in tl.static_range(HEADS):
        head = q + (first_head + h) * DIM
        head = turned_tl(head, q_norm, turns, eps, DIM, PADDED, ROTATED, PAIRS) * scale
        own_score = tl.sum(head * new_k, axis=0)
        if CAPPED:  # cap * tanh(score / cap)
            own_score = cap * (1.0 - 2.0 / (1.0 + tl.exp(own_score * (2.0 / cap))))
        heads = heads + (head,)  # noqa: RUF005
        tops = tops + (tl.where(own, own_score, LOWEST),)  # noqa: RUF005
        totals = totals + (own.to(tl.float32),)  # noqa: RUF005
        found = found + (tl.where(own[:, None], new_v[None, :], 0.0),)  # noqa: RUF005
    begin = start + split * chunk
    end = tl.minimum(begin + chunk, at)
    for here in range(begin, end, step):
        # A thread's keys and values first, all at once: they are what is waited for.
        tiles, wides, seen = (), (), ()
        for r in tl.static_range(ROWS):
            row = here + r * LANES + lane
            mask = (row < end)[:, None] & (d < DIM)[None, :]
            place = row[:, None] * DIM + d[None, :]  # [LANES, PADDED]
            tiles = tiles + (tl.load(keys + place, mask=mask, other=0.0),)  # noqa: RUF005
            wides = wides + (tl.load(values + place, mask=mask, other=0.0),)  # noqa: RUF005
            seen = seen + (row < end,)  # noqa: RUF005
        old_tops, old_totals, old_found = tops, totals, found
        tops, totals, found = (), (), ()
        for h in tl.static_range(HEADS):
            scores = ()
            top = old_tops[h]
            for r in tl.static_range(ROWS):
                score = tl.sum(tiles[r].to(tl.float32) * heads[h][None, :], axis=1)
                if CAPPED:
                    score = cap * (1.0 - 2.0 / (1.0 + tl.exp(score * (2.0 / cap))))
                score = tl.where(seen[r], score, LOWEST)
                top = tl.maximum(top, score)
                scores = scores + (score,)  # noqa: RUF005
            less = tl.exp(old_tops[h] - top)
            total, mean = old_totals[h] * less, old_found[h] * less[:, None]
            for r in tl.static_range(ROWS):
                share = tl.where(seen[r], tl.exp(scores[r] - top), 0.0)
                total += share
                mean += share[:, None] * wides[r].to(tl.float32)
            tops = tops + (top,)  # noqa: RUF005
            totals = totals + (total,)  # noqa: RUF005
            found = found + (mean,)  # noqa: RUF005
    for h in tl.static_range(HEADS):
        highest = tl.max(tops[h], axis=0)
        weight = tl.exp(tops[h] - highest)
        whole = tl.sum(totals[h] * weight, axis=0)
        sum_d = tl.sum(found[h] * weight[:, None], axis=0)
        if parts == 1:
            leave_tl(sum_d / whole, first_head + h, out, levels, steps, sums, DIM, PADDED)
        else:
            part = partial + ((first_head + h) * SPLITS + split) * (PADDED + 2)
            tl.store(part + d, sum_d)
            tl.store(part + PADDED, highest)
            tl.store(part + PADDED + 1, whole)
    if parts > 1:
        # Every thread's part is written before the one that counts says so.
        tl.debug_barrier()
        if tl.atomic_add(arrived + tl.program_id(0), 1) == parts - 1:
            tl.store(arrived + tl.program_id(0), 0)
            for h in tl.static_range(HEADS):
                found_d = together_tl(partial, first_head + h, parts, PADDED, SPLITS)
                leave_tl(found_d, first_head + h, out, levels, steps, sums, DIM, PADDED)


@triton.jit
def together_tl(partial, head, parts, PADDED: tl.constexpr, SPLITS: tl.constexpr):
    """float32 `[PADDED]`: a head's parts together; read past the first-level cache, which may hold
    old ones."""
    s, d = tl.arange(0, SPLITS), tl.arange(0, PADDED)
    place = partial + (head * SPLITS + s) * (PADDED + 2)
    mask = s < parts
    tops = tl.load(place + PADDED, mask=mask, other=LOWEST, cache_modifier=".cg")
    totals = tl.load(place + PADDED + 1, mask=mask, other=0.0, cache_modifier=".cg")
    both = mask[:, None] & (d < PADDED)[None, :]
    found = tl.load(place[:, None] + d[None, :], mask=both, other=0.0, cache_modifier=".cg")
    share = tl.exp(tops - tl.max(tops, axis=0))
    return tl.sum(share[:, None] * found, axis=0) / tl.sum(share * totals, axis=0)


@triton.jit
def leave_tl(
    found, head, out, levels, steps, sums, DIM: tl.constexpr, PADDED: tl.constexpr
):  # fmt: skip
    """Store a head's result `[PADDED]`, as float32 or, where `levels` is not None, prepared."""
    if levels is not None:
        group = tl.arange(0, PADDED // 32)
        found = tl.reshape(found, (PADDED // 32, 32))
        place = head * (DIM // 32) + group
        store_prepared_tl(found, levels, steps, sums, place, group < DIM // 32)
    if out is not None:
        d = tl.arange(0, PADDED)
        tl.store(out + head * DIM + d, tl.reshape(found, (PADDED,)), mask=d < DIM)
