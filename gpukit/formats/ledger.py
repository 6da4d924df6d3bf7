"""What of an unfinished output is on the disk already: a later run goes on from there.

Beside OUTPUT lie, until it is whole, hidden files: `.OUTPUT.N.gpukit-part` is file N of it, from 0
(a split model has several), or where it is a folder that folder, and `.OUTPUT.gpukit-part.jsonl`
its ledger, JSON lines only ever added to:

    {"ledger": "gpukit", "form": 1, "of": {…}, "layout": "…", "sizes": […]}
    {"tensor": N, "start": BYTE, "size": BYTES, "told": […]}
    {"whole": [INODE, …]}

`of` says what the output is made of, `layout` is a digest of where everything goes, `sizes` are the
files'. A line about a piece follows when its bytes are synced; `told` is what the writer found out
about them. The last line follows when all are, before the files get their names. Lines that are
damaged, and all behind them, count for nothing: a run that was killed was writing them.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from gpukit.errors import ArgumentError
from gpukit.formats.atomic import MOST_OF_A_NAME, disk_errors, remove, sync_folder, target_of
from gpukit.formats.closing import Closing
from gpukit.formats.positioned import read_whole, write_all

FORM = 1
MOST_BYTES = 1 << 30
# What the names of ledgers end with.
LEDGER = "gpukit-part.jsonl"
ANEW = "run without --resume to begin anew"


@dataclass(frozen=True)
class Whole:
    """A piece that is on the disk: `size` bytes from `start` of the data of tensor number
    `tensor`, and what was `told` about them."""

    tensor: int
    start: int
    size: int
    told: Any = None


@dataclass(frozen=True)
class Head:
    """What a ledger is of: the output's fingerprint, its layout's digest, its files' sizes."""

    of: Mapping[str, Any]
    layout: str
    sizes: tuple[int, ...]


@dataclass
class Known:
    """What a ledger says: its head, pieces in the order of the lines, and when all were there the
    inodes of the files."""

    head: Head
    pieces: list[Whole] = field(default_factory=list)
    whole: list[int] | None = None


def _start(out: Path) -> str:
    """What the names of the hidden files of `out` begin with."""
    name = target_of(out).name
    raw = os.fsencode(name)
    if len(raw) <= MOST_OF_A_NAME:
        return f".{name}."
    return f".{os.fsdecode(raw[: MOST_OF_A_NAME - 17])}-{sha256(raw).hexdigest()[:16]}."


def ledger_of(out: Path) -> Path:
    """The ledger of output `out`."""
    return target_of(out).with_name(f"{_start(out)}{LEDGER}")


def partial_of(out: Path, number: int) -> Path:
    """File `number`, from 0, of output `out` as long as it is not whole."""
    return target_of(out).with_name(f"{_start(out)}{number}.gpukit-part")


def ledgers_in(folder: Path) -> list[Path]:
    """All ledgers in `folder`, none where that is no folder."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return [path for path in folder.iterdir() if path.name.endswith(f".{LEDGER}")]
    return []


def partials(ledger: Path) -> list[Path]:
    """The files and folders beside `ledger` that it tells of, of whatever run."""
    pattern = re.compile(re.escape(ledger.name.removesuffix(LEDGER)) + r"\d+\.gpukit-part")
    with suppress(FileNotFoundError, NotADirectoryError):
        return [path for path in ledger.parent.iterdir() if pattern.fullmatch(path.name)]
    return []


def held(out: Path) -> int:
    """Bytes of the disk that killed runs have given `out` already."""
    found = 0
    for path in partials(ledger_of(out)):
        for file in (path, *path.rglob("*")):
            with suppress(FileNotFoundError):
                found += file.stat().st_blocks * 512
    return found


def abandon(out: Path) -> None:
    """Remove what a killed run has left of `out` to go on with. Nothing is touched while a process
    goes on with it; `DiskError` where the disk refuses."""
    with disk_errors(out):
        abandon_ledger(ledger_of(out))


def abandon_ledger(path: Path) -> None:
    """As `abandon`, by the ledger."""
    files = partials(path)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        _remove(files)
        return
    try:
        if _locked(fd):
            _remove([*files, path])
    finally:
        os.close(fd)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        remove(path)


def _locked(fd: int) -> bool:
    """Whether this process has the ledger for itself now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def read_ledger(path: Path) -> tuple[Known | None, int]:
    """What the ledger at `path` says, None where its head is damaged, and the bytes of the lines
    that are whole. `ArgumentError` for one of another form, `OSError` where it cannot be read."""
    data = read_whole(path, MOST_BYTES)
    known, good = None, 0
    for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        try:
            document = json.loads(line)
            if known is None:
                known = Known(_head(path, document))
            elif "whole" in document:
                known.whole = [int(inode) for inode in document["whole"]]
            else:
                known.pieces.append(_piece(document))
        except (ValueError, TypeError, KeyError, RecursionError):
            break
        good += len(line)
    return known, good


