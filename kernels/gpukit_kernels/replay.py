"""Torch functions compiled to C++ by inductor, and taken apart.

Inductor leaves a module of Python, which allocates results and calls C++ functions, and shared
libraries with these functions. Here the module runs with stand-ins for what it imports: they tell
where results would be allocated and which function is called with what. Each function is compiled
for one thread.
"""

import os
import threading
from collections.abc import Callable, Sequence
from math import inf, nan
from typing import Any, Protocol

import torch
from torch import Tensor

_tracing = threading.local()


def is_tracing() -> bool:
    """Whether this thread's tensors are those of a function that is about to be compiled: they have
    no values yet."""
    return getattr(_tracing, "now", False)


class Target(Protocol):
    """Takes down what a compiled function does."""

    def empty(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory for a result."""
        ...

    def call(self, library: str, tensors: Sequence[Tensor]) -> None:
        """The function `kernel` of `library` is called with the addresses of `tensors`."""
        ...


class Replay:
    """A compiled function of tensors: the module that inductor wrote, and its libraries."""

    def __init__(self, source: str, libraries: Sequence[str]) -> None:
        body = [line for line in source.splitlines() if not line.startswith(("import ", "from "))]
        self._target: Target
        names: dict[str, Any] = {
            "torch": torch,
            "inf": inf,
            "nan": nan,
            "device": torch.device,
            "AsyncCompile": lambda: _Libraries(self, libraries),
            "extern_kernels": None,
        }
        exec(compile("\n".join(body), "<inductor>", "exec"), names)
        names["empty_strided_cpu"] = lambda *form: self._target.empty(*form)
        self._call: Callable[[list[Tensor]], Sequence[Tensor]] = names["call"]

    def to(self, target: Target, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The results of the function for `tensors`, without values: `target` learns how they come
        about. Raises whatever goes wrong where the module asks for more than there is."""
        self._target = target
        return self._call(list(tensors))

    def called(self, library: str, tensors: Sequence[Tensor]) -> None:
        self._target.call(library, tensors)


class _Libraries:
    """Stands in for inductor's AsyncCompile: gives the functions in the order of the module."""

    def __init__(self, replay: Replay, paths: Sequence[str]) -> None:
        self._replay = replay
        self._paths = iter(paths)

    def cpp_pybinding(self, types: Sequence[str], _source: str) -> Callable[..., None]:
        if not all(kind.endswith("*") for kind in types):
            raise NotImplementedError(f"arguments {types}")
        path = next(self._paths)
        return lambda *tensors: self._replay.called(path, tensors)

    def wait(self, _names: dict[str, Any]) -> None:
        """Everything is compiled."""


def compiled(
    function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor], options: dict[str, Any]
) -> Replay:
    """`function` of tensors of these shapes, strides and dtypes, compiled for one thread."""
    import torch._inductor
    from torch._inductor.codecache import PyCodeCache
    from torch.fx.experimental.proxy_tensor import make_fx

    _tracing.now = True
    try:
        graph = make_fx(function)(*tensors)
    finally:
        _tracing.now = False
    before = {id(module) for module in PyCodeCache.modules}
    result = torch._inductor.compile(graph, list(tensors), options={**options, "cpp.threads": 1})
    wanted = result(*tensors)
    (module,) = [
        module
        for module in PyCodeCache.modules
        if id(module) not in before and hasattr(module, "call")
    ]
    with open(str(module.__file__)) as file:
        source = file.read()
    replay = Replay(source, _library_paths(module, source))
    # What inductor does around its module, such as giving a result that is a view, is not replayed.
    if list(map(_form, replay.to(_Nowhere(), tensors))) != list(map(_form, wanted)):
        raise NotImplementedError("a result that is no tensor of its own")
    return replay


class _Nowhere:
    def empty(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty_strided(shape, stride, dtype=dtype)

    def call(self, library: str, tensors: Sequence[Tensor]) -> None:
        """Nothing is done."""


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.storage_offset()


def _library_paths(module: Any, source: str) -> list[str]:
    """The libraries of the module's functions, in the order in which it makes them."""
    paths = []
    for line in source.splitlines():
        name, found, _ = line.partition(" = async_compile.cpp_pybinding(")
        if found:
            paths.append(os.fspath(getattr(module, name).__self__.__file__))
    return paths
