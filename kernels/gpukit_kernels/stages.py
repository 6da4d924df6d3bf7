"""Stages: the torch steps of a quantiser, written once and run eagerly or compiled.

An encoder is plain Python that calls stages on a tile of blocks. Eagerly, each stage is its torch
function. Inside `compiled_stages()` it is the same function under `torch.compile` (C++ through
inductor). The bytes are the same: stages are elementwise over the lanes of a tile and add up along
the block one element after the other, and the compiler is told neither to contract nor to reorder.

Stages stay small because inductor's time grows with the number of operations: a scale search is one
compiled step called some twenty times on a tile that fits the second-level cache, not one unrolled
function.
"""

import logging
import tempfile
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from gpukit_kernels import cache

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
        self._compiled: dict[Hashable, Callable[P, R]] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if not getattr(_mode, "compiled", False):
            return self.function(*args, **kwargs)
        key = _kind(args)
        compiled = self._compiled.get(key)
        if compiled is None:
            with _compiling, warnings.catch_warnings():
                # What torch deprecates in itself is no news to callers, nor an error for them.
                warnings.simplefilter("ignore")
                compiled = self._compiled.get(key) or self._load(key) or self._compile(key, args)
                self._compiled[key] = compiled
        return compiled(*args, **kwargs)

    def _path(self, key: Hashable) -> Path:
        name = f"{self.function.__module__}.{self.function.__qualname__}".replace("<", "")
        return cache.place(name.replace(">", ""), (key, sorted(self._options.items())))

    def _load(self, key: Hashable) -> Callable[P, R] | None:
        """What an earlier process compiled: tracing it again would take as long as the work."""
        try:
            with open(self._path(key), "rb") as file:
                return _unguarded(torch.compiler.load_compiled_function(file))
        except FileNotFoundError:
            return None
        except Exception as error:  # damaged, or torch no longer reads it
            _log.info("%s: %s", self._path(key), error)
            return None

    def _compile(self, key: Hashable, args: Any) -> Callable[P, R]:
        function: Any = torch.compile(
            self.function, dynamic=False, fullgraph=True, options=self._options
        )
        compiled = function.aot_compile((args, {}))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "stage"
            compiled.save_compiled_function(path)
            cache.write(self._path(key), path.read_bytes())
        return _unguarded(compiled)


def _unguarded(compiled: Any) -> Any:
    """Without torch's checks of every call: `_kind` and the caller's modes cover what they ask."""
    compiled.disable_guard_check()
    return compiled


def _kind(args: Any) -> tuple[Hashable, ...]:
    """What code is specialised for: shapes, strides, dtypes, and numbers such as levels."""
    return tuple(
        (arg.shape, arg.stride(), arg.dtype)
        if isinstance(arg, torch.Tensor)
        else _kind(arg)
        if isinstance(arg, tuple)
        else arg
        for arg in args
    )


def trust_compiler() -> None:
    """Spare inductor its trial of every vector instruction set, a second, which it made before."""
    with suppress(Exception):  # only a matter of time
        from torch._inductor import config, cpu_vec_isa

        with config.patch({"cpp.vec_isa_ok": True}):
            cpu_vec_isa.valid_vec_isa_list()


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
        yield
    finally:
        _mode.compiled = before
