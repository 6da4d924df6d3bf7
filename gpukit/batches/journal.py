"""What became of an output, on the disk beside it: a later run knows what is done.

Lines of JSON, only ever added to, in `OUTPUT.gpukit.jsonl`:

    {"event": "begun", "form": 1, "of": {…}, "size": …, "before": [size, mtime_ns, inode] | null}
    {"event": "done", "size": …, "mtime_ns": …, "seconds": …, "bits_per_weight": …}
    {"event": "failed", "error": "…"}
    {"event": "evaluated", "of": {…}, "numbers": {…}}         of an output that is done
    {"event": "not evaluated", "of": {…}, "error": "…"}
    {"event": "pushed", "of": {…}, "told": {…}}               of an output that is done
    {"event": "not pushed", "of": {…}, "error": "…"}

`of` is the output's fingerprint, `size` the bytes that it will have, `before` the file that had its
name. A last line that is not whole
is what a killed run was writing.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpukit.errors import ArgumentError, FormatError
from gpukit.formats.atomic import disk_errors
from gpukit.formats.closing import Closing
from gpukit.formats.positioned import append_line, read_whole

FORM = 1
MOST_BYTES = 64 << 20
EVALUATED, NOT_EVALUATED = EVALUATIONS = ("evaluated", "not evaluated")
PUSHED, NOT_PUSHED = PUSHES = ("pushed", "not pushed")


def journal_of(output: Path) -> Path:
    """The journal of the file `output`."""
    return output.with_name(f"{output.name}.gpukit.jsonl")


@dataclass(frozen=True)
class Record:
    """The last attempt that a journal tells of: what of, the bytes to be written, what was there
    before, how it ended, what its last evaluation gave, and how sending it went."""

    of: Mapping[str, Any]
    size: int
    before: tuple[int, int, int] | None
    end: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    push: Mapping[str, Any] | None = None

    @property
    def is_done(self) -> bool:
        return self.end is not None and self.end["event"] == "done"


def last_record(path: Path) -> Record | None:
    """What the journal at `path` says last; None where there is none or nothing was begun.
    `FormatError` for a file that is no journal or one of another version."""
    try:
        data = read_whole(path, MOST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}; remove it") from None
    found: Record | None = None
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        found = _after(found, line, path, number)
    return found


def _after(found: Record | None, line: bytes, path: Path, number: int) -> Record:
    try:
        document = json.loads(line)
        if document["event"] == "begun":
            if document["form"] != FORM:
                raise FormatError(
                    f"{path}:{number}: a journal of form {document['form']!r}, {FORM} is read "
                    "here; remove it and its output, or use the gpukit that wrote it"
                )
            before = document["before"]
            size = int(document["size"])
            return Record(dict(document["of"]), size, tuple(before) if before else None)
        if found is not None and found.is_done and document["event"] in EVALUATIONS:
            return replace(found, evaluation=document)
        if found is not None and found.is_done and document["event"] in PUSHES:
            return replace(found, push=document)
        if found is None or document["event"] not in ("done", "failed"):
            raise ValueError
        return Record(found.of, found.size, found.before, document)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise FormatError(f"{path}:{number}: no line of a journal; remove the file") from None


class Journal(Closing):
    """The journal at `path`, open for this process alone, made if it is not there.

    `ArgumentError` where another process has it open so, `DiskError` where the disk refuses.
    """

    def __init__(self, path: Path, output: str) -> None:
        self.path = path
        with disk_errors(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ArgumentError(f"{output}: another batch is making it; wait for that") from None
        with disk_errors(path):
            # What a killed run has begun to write.
            data = read_whole(path, MOST_BYTES)
            os.ftruncate(self._fd, data.rfind(b"\n") + 1)

    def begun(self, of: Mapping[str, Any], size: int, before: tuple[int, int, int] | None) -> None:
        """Note that an output is being made; on the disk when this returns, as all lines."""
        self._write({"event": "begun", "form": FORM, "of": of, "size": size, "before": before})

    def done(
        self, size: int, mtime_ns: int, seconds: float, bits_per_weight: float | None = None
    ) -> None:
        """Note that it is there."""
        self._write({
            "event": "done", "size": size, "mtime_ns": mtime_ns, "seconds": round(seconds, 3),
            "bits_per_weight": bits_per_weight,
        })  # fmt: skip

    def failed(self, error: str) -> None:
        """Note why it is not."""
        self._write({"event": "failed", "error": error})

    def evaluated(self, of: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
        """Note what measuring it gave."""
        self._write({"event": EVALUATED, "of": of, "numbers": numbers})

    def not_evaluated(self, of: Mapping[str, Any], error: str) -> None:
        """Note why it could not be measured."""
        self._write({"event": NOT_EVALUATED, "of": of, "error": error})

    def pushed(self, of: Mapping[str, Any], told: Mapping[str, Any]) -> None:
        """Note where it was sent, and what was said of it there."""
        self._write({"event": PUSHED, "of": of, "told": told})

    def not_pushed(self, of: Mapping[str, Any], error: str) -> None:
        """Note why it could not be sent."""
        self._write({"event": NOT_PUSHED, "of": of, "error": error})

    def _write(self, document: Mapping[str, Any]) -> None:
        with disk_errors(self.path):
            append_line(self._fd, document)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
