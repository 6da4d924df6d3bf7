"""x as int16 with a float32 step for each 32 values, for products with blocks by integers.

    levels  int16 [m, n]        x / step, rounded to the nearest
    steps   float32 [m, n / 32] the largest |x| of the group / 32767
    sums    float32 [m, n / 16] sum of the levels of sixteen, times their step

A value is off by half a step at most: |x'| - |x| <= max|group| / 65534, and by 2^-22 of itself,
since step and quotient are rounded. A group that holds a NaN or an infinity has the step NaN, so
that every product with it is NaN. A group whose values are all below 2^-100 is taken for zeros.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpukit_kernels.bits_triton import nearest_int_tl
from gpukit_kernels.errors import QuantError
from gpukit_kernels.jit import tl, triton

GROUP = 32
LEVEL = 32767
# Groups that a program prepares: a warp's thread has one.
GROUPS = 32


@dataclass(frozen=True)
class Prepared:
    """`m` rows of `n` values as the module's head says; `from_shape` leaves them uninitialised."""

    levels: Tensor
    steps: Tensor
    sums: Tensor

    @property
    def rows(self) -> int:
        return self.levels.shape[0]

    @property
    def width(self) -> int:
        return self.levels.shape[1]

    @classmethod
    def from_shape(cls, m: int, n: int, device: torch.device | str) -> "Prepared":
        """For a kernel to fill; `QuantError` where 32 does not divide `n`."""
        if n % GROUP:
            raise QuantError(f"rows of {n} values; groups of {GROUP} must divide them")
        return cls(
            torch.empty((m, n), dtype=torch.int16, device=device),
            torch.empty((m, n // GROUP), dtype=torch.float32, device=device),
            torch.empty((m, n // 16), dtype=torch.float32, device=device),
        )


@triton.jit
def store_prepared_tl(x, levels, steps, sums, group, mask):
    """Store float32 `x` `[GROUPS, 32]` as groups `group` `[GROUPS]` of the three pointers.

    For kernels that have computed x: groups count from the first of the first row on.
    """
    N: tl.constexpr = x.shape[0]
    top = tl.max(tl.where(x == x, tl.abs(x), 0.0), axis=1)
    # A maximum may forget a NaN; a sum does not, and an infinity less itself is one.
    spoilt = tl.sum(x - x, axis=1) != 0.0
    some = top >= 7.888609052210118e-31  # 2^-100
    inverse = tl.where(some, 32767.0 / tl.where(some, top, 1.0), 0.0)
    level = nearest_int_tl(x * inverse[:, None])
    step = tl.where(some, top * (1.0 / 32767.0), 0.0)
    step = tl.where(spoilt, float("nan"), step)
    place = levels + group[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(place, level.to(tl.int16), mask=mask[:, None])
    tl.store(steps + group, step, mask=mask)
    part = tl.sum(tl.reshape(level, (N, 2, 16)), axis=2).to(tl.float32) * step[:, None]
    tl.store(sums + group[:, None] * 2 + tl.arange(0, 2)[None, :], part, mask=mask[:, None])


@triton.jit
def prepare_kernel(x, levels, steps, sums, count, GROUPS: tl.constexpr):
    """`count` groups of 32 of float32 `x`; a program has GROUPS of them."""
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    group = group.to(tl.int64)
    mask = group < count
    place = group[:, None] * 32 + tl.arange(0, 32)[None, :]
    values = tl.load(x + place, mask=mask[:, None], other=0.0)
    store_prepared_tl(values, levels, steps, sums, group, mask)


def prepare(x: Tensor, out: Prepared | None = None) -> Prepared:
    """float32 `x` `[m, n]` prepared, in one launch; into `out` where it is given.

    `QuantError` where 32 does not divide `n`, or where `out` is of another shape.
    """
    x = x.contiguous()
    m, n = x.shape
    if out is None:
        out = Prepared.from_shape(m, n, x.device)
    elif (out.rows, out.width) != (m, n):
        raise QuantError(f"prepared is [{out.rows}, {out.width}], x is [{m}, {n}]")
    count = m * n // GROUP
    if count:
        with torch.cuda.device_of(x):
            prepare_kernel[(triton.cdiv(count, GROUPS),)](
                x, out.levels, out.steps, out.sums, count, GROUPS=GROUPS, num_warps=1
            )
    return out
