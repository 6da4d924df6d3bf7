"""What is known of every job of a batch: before it, after it, or in between."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpukit.batches.matrix import Job
from gpukit.batches.needs import Need
from gpukit.batches.states import State
from gpukit.events import Event
from gpukit.version import VERSION


@dataclass(frozen=True)
class Row:
    """One job: what it makes of what, its state and why, bytes and seconds where they are known.

    `made` tells whether this run has made the result. `evaluation` is how its evaluation stands,
    if one is asked for: `state` (to do, done, failed), and the numbers of `gpukit.Perplexity`, or
    `why` there are none. `push` is how sending it stands, if that is asked for: `state`, `to`, and
    what was told of it there, or `why` it was not sent.
    """

    source: str
    adapter: str
    type: str
    output: str
    state: State
    why: str = ""
    size: int | None = None
    seconds: float | None = None
    made: bool = False
    bits_per_weight: float | None = None
    evaluation: Mapping[str, Any] | None = None
    push: Mapping[str, Any] | None = None

    @property
    def numbers(self) -> Mapping[str, Any]:
        """What an evaluation gave; nothing where there is none."""
        found = self.evaluation
        return found if found is not None and found["state"] == State.DONE.value else {}

    @classmethod
    def of(cls, job: Job, state: State, why: str = "", size: int | None = None) -> "Row":
        """The row of `job`."""
        return cls(job.source.name, job.adapter.name, job.type, job.target, state, why, size)

    def as_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "adapter": self.adapter,
            "type": self.type,
            "output": self.output,
            "state": self.state.value,
            "made": self.made,
            "why": self.why or None,
            "size": self.size,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "bits_per_weight": self.bits_per_weight,
            "evaluation": None if self.evaluation is None else dict(self.evaluation),
            "push": None if self.push is None else dict(self.push),
        }


@dataclass(frozen=True)
class BatchResult:
    """Every job of a plan, or of a shard of it, and what those need that are left.

    `refused` are lines that say why a run would not begin, `warnings` lines for the user;
    `workers` is how many processes make it, and `gpus` what they take of each.
    """

    plan: Path
    rows: tuple[Row, ...]
    shard: tuple[int, int] | None = None
    disks: tuple[Need, ...] = ()
    memory: Need | None = None
    warnings: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    seconds: float = 0.0
    workers: int = 1
    gpus: tuple[Need, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """The number of jobs in each state that there is, by its name."""
        return {str(state): n for state, n in Counter(row.state for row in self.rows).items()}

    @property
    def failed(self) -> list[Row]:
        """The jobs that failed."""
        return [row for row in self.rows if row.state is State.FAILED]

    @property
    def not_evaluated(self) -> list[Row]:
        """The jobs whose results are there and could not be measured."""
        return [row for row in self.rows if row.evaluation and row.evaluation["state"] == "failed"]

    def as_json(self) -> dict[str, Any]:
        """Everything as one JSON-ready document; sizes in bytes, times in seconds."""
        return {
            "plan": str(self.plan),
            "gpukit": VERSION,
            "shard": None if self.shard is None else f"{self.shard[0]}/{self.shard[1]}",
            "counts": self.counts,
            "size": sum(row.size or 0 for row in self.rows),
            "seconds": round(self.seconds, 3),
            "disks": [need.as_json() for need in self.disks],
            "memory": None if self.memory is None else self.memory.as_json(),
            "workers": self.workers,
            "gpus": [need.as_json() for need in self.gpus],
            "warnings": list(self.warnings),
            "refused": list(self.refused),
            "jobs": [row.as_json() for row in self.rows],
        }


@dataclass(frozen=True)
class Told:
    """What a run tells: job `number` of `count` that are left stands as `row` says, and while it is
    running what it reports."""

    number: int
    count: int
    row: Row
    event: Event | None = None


Watch = Callable[[Told], None]


def unwatched(told: Told) -> None:
    """Drop it."""
    del told
