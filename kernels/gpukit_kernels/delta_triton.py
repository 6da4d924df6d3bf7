"""Low-rank deltas as `merge.py` sums them, in Triton, and when a fused sum is the same.

A fused product and sum rounds once, the sum that is defined twice. Where the product is exact, its
own rounding is none, and both are the same: then a weight takes half the instructions. So it is of
factors that were bfloat16 or float16.
"""

import torch
from torch import Tensor

from gpukit_kernels.jit import tl, triton

# Programs of `exact_kernel`, and what each looks at in a turn.
SHARES = 64
SHARE = 1024


@triton.jit
def exact_kernel(b, a, out, rows, columns, STEP: tl.constexpr):
    """`out [programs]`: whether any of the program's share of `rows` values of `b` and `columns` of
    `a` may give a product that is not exact in float32: one of more than twelve bits, or that is
    not from 2^-60 to 2^63 and not zero."""
    strange = tl.zeros((STEP,), tl.int32)
    stride = tl.num_programs(0) * STEP
    start = tl.program_id(0) * STEP
    for first in range(start, rows, stride):
        at = first + tl.arange(0, STEP)
        strange |= strange_tl(tl.load(b + at, mask=at < rows, other=0.0))
    for first in range(start, columns, stride):
        at = first + tl.arange(0, STEP)
        strange |= strange_tl(tl.load(a + at, mask=at < columns, other=0.0))
    tl.store(out + tl.program_id(0), tl.max(strange, axis=0))


@triton.jit
def strange_tl(v):
    """int32: 1 where float32 `v` is what `exact_kernel` looks for, else 0."""
    bits = v.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    long = (bits & 0xFFF) != 0
    # The exponents 67 to 189 are those from 2^-60 to 2^63.
    outside = (bits < (67 << 23)) | (bits >= (190 << 23))
    return tl.where((bits != 0) & (long | outside), 1, 0)


@triton.jit
def added_tl(total, left, right, FUSED: tl.constexpr):
    """`total` plus the products of `left [ROWS]` and `right [COLUMNS]`."""
    left = tl.broadcast_to(left[:, None], total.shape)
    right = tl.broadcast_to(right[None, :], total.shape)
    return tl.fma(left, right, total) if FUSED else total + left * right


@triton.jit
def delta_tl(total, left, right, inside, count, width, FUSED: tl.constexpr, AHEAD: tl.constexpr):
    """float32 `[ROWS, COLUMNS]`: `total` plus Σ b·a of `count` neighbours from `left [ROWS]` and
    `right [COLUMNS]` on, pointers into `b` and `a`; where not `inside`, any; AHEAD at a time.

    FUSED is right where all products are exact: a fused sum then rounds as two steps do.
    """
    whole = count // AHEAD * AHEAD
    for _ in range(0, whole, AHEAD):
        for i in tl.static_range(AHEAD):
            total = added_tl(
                total, tl.load(left + i), load_row_tl(right + i * width, inside), FUSED
            )
        left += AHEAD
        right += AHEAD * width
    if AHEAD > 1:
        for _ in range(whole, count):
            total = added_tl(total, tl.load(left), load_row_tl(right, inside), FUSED)
            left += 1
            right += width
    return total


@triton.jit
def load_row_tl(pointer, inside):
    """float32 at `pointer`, 0 where not `inside`, which may be None."""
    return tl.load(pointer) if inside is None else tl.load(pointer, mask=inside, other=0.0)


def strange_products(b: Tensor, a: Tensor) -> Tensor:
    """int32 `[SHARES]`, zeros where all products of `b` and `a` are exact."""
    found = torch.empty(SHARES, dtype=torch.int32, device=a.device)
    exact_kernel[(SHARES,)](b, a, found, b.numel(), a.numel(), STEP=SHARE, enable_fp_fusion=False)
    return found
