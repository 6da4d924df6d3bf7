"""Stages: the torch steps of a quantiser, written once and run eagerly or compiled.

An encoder is plain Python that calls stages on a tile of blocks. Eagerly, each stage is its torch
function. Inside `compiled_stages()` it is the same function under `torch.compile` (C++ through
inductor). The bytes are the same: stages are elementwise over the lanes of a tile and add up along
the block one element after the other, and the compiler is told neither to contract nor to reorder.

Stages stay small because inductor's time grows with the number of operations: a scale search is one
compiled step called some twenty times on a tile that fits the second-level cache, not one unrolled
function.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

# More than all types, float dtypes and tile sizes of one process; dynamo's own limit is 8.
KINDS_OF_TILES = 256

_mode = threading.local()
# One compilation at a time, and no thread waits in torch for another thread's.
_compiling = threading.Lock()

# Exactness: no contraction into FMA, no reassociation, no reciprocals for divisions.
# (The config's defaults today; stated because the bytes depend on them.)
EXACT: dict[str, Any] = {
    "cpp.enable_floating_point_contract_flag": "off",
    "cpp.enable_unsafe_math_opt_flag": False,
    # A round trip through fp16 is arithmetic here, not a cast to be optimised away.
    "emulate_precision_casts": True,
}
# For stages that add up: compute the terms in the loop that adds them, even where several sums
# share one, instead of storing them. Elsewhere it would only make inductor slow.
FUSED_SUMS: dict[str, Any] = {"realize_reads_threshold": 8}


class Stage(Generic[P, R]):
    """A torch function and, once it is first wanted, its compiled form."""

    def __init__(self, function: Callable[P, R], options: dict[str, Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self._options = {**EXACT, **options}
        self._compiled: Callable[P, R] | None = None
        self._known: set[tuple[object, ...]] = set()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if not getattr(_mode, "compiled", False):
            return self.function(*args, **kwargs)
        # What the code is specialised for: one shape and type of tile, and the number of levels.
        key = tuple(
            (arg.shape, arg.dtype) if isinstance(arg, torch.Tensor) else arg
            for arg in args
            if isinstance(arg, torch.Tensor | int)
        )
        if self._compiled is not None and key in self._known:
            return self._compiled(*args, **kwargs)
        with _compiling, warnings.catch_warnings():
            # What torch deprecates in itself is no news to callers, nor an error under -W error.
            warnings.simplefilter("ignore")
            if self._compiled is None:
                self._compiled = torch.compile(
                    self.function, dynamic=False, fullgraph=True, options=self._options
                )
            result = self._compiled(*args, **kwargs)
            self._known.add(key)
            return result


def stage(function: Callable[P, R]) -> Stage[P, R]:
    """Mark a torch function as one stage of an encoder."""
    return Stage(function, {})


def summing_stage(function: Callable[P, R]) -> Stage[P, R]:
    """Mark a torch function whose time goes into sums along the elements."""
    return Stage(function, FUSED_SUMS)


@contextmanager
def compiled_stages() -> Iterator[None]:
    """Within the block, this thread's stages run compiled."""
    before = getattr(_mode, "compiled", False)
    _mode.compiled = True
    try:
        # A stage is compiled once for each kind of tile: types, float dtypes, sizes.
        with torch._dynamo.config.patch(recompile_limit=KINDS_OF_TILES):
            yield
    finally:
        _mode.compiled = before
