"""The jobs that are left, one after the other."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from gpukit.batches.fingerprint import difference, fingerprint
from gpukit.batches.journal import Journal
from gpukit.batches.matrix import Job
from gpukit.batches.opening import opened, planned, together
from gpukit.batches.preparing import Prepared
from gpukit.batches.result import Row, Told, Watch
from gpukit.batches.states import Standing, State, identity, journal_path, result_size
from gpukit.conversion.run import run_plan
from gpukit.errors import CheckpointError, GpukitError
from gpukit.events import Event, Report
from gpukit.formats.atomic import disk_errors
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
        for run in together([at.job for at in left.values()]):
            if self._stopped:
                return
            self._together([left[job.number] for job in run])

    def _together(self, run: Sequence[Standing]) -> None:
        """Make what reads the same, from one opening."""
        if run[0].job.stored is not None:
            for at in run:
                self._one(at, self._into_store)
            return
        with ExitStack() as stack:
            first = run[0].job
            try:
                source = opened(first, self._prepared.inputs, self._report(first))
                make = _writing(stack.enter_context(source))
            except GpukitError as error:
                make = _failing(error)
            for at in run:
                self._one(at, make)

    def _one(self, at: Standing, make: Make) -> None:
        """Make one result, and tell how that went."""
        if self._stopped:
            return
        self._begun += 1
        self._set(at.job, state=State.RUNNING, why="")
        started = time.monotonic()
        try:
            self._check_unchanged(at)
            path = journal_path(self._prepared.read, at.job)
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            with Journal(path, at.job.target) as journal:
                self._made(at, journal, make, started)
        except GpukitError as error:
            self._stopped = not self._keep_going
            self._set(at.job, state=State.FAILED, why=str(error),
                      seconds=time.monotonic() - started)  # fmt: skip

    def _made(self, at: Standing, journal: Journal, make: Make, started: float) -> None:
        try:
            make(at, journal, self._report(at.job))
        except GpukitError as error:
            journal.failed(str(error))
            raise
        there = identity(at.job)
        assert there is not None
        seconds = time.monotonic() - started
        journal.done(there[0], there[1], seconds)
        size = result_size(at.job)
        self._set(at.job, state=State.DONE, size=size, seconds=seconds, made=True)

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
        journal.begun(at.of, self.rows[self._at[job.number]].size or 0, identity(job))
        Store().create(
            job.target, described, job.type, imatrix=options.imatrix, pre=options.pre,
            merge=bool(described.adapters), device=options.device, memory=options.memory,
            report=report,
        )  # fmt: skip

    def _report(self, job: Job) -> Report:
        def report(event: Event) -> None:
            self._watch(Told(max(self._begun, 1), self._count, self._row(job), event))

        return report

    def _row(self, job: Job) -> Row:
        return self.rows[self._at[job.number]]

    def _set(self, job: Job, **changes: object) -> None:
        row = replace(self._row(job), **changes)  # type: ignore[arg-type]
        self.rows[self._at[job.number]] = row
        self._watch(Told(self._begun, self._count, row))


def _writing(source: Source) -> Make:
    """Makes files of `source`, each whole or not at all."""

    def make(at: Standing, journal: Journal, report: Report) -> None:
        assert at.job.output is not None
        plan = planned(source, at.job, report)
        journal.begun(at.of, plan.size, identity(at.job))
        run_plan(
            source, plan, at.job.output, device=at.job.options.device,
            budget=at.job.options.memory, report=report,
        )  # fmt: skip

    return make


def _failing(error: GpukitError) -> Make:
    """Makes nothing: what is to be read cannot be opened."""

    def make(at: Standing, journal: Journal, report: Report) -> None:
        del report
        journal.begun(at.of, 0, identity(at.job))
        raise error

    return make
