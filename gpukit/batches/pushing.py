"""Results sent to a registry or the hub when they are made; their journals know how that went.

A result is sent by the process that made it, at once, or if that dies by the batch at its end. One
that is done and was not sent, because that failed or the run was killed, is sent by the next run,
and not made again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpukit.batches.journal import PUSHED, Journal, Record, last_record
from gpukit.batches.logs import note_event, note_row
from gpukit.batches.matrix import Job
from gpukit.batches.places import check_place
from gpukit.batches.preparing import Prepared
from gpukit.batches.reading import ReadPlan
from gpukit.batches.result import Row, Told, Watch
from gpukit.batches.states import State, journal_path, model_path
from gpukit.errors import GpukitError
from gpukit.events import Event, Report
from gpukit.store.store import Store


def with_push(row: Row, job: Job, record: Record | None) -> Row:
    """`row` with how sending the result stands, as its journal says; a result that is done and
    could not be sent has failed."""
    if job.push is None or (row.push is not None and row.state is State.FAILED):
        return row
    push = _found(job, record if row.state is State.DONE else None)
    row = replace(row, push=push)
    if push["state"] == State.FAILED.value:
        return replace(row, state=State.FAILED, why=push["why"])
    return row


def _found(job: Job, record: Record | None) -> dict[str, Any]:
    of = _of(job)
    found = record.push if record is not None else None
    if found is None or found["of"] != of:
        return {"state": State.TO_DO.value, "to": of["to"]}
    if found["event"] == PUSHED:
        return {"state": State.DONE.value, "to": of["to"], **found["told"]}
    return {"state": State.FAILED.value, "to": of["to"], "why": found["error"]}


def _of(job: Job) -> dict[str, Any]:
    """What is asked for, as far as another run must know it."""
    assert job.push is not None
    return {"to": job.push.to}


def push_row(row: Row, job: Job, journal: Journal, report: Report) -> Row:
    """Send the result of a job that is done, whose journal is open; its row then."""
    assert job.push is not None
    of = _of(job)
    try:
        told = _sent(job, report)
    except GpukitError as error:
        why = f"not pushed to {job.push.to}: {error}"
        journal.not_pushed(of, why)
        push = {"state": State.FAILED.value, "to": of["to"], "why": why}
        return replace(row, state=State.FAILED, why=why, push=push)
    journal.pushed(of, told)
    push = {"state": State.DONE.value, "to": of["to"], **told}
    return replace(row, state=State.DONE, why="", push=push)


def _sent(job: Job, report: Report) -> dict[str, Any]:
    # The clients take a while to import.
    from gpukit.recipes.share import push

    wish = job.push
    assert wish is not None
    source = model_path(job) if job.stored is None else job.stored.display
    sent = push(
        Store(), source, wish.to, insecure=wish.insecure, private=wish.private, report=report
    )
    return {key: value for key, value in sent.as_json().items() if key != "name"}


def left(prepared: Prepared, rows: Sequence[Row]) -> Sequence[Job]:
    """The jobs whose results are done, as `rows` say, and were not sent."""
    done = {row.output for row in rows if row.state is State.DONE}
    found = []
    for at in prepared.standings:
        if at.job.push is None or at.job.target not in done:
            continue
        record = last_record(journal_path(prepared.read, at.job))
        if _found(at.job, record)["state"] != State.DONE.value:
            found.append(at.job)
    return found


def pushed(prepared: Prepared, rows: Sequence[Row], keep_going: bool, watch: Watch) -> list[Row]:
    """`rows` of a batch that is through, in which all that was done before it has been sent, too,
    and what a process has made that died before it was sent; without `keep_going` nothing is sent
    after the first failure."""
    found = {row.output: row for row in rows}
    made = sum(at.state.is_left for at in prepared.standings)
    jobs = left(prepared, rows)
    for number, job in enumerate(jobs, made + 1):
        if not keep_going and any(row.state is State.FAILED for row in found.values()):
            break
        row = found[job.target]
        one = _One(prepared.read, job, row, watch, (number, made + len(jobs)))
        found[job.target] = one.sent(prepared)
    return [found[row.output] for row in rows]


class _One:
    """One result on its way."""

    def __init__(
        self, read: ReadPlan, job: Job, row: Row, watch: Watch, place: tuple[int, int]
    ) -> None:
        self._read, self._job, self._watch, self._place = read, job, watch, place
        self._row = replace(row, state=State.PUSHING)

    def sent(self, prepared: Prepared) -> Row:
        """The row when that is over."""
        self._tell(self._row)
        try:
            check_place(prepared, self._job)
            with Journal(journal_path(self._read, self._job), self._job.target) as journal:
                row = push_row(self._row, self._job, journal, self._report)
        except GpukitError as error:
            row = replace(self._row, state=State.FAILED, why=str(error))
        self._tell(row)
        return row

    def _report(self, event: Event) -> None:
        note_event(self._read, self._job, event)
        self._watch(Told(*self._place, self._row, event))

    def _tell(self, row: Row) -> None:
        note_row(self._read, self._job, row)
        self._watch(Told(*self._place, row))


def told(push: Mapping[str, Any] | None) -> str:
    """How sending stands, behind a state in a table."""
    if push is None or push["state"] == State.FAILED.value:
        return ""
    return f", {'pushed' if push['state'] == State.DONE.value else 'to be pushed'} to {push['to']}"
