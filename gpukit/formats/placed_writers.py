"""Several files of known layout written as one."""

from collections.abc import Iterable
from typing import Self

from gpukit.formats.closing import Publishing
from gpukit.formats.placed_writer import PlacedWriter


class PlacedWriters(Publishing):
    """Several files being written as one, their tensors numbered through; use it as a
    `PlacedWriter`. Where it ends with an error none is left."""

    def __init__(self, writers: Iterable[PlacedWriter]) -> None:
        self.writers = tuple(writers)
        self._places = [
            (writer, index) for writer in self.writers for index in range(len(writer.tensors))
        ]

    def place(self, index: int) -> tuple[PlacedWriter, int]:
        """The file of tensor `index` of all, and its number in that."""
        return self._places[index]

    @property
    def held(self) -> int:
        """As a `PlacedWriter`'s, of all files."""
        return sum(writer.held for writer in self.writers)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(writer.size for writer in self.writers)

    @property
    def in_order(self) -> bool:
        """As a `PlacedWriter`'s: whether that is so of any."""
        return any(writer.in_order for writer in self.writers)

    def write(self, index: int, data: bytes | bytearray | memoryview, start: int = 0) -> None:
        """Bytes of tensor `index` of all, from `start` of its data on."""
        writer, local = self._places[index]
        writer.write(local, data, start)

    def complete(self) -> None:
        """As a `PlacedWriter`'s, of all files."""
        for writer in self.writers:
            writer.complete()

    def publish(self) -> None:
        """Give the files, which are complete, their names."""
        # The first one, which readers are given, appears when the others are there.
        for writer in reversed(self.writers):
            writer.publish()

    def __enter__(self) -> Self:
        try:
            for writer in self.writers:
                writer.open()
        except BaseException:
            self.discard()
            raise
        return self

    def discard(self) -> None:
        """Remove what there is of all files."""
        for writer in self.writers:
            writer.discard()
