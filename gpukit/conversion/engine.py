"""What computes between reading and writing: the interface, and the choice of who does it.

`torch_engine` computes with torch on any devices, `numpy_engine` with numpy and kept programs on
the CPU: the same bytes.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from gpukit.conversion.slabs import Slab
from gpukit.planning.changes import Change
from gpukit.planning.plan import PlannedOutput
from gpukit.planning.totals import Fidelity
from gpukit.sources.base import Source

# Who computes: "auto" takes numpy where it can do all.
Wish = Literal["auto", "numpy", "torch"]


@dataclass(frozen=True)
class Buffer:
    """Host memory for a slab's stored bytes; `tensor` is the same memory where torch has it."""

    memory: memoryview
    tensor: Any = None


class Lane(Protocol):
    """One stream of work: `depth` slabs are under way in it before the first is waited for."""

    @property
    def depth(self) -> int: ...


L = TypeVar("L", bound=Lane)
W = TypeVar("W")


class Engine(Protocol[L, W]):
    """Turns slabs of `source` into bytes of `outputs`, each lane on a thread of its own.

    `begin` launches the work on a slab in a lane and gives something to call `end` with, which
    gives the bytes of each piece on the host. `CheckpointError` for values that are not finite,
    before or after.
    """

    @property
    def source(self) -> Source: ...

    @property
    def outputs(self) -> Sequence[PlannedOutput]: ...

    @property
    def lanes(self) -> Sequence[L]: ...

    def buffer(self, nbytes: int) -> Buffer: ...

    def begin(self, slab: Slab, buffer: Buffer, lane: L) -> W: ...

    def end(self, work: W) -> list[memoryview]: ...

    def holds(self, slab: Slab) -> bool:
        """Whether what `end` gives may lie in the slab's buffer."""
        ...

    def running(self) -> AbstractContextManager[None]:
        """What holds while the lanes' threads begin and work."""
        ...

    def working(self) -> AbstractContextManager[None]:
        """What holds in a lane's thread."""
        ...

    def fidelity(self) -> tuple[Fidelity, ...]:
        """What each output lost; nothing for one that only moved."""
        ...

    def changes(self) -> tuple[Change, ...]:
        """What adapters did to each output; nothing for one that they do not concern."""
        ...
