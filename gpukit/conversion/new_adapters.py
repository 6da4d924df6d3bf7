"""Adapters of a new model: checked against its base, then brought into the store as layers.

A GGUF adapter is taken as it is; one of PEFT or mlx-lm becomes one.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gpukit.adapters.adapter import Adapter
from gpukit.adapters.copies import without_copies
from gpukit.adapters.file import AdapterFile, plan_file
from gpukit.adapters.opening import open_adapter
from gpukit.adapters.target import Target
from gpukit.adapters.writing import MERGE, check_tied
from gpukit.conversion.copying import copy_file
from gpukit.errors import AdapterError, ArgumentError
from gpukit.events import Report, Status, Warned
from gpukit.formats.gguf_reader import is_gguf
from gpukit.store.changes import Change
from gpukit.store.manifest import LAYER_PREFIX, Layer

ADAPTER = LAYER_PREFIX + "adapter"


class NewLayer(Protocol):
    """A file beside the weights, such as an adapter, that has been checked."""

    def add(self, changes: Change) -> Layer:
        """Bring it into the store; its layer."""
        ...

    def foresee(self) -> Layer:
        """The layer that `add` would bring, its digest empty; nothing is written."""
        ...


@contextmanager
def opened_adapters(
    paths: Sequence[Path], target: Target, report: Report
) -> Iterator[tuple[NewLayer, ...]]:
    """The adapters at `paths`, open as long as the block runs.

    `AdapterError` for one that was made for another base, that no GGUF adapter can hold, or whose
    numbers are not finite; `ArgumentError` for one that is named twice; the errors of the readers.
    Warnings go to `report`.
    """
    with ExitStack() as stack:
        opened: dict[Path, Path] = {}
        found = []
        for path in paths:
            opened_one = stack.enter_context(open_adapter(path, target.base))
            adapter = without_copies(opened_one, target.base, target.checkpoint)
            file = adapter.file.path.resolve()
            if file in opened:
                raise ArgumentError(
                    f"ADAPTER {path}: {opened[file]} is the same adapter; remove one line"
                )
            opened[file] = path
            for line in adapter.warnings:
                report(Warned(line))
            for values in adapter.file.values.values():
                values.read()  # numbers that are not finite are told before anything is written
            found.append(_new(adapter, target, report))
        yield tuple(found)


def _new(adapter: Adapter, target: Target, report: Report) -> NewLayer:
    if is_gguf(adapter.file.path):
        try:
            check_tied(adapter, target.tensors, target.shapes)
        except AdapterError as error:  # gpukit run can do what llama.cpp and Ollama cannot
            report(Warned(str(error)))
        return CopiedFile(adapter.file.path, ADAPTER, report)
    try:
        return _Converted(plan_file(adapter, target), report)
    except AdapterError as error:
        hint = "; --merge does it here" if str(error).endswith(MERGE) else ""
        raise AdapterError(f"{error}{hint}") from None


@dataclass(frozen=True)
class CopiedFile:
    """A GGUF that is taken as it is."""

    path: Path
    media_type: str
    report: Report

    def add(self, changes: Change) -> Layer:
        return copy_file(self.path, changes, self.media_type, self.report)

    def foresee(self) -> Layer:
        return Layer(self.media_type, "", self.path.stat().st_size, origin=self.path.name)


@dataclass(frozen=True)
class _Converted:
    """One of PEFT or mlx-lm."""

    file: AdapterFile
    report: Report

    def add(self, changes: Change) -> Layer:
        self.report(Status("converting adapter"))
        changes.need_room(self.file.size)
        path = changes.temporary()
        written = self.file.write(path, digest=True)
        return changes.add_file(path, f"sha256:{written.digest}", written.size, ADAPTER)

    def foresee(self) -> Layer:
        return Layer(ADAPTER, "", self.file.size)
