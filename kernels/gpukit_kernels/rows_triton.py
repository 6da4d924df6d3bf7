"""Many rows of activations in one pass each: norms, gates, turns, and what logits say of targets.

All arithmetic is in float32. Torch makes three to six passes over memory of each.
"""

import torch
from torch import Tensor

from gpukit_kernels.jit import tl, triton
from gpukit_kernels.rows import Activation

# Values that a program has in registers: sixteen a thread of eight warps, but eight for a norm,
# whose weights are beside them (with sixteen ptxas of Triton 3.9 spills for sm_100).
VALUES = 4096
WARPS = 8
NORM_WARPS = 16
# The widest row of a norm: 32 values a thread.
WIDEST = 1 << 14
# Values of a row of logits that a program takes in a step, four a thread.
LOGITS = 1024


@triton.jit
def rms_norm_kernel(x, weight, out, rows, width, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """`out [rows, width]` of `x`: each row over the root of its mean square, times `weight`."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    mask = (row < rows)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]  # [ROWS, WIDTH]
    values = tl.load(x + place, mask=mask, other=0.0)
    mean = tl.sum(values * values, axis=1) / width
    factor = tl.rsqrt(mean + eps)
    by = tl.load(weight + column, mask=column < width, other=0.0)
    tl.store(out + place, values * factor[:, None] * by[None, :], mask=mask)


@triton.jit
def gated_kernel(gate, up, out, count, GELU: tl.constexpr, SIZE: tl.constexpr):
    """`out [count]`: silu(gate) * up, or with gelu by its tanh."""
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = place < count
    x = tl.load(gate + place, mask=mask, other=0.0)
    by = tl.load(up + place, mask=mask, other=0.0)
    # (1 + tanh(y)) / 2 = 1 / (1 + exp(-2 y)), y = sqrt(2 / pi) (x + 0.044715 x^3)
    y = 1.5957691216057308 * (x + 0.044715 * x * x * x) if GELU else x
    share = 1.0 / (1.0 + tl.exp(-y))
    tl.store(out + place, x * share * by, mask=mask)


@triton.jit
def rotate_kernel(
    x,
    turns,
    out,
    heads,
    width,
    pairs,
    NEIGHBOURS: tl.constexpr,
    TAIL: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """`out [count, heads, width]` of `x`, pairs turned by `turns [count, pairs, 2]`; a program is
    one position and HEADS heads. TAIL is at least what lies behind the pairs."""
    position = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, PAIRS)
    turn = turns + (position * pairs + pair) * 2
    real = tl.load(turn, mask=pair < pairs, other=0.0)[None, :]
    imaginary = tl.load(turn + 1, mask=pair < pairs, other=0.0)[None, :]
    row = position * heads * width + head[:, None] * width
    here = head[:, None] < heads
    kind = out.dtype.element_ty
    if NEIGHBOURS:
        # A thread has whole pairs: they are loaded and stored side by side.
        place = tl.arange(0, 2 * PAIRS)[None, :]
        mask = here & (place < 2 * pairs)
        values = tl.load(x + row + place, mask=mask, other=0.0)
        a, b = tl.split(tl.reshape(values, (HEADS, PAIRS, 2)))
        turned = tl.join(a * real - b * imaginary, a * imaginary + b * real)
        tl.store(out + row + place, tl.reshape(turned, (HEADS, 2 * PAIRS)).to(kind), mask=mask)
    else:
        first = row + pair[None, :]
        mask = here & (pair < pairs)[None, :]
        a = tl.load(x + first, mask=mask, other=0.0)
        b = tl.load(x + first + pairs, mask=mask, other=0.0)
        tl.store(out + first, (a * real - b * imaginary).to(kind), mask=mask)
        tl.store(out + first + pairs, (a * imaginary + b * real).to(kind), mask=mask)
    if TAIL:
        column = 2 * pairs + tl.arange(0, TAIL)
        mask = here & (column < width)[None, :]
        kept = tl.load(x + row + column[None, :], mask=mask, other=0.0)
        tl.store(out + row + column[None, :], kept.to(kind), mask=mask)


@triton.jit
def likelihood_kernel(logits, targets, top, total, wanted, likeliest, vocab, SIZE: tl.constexpr):
    """Of one row of `logits [rows, vocab]`: its largest, the sum of exp(logit - largest), the
    target's logit, and the first place of the largest.

    Each lane has a largest and a float64 sum of its own, brought to a larger one by a factor that
    is rounded to float32: some ten times a lane at most, as new largest ones become rare.
    """
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, SIZE)
    logits += row * vocab
    most = tl.full((SIZE,), float("-inf"), tl.float32)
    found = tl.zeros((SIZE,), tl.float64)
    place = tl.zeros((SIZE,), tl.int32)
    for first in range(0, vocab, SIZE):
        x = tl.load(logits + first + lane, mask=first + lane < vocab, other=float("-inf"))
        higher = (x > most) | (x != x)
        # NaN and infinity stay: a largest one that is none is an error for who asked.
        larger = tl.where(higher, x, most)
        place = tl.where(higher, first + lane, place)
        # Where there was nothing yet, there is nothing to bring along.
        kept = tl.where(most == float("-inf"), 0.0, tl.exp(most - larger))
        new = tl.where(x == float("-inf"), 0.0, tl.exp(x - larger))
        found = found * kept.to(tl.float64) + new.to(tl.float64)
        most = tl.where(most != most, most, larger)
    largest = tl.max(most, axis=0)
    shares = tl.where(most == float("-inf"), 0.0, tl.exp(most - largest))
    tl.store(total + row, tl.sum(found * shares.to(tl.float64), axis=0))
    bad = tl.max((most != most).to(tl.int32), axis=0)
    tl.store(top + row, tl.where(bad > 0, float("nan"), largest))
    tl.store(likeliest + row, tl.min(tl.where(most == largest, place, vocab), axis=0))
    tl.store(wanted + row, tl.load(logits + tl.load(targets + row)))


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `rms_norm_reference`, for rows of up to `WIDEST` values."""
    x = x.contiguous()
    out, width = torch.empty_like(x), x.shape[-1]
    rows = x.numel() // max(width, 1)
    wide = triton.next_power_of_2(width)
    together = max(VALUES // wide, 1)
    if rows:
        with torch.cuda.device_of(x):
            rms_norm_kernel[(triton.cdiv(rows, together),)](
                x, weight, out, rows, width, eps, ROWS=together, WIDTH=wide, num_warps=NORM_WARPS
            )
    return out


def gated_triton(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """As `gated_reference`, in the place of `gate` where that is contiguous."""
    gate, up = gate.contiguous(), up.contiguous()
    if count := gate.numel():
        with torch.cuda.device_of(gate):
            gated_kernel[(triton.cdiv(count, VALUES),)](
                gate, up, gate, count, GELU=activation == "gelu_tanh", SIZE=VALUES, num_warps=WARPS
            )
    return gate


def rotate_triton(x: Tensor, turns: Tensor, *, neighbours: bool, dtype: torch.dtype) -> Tensor:
    """As `rotate_reference`, of a `dtype`."""
    x = x.contiguous()
    count, heads, width = x.shape
    pairs = turns.shape[-1]
    out = torch.empty_like(x, dtype=dtype)
    if not x.numel():
        return out
    wide, tail = triton.next_power_of_2(pairs), width - 2 * pairs
    together = min(max(VALUES // 2 // wide, 1), triton.next_power_of_2(heads))
    with torch.cuda.device_of(x):
        rotate_kernel[(count, triton.cdiv(heads, together))](
            x,
            torch.view_as_real(turns).contiguous(),
            out,
            heads,
            width,
            pairs,
            NEIGHBOURS=neighbours,
            TAIL=triton.next_power_of_2(tail) if tail else 0,
            HEADS=together,
            PAIRS=wide,
        )
    return out


def likelihood_triton(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `likelihood_reference`."""
    logits, targets = logits.contiguous(), targets.contiguous()
    rows, vocab = logits.shape
    top, wanted = logits.new_empty(rows), logits.new_empty(rows)
    total = logits.new_empty(rows, dtype=torch.float64)
    likeliest = logits.new_empty(rows, dtype=torch.int32)
    if rows:
        with torch.cuda.device_of(logits):
            likelihood_kernel[(rows,)](
                logits, targets, top, total, wanted, likeliest, vocab, SIZE=LOGITS
            )
    return top, total.log_(), wanted, likeliest
