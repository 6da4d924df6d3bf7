"""The Triton twin of near.py: one lane a row of values, the entries of its list by fours.

A thread has a row and loads four entries, 16 bytes, at a time; it goes on until the longest list of
the program is at its end. Of rows of eight there are three numbers a value, so their errors are
made before and an entry only picks from them.
"""

from gpukit_kernels.bits_triton import INTERPRETED
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.search import near, neighbours

_MOST = tl.constexpr(near.MOST)
_INFINITE = tl.constexpr(float("inf"))
_COUNT_BITS = tl.constexpr(neighbours.COUNT_BITS)
_COUNTS = tl.constexpr((1 << neighbours.COUNT_BITS) - 1)
_FOUR = tl.constexpr(neighbours.FOUR)
# Entries that the interpreter takes at a time, whose time goes by operations: mostly all of a list.
_SIXTEEN = tl.constexpr(16)


@triton.jit
def odd_terms_tl(scale, x, weights):
    """A tuple of 24 float32 `[R]`: of each of eight values the terms of the numbers 1, 3 and 5."""
    return _terms_tl(scale, scale * 3.0, scale * 5.0, x, weights)


@triton.jit
def shifted_terms_tl(scale, lowest, x, weights):
    """`odd_terms_tl` of the numbers `lowest`, float32 `[R]`, and one and two more."""
    second, third = scale * (1.0 + lowest), scale * (2.0 + lowest)
    return _terms_tl(scale * lowest, second, third, x, weights)


@triton.jit
def _terms_tl(first, second, third, x, weights):
    terms = ()
    for k in tl.static_range(8):
        a, b, c = first - x[k], second - x[k], third - x[k]
        w = weights[k]
        terms = terms + (w * a * a, w * b * b, w * c * c)  # noqa: RUF005
    return terms


@triton.jit
def near_eight_tl(point, terms, book):
    """int32 `[R]`: near.near_rows of rows of eight with `terms`; `book` is neighbours.in_fours."""
    own, first, count = _list_tl(point, book)
    least = tl.full(point.shape, _INFINITE, tl.float32)
    found = own
    ENTRIES: tl.constexpr = _SIXTEEN if INTERPRETED else _FOUR
    which = tl.arange(0, ENTRIES)[None, :]
    for part in range(tl.cdiv(tl.max(count, axis=0), ENTRIES)):
        some = part * ENTRIES + which < count[:, None]
        place = first[:, None] + (part * ENTRIES + which)
        entries = tl.load(book + place, mask=some, other=0)  # [R, ENTRIES]
        error = tl.zeros(entries.shape, tl.float32)
        for k in tl.static_range(8):
            low, high = entries & (1 << (2 * k)), entries & (2 << (2 * k))
            term = tl.where(low != 0, terms[3 * k + 1][:, None], terms[3 * k][:, None])
            error = error + tl.where(high != 0, terms[3 * k + 2][:, None], term)
        found, least = _better_tl(found, least, entries, error, some, which, ENTRIES)
    return found


@triton.jit
def near_four_tl(point, scale, x, weights, book):
    """`near_eight_tl` of rows of four, whose levels 0 to 7 stand for 1, 3, ..., 15."""
    own, first, count = _list_tl(point, book)
    least = tl.full(point.shape, _INFINITE, tl.float32)
    found = own
    ENTRIES: tl.constexpr = _SIXTEEN if INTERPRETED else _FOUR
    which = tl.arange(0, ENTRIES)[None, :]
    for part in range(tl.cdiv(tl.max(count, axis=0), ENTRIES)):
        some = part * ENTRIES + which < count[:, None]
        place = first[:, None] + (part * ENTRIES + which)
        entries = tl.load(book + place, mask=some, other=0)  # [R, ENTRIES]
        error = tl.zeros(entries.shape, tl.float32)
        for k in tl.static_range(4):
            number = (((entries >> (3 * k)) & 7) * 2 + 1).to(tl.float32)
            off = scale[:, None] * number - x[k][:, None]
            error = error + weights[k][:, None] * off * off
        found, least = _better_tl(found, least, entries, error, some, which, ENTRIES)
    return found


@triton.jit
def _list_tl(point, book):
    """Of each point its entry, the place of the first of its list, and how many are there."""
    own = tl.load(book + point)
    place = tl.where(own < 0, -1 - own, 0)
    count = place & _COUNTS
    return own, (place >> _COUNT_BITS) * _FOUR, count * _FOUR


@triton.jit
def _better_tl(found, least, entries, error, some, which, ENTRIES: tl.constexpr):
    """`found` and `least`, or the first entry with a lesser error; none is above float32's end."""
    error = tl.where(some, tl.where(error < _MOST, error, _MOST), _INFINITE)
    now = tl.min(error, axis=1)
    at = tl.min(tl.where(error == now[:, None], which, ENTRIES), axis=1)
    entry = tl.sum(tl.where(which == at[:, None], entries, 0), axis=1)
    better = now < least
    return tl.where(better, entry, found), tl.where(better, now, least)
