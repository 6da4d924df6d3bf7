"""Finite values and importance that meet the quantisers' corners, the same for every numpy.

They come from `random.Random` by integer arithmetic alone, so that digests of their blocks can be
kept: golden_makers/hard.py makes them from the peer.
"""

import hashlib
import random
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.uint32]

WIDTH, ROWS = 256, 4
WIDTHS = (32, 64, 256, 288, 4096, 11008, 28672)
# The midpoints between IQ4_NL's levels, doubled.
LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
MIDDLES = tuple(a + b for a, b in pairwise(LEVELS))


class Source:
    """Numbers of one kind, the same for the same name."""

    def __init__(self, name: str) -> None:
        self._random = random.Random(name)

    def ints(self, shape: tuple[int, ...], low: int, high: int) -> Ints:
        """uint32 in low..high - 1."""
        count = int(np.prod(shape))
        raw = np.frombuffer(self._random.randbytes(8 * count), "<u8")
        return (raw % np.uint64(high - low) + np.uint64(low)).astype(np.uint32).reshape(shape)

    def bits(self, shape: tuple[int, ...], low: int, high: int) -> Floats:
        """Magnitudes with patterns in low..high - 1, of both signs."""
        return self.ints(shape, low, high).view(np.float32) * self.signs(shape)

    def signs(self, shape: tuple[int, ...]) -> Floats:
        return self.ints(shape, 0, 2).astype(np.float32) * 2 - 1

    def plain(self, shape: tuple[int, ...]) -> Floats:
        """Sums of three uniform numbers, in -3..3."""
        raw = self.ints((3, *shape), 0, 1 << 16).astype(np.float32)
        return (raw - np.float32(32768)).sum(0) / np.float32(32768)

    def powers(self, shape: tuple[int, ...], low: int, high: int) -> Floats:
        """Two to the power of low..high - 1, -126 at least."""
        exponents = self.ints(shape, low + 127, high + 127)
        return (exponents << np.uint32(23)).view(np.float32)


def _ties(levels: int) -> Callable[[Source, tuple[int, int]], Floats]:
    """Halves of a step, the largest value being `levels` steps."""

    def make(source: Source, shape: tuple[int, int]) -> Floats:
        found = source.ints(shape, 0, 4 * levels + 1).astype(np.float32) / 2 - levels
        found[:, ::16] = -levels
        return found * source.powers((shape[0], 1), -20, 10)

    return make


def _outliers(size: float) -> Callable[[Source, tuple[int, int]], Floats]:
    """One value of magnitude `size` in every 32."""

    def make(source: Source, shape: tuple[int, int]) -> Floats:
        found = source.plain(shape)
        groups = found.reshape(shape[0], -1, 32)
        at = source.ints((*groups.shape[:2], 1), 0, 32).astype(np.int64)
        np.put_along_axis(groups, at, np.float32(size) * source.signs(at.shape), axis=2)
        return found

    return make


def _middles(source: Source, shape: tuple[int, int]) -> Floats:
    found = np.array(MIDDLES, np.float32)[source.ints(shape, 0, len(MIDDLES))] / 2
    found[:, ::32] = -127
    return found * source.powers((shape[0], 1), -12, 3)


