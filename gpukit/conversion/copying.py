"""Files that come into the store as they are."""

from pathlib import Path

from gpukit.errors import FormatError
from gpukit.events import Report, Status, Step
from gpukit.store import blobs
from gpukit.store.changes import Change
from gpukit.store.manifest import Layer


def copy_file(
    path: Path, changes: Change, media_type: str, report: Report, *, link: bool = False
) -> Layer:
    """The layer of `media_type` that the GGUF `path` is, byte for byte; `FormatError` where it
    changes meanwhile. With `link` it need be no copy, but another name of the same file."""
    total, done = path.stat().st_size, 0
    report(Status("parsing GGUF"))

    def advance(n: int) -> None:
        nonlocal done
        done += n
        report(Step(f"copying {path.name}", done, total))

    target = changes.temporary()
    with blobs.disk_errors(target.parent):
        bring = blobs.link_in if link else blobs.copy_in
        digest, size = bring(path, target, advance)
    if size != total:
        raise FormatError(f"{path}: {total} bytes became {size} while it was copied")
    return changes.add_file(target, digest, size, media_type, origin=path.name)
