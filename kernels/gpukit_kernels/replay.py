"""Torch functions compiled to C++ by inductor, and run without it.

Inductor leaves a module of Python, which allocates results and calls C++ functions, and shared
libraries with these functions. Here the module runs with small stand-ins for what it imports (that
would take two seconds), and the functions are called through ctypes, which lets other Python
threads run meanwhile. Each is compiled for one thread: callers give every thread work of its own.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from math import inf, nan
from typing import Any

import torch
from torch import Tensor

_tracing = threading.local()


def is_tracing() -> bool:
    """Whether this thread's tensors are those of a function that is about to be compiled: they have
    no values yet."""
    return getattr(_tracing, "now", False)


class Replay:
    """A compiled function of tensors: `replay(tensors)` gives its results as a tuple.

    Raises whatever goes wrong where the module asks for more than the stand-ins offer.
    """

    def __init__(self, source: str, libraries: Sequence[str]) -> None:
        self.source = source
        self.libraries = tuple(libraries)
        body = [line for line in source.splitlines() if not line.startswith(("import ", "from "))]
        names: dict[str, Any] = {
            "torch": torch,
            "inf": inf,
            "nan": nan,
            "device": torch.device,
            "AsyncCompile": lambda: _Libraries(libraries),
            "extern_kernels": None,
        }
        exec(compile("\n".join(body), "<inductor>", "exec"), names)
        self._call: Callable[[list[Tensor]], Sequence[Tensor]] = names["call"]

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return self._call(list(tensors))


class _Libraries:
    """Stands in for inductor's AsyncCompile: gives the functions in the order of the module."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = iter(paths)

    def cpp_pybinding(self, types: Sequence[str], _source: str) -> Callable[..., None]:
        if not all(kind.endswith("*") for kind in types):
            raise NotImplementedError(f"arguments {types}")
        function = ctypes.CDLL(next(self._paths)).kernel
        function.argtypes = [ctypes.c_void_p] * len(types)
        function.restype = None

        def call(*tensors: Tensor) -> None:
            function(*[tensor.data_ptr() for tensor in tensors])

        return call

    def wait(self, _names: dict[str, Any]) -> None:
        """Everything is compiled."""


def record(
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
    compiled = torch._inductor.compile(graph, list(tensors), options={**options, "cpp.threads": 1})
    wanted = compiled(*tensors)
    (module,) = [
        module
        for module in PyCodeCache.modules
        if id(module) not in before and hasattr(module, "call")
    ]
    with open(str(module.__file__)) as file:
        source = file.read()
    replay = Replay(source, _library_paths(module, source))
    # What inductor does around its module, such as giving a result that is a view, is not replayed.
    if list(map(_form, replay(tensors))) != list(map(_form, wanted)):
        raise NotImplementedError("a result that is no tensor of its own")
    return replay


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
