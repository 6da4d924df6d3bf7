"""Jobs that go on where a killed batch was, and what no job of the plan goes on with."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from gpukit.batches.matrix import Job, expand
from gpukit.batches.reading import ReadPlan, combining
from gpukit.batches.states import Standing, State, state_folder
from gpukit.conversion.resuming import Resume
from gpukit.errors import GpukitError
from gpukit.formats.atomic import disk_errors, remove_abandoned
from gpukit.formats.ledger import abandon_ledger, ledger_of, ledgers_in, read_ledger
from gpukit.formats.positioned import write_all

# In a ledger's fingerprint the plan, and beside that the folders that it has written to.
PLAN, PLACES = "plan", "places"


def is_resumed(job: Job) -> bool:
    """Whether a later run could go on with a job: not with what chance has made."""
    how = combining(job.options)
    return how is None or not how.is_random


def resumed(read: ReadPlan, at: Standing) -> Resume:
    """Wish to go on with a job; what was begun of something else is made anew."""
    return Resume({**at.of, PLAN: _name(read)}, anew=True)


def _name(read: ReadPlan) -> str:
    return str(read.document.path.resolve())


def tidy(read: ReadPlan, standings: Sequence[Standing]) -> None:
    """Remove what killed runs of the plan have begun and nobody goes on with: of jobs that it has
    no more, and of those in `standings` that are done, and what is temporary of a process that is
    gone. `DiskError` where the disk refuses."""
    jobs, _ = expand(read)
    kept = {_ledger(job.output) for job in jobs if job.output is not None}
    done = {
        _ledger(at.job.output)
        for at in standings
        if at.job.output is not None and at.state is State.DONE
    }
    for folder in _places(read, {path.parent for path in kept}):
        with suppress(OSError):
            remove_abandoned(folder)
        for path in map(Path.resolve, ledgers_in(folder)):
            if path in done or (path not in kept and _is_of(path, read)):
                with disk_errors(path):
                    abandon_ledger(path)


def _ledger(output: Path) -> Path:
    """However a path is spelled, the one that others are compared with."""
    return ledger_of(output).resolve()


def _is_of(path: Path, read: ReadPlan) -> bool:
    """Whether the ledger at `path` says that this plan began it."""
    try:
        known, _ = read_ledger(path)
    except (GpukitError, OSError):
        return False
    return known is not None and known.head.of.get(PLAN) == _name(read)


def _places(read: ReadPlan, now: Iterable[Path]) -> list[Path]:
    """The folders that the plan writes to `now` or has written to, which are noted."""
    path, folders = state_folder(read) / PLACES, [str(folder) for folder in sorted(now)]
    with disk_errors(path), path.open("a+b", buffering=0) as file:
        file.seek(0)
        known = file.read().decode("utf-8", "surrogateescape").split("\0")[:-1]
        new = [folder for folder in folders if folder not in known]
        data = "".join(f"{folder}\0" for folder in new).encode("utf-8", "surrogateescape")
        write_all(file.fileno(), memoryview(data))
    return [Path(folder) for folder in [*known, *new]]