def _head(path: Path, document: Mapping[str, Any]) -> Head:
    if document["ledger"] != "gpukit":
        raise ValueError
    if document["form"] != FORM:
        raise ArgumentError(
            f"{path}: a ledger of form {document['form']!r}, {FORM} is read here; go on with the "
            f"gpukit that wrote it, or {ANEW}"
        )
    return Head(dict(document["of"]), str(document["layout"]), tuple(map(int, document["sizes"])))


def _piece(document: Mapping[str, Any]) -> Whole:
    tensor, start, size = (int(document[key]) for key in ("tensor", "start", "size"))
    if min(tensor, start, size) < 0:
        raise ValueError
    return Whole(tensor, start, size, document.get("told"))


class Ledger(Closing):
    """The ledger of output `out`, open for this process alone, made if it is not there; `known` is
    what it says. `ArgumentError` where another process has it, `DiskError` where the disk refuses.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, ledger_of(out)
        with disk_errors(out):
            self._fd = self._open()
        try:
            with disk_errors(out):
                self.known, self._good = read_ledger(self.path)
        except BaseException:
            self.close()
            raise

    def _open(self) -> int:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND
            fd = os.open(self.path, flags, 0o644)
            if not _locked(fd):
                os.close(fd)
                raise ArgumentError(f"{self.out}: another run is making it; wait for that")
            with suppress(FileNotFoundError):
                # It may have been done, and its ledger removed, before this one was locked.
                if os.path.samestat(os.fstat(fd), self.path.stat()):
                    return fd
            os.close(fd)

    def begin(self, head: Head) -> None:
        """Begin anew: what there was is gone."""
        with disk_errors(self.out):
            os.ftruncate(self._fd, 0)
            _remove(partials(self.path))
            document = {
                "ledger": "gpukit", "form": FORM, "of": head.of, "layout": head.layout,
                "sizes": head.sizes,
            }  # fmt: skip
            self._write([document])
            sync_folder(self.path.parent)
        self.known = None

    def go_on(self) -> None:
        """Cut off what is no whole line."""
        with disk_errors(self.out):
            os.ftruncate(self._fd, self._good)

    def add(self, pieces: Iterable[Whole]) -> None:
        """Note pieces whose bytes are synced."""
        with disk_errors(self.out):
            self._write(
                {"tensor": p.tensor, "start": p.start, "size": p.size, "told": p.told}
                for p in pieces
            )

    def whole(self, inodes: Iterable[int]) -> None:
        """Note that every byte is synced, of files with these inodes."""
        with disk_errors(self.out):
            self._write([{"whole": list(inodes)}])

    def _write(self, documents: Iterable[Mapping[str, Any]]) -> None:
        lines = [json.dumps(each, separators=(",", ":")) + "\n" for each in documents]
        write_all(self._fd, memoryview("".join(lines).encode()))
        os.fsync(self._fd)

    def remove(self) -> None:
        """Remove it, and every file that has not got its name."""
        with disk_errors(self.out):
            _remove([*partials(self.path), self.path])

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
