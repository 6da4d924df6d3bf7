"""`triton` and `tl`: Triton and its language, where its kernels can run; else what stands for them.

Importing Triton takes some 0.3 s and 75 MiB, which nobody without a GPU has any use for. It is
imported where there is a GPU, where TRITON_INTERPRET=1 has the interpreter run kernels on the CPU,
and where it has been imported already, by what compiles kernels without a device. Elsewhere
`triton.jit` gives an `Absent`, so that a type's file has torch functions and kernels side by side.
"""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from gpukit_kernels.errors import QuantError

__all__ = ["PRESENT", "Absent", "check", "tl", "triton"]

PRESENT = (
    os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
    or "triton" in sys.modules
    or torch.cuda.is_available()
)


def check() -> None:
    """`QuantError` where Triton's kernels cannot run."""
    if not PRESENT:
        raise QuantError(
            "the triton backend needs a GPU; TRITON_INTERPRET=1 runs its kernels on the CPU, slowly"
        )


class Absent:
    """A kernel where nothing can run it."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        check()
        raise AssertionError(grid)


class _Triton:
    """What files ask of Triton at their top."""

    JITFunction = Absent

    @staticmethod
    def jit(function: Callable[..., Any]) -> Absent:  # noqa: ARG004
        return Absent()

    @staticmethod
    def cdiv(count: int, size: int) -> int:
        return -(-count // size)


class _Language:
    """What they ask of its language there."""

    @staticmethod
    def constexpr(value: Any) -> Any:
        return value


if TYPE_CHECKING or PRESENT:
    import triton
    import triton.language as tl
else:
    triton, tl = _Triton, _Language
