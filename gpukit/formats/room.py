"""Whether disks have room for several files at once."""

import shutil
from collections.abc import Sequence

from gpukit.errors import DiskError
from gpukit.formats import atomic
from gpukit.formats.placed_writer import PlacedWriter


def check_room(files: Sequence[PlacedWriter]) -> None:
    """`DiskError` where a disk has no room for all `files` that go there."""
    disks: dict[int, list[PlacedWriter]] = {}
    for writer in files:
        with atomic.disk_errors(writer.path):
            atomic.remove_abandoned(writer.folder)
            disks.setdefault(writer.folder.stat().st_dev, []).append(writer)
    for writers in disks.values():
        first, size = writers[0].path, sum(writer.size - writer.held for writer in writers)
        with atomic.disk_errors(first):
            free = shutil.disk_usage(writers[0].folder).free
        if free < size:
            more = f" and {len(writers) - 1} more" if len(writers) > 1 else ""
            raise DiskError(
                f"{first}{more}: {size} bytes are needed, {free} are free; make room or write "
                "to another disk"
            )
