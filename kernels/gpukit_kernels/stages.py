"""Stages: the torch steps of a quantiser, written once and run eagerly or compiled.

An encoder is plain Python that calls stages on a tile of blocks. Eagerly, each stage is its torch
function. Inside `compiled_stages()` it is the same function compiled to C++ (see `replay`), on the
caller's thread alone. The bytes are the same: stages are elementwise over the lanes of a tile and
add up along the block one element after the other, and the compiler is told neither to contract nor
to reorder.

Stages stay small because inductor's time grows with the number of operations: a scale search is one
compiled step called some twenty times on a tile that fits the second-level cache, not one unrolled
function.
"""

import importlib
import json
import logging
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar, cast

from torch import Tensor

from gpukit_kernels import cache
from gpukit_kernels.replay import Replay, record

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger(__name__)
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
FUSED_SUMS: dict[str, Any] = {"realize_reads_threshold": 8, "realize_opcount_threshold": 200}


class Stage(Generic[P, R]):
    """A torch function and its compiled forms: one for each kind of tile, kept in files."""

    def __init__(self, function: Callable[P, R], options: dict[str, Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self._options = {**EXACT, **options}
        self._compiled: dict[Hashable, _Form] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if not getattr(_mode, "compiled", False):
            return self.function(*args, **kwargs)
        key = _kind(args)
        form = self._compiled.get(key)
        if form is None:
            with _compiling, warnings.catch_warnings():
                # What torch deprecates in itself is no news to callers, nor an error for them.
                warnings.simplefilter("ignore")
                form = self._compiled.get(key) or self._load(key) or self._compile(key, args)
                self._compiled[key] = form
        results = form.replay(list(_tensors(args)))
        return cast(R, _arranged(form.result, iter(results)))

    def _path(self, key: Hashable) -> Path:
        name = f"{self.function.__module__}.{self.function.__qualname__}".replace("<", "")
        return cache.place(name.replace(">", ""), (key, sorted(self._options.items())))

    def _load(self, key: Hashable) -> "_Form | None":
        """What an earlier process compiled."""
        try:
            kept = json.loads(self._path(key).read_bytes())
            return _Form(Replay(kept["source"], kept["libraries"]), kept["result"])
        except FileNotFoundError:
            return None
        except Exception as error:  # damaged, or its libraries are gone
            _log.info("%s: %s", self._path(key), error)
            return None

    def _compile(self, key: Hashable, args: Any) -> "_Form":
        results: list[Any] = []
        function: Callable[..., Any] = self.function

        def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
            with _eager():
                results.append(function(*_replaced(args, iter(tensors))))
            return tuple(_tensors(results[-1]))

        replay = record(flat, list(_tensors(args)), self._options)
        form = _Form(replay, _arrangement(results[0]))
        kept = {"source": replay.source, "libraries": replay.libraries, "result": form.result}
        cache.write(self._path(key), json.dumps(kept).encode())
        return form


@dataclass(frozen=True)
class _Form:
    """A compiled stage and how its results are arranged (see `_arrangement`)."""

    replay: Replay
    result: Any


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in `value`, a tensor or a tuple of such, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _replaced(value: Any, tensors: Iterator[Tensor]) -> Any:
    """`value` with its tensors taken from `tensors`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, tuple):
        return _tuple(type(value), [_replaced(item, tensors) for item in value])
    return value


def _tuple(kind: type, items: list[Any]) -> Any:
    return kind(*items) if hasattr(kind, "_fields") else tuple(items)


def _arrangement(value: Any) -> Any:
    """How `value` is made of tensors, for JSON: null for one, for a tuple its type and items."""
    if isinstance(value, Tensor):
        return None
    kind = type(value)
    return [kind.__module__, kind.__qualname__, [_arrangement(item) for item in value]]


def _arranged(arrangement: Any, tensors: Iterator[Tensor]) -> Any:
    if arrangement is None:
        return next(tensors)
    module, name, items = arrangement
    kind = getattr(importlib.import_module(module), name)
    return _tuple(kind, [_arranged(item, tensors) for item in items])


def _kind(args: Any) -> tuple[Hashable, ...]:
    """What code is specialised for: shapes, strides, dtypes, and numbers such as levels."""
    return tuple(
        (arg.shape, arg.stride(), arg.dtype)
        if isinstance(arg, Tensor)
        else _kind(arg)
        if isinstance(arg, tuple)
        else arg
        for arg in args
    )


def stage(function: Callable[P, R]) -> Stage[P, R]:
    """Mark a torch function as one stage of an encoder."""
    return Stage(function, {})


def summing_stage(function: Callable[P, R]) -> Stage[P, R]:
    """Mark a torch function whose time goes into sums along the elements."""
    return Stage(function, FUSED_SUMS)


@contextmanager
def compiled_stages() -> Iterator[None]:
    """Within the block, this thread's stages run compiled."""
    with _running(True):
        yield


def _eager() -> AbstractContextManager[None]:
    return _running(False)


@contextmanager
def _running(compiled: bool) -> Iterator[None]:
    before = getattr(_mode, "compiled", False)
    _mode.compiled = compiled
    try:
        yield
    finally:
        _mode.compiled = before
