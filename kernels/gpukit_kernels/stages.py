"""Stages: the torch steps of a quantiser, written once and run eagerly or compiled.

An encoder is plain Python that calls stages on a tile of blocks. Eagerly, each stage is its torch
function. While a program is recorded (see `cpu.recording`) each is written as C and its calls are
taken down. The bytes are the same: stages are elementwise over the lanes of a tile and add up along
the block one element after the other, and the compiler is told neither to contract nor to reorder.

Between stages an encoder may take views and put contiguous tensors one after the other
(`torch.cat`), nothing else; for loops there is `settle`. A scale search is one compiled step called
some twenty times, not one unrolled function.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")

_mode = threading.local()


class Recorder(Protocol):
    """Takes down what an encoder does on a tile."""

    def stage(self, function: Callable[..., Any], args: Sequence[Any]) -> Any: ...

    def settle(self, step: Callable[[Any], Any], state: Any, watched: int, most: int) -> Any: ...


class Stage(Generic[P, R]):
    """A torch function that can be taken down."""

    def __init__(self, function: Callable[P, R]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        recorder = _recorder()
        if recorder is None:
            return self.function(*args, **kwargs)
        with _recording(None):
            return cast(R, recorder.stage(self.function, args))


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


def stage(function: Callable[P, R]) -> Stage[P, R]:
    """Mark a torch function as one stage of an encoder."""
    return Stage(function)


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
