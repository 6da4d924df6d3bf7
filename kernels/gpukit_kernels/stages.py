"""Stages: the torch steps of a quantiser, written once and run eagerly or compiled.

An encoder is plain Python that calls stages on a tile of blocks. Eagerly, each stage is its torch
function. While a program is recorded (see `recording`) each is compiled to C++ and its calls are
taken down. The bytes are the same: stages are elementwise over the lanes of a tile and add up along
the block one element after the other, and the compiler is told neither to contract nor to reorder.

Between stages an encoder may take views and put contiguous tensors one after the other
(`torch.cat`), nothing else; for loops there is `settle`. Stages stay small because inductor's time
grows with the number of operations: a scale search is one compiled step called some twenty times,
not one unrolled function.
"""

import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from gpukit_kernels.replay import Replay, Target, compiled

P = ParamSpec("P")
R = TypeVar("R")

_mode = threading.local()

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


class Recorder(Target, Protocol):
    """Takes down what an encoder does on a tile."""

    def settle(self, step: Callable[[Any], Any], state: Any, watched: int, most: int) -> Any: ...

    def given(self, tensor: Tensor) -> Tensor:
        """`tensor` where a compiled function can read it."""
        ...


class Stage(Generic[P, R]):
    """A torch function, and its compiled forms: one for each kind of tile."""

    def __init__(self, function: Callable[P, R], options: dict[str, Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self._options = {**EXACT, **options}
        self._compiled: dict[Hashable, tuple[Replay, Any]] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        recorder = _recorder()
        if recorder is None:
            return self.function(*args, **kwargs)
        tensors = [recorder.given(tensor) for tensor in _tensors(args)]
        key = _kind(args)
        if key not in self._compiled:
            with _recording(None), _disable_current_modes(), warnings.catch_warnings():
                # What torch deprecates in itself is no news to callers, nor an error for them.
                warnings.simplefilter("ignore")
                self._compiled[key] = self._compile(args, tensors)
        replay, result = self._compiled[key]
        return cast(R, _replaced(result, iter(replay.to(recorder, tensors))))

    def _compile(self, args: Any, tensors: list[Tensor]) -> tuple[Replay, Any]:
        results: list[Any] = []
        function: Callable[..., Any] = self.function

        def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
            results.append(function(*_replaced(args, iter(tensors))))
            return tuple(_tensors(results[-1]))

        return compiled(flat, tensors, self._options), results[0]


S = TypeVar("S", bound=tuple[Any, ...])


def settle(step: Callable[[S], S], state: S, watched: int, most: int) -> S:
    """`state`, a tuple of tensors, after up to `most` turns of `step`; no more once a turn leaves
    the last `watched` tensors as they were, which must mean that it leaves all."""
    recorder = _recorder()
    if recorder is not None:
        return cast(S, recorder.settle(step, state, watched, most))
    for _ in range(most):
        before, state = state, step(state)
        if all(map(torch.equal, before[-watched:], state[-watched:])):
            break
    return state


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
        items = [_replaced(item, tensors) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


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


def _recorder() -> Recorder | None:
    return getattr(_mode, "recorder", None)


def recorded(recorder: Recorder, call: Callable[[], R]) -> R:
    """What `call` gives while this thread's stages go to `recorder`."""
    with _recording(recorder):
        return call()


@contextmanager
def _recording(recorder: Recorder | None) -> Iterator[None]:
    before = _recorder()
    _mode.recorder = recorder
    try:
        yield
    finally:
        _mode.recorder = before
