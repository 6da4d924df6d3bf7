"""What jobs reported, kept beside their journals: warnings, results and failures, with times.

Lines of JSON, only ever added to, in `OUTPUT.gpukit.log.jsonl`:

    {"time": "2026-01-31T12:00:00Z", "event": "running", "text": "…"}

`event` is the state that a job came to, or `warning`. A file over `MOST_BYTES` becomes
`….log.1.jsonl` in place of the one before, so that two of them are the most that a job has.
"""

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gpukit.batches.matrix import Job, expand
from gpukit.batches.preparing import Shard, in_shard
from gpukit.batches.reading import ReadPlan, read_plan
from gpukit.batches.result import Row
from gpukit.batches.states import State, journal_path
from gpukit.errors import ArgumentError
from gpukit.events import Event, Warned
from gpukit.formats.positioned import read_whole, write_all

MOST_BYTES = 256 << 10
# Of a line that is kept.
MOST_TEXT = 4 << 10
WARNING = "warning"


@dataclass(frozen=True)
class Line:
    """What was reported at a time (UTC): an event and its text."""

    time: str
    event: str
    text: str

    def as_json(self) -> dict[str, str]:
        return {"time": self.time, "event": self.event, "text": self.text}


@dataclass(frozen=True)
class JobLog:
    """What one job has reported, oldest first; `output` is its result."""

    output: str
    lines: tuple[Line, ...]

    def as_json(self) -> dict[str, Any]:
        return {"output": self.output, "lines": [line.as_json() for line in self.lines]}


def log_path(read: ReadPlan, job: Job) -> Path:
    """The log of a job, beside its journal."""
    return log_of(journal_path(read, job))


def log_of(journal: Path) -> Path:
    """The log beside a journal."""
    return journal.with_name(f"{journal.name.removesuffix('.jsonl')}.log.jsonl")


def _older(path: Path) -> Path:
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.1.jsonl")


def note_row(read: ReadPlan, job: Job, row: Row) -> None:
    """Note what a job came to. What cannot be written is not kept: no job fails for its log."""
    found = row.evaluation
    match row.state:
        case State.DONE if found is not None and row.numbers:
            event, text = "evaluated", _numbers(row)
        case State.DONE if found is not None and found.get("why"):
            event, text = "not evaluated", str(found["why"])
        case State.DONE if row.push is not None and row.push["state"] == State.DONE.value:
            event, text = "pushed", f"to {row.push['to']}, {row.push.get('moved')} bytes moved"
        case State.DONE:
            event, text = str(row.state), f"{row.size} bytes in {row.seconds or 0:.1f} s"
        case _:
            event, text = str(row.state), row.why
    _note(log_path(read, job), event, text)


def _numbers(row: Row) -> str:
    """What an evaluation gave, in a line."""
    keys = ("perplexity", "error", "kld", "kld_median", "kld_999", "same_top", "seconds")
    known = [(key, row.numbers[key]) for key in keys if row.numbers.get(key) is not None]
    return ", ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in known)


def note_event(read: ReadPlan, job: Job, event: Event) -> None:
    """Note what a job reports, if that is a warning."""
    if isinstance(event, Warned):
        _note(log_path(read, job), WARNING, event.text)


def _note(path: Path, event: str, text: str) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = json.dumps(Line(now, event, text[:MOST_TEXT]).as_json()) + "\n"
    with suppress(OSError):
        if path.exists() and path.stat().st_size > MOST_BYTES:
            path.replace(_older(path))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            write_all(fd, memoryview(line.encode()))
        finally:
            os.close(fd)


def batch_logs(
    plan: str | Path, word: str | None = None, *, shard: Shard | None = None
) -> list[JobLog]:
    """What the jobs of a plan have reported, also while a batch runs; with `word` only those of
    which that is the number, from 1 on, or a glob of the output or its name. `ArgumentError` for a
    word that no job has; errors of a plan that is wrong as `batch`."""
    read = read_plan(plan)
    jobs = in_shard(expand(read)[0], shard)
    found = [job for job in jobs if word is None or _is_meant(job, word)]
    if not found:
        raise ArgumentError(
            f"{str(word)[:100]}: no job of {read.document.path}; name an output as `gpukit batch "
            f"status` shows it, or a number from 1 to {len(jobs)}"
        )
    return [JobLog(job.target, tuple(_lines(log_path(read, job)))) for job in found]


def _is_meant(job: Job, word: str) -> bool:
    if word == str(job.number):
        return True
    names: Sequence[str] = (job.target, Path(job.target).name)
    absolute = os.path.abspath(word)
    return job.target == absolute or any(fnmatchcase(name, word) for name in names)


def _lines(path: Path) -> list[Line]:
    """All lines of a log; what is no line of one is left out, as what a killed run was writing."""
    found = []
    for each in (_older(path), path):
        try:
            data = read_whole(each, 4 * MOST_BYTES)
        except OSError:
            continue
        for line in data.splitlines():
            with suppress(ValueError, KeyError, TypeError):
                told = json.loads(line)
                found.append(Line(str(told["time"]), str(told["event"]), str(told["text"])))
    return found