def _below_powers(source: Source, shape: tuple[int, int]) -> Floats:
    powers = source.powers((shape[0], shape[1] // 32), -100, 120).repeat(32, axis=1)
    return (powers.view(np.uint32) - source.ints(shape, 0, 60)).view(np.float32)


def _constant(group: int) -> Callable[[Source, tuple[int, int]], Floats]:
    def make(source: Source, shape: tuple[int, int]) -> Floats:
        return source.plain((shape[0], shape[1] // group)).repeat(group, axis=1)

    return make


def _cubes(x: Floats) -> Floats:
    # By products: numpy's powers are not the same on every machine.
    return np.abs(x * x * x)


KINDS: dict[str, Callable[[Source, tuple[int, int]], Floats]] = {
    "subnormal": lambda s, shape: s.bits(shape, 0, 1 << 23),
    "least": lambda s, shape: s.bits(shape, 0, 4),
    "near the least sums": lambda s, shape: s.plain(shape) * s.powers(shape, -54, -46),
    "squares underflow": lambda s, shape: s.plain(shape) * np.float32(1e-20),
    "squares overflow": lambda s, shape: s.plain(shape) * np.float32(1e19),
    "huge": lambda s, shape: s.bits(shape, 0x7E000000, 0x7F800000),
    "any finite bits": lambda s, shape: s.bits(shape, 0, 0x7F800000),
    "scales at fp16's end": lambda s, shape: s.plain(shape) * np.float32(4 * 65504),
    "subnormal scales": lambda s, shape: s.plain(shape) * np.float32(2.0**-22),
    **{f"ties of {levels}": _ties(levels) for levels in (2, 4, 8, 16, 32, 127)},
    "middles of IQ4_NL": _middles,
    "below powers of two": _below_powers,
    "outliers of 40": _outliers(40),
    "outliers of 1e8": _outliers(1e8),
    "outliers of 1e30": _outliers(1e30),
    "constant 16": _constant(16),
    "constant 32": _constant(32),
    "constant but for the sign": lambda s, shape: _constant(32)(s, shape) * s.signs(shape),
    "signs of zero": lambda s, shape: np.float32(0) * s.signs(shape),
    "one in 32": lambda s, shape: np.where(
        s.ints(shape, 0, 32) == 0, s.plain(shape), np.float32(-0.0)
    ),
    "negative": lambda s, shape: -np.abs(s.plain(shape)),
    "powers": lambda s, shape: s.powers(shape, -20, 20) * s.signs(shape),
}

IMPORTANCE: dict[str, Callable[[Source, tuple[int]], Floats]] = {
    "cubes": lambda s, shape: _cubes(s.plain(shape)),
    "zero": lambda _s, shape: np.zeros(shape, np.float32),
    "mostly zero": lambda s, shape: np.abs(s.plain(shape)) * (s.ints(shape, 0, 20) == 0),
    "one column": lambda _s, shape: (np.arange(shape[0]) == 5).astype(np.float32),
    "blocks of zero": lambda s, shape: (
        np.abs(s.plain(shape)) * s.ints((shape[0] // 32,), 0, 2).repeat(32)
    ),
    "tiny": lambda s, shape: np.abs(s.plain(shape)) * np.float32(1e-37),
    "subnormal": lambda s, shape: s.ints(shape, 0, 1 << 23).view(np.float32),
    "huge": lambda s, shape: np.abs(s.plain(shape)) * np.float32(1e20),
    "wide": lambda s, shape: s.powers(shape, -60, 60),
}


def values(kind: str, rows: int = ROWS, width: int = WIDTH) -> Floats:
    """float32 `[rows, width]` of `kind`."""
    with np.errstate(all="ignore"):
        found = KINDS[kind](Source(f"{kind} {width}"), (rows, width))
    return np.ascontiguousarray(found, dtype=np.float32)


def everything() -> Floats:
    """float32 `[kinds * ROWS, WIDTH]`: all kinds below one another."""
    return np.concatenate([values(kind) for kind in KINDS])


def scarce() -> Floats:
    """float32 `[96, WIDTH]`: with importance "mostly zero" some groups get scales below zero."""
    kinds = ("ties of 16", "negative", "middles of IQ4_NL")
    return np.concatenate([values(kind, 32) for kind in kinds])


def wide(width: int) -> Floats:
    """float32 `[3, width]`: rows of ordinary values, of all scales, and with outliers."""
    source = Source(f"wide {width}")
    scales = source.powers((width // 32,), -12, 12).repeat(32)
    plain = source.plain((3, width))
    return np.stack([plain[0], plain[1] * scales, _outliers(40)(source, (1, width))[0]])


def importance(kind: str, width: int = WIDTH) -> Floats:
    """float32 `[width]` of `kind`."""
    found = IMPORTANCE[kind](Source(f"{kind} {width}"), (width,))
    return np.ascontiguousarray(found, dtype=np.float32)


def digest(blocks: npt.NDArray[np.uint8]) -> str:
    """Half of the sha256 of blocks."""
    return hashlib.sha256(np.ascontiguousarray(blocks).tobytes()).hexdigest()[:32]
