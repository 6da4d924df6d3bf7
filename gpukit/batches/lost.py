"""What becomes of jobs whose worker has died: their journals and their outputs decide."""

from dataclasses import replace

from gpukit.batches.evaluating import known
from gpukit.batches.evaluations import wanted
from gpukit.batches.gathering import Gathered
from gpukit.batches.journal import Journal, last_record
from gpukit.batches.places import is_there
from gpukit.batches.portions import Portion
from gpukit.batches.result import Row
from gpukit.batches.states import Standing, State, identity, journal_path, standing
from gpukit.errors import GpukitError
from gpukit.formats.atomic import disk_errors


def take_up(portion: Portion, gathered: Gathered) -> Portion | None:
    """Note the outputs that are there, whole, though their worker has not lived to tell; what is
    left of the portion, None for nothing."""
    for at in portion.standings:
        if at.job.target in gathered.ended:
            continue
        if portion.measures:
            row = known(portion.prepared.read, at.job, _as_done(gathered.row(at.job.target)))
            if row.numbers:
                gathered.set(at.job.target, state=State.DONE, evaluation=row.evaluation)
            continue
        now = now_standing(portion, at)
        if now.state is State.DONE:
            gathered.set(at.job.target, state=State.DONE, why="", size=now.size, made=True)
    return portion.without(gathered.ended)


def fail(portion: Portion, gathered: Gathered, why: str) -> Portion | None:
    """Let the jobs of a portion fail that have begun, or if none has, the first: what is left of
    it, None for nothing."""
    left = take_up(portion, gathered)
    if left is None:
        return None
    begun = set(gathered.begun(left)) or {left.standings[0].job.target}
    for at in left.standings:
        if (output := at.job.target) in begun and portion.measures:
            gathered.set(output, state=State.DONE, evaluation=_not_measured(portion, at, why))
        elif output in begun:
            told = _noted(portion, at, f"{output}: {why}")
            gathered.set(output, state=State.FAILED, why=told)
    return left.without(gathered.ended)


def now_standing(portion: Portion, at: Standing) -> Standing:
    """How a job stands at this moment; one whose journal cannot be read is to be made."""
    prepared = portion.prepared
    try:
        return standing(prepared.read, at.job, prepared.inputs)
    except GpukitError:
        return at


def _as_done(row: Row) -> Row:
    return replace(row, state=State.DONE)


def _not_measured(portion: Portion, at: Standing, why: str) -> dict[str, str]:
    """Write why a result was not measured into its journal; how its evaluation stands then."""
    path, job = journal_path(portion.prepared.read, at.job), at.job
    try:
        with Journal(path, job.target) as journal:
            journal.not_evaluated(wanted(job), why)
    except GpukitError as error:
        why = f"{why} ({error})"
    return {"state": State.FAILED.value, "why": why}


def _noted(portion: Portion, at: Standing, why: str) -> str:
    """Write why a job failed into its journal; what is to be told of it."""
    if not is_there(portion.prepared, at.job):
        return why
    path = journal_path(portion.prepared.read, at.job)
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with Journal(path, at.job.target) as journal:
            record = last_record(path)
            if record is None or record.end is not None:
                journal.begun(at.of, 0, identity(at.job))
            journal.failed(why)
    except GpukitError as error:
        return f"{why} ({error})"
    return why
