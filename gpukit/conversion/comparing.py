"""A writer that writes nothing: it compares what would be written with what a file holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpukit.formats.gguf_fields import type_sizes
from gpukit.formats.gguf_split import GGUFModel
from gpukit.planning.plan import PlannedOutput

# Bytes of the file that are looked at at a time.
CHUNK = 4 << 20


@dataclass
class Tally:
    """What comparing one tensor has found so far: blocks looked at, how many of them differ, and
    where in its data the first byte lies that does."""

    blocks: int = 0
    different: int = 0
    first: int | None = None


class ComparingWriter:
    """Takes the bytes of `outputs` in place of a file and compares them with those of `model`,
    whose tensors have their names, types and shapes; `tallies` has one for each.

    Memory is one chunk. Called by one thread at a time, as the pipeline does.
    """

    def __init__(self, model: GGUFModel, outputs: Sequence[PlannedOutput]) -> None:
        self._model = model
        self._infos = [model.tensors[output.spec.name] for output in outputs]
        self._buffer = np.empty(CHUNK, dtype=np.uint8)
        self.tallies = [Tally() for _ in outputs]

    def write(self, index: int, data: memoryview, start: int) -> None:
        """Compare whole blocks of output `index`, which begin at position `start` of its data; the
        errors of the file's reader."""
        info, tally = self._infos[index], self.tallies[index]
        nbytes = type_sizes()[info.type].nbytes
        wanted = np.frombuffer(memoryview(data).cast("B"), dtype=np.uint8)
        step = CHUNK // nbytes * nbytes
        for at in range(0, len(wanted), step):
            part = wanted[at : at + step]
            found = self._buffer[: len(part)]
            self._model.read_into(info, found.data, start + at)
            tally.blocks += len(part) // nbytes
            if np.array_equal(found, part):
                continue
            unlike = found != part
            tally.different += int(unlike.reshape(-1, nbytes).any(axis=1).sum())
            first = start + at + int(unlike.argmax())
            tally.first = first if tally.first is None else min(first, tally.first)
