"""Causal attention as `causal` says, in one kernel: scores are in registers only.

A program is some queries of one head and goes along the keys that they see, with a running largest
score and sum (Dao, FlashAttention-2).
"""

from dataclasses import dataclass
from math import log2

import torch
from torch import Tensor

from gpukit_kernels.jit import tl, triton

LOG2_E = log2(2.718281828459045)
# Stands for a largest score before there is one: finite, so that differences are numbers.
NOTHING = tl.constexpr(-1.0e30)


@dataclass(frozen=True)
class Tile:
    """Queries of a program, keys of a step, warps, and steps whose loads are under way."""

    queries: int
    keys: int
    warps: int
    stages: int


def tile_for(head_dim: int) -> Tile:
    """The tile for heads of a width: what fits in registers and shared memory."""
    if head_dim <= 64:
        return Tile(128, 64, 4, 3)
    return Tile(128, 64, 8, 2) if head_dim <= 128 else Tile(64, 32, 8, 2)


@triton.jit
def steps_tl(
    x,
    k,
    v,
    k_stride,
    v_stride,
    own,
    begin,
    end,
    length,
    window,
    scale,
    cap,
    head_dim,
    total,
    most,
    found,
    HEAD: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
):
    """`found`, `most` and `total` after the keys `begin` to `end` of queries that are the positions
    `own`; with MASKED only those that each sees."""
    d = tl.arange(0, HEAD)
    for first in range(begin, end, KEYS):
        position = first + tl.arange(0, KEYS)
        here = (d < head_dim)[:, None]
        if MASKED:
            here = here & (position < length)[None, :]
        keys = tl.load(k + position[None, :] * k_stride + d[:, None], mask=here, other=0.0)
        scores = tl.dot(x, keys) * scale  # [QUERIES, KEYS]
        if CAP:
            # cap * tanh(y / cap) in units of log2(e): `scale` brought y / cap, `cap` has the unit.
            scores = cap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * scores)))
        if MASKED:
            seen = position[None, :] <= own[:, None]
            if WINDOW:
                seen = seen & (position[None, :] > own[:, None] - window)
            scores = tl.where(seen, scores, float("-inf"))
        larger = tl.maximum(most, tl.max(scores, axis=1))
        shares = tl.exp2(scores - larger[:, None])
        kept = tl.exp2(most - larger)
        total = total * kept + tl.sum(shares, axis=1)
        there = (d < head_dim)[None, :]
        if MASKED:
            there = there & (position < length)[:, None]
        values = tl.load(v + position[:, None] * v_stride + d[None, :], mask=there, other=0.0)
        found = tl.dot(shares.to(values.dtype), values, found * kept[:, None])
        most = larger
    return total, most, found


@triton.jit
def attention_kernel(
    q,
    k,
    v,
    out,
    count,
    length,
    heads,
    head_dim,
    k_batch,
    k_stride,
    k_head,
    v_batch,
    v_stride,
    v_head,
    window,
    scale,
    cap,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
):
    """float32 `out [batch, count, heads, head_dim]` of `q`; keys and values have strides of a
    sequence, a position and a head."""
    # Those that see most come first, so that none is left alone at the end.
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * QUERIES
    sequence = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    row, d = first + tl.arange(0, QUERIES), tl.arange(0, HEAD)
    place = (sequence * count + row[:, None]) * heads * head_dim + head * head_dim + d[None, :]
    mask = (row < count)[:, None] & (d < head_dim)[None, :]
    x = tl.load(q + place, mask=mask, other=0.0)
    k += sequence * k_batch + (head // GROUP).to(tl.int64) * k_head
    v += sequence * v_batch + (head // GROUP).to(tl.int64) * v_head
    before = length - count
    own = before + row
    end = tl.minimum(before + first + QUERIES, length)
    if WINDOW:
        begin = tl.maximum(before + first - window + 1, 0) // KEYS * KEYS
        whole = begin
    else:
        begin = 0
        # Steps whose keys all of the queries see.
        whole = (before + first + 1) // KEYS * KEYS
    total = tl.zeros((QUERIES,), tl.float32)
    most = tl.full((QUERIES,), NOTHING, tl.float32)
    found = tl.zeros((QUERIES, HEAD), tl.float32)
    if not WINDOW:
        total, most, found = steps_tl(
            x, k, v, k_stride, v_stride, own, begin, whole, length, window, scale, cap, head_dim,
            total, most, found, HEAD, KEYS, False, WINDOW, CAP,
        )  # fmt: skip
    total, most, found = steps_tl(
        x, k, v, k_stride, v_stride, own, whole, end, length, window, scale, cap, head_dim,
        total, most, found, HEAD, KEYS, True, WINDOW, CAP,
    )  # fmt: skip
    tl.store(out + place, found / total[:, None], mask=mask)


def attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    tile: Tile | None = None,
) -> Tensor:
    """As `attention_reference`: float32 `[batch, count, heads * head_dim]`."""
    batch, count, heads, head_dim = q.shape
    q, k, v = q.contiguous(), _rows(k), _rows(v)
    out = torch.empty_like(q, dtype=torch.float32)
    tile = tile or tile_for(head_dim)
    if not out.numel():
        return out.flatten(2)
    with torch.cuda.device_of(q):
        attention_kernel[(batch * heads, triton.cdiv(count, tile.queries))](
            q,
            k,
            v,
            out,
            count,
            k.shape[1],
            heads,
            head_dim,
            *k.stride()[:3],
            *v.stride()[:3],
            window,
            scale / cap if cap else scale * LOG2_E,
            cap * LOG2_E,
            GROUP=heads // k.shape[2],
            HEAD=max(triton.next_power_of_2(head_dim), 16),
            QUERIES=tile.queries,
            KEYS=tile.keys,
            WINDOW=window > 0,
            CAP=cap > 0,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out.flatten(2)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
