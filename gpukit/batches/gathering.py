"""What several workers tell, put together as if one had told it."""

from collections.abc import Sequence
from dataclasses import replace

from gpukit.batches.portions import Portion
from gpukit.batches.preparing import Prepared
from gpukit.batches.result import Row, Told, Watch
from gpukit.batches.states import State
from gpukit.events import Event


class Gathered:
    """The rows of a batch while others make it, told to `watch` as they change. Jobs are numbered
    as they begin."""

    def __init__(
        self, prepared: Prepared, watch: Watch, before: int = 0, count: int | None = None
    ) -> None:
        """`count` jobs are heard of, else those that are left; so many were `before` them."""
        self.rows = list(prepared.result.rows)
        self.ended: set[str] = set()
        self._watch = watch
        self._at = {row.output: i for i, row in enumerate(self.rows)}
        self._before = before
        left = sum(at.state.is_left for at in prepared.standings)
        self._count = before + (left if count is None else count)
        self._numbers: dict[str, int] = {}

    @property
    def has_failed(self) -> bool:
        """Whether a job of this run has."""
        return any(_has_failed(self.row(output)) for output in self.ended)

    def row(self, output: str) -> Row:
        """The row of the job that makes `output`."""
        return self.rows[self._at[output]]

    def hear(self, told: Told) -> None:
        """Take up what a worker tells of one of its jobs."""
        self._tell(told.row, told.event)

    def set(self, output: str, **changes: object) -> None:
        """Note what became of a job whose worker cannot tell."""
        self._tell(replace(self.row(output), **changes), None)  # type: ignore[arg-type]

    def _tell(self, row: Row, event: Event | None) -> None:
        number = self._numbers.setdefault(row.output, self._before + len(self._numbers) + 1)
        if event is None:
            self.rows[self._at[row.output]] = row
            if not row.state.is_under_way:
                self.ended.add(row.output)
        self._watch(Told(number, self._count, self.row(row.output), event))

    def begun(self, portion: Portion) -> Sequence[str]:
        """The outputs of a portion that have begun and not ended."""
        outputs = (at.job.target for at in portion.standings)
        return [output for output in outputs if self.row(output).state.is_under_way]


def _has_failed(row: Row) -> bool:
    found = row.evaluation
    return row.state is State.FAILED or (found is not None and found["state"] == State.FAILED.value)
