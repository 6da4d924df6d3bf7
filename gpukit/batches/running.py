"""The jobs that are left, one after the other."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from gpukit.batches.calibrating import collected, collected_file
from gpukit.batches.fingerprint import difference, fingerprint
from gpukit.batches.foreign import converter_of
from gpukit.batches.journal import Journal
from gpukit.batches.logs import note_event, note_row
from gpukit.batches.matrix import Job
from gpukit.batches.opening import Inputs, gathered, opened, planned
from gpukit.batches.places import check_place, check_result, is_there
from gpukit.batches.preparing import Prepared
from gpukit.batches.pushing import push_row
from gpukit.batches.result import Row, Told, Watch
from gpukit.batches.resuming import is_resumed, resumed
from gpukit.batches.states import (
    Standing,
    State,
    bits_per_weight,
    identity,
    journal_path,
    result_size,
)
from gpukit.conversion.run import run_plan
from gpukit.conversion.run_many import run_plans
from gpukit.errors import CheckpointError, GpukitError
from gpukit.events import Event, Report, Warned
from gpukit.formats.atomic import disk_errors
from gpukit.planning.plan import Options, QuantizePlan
from gpukit.remote.hub import HubModel
from gpukit.sources.base import Source
from gpukit.store.modelfile import Modelfile

Make = Callable[[Standing, Journal, Report], None]


class Run:
    """A batch under way: its rows, which change from job to job."""

    def __init__(self, prepared: Prepared, keep_going: bool, watch: Watch) -> None:
        self.rows = list(prepared.result.rows)
        self._prepared = prepared
        self._keep_going = keep_going
        self._watch = watch
        self._at = {at.job.number: i for i, at in enumerate(prepared.standings)}
        self._count = sum(at.state.is_left for at in prepared.standings)
        self._begun = 0
        self._stopped = False

    def all(self) -> None:
        """Make every result that is left; without `keep_going` none after the first failure."""
        left = {at.job.number: at for at in self._prepared.standings if at.state.is_left}
        for run in gathered([at.job for at in left.values()]):
            if self._stopped:
                return
            self._together([left[job.number] for job in run])

    def stop(self) -> None:
        """Begin no other job; safe from any thread."""
        self._stopped = True

    def _together(self, run: Sequence[Standing]) -> None:
        """Make what reads the same, from one opening and where that can be in one pass."""
        if run[0].job.stored is not None:
            for at in run:
                self._one(at, self._into_store)
            return
        with ExitStack() as stack:
            first = run[0].job
            try:
                opening = opened(first, self._prepared.inputs, self._report(first))
                source = stack.enter_context(opening)
                make = _writing(source, self._prepared)
                run = self._in_one_pass(run, source)
            except GpukitError as error:
                make = _failing(error)
            for at in run:
                self._one(at, make)

    def _in_one_pass(self, run: Sequence[Standing], source: Source) -> Sequence[Standing]:
        """Make files of `source` in one pass; what is left of `run`. After a failure that is all of
        it: made one by one, each tells of itself."""
        if len(run) < 2:
            return run
        first, started = run[0].job, time.monotonic()
        read, inputs = self._prepared.read, self._prepared.inputs
        report = self._report(first)
        self._begin(first)
        with ExitStack() as stack:
            try:
                making = [
                    (
                        at,
                        stack.enter_context(self._journal(at)),
                        _planned(source, at.job, inputs, report),
                    )
                    for at in run
                ]
                for at, journal, plan in making:
                    journal.begun(at.of, plan.size, identity(at.job))
                run_plans(
                    source, [plan for *_, plan in making], [_place(at.job) for at in run],
                    device=first.options.device, budget=first.options.memory, report=report,
                    resume=[resumed(read, at) for at in run] if is_resumed(first) else None,
                )  # fmt: skip
            except GpukitError as error:
                report(
                    Warned(f"one pass for {len(run)} outputs failed, each is made alone: {error}")
                )
                self._begun -= 1
                return run
            for at, journal, _ in making:
                if at.job is not first:
                    self._begin(at.job)
                self._end(at, journal, started)
        return ()

    def _begin(self, job: Job) -> None:
        self._begun += 1
        self._set(job, state=State.RUNNING, why="")

    def _end(self, at: Standing, journal: Journal, started: float) -> None:
        """Note that a result of one pass is there."""
        try:
            self._done(at, journal, started)
        except GpukitError as error:
            self._failed(at, error, started)

    def _one(self, at: Standing, make: Make) -> None:
        """Make one result, and tell how that went."""
        if self._stopped:
            if self._row(at.job).state is State.RUNNING:  # in a pass that failed
                self._set(at.job, state=at.state, why=at.why)
            return
        self._begin(at.job)
        started = time.monotonic()
        try:
            with self._journal(at) as journal:
                self._made(at, journal, make, started)
        except GpukitError as error:
            self._failed(at, error, started)

    def _failed(self, at: Standing, error: GpukitError, started: float) -> None:
        self._stopped = not self._keep_going
        self._set(at.job, state=State.FAILED, why=str(error), seconds=time.monotonic() - started)

    def _journal(self, at: Standing) -> Journal:
        """The journal of a job whose inputs are as they were."""
        check_place(self._prepared, at.job)
        self._check_unchanged(at)
        path = journal_path(self._prepared.read, at.job)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return Journal(path, at.job.target)

    def _made(self, at: Standing, journal: Journal, make: Make, started: float) -> None:
        try:
            make(at, journal, self._report(at.job))
        except GpukitError as error:
            journal.failed(str(error))
            raise
        self._done(at, journal, started)

    def _done(self, at: Standing, journal: Journal, started: float) -> None:
        there = check_result(self._prepared, at.job)
        seconds = time.monotonic() - started
        journal.done(there[0], there[1], seconds, bits_per_weight(at.job))
        size = result_size(at.job)
        if at.job.push is None:
            self._set(at.job, state=State.DONE, size=size, seconds=seconds, made=True)
            return
        self._set(at.job, state=State.PUSHING, size=size, seconds=seconds, made=True)
        row = push_row(self._row(at.job), at.job, journal, self._report(at.job))
        self._stopped |= row.state is State.FAILED and not self._keep_going
        self._set(at.job, state=row.state, why=row.why, push=row.push)

    def _check_unchanged(self, at: Standing) -> None:
        inputs = self._prepared.inputs
        now = fingerprint(at.job, inputs.source(at.job), inputs.adapters(at.job))
        if told := difference(at.of, now):
            raise CheckpointError(f"{at.job.target}: {told} since the batch began; start it again")

    def _into_store(self, at: Standing, journal: Journal, report: Report) -> None:
        # What imports checkpoints computes with torch.
        from gpukit.recipes.store import Store

        job, options = at.job, at.job.options
        inputs, model = self._prepared.inputs, job.reference.model
        word = inputs.source(job) if isinstance(model, HubModel) else job.reference.word
        described = Modelfile(
            source=str(word), folder=self._prepared.read.folder,
            adapters=tuple(map(str, inputs.adapters(job))),
        )  # fmt: skip
        imatrix = options.imatrix or collected_file(job, inputs, report)
        journal.begun(at.of, self.rows[self._at[job.number]].size or 0, identity(job))
        Store().create(
            job.target, described, job.type, imatrix=imatrix, pre=options.pre,
            options=Options(mtp=options.mtp), converter=converter_of(options),
            merge=bool(described.adapters), provenance=options.provenance, device=options.device,
            memory=options.memory, report=report,
        )  # fmt: skip

    def _report(self, job: Job) -> Report:
        def report(event: Event) -> None:
            if isinstance(event, Warned) and is_there(self._prepared, job):
                note_event(self._prepared.read, job, event)
            self._watch(Told(max(self._begun, 1), self._count, self._row(job), event))

        return report

    def _row(self, job: Job) -> Row:
        return self.rows[self._at[job.number]]

    def _set(self, job: Job, **changes: object) -> None:
        row = replace(self._row(job), **changes)  # type: ignore[arg-type]
        self.rows[self._at[job.number]] = row
        if is_there(self._prepared, job):
            note_row(self._prepared.read, job, row)
        self._watch(Told(self._begun, self._count, row))


def _place(job: Job) -> Path:
    assert job.output is not None
    return job.output


def _planned(source: Source, job: Job, inputs: Inputs, report: Report) -> QuantizePlan:
    """What `source` becomes by a job, with the importance that is asked for, which is collected if
    it is not kept."""
    return planned(source, job, inputs, report, collected(job, inputs, report))


def _writing(source: Source, prepared: Prepared) -> Make:
    """Makes files of `source`, each whole or not at all."""
    read = prepared.read

    def make(at: Standing, journal: Journal, report: Report) -> None:
        plan = _planned(source, at.job, prepared.inputs, report)
        journal.begun(at.of, plan.size, identity(at.job))
        run_plan(
            source, plan, _place(at.job), device=at.job.options.device,
            budget=at.job.options.memory, report=report,
            resume=resumed(read, at) if is_resumed(at.job) else None,
        )  # fmt: skip

    return make


def _failing(error: GpukitError) -> Make:
    """Makes nothing: what is to be read cannot be opened."""

    def make(at: Standing, journal: Journal, report: Report) -> None:
        del report
        journal.begun(at.of, 0, identity(at.job))
        raise error

    return make
