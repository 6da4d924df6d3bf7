"""What a long run knows already, on the disk: a killed one goes on where it was.

Lines of JSON, only ever added to:

    {"journal": "gpukit perplexity", "version": …, "of": {…}}    what is measured, and how
    {"part": NAME, "chunk": NUMBER, "nll": […], …}               the scores of one window's tokens

A last line that is not whole is what a killed run was writing; it is written anew.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpukit.errors import ArgumentError, FormatError
from gpukit.evaluation.scoring import Scores
from gpukit.formats.atomic import disk_errors
from gpukit.formats.closing import Closing
from gpukit.formats.positioned import append_line

TITLE = "gpukit perplexity"


class Journal(Closing):
    """The journal at `path` of a run that `of` describes, made if it is not there.

    `ArgumentError` where it is that of another run or another process writes it now, `FormatError`
    where it is no journal, `DiskError` where the disk refuses.
    """

    def __init__(self, path: Path, version: str, of: Mapping[str, Any]) -> None:
        self.path = path
        self._known: dict[tuple[str, int], Scores] = {}
        with disk_errors(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND, 0o644)
        try:
            self._lock()
            head = {"journal": TITLE, "version": version, "of": of}
            with disk_errors(path):
                self._take_up(json.loads(json.dumps(head)))
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArgumentError(
                f"{self.path}: another run writes this journal; wait for it or name another"
            ) from None

    def _take_up(self, head: dict[str, Any]) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if not whole and not b'{"journal"'.startswith(data[:10]):
            raise self._no_journal(1)
        os.ftruncate(self._fd, len(whole))
        lines = whole.splitlines()
        if not lines:
            append_line(self._fd, head)
            return
        self._check(self._document(lines[0], 1), head)
        for number, line in enumerate(lines[1:], 2):
            found = self._document(line, number)
            try:
                key = str(found["part"]), int(found["chunk"])
                self._known[key] = _scores(found)
            except (KeyError, TypeError, ValueError):
                raise self._no_journal(number) from None

    def _document(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._no_journal(number)
        return found

    def _no_journal(self, number: int) -> FormatError:
        return FormatError(
            f"{self.path}: line {number} is none of a journal; name another file, or remove this"
        )

    def _check(self, found: dict[str, Any], head: dict[str, Any]) -> None:
        if found.get("journal") != TITLE or not isinstance(found.get("of"), dict):
            raise self._no_journal(1)
        theirs = {"version": found.get("version"), **found["of"]}
        ours = {"version": head["version"], **head["of"]}
        for key in ours.keys() | theirs.keys():
            if ours.get(key) != theirs.get(key):
                raise ArgumentError(
                    f"{self.path}: the journal of another run: {key} "
                    f"{_both(theirs.get(key), ours.get(key))}; name another, or remove this"
                )

    def known(self, part: str, chunk: int) -> Scores | None:
        """What was found before, if anything."""
        return self._known.get((part, chunk))

    def add(self, part: str, chunk: int, scores: Scores) -> None:
        """Keep what was found; it is on the disk when this returns."""
        line: dict[str, Any] = {"part": part, "chunk": chunk, "nll": scores.nll.tolist()}
        if scores.nll_base is not None and scores.kld is not None and scores.same_top is not None:
            line["nll_base"] = scores.nll_base.tolist()
            line["kld"] = scores.kld.tolist()
            line["same_top"] = scores.same_top.astype(int).tolist()
        with disk_errors(self.path):
            append_line(self._fd, line)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _scores(found: Mapping[str, Any]) -> Scores:
    """The scores in a line; KeyError, TypeError or ValueError for one that has none."""
    nll = np.array(found["nll"], np.float64)
    if "nll_base" not in found:
        return Scores(nll)
    rest = [np.array(found[key], np.float64) for key in ("nll_base", "kld", "same_top")]
    if nll.ndim != 1 or any(each.shape != nll.shape for each in rest):
        raise ValueError
    return Scores(nll, rest[0], rest[1], rest[2].astype(np.bool_))


def _both(theirs: Any, ours: Any) -> str:
    """Two values as far as a line can show them."""
    shown = [json.dumps(value) for value in (theirs, ours)]
    if max(map(len, shown)) > 80:
        return "is another"
    return f"is {shown[0]} there and {shown[1]} here"
