"""The compiled CPU path: when it pays, where its code is kept, and what to do when it cannot work.

Figures (2-core AMD EPYC with AVX-512, torch 2.13, weights a second and core): Q4_K 61 M compiled,
12 M eager; Q6_K 53 M; Q8_0 225 M; Q4_0 246 M. A Q4_K weight goes through 22 candidates of about 20
float operations each, so 61 M weights are some 27 G operations a second and core, near the two
16-lane operations a cycle that the core can issue. Compiling Q4_K for the first time takes about
25 s, later processes find the code in the cache and start in a few seconds.
"""

import logging
import os
import shutil
import threading
from pathlib import Path

from torch import Tensor

from gpukit_kernels import tiles
from gpukit_kernels.table import QuantType

# Weights from which on compiling repays itself: about 30 s for a type with a search, at the rates
# above, when nothing is cached yet. Casts are as fast in eager torch.
REPAYS_SEARCH = 300_000_000
REPAYS_PLAIN = 1_000_000_000
# With the code in the cache it only has to be loaded, some seconds.
REPAYS_CACHED = 60_000_000

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_failure: str | None = None


def cache_folder() -> Path:
    """Where compiled code is kept between processes: below $XDG_CACHE_HOME, else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gpukit" / "inductor"


def compiler() -> str | None:
    """The C++ compiler that inductor will find, as a path."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    return None


def repays(row: QuantType, weights: int) -> bool:
    """Whether compiling `row` is worth it for `weights` weights in total."""
    if row.block == 1 or _failure is not None or compiler() is None:
        return False
    if _marker(row).exists():
        return weights >= REPAYS_CACHED
    return weights >= (REPAYS_SEARCH if row.block == 256 else REPAYS_PLAIN)


def encode(values: Tensor, row: QuantType) -> Tensor:
    """`tiles.encode_compiled`; eager torch for good once compiling has failed."""
    global _failure
    if _failure is not None:
        return tiles.encode_eager(values, row)
    _use_cache_folder()
    try:
        out = tiles.encode_compiled(values, row)
    except Exception as error:
        with _lock:
            _failure = f"{type(error).__name__}: {error}".splitlines()[0]
        _log.warning("compiling %s failed, going on in eager torch: %s", row.name, _failure)
        return tiles.encode_eager(values, row)
    _mark(row)
    return out


def status() -> str:
    """One line for people: whether CPU kernels can be compiled, and with what."""
    if _failure is not None:
        return f"eager torch: compiling failed ({_failure})"
    path = compiler()
    if path is None:
        return "eager torch: no C++ compiler"
    return f"compiled with {path} where the work repays it, code kept in {cache_folder()}"


def _use_cache_folder() -> None:
    # Inductor reads the variable each time it looks for its folder; a user's own choice stands.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder()))


def _marker(row: QuantType) -> Path:
    import torch

    threads = torch.get_num_threads()
    return cache_folder() / f"{row.name}-torch{torch.__version__}-{threads}.compiled"


def _mark(row: QuantType) -> None:
    marker = _marker(row)
    if not marker.exists():
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
