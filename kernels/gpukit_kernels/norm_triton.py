"""RMS norm of a few rows between products: the sum before it and the preparation behind it in one
launch."""

import torch
from torch import Tensor

from gpukit_kernels.jit import tl, triton
from gpukit_kernels.prepared_triton import Prepared, store_prepared_tl

# Values of a row that a thread has.
VALUES = 8


@triton.jit
def normed_tl(x, weight, place, mask, width, eps):
    """`x` over the root of its mean square, times the weight: float32 `[GROUPS, 32]`."""
    mean = tl.sum(tl.sum(x * x, axis=1), axis=0) / width
    return x * tl.rsqrt(mean + eps) * tl.load(weight + place, mask=mask, other=0.0)


@triton.jit
def norm_kernel(x, add, post, weight, out, levels, steps, sums, width, eps, GROUPS: tl.constexpr):
    """A program is a row: x += add, or its norm with the weight `post`; then the norm of x, as
    float32 into `out` and prepared. Whatever is None is left out."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS)
    place = group[:, None] * 32 + tl.arange(0, 32)[None, :]
    mask = place < width
    values = tl.load(x + row * width + place, mask=mask, other=0.0)
    if add is not None:
        more = tl.load(add + row * width + place, mask=mask, other=0.0)
        if post is not None:
            more = normed_tl(more, post, place, mask, width, eps)
        values += more
        tl.store(x + row * width + place, values, mask=mask)
    values = normed_tl(values, weight, place, mask, width, eps)
    if out is not None:
        tl.store(out + row * width + place, values, mask=mask)
    if levels is not None:
        first = row * (width // 32)
        store_prepared_tl(values, levels, steps, sums, first + group, group < width // 32)


def norm_triton(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    add: Tensor | None = None,
    post: Tensor | None = None,
    out: Tensor | None = None,
    prepared: Prepared | None = None,
) -> None:
    """The RMS norm of float32 `x` `[m, n]` into `out` and `prepared`; nothing is allocated.

    `x` first gets `add` `[m, n]`, or the norm of it with the weight `post`.
    """
    rows, width = x.shape
    groups, warps = launch_shape(width)
    with torch.cuda.device_of(x):
        norm_kernel[(rows,)](
            x, add, post, weight, out, *parts_of(prepared), width, eps, GROUPS=groups,
            num_warps=warps,
        )  # fmt: skip


def launch_shape(width: int) -> tuple[int, int]:
    """Groups of 32 values that `norm_kernel` has of rows of `width`, and its warps."""
    groups = triton.next_power_of_2(triton.cdiv(width, 32))
    return groups, min(max(groups // VALUES, 1), 16)


def parts_of(prepared: Prepared | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The three tensors of `prepared`, or None each."""
    if prepared is None:
        return None, None, None
    return prepared.levels, prepared.steps, prepared.sums
