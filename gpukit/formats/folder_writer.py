"""A model folder being written that a later run goes on with, where this one is killed."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from gpukit.formats import atomic
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.ledger import ledger_of, partial_of, read_ledger
from gpukit.formats.new_folder import write_small
from gpukit.formats.placed_writer import PlacedWriter
from gpukit.formats.placed_writers import PlacedWriters
from gpukit.formats.safetensors_shards import INDEX, Shard, index_text
from gpukit.formats.safetensors_writer import plan_entries


class FolderWriter(PlacedWriters):
    """Model folder `out` being written: the weights of `shards`, and their index where they are
    several, `texts` and copies of `files` by their names; use it as a `PlacedWriter`, tensors
    numbered through.

    Until it is whole it lies beside its place, and stays there after an error. What is not weights
    is written anew by every run. Its files are to be told to `keep` to `places`, or to where they
    are if the folder has its name already.
    """

    def __init__(
        self,
        out: Path,
        shards: Sequence[Shard],
        texts: Mapping[str, str],
        files: Mapping[str, Path],
    ) -> None:
        super().__init__(
            PlacedWriter(out / shard.name, shard.tensors, plan_entries(shard.tensors))
            for shard in shards
        )
        self._out, self._beside = out, partial_of(out, 0)
        self._shards, self._files = tuple(shards), files
        index = {INDEX: index_text(shards)} if len(shards) > 1 else {}
        self._texts = {**texts, **index}
        self.places = [self._beside / shard.name for shard in shards]

    @property
    def _has_its_name(self) -> bool:
        return any(writer.folder != self._beside for writer in self.writers)

    def __enter__(self) -> Self:
        with atomic.disk_errors(self._out):
            atomic.remove_abandoned(self._beside.parent)
            if not self._has_its_name:
                self._write_small()
        super().__enter__()
        try:
            with atomic.disk_errors(self._out):
                for folder in {writer.folder for writer in self.writers}:
                    atomic.sync_folder(folder)
        except BaseException:
            self.discard()
            raise
        return self

    def _write_small(self) -> None:
        """All but the weights; what a killed run has left of that is gone."""
        self._beside.mkdir(exist_ok=True)
        for path in self._beside.iterdir():
            if path not in self.places:
                atomic.remove(path)
        write_small(self._beside, self._texts, self._files)

    def complete(self) -> None:
        super().complete()
        check_written(self._out if self._has_its_name else self._beside, self._shards)

    def publish(self) -> None:
        """Give the folder, which is complete, its name."""
        if not self._has_its_name:
            with atomic.disk_errors(self._out):
                folders = [path for path in self._beside.rglob("*") if path.is_dir()]
                for folder in (*folders, self._beside):
                    atomic.sync_folder(folder)
                atomic.put_in_place(self._beside, atomic.target_of(self._out))
        self.discard()  # they are kept, and only closed


def has_its_name(out: Path) -> bool:
    """Whether folder `out` is one that a killed run had given its name, and not come to its end."""
    with atomic.disk_errors(out), suppress(FileNotFoundError, NotADirectoryError):
        known, _ = read_ledger(ledger_of(out))
        if known is not None and known.whole is not None:
            return {*known.whole} <= {path.stat().st_ino for path in out.iterdir()}
    return False


def check_written(folder: Path, shards: Sequence[Shard]) -> None:
    """Read the folder again: every tensor is there, in its type and shape."""
    wanted = {t.name: (t.dtype, t.shape) for shard in shards for t in shard.tensors}
    with Checkpoint(folder) as written:
        found = {t.name: (t.dtype, t.shape) for t in written}
    if found != wanted:
        raise AssertionError(f"{folder}: {len(found)} of {len(wanted)} tensors")
