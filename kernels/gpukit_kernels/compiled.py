"""The compiled CPU path: when it pays, where its code is kept, and what to do when it cannot work.

Figures: 2 cores of an AMD EPYC (Zen 5, AVX-512), torch 2.13, bf16 in, M weights a second:

             Q8_0  Q4_0  Q4_1  Q5_0  Q5_1  MXFP4  Q2_K  Q3_K  Q4_K  Q5_K  Q6_K  IQ4_XS
    compiled  470   390   370   300   290    140   160   180   120   170   200      90
    eager     260   120   200    80    90     40    11    10     7     9    19      14

The floor: a Q4_K weight goes through 22 candidates of some 28 operations (level 7, weight 2, three
sums 6, the level again 7, error 6), 616 in all or 39 instructions on 16 lanes. At three a cycle
and 4 GHz that is 3.2 ns a weight. Measured are 7.3 ns in the candidates (both passes read the
weights from the second-level cache, and no sum may start before the last one ends) and 2.7 ns in
loading, packing and transposing. Q6_K has 19 candidates of one pass. Every thread works on tiles of
its own and waits for nobody.
"""

import logging
import os
import shutil
import threading

import torch
from torch import Tensor

from gpukit_kernels import cache, tiles
from gpukit_kernels.table import QuantType

# Seconds that compiling has to save to be worth it. With nothing in the cache it takes some 5 s, of
# a search 15 s; with the code there almost nothing. Users convert more than once, so it is done
# somewhat before its first use repays it.
SAVED, SAVED_CACHED = 3.0, 0.1
# Nanoseconds a weight that it saves with importance, whatever the type.
WEIGHTED_GAIN = 60

# Blocks that every type encodes both ways before its compiled code is trusted.
CHECKED_BLOCKS = 256

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_failure: str | None = None
_trusted: set[str] = set()


def compiler() -> str | None:
    """The C++ compiler that inductor will find, as a path."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    return None


def repays(row: QuantType, weights: int, importance: bool = False) -> bool:
    """Whether compiling `row` is worth it for `weights` weights in total."""
    weighted = importance and row.weighted is not None
    gain = WEIGHTED_GAIN if weighted else row.compiled_gain
    if not gain or _failure is not None or compiler() is None:
        return False
    name = _name(row, weighted)
    if name in _trusted:  # loaded already: from some tiles on, the last of which is filled up
        return weights >= 4 * tiles.COMPILED_TILE
    return weights * gain * 1e-9 >= (SAVED_CACHED if cache.place(name).exists() else SAVED)


def encode(
    values: Tensor, row: QuantType, out: Tensor, importance: tiles.Importance | None = None
) -> None:
    """`tiles.encode_compiled`; eager torch for good once compiling has failed."""
    if _ready(row, importance is not None and row.weighted is not None):
        tiles.encode_compiled(values, row, out, importance)
    else:
        tiles.encode_eager(values, row, out, importance)


def status() -> str:
    """One line for people: whether CPU kernels can be compiled, and with what."""
    if _failure is not None:
        return f"eager torch: compiling failed ({_failure})"
    path = compiler()
    if path is None:
        return "eager torch: no C++ compiler"
    return f"compiled with {path} where the work repays it, code kept in {cache.folder()}"


def _ready(row: QuantType, weighted: bool) -> bool:
    """Whether the compiled code of `row` works and gives the reference's bytes, tried once."""
    global _failure
    name = _name(row, weighted)
    with _lock:
        if _failure is None and name not in _trusted:
            os.environ[cache.VARIABLE] = str(cache.folder())
            # The marker: this code was compiled and found exact on this machine.
            marker = cache.place(name)
            try:
                _compare(row, weighted)
                cache.folder().mkdir(parents=True, exist_ok=True)
                marker.touch()
            except Exception as error:
                _failure = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
                _log.info("%s: going on in eager torch: %s", name, _failure)
            else:
                _trusted.add(name)
    return _failure is None


def _name(row: QuantType, weighted: bool) -> str:
    return f"{row.name}-importance" if weighted else row.name


def _compare(row: QuantType, weighted: bool) -> None:
    """Compile `row`; raise where its bytes are not those of the reference.

    The order of additions and the rounding of divisions are up to inductor and the C++ compiler,
    which differ between machines and releases.
    """
    random = torch.Generator().manual_seed(0)
    values = torch.randn((CHECKED_BLOCKS, row.block), generator=random)
    values *= torch.exp2(torch.randint(-20, 20, (CHECKED_BLOCKS, 1), generator=random))
    values[::16, ::2] = 0.0
    importance = None
    if weighted:
        importance = tiles.Importance(torch.rand((2, 2, row.block), generator=random), 7)
    expected, got = (torch.empty((CHECKED_BLOCKS, row.nbytes), dtype=torch.uint8) for _ in range(2))
    number = torch.get_num_threads()
    torch.set_num_threads(1)  # so little to do is done sooner by one
    try:
        tiles.encode_eager(values, row, expected, importance)
        tiles.encode_compiled(values, row, got, importance)
    finally:
        torch.set_num_threads(number)
    wrong = int((got != expected).any(dim=1).sum())
    if wrong:
        raise RuntimeError(
            f"compiled {_name(row, weighted)} gets {wrong} of {CHECKED_BLOCKS} blocks wrong with "
            f"torch {torch.__version__} and {compiler()}"
        )
