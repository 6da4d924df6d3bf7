"""What the searches for scales share, on tiles `[elements, lanes]` or `[elements, groups, lanes]`.

Everything is added up along the elements one after the other, as the C does, because another order
changes bytes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gpukit_kernels.bits import divide, root
from gpukit_kernels.cpu.trace import is_tracing
from gpukit_kernels.stages import stage

# Below this largest magnitude a group counts as zero (GROUP_MAX_EPS).
GROUP_EPS = 1e-15


def added(terms: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> tuple[Tensor, ...]:
    """Each of `terms(x)` added to zero over the elements, its first dimension, one after the other.

    Compiled, `sum` over a leading dimension becomes a loop in that order, and the code is compact;
    eager `sum` takes another order, so there the loop is written out.
    """
    found = terms(x)
    if is_tracing():
        return tuple(term.sum(dim=0) for term in found)
    totals = []
    for term in found:
        total = term[0] + 0.0
        for row in term[1:]:
            total += row
        totals.append(total)
    return tuple(totals)


def first_largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Along the first dimension the value of largest magnitude, with its sign, and the magnitude.

    The first one where several are as large; zero where there is none (a NaN never is).
    """
    if is_tracing():
        return _first_largest_in_turn(x)
    high, low = x.amax(dim=0), x.amin(dim=0)
    magnitude = torch.maximum(high, -low) + 0.0  # no zero keeps a sign
    largest = torch.where(high == magnitude, magnitude, -magnitude)
    # Few lanes reach both ends, or hold a NaN: there the order decides.
    unclear = (high == -low) & (magnitude != 0) | (magnitude != magnitude)
    if bool(unclear.any()):
        largest[unclear], magnitude[unclear] = _first_largest_in_turn(x[:, unclear])
    return largest, magnitude


def _first_largest_in_turn(x: Tensor) -> tuple[Tensor, Tensor]:
    largest = torch.zeros_like(x[0])
    magnitude = torch.zeros_like(largest)
    for i in range(x.shape[0]):
        a = x[i].abs()
        larger = a > magnitude
        magnitude = torch.where(larger, a, magnitude)
        largest = torch.where(larger, x[i], largest)
    return largest, magnitude


def largest_magnitude(x: Tensor, least: Tensor | None = None) -> Tensor:
    """The largest |x| along the first dimension, at least `least`, or zero; the C's maximum forgets
    what came before a NaN."""
    magnitude = torch.zeros_like(x[0]) if least is None else least
    if not is_tracing():
        largest = torch.maximum(x.abs().amax(dim=0), magnitude)
        if not bool(largest.isnan().any()):
            return largest
    for i in range(x.shape[0]):
        a = x[i].abs()
        magnitude = torch.where(magnitude > a, magnitude, a)
    return magnitude


@stage
def scaled_squares(x: Tensor, factor: float, count: int) -> Tensor:
    """`factor` times the sum of x * x over the elements, over `count`, a power of two."""
    (squares,) = added(lambda v: (v * v,), x)
    return squares * factor / count


@stage
def total(x: Tensor) -> Tensor:
    """The sum over the elements."""
    (found,) = added(lambda v: (v,), x)
    return found


@stage
def importance_weights(x: Tensor, importance: Tensor, variance: Tensor) -> Tensor:
    """What errors count with importance: importance * sqrt(variance + x * x), shaped as `x`."""
    return importance * root(variance + x * x)


@stage
def signed_scale(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """d, float32 `[lanes]`, the first value of largest magnitude / -`levels`, and 1 / d or zero.

    Source of this and of `signed_levels`: quantize_row_q4_0_ref, quantize_row_q5_0_ref.
    """
    largest, _ = first_largest(x)
    d = largest / torch.full_like(largest, -float(levels))
    return d, torch.where(d != 0, divide(1.0, d), torch.zeros_like(d))


@stage
def signed_levels(x: Tensor, inverse: Tensor, levels: int) -> Tensor:
    """Levels `[elements, lanes]`, at most 2 * `levels` - 1: trunc(x * inverse + levels + 0.5)."""
    # The C goes through int8 before it takes the minimum; it shows where 1 / d is infinite.
    level = low_int8((x * inverse + (levels + 0.5)).to(torch.int32)).clamp(max=2 * levels - 1)
    return level.to(torch.float32)


def low_int8(v: Tensor) -> Tensor:
    """int32: what remains of int32 `v` in C's int8."""
    return (v << 24) >> 24


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest of float32 `[elements, lanes]`, by strict comparisons in turn.

    They begin at the ends of float32: of zeros of both signs the first one stays, a NaN never does.
    """
    if is_tracing():
        return _extremes_in_turn(x)
    low, high = x.amin(dim=0), x.amax(dim=0)
    most = torch.finfo(torch.float32).max
    # Few lanes end at a zero, or hold what is not finite: there the order decides.
    unclear = (low == 0) | (high == 0) | ~((low >= -most) & (high <= most))
    if bool(unclear.any()):
        low[unclear], high[unclear] = _extremes_in_turn(x[:, unclear])
    return low, high


def _extremes_in_turn(x: Tensor) -> tuple[Tensor, Tensor]:
    high = torch.full_like(x[0], torch.finfo(torch.float32).min)
    low = -high
    for i in range(x.shape[0]):
        low = torch.where(x[i] < low, x[i], low)
        high = torch.where(x[i] > high, x[i], high)
    return low, high


@stage
def offset_scale(x: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """d, low and 1 / d or zero, float32 `[lanes]`: d = (high - low) / `levels`.

    Source of this and of `offset_levels`: quantize_row_q4_1_ref, quantize_row_q5_1_ref.
    """
    low, high = extremes(x)
    d = (high - low) / torch.full_like(low, float(levels))
    return d, low.clone(), torch.where(d != 0, divide(1.0, d), torch.zeros_like(d))


@stage
def offset_levels(x: Tensor, low: Tensor, inverse: Tensor) -> Tensor:
    """Levels `[elements, lanes]`: trunc((x - low) * inverse + 0.5), the lowest int32 where that
    does not fit."""
    return ((x - low) * inverse + 0.5).to(torch.int32).to(torch.float32)
