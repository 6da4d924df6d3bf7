"""What the results of a batch are like: measured when they are made, known by their journals.

    NAME.gpukit.windows-DIGEST.jsonl   beside the journal: windows of a measurement under way, which
                                       a killed run goes on from; DIGEST tells it from others

Results that are measured beside the same model follow each other, and it is loaded once for all.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpukit.batches.evaluations import evaluation_of, groups, wanted
from gpukit.batches.journal import Journal, last_record
from gpukit.batches.logs import note_event, note_row
from gpukit.batches.matrix import SOURCE, Job
from gpukit.batches.opening import merge_of
from gpukit.batches.places import check_place
from gpukit.batches.preparing import Prepared
from gpukit.batches.pushing import with_push
from gpukit.batches.reading import ReadPlan
from gpukit.batches.result import Row, Told, Watch
from gpukit.batches.states import State, journal_path, model_path
from gpukit.errors import GpukitError
from gpukit.evaluation.pages import finite
from gpukit.events import Event, Report
from gpukit.formats.atomic import disk_errors

if TYPE_CHECKING:
    from gpukit.recipes.asked import Asked
    from gpukit.recipes.shared_reference import SharedReference

# Of a measurement, what a row has elsewhere or nobody reads in a table.
LEFT_OUT = ("model", "type", "running", "size", "bits_per_weight")


def known(read: ReadPlan, job: Job, row: Row) -> Row:
    """`row` with what the journal of a result that is done says: seconds, bits per weight, the
    numbers of the evaluation that the plan asks for, and whether it was sent."""
    record = last_record(journal_path(read, job)) if row.state is State.DONE else None
    if record is not None and record.end is not None:
        row = replace(row, bits_per_weight=record.end.get("bits_per_weight"))
        if row.seconds is None:
            row = replace(row, seconds=record.end.get("seconds"))
    if job.evaluate is not None:
        row = replace(row, evaluation=evaluation_of(record, wanted(job)))
    return with_push(row, job, record)


class Evaluation:
    """The results of a batch being measured that are done and were not: `rows` by the numbers of
    their jobs. `before` is how many jobs have been told of before."""

    def __init__(self, prepared: Prepared, keep_going: bool, watch: Watch, before: int = 0) -> None:
        self._prepared, self._keep_going, self._watch = prepared, keep_going, watch
        self._read, self._inputs = prepared.read, prepared.inputs
        jobs = [at.job for at in prepared.standings]
        rows = prepared.result.rows
        self.rows = {job.number: row for job, row in zip(jobs, rows, strict=True)}
        self._left = [job for job in jobs if is_left(self.rows[job.number])]
        self._begun, self._count = before, before + len(self._left)
        self._stopped = False

    def all(self) -> None:
        """Measure what is left, without `keep_going` up to the first failure."""
        for jobs in groups(self._left):
            # What measures computes with torch.
            from gpukit.recipes.shared_reference import SharedReference

            shared = SharedReference(len(jobs))
            for job in jobs:
                if self._stopped:
                    return
                if not self._one(job, shared) and not self._keep_going:
                    return

    def stop(self) -> None:
        """Begin no other; safe from any thread."""
        self._stopped = True

    def _one(self, job: Job, shared: "SharedReference") -> bool:
        """Measure one result, and tell how that went; whether it went well."""
        self._begun += 1
        row = self.rows[job.number]
        self._tell(job, replace(row, state=State.EVALUATING))
        try:
            numbers = self._noted(job, shared)
            evaluation = {"state": State.DONE.value, **numbers}
        except GpukitError as error:
            evaluation = {"state": State.FAILED.value, "why": str(error)}
        self.rows[job.number] = replace(row, evaluation=evaluation)
        self._tell(job, self.rows[job.number])
        return bool(self.rows[job.number].numbers)

    def _noted(self, job: Job, shared: "SharedReference") -> dict[str, Any]:
        """The numbers of a result, which its journal knows then; errors as `measured`."""
        started, of = time.monotonic(), wanted(job)
        check_place(self._prepared, job)
        with Journal(journal_path(self._read, job), job.target) as journal:
            try:
                windows = self._windows(job, of)
                numbers = self._measured(job, windows, shared)
            except GpukitError as error:
                journal.not_evaluated(of, str(error))
                raise
            numbers["seconds"] = round(time.monotonic() - started, 3)
            journal.evaluated(of, numbers)
            windows.unlink(missing_ok=True)
        return numbers

    def _measured(self, job: Job, windows: Path, shared: "SharedReference") -> dict[str, Any]:
        from gpukit.recipes.perplexity import measured

        (found,) = measured(self._asked(job, windows), self._report(job), shared)
        numbers: dict[str, Any] = finite(
            {key: value for key, value in found.as_json().items() if key not in LEFT_OUT}
        )
        return numbers

    def _windows(self, job: Job, of: Mapping[str, Any]) -> Path:
        """Where the windows of a measurement are kept; those of others are removed: nobody else
        writes there while the journal is open."""
        path = journal_path(self._read, job)
        record = last_record(path)
        assert record is not None
        assert record.end is not None
        text = json.dumps([of, record.of, record.end["mtime_ns"], job.options.device])
        stem = path.name.removesuffix(".jsonl") + ".windows-"
        found = path.with_name(f"{stem}{sha256(text.encode()).hexdigest()[:12]}.jsonl")
        with disk_errors(path):
            for other in path.parent.iterdir():
                if other.name.startswith(stem) and other != found:
                    other.unlink(missing_ok=True)
        return found

    def _asked(self, job: Job, windows: Path) -> "Asked":
        from gpukit.recipes.asked import Asked

        wish, options = job.evaluate, job.options
        assert wish is not None
        beside = wish.against == SOURCE
        source = self._inputs.source(job)
        merge = merge_of(job, self._inputs, self._report(job)) if beside else None
        # A combination, or a base that is not the one that is stored, is nothing beside weights.
        whole = merge is not None and (merge.combining is not None or merge.base != "full")
        return Asked(
            (model_path(job),), Path(str(wish.text)), (), num_ctx=wish.context,
            chunks=wish.chunks, stride=wish.stride, against=source if beside else wish.against,
            adapters=(), strict=False, moe_layout=None, journal=windows,
            pre=options.pre if beside and source.is_dir() else None, hub=False,
            device=options.device.partition(",")[0] if whole else options.device,
            against_merge=merge, against_type="F32" if whole else None,
            option="context",
        )  # fmt: skip

    def _report(self, job: Job) -> Report:
        def report(event: Event) -> None:
            note_event(self._read, job, event)
            row = replace(self.rows[job.number], state=State.EVALUATING)
            self._watch(Told(self._begun, self._count, row, event))

        return report

    def _tell(self, job: Job, row: Row) -> None:
        note_row(self._read, job, row)
        self._watch(Told(self._begun, self._count, row))


def is_left(row: Row) -> bool:
    """Whether a result is there and its evaluation is not."""
    return row.state is State.DONE and row.evaluation is not None and not row.numbers
