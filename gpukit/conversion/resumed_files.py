"""All outputs of a pass that goes on with what killed runs have left of them."""

from collections.abc import Sequence
from typing import Self

from gpukit.conversion.audit import Audit
from gpukit.conversion.resuming import Resuming
from gpukit.conversion.slabs import Slab
from gpukit.formats.room import check_room


class ResumedFiles:
    """The writer of all outputs of a pass, each gone on with; use it as a `PlacedWriter`. None of
    them gets its name before all are complete."""

    def __init__(self, outputs: Sequence[Resuming]) -> None:
        self._outputs = outputs
        self._open: list[Resuming] = []
        self._at: dict[int, list[tuple[Resuming, int]]] = {}
        for output in outputs:
            for index, number in enumerate(output.numbers):
                self._at.setdefault(number, []).append((output, index))

    @property
    def in_order(self) -> bool:
        return any(output.in_order for output in self._outputs)

    def __enter__(self) -> Self:
        try:
            for output in self._outputs:
                output.open()
                self._open.append(output)
            check_room([file for output in self._outputs for file in output.files])
        except BaseException:
            while self._open:
                self._open.pop().undo()
            raise
        return self

    def left(self, slabs: Sequence[Slab], audit: Audit) -> list[Slab]:
        """The slabs without pieces that are everywhere already; `audit` is told what was noted."""
        cut = {(piece.output, piece.at) for slab in slabs for piece in slab}
        there = {id(output): output.take(cut, audit) for output in self._outputs}
        left = {
            place for place in cut
            if not all(place in there[id(output)] for output, _ in self._at[place[0]])
        }  # fmt: skip
        for output in self._outputs:
            output.tell(left)
        rest = (tuple(p for p in slab if (p.output, p.at) in left) for slab in slabs)
        return [slab for slab in rest if slab]

    def write(self, index: int, data: memoryview, start: int = 0) -> None:
        """Bytes of output `index` of the pass, to every file that has it."""
        for output, local in self._at[index]:
            output.write(local, data, start)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        try:
            if kind is None:
                for output in self._open:
                    output.complete()
                while self._open:
                    self._open[-1].publish()
                    self._open.pop()
        except BaseException as failed:
            self._end(type(failed))
            raise
        if kind is not None:
            self._end(kind)

    def _end(self, kind: type[BaseException]) -> None:
        while self._open:
            self._open.pop().end(kind)
