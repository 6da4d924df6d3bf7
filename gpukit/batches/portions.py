"""A batch cut into what one worker makes at a time: the jobs that read the same."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from gpukit.batches.document import Document
from gpukit.batches.opening import gathered
from gpukit.batches.preparing import Prepared
from gpukit.batches.reading import ReadPlan
from gpukit.batches.shares import ANY_GPU
from gpukit.batches.states import Standing
from gpukit.version import VERSION


@dataclass(frozen=True)
class Portion:
    """A group of a batch as a batch of its own, small enough to be sent to another process;
    `version` is that of the gpukit that has looked at it. One that `measures` makes nothing: it
    evaluates results."""

    prepared: Prepared
    keep_going: bool
    version: str = VERSION
    measures: bool = False

    @property
    def standings(self) -> Sequence[Standing]:
        """The jobs to be made."""
        return self.prepared.standings

    @property
    def buffers(self) -> int:
        """Bytes of host memory that its buffers take at most."""
        return max(self.prepared.buffers.get(at.job.number, 0) for at in self.standings)

    def without(self, outputs: Collection[str]) -> "Portion | None":
        """What is left of it when those outputs are; None for nothing."""
        left = [at for at in self.standings if at.job.target not in outputs]
        if not left:
            return None
        return replace(self, prepared=_only(self.prepared, left))

    def on(self, device: str | None) -> "Portion":
        """The same with `device`, if any, for what may be on any GPU."""
        if device is None:
            return self
        moved = [_on(at, device) for at in self.standings]
        return replace(self, prepared=replace(self.prepared, standings=tuple(moved)))


def portions(prepared: Prepared, keep_going: bool) -> Iterator[Portion]:
    """A portion for each group of jobs that are left, in the plan's order."""
    left = {at.job.number: at for at in prepared.standings if at.state.is_left}
    for group in gathered([at.job for at in left.values()]):
        yield portion_of(prepared, [left[job.number] for job in group], keep_going)


def portion_of(
    prepared: Prepared, standings: Sequence[Standing], keep_going: bool, measures: bool = False
) -> Portion:
    """Those jobs of a batch as a portion."""
    read = prepared.read
    # What names lines of the file has done its work, and is as long as the file.
    bare = ReadPlan(Document(read.document.path.absolute(), None, {}), read.plan)
    inputs = prepared.inputs.of([at.job for at in standings])
    only = _only(replace(prepared, read=bare, inputs=inputs), standings)
    return Portion(only, keep_going, measures=measures)


def _only(prepared: Prepared, standings: Sequence[Standing]) -> Prepared:
    targets = {at.job.target for at in standings}
    rows = tuple(row for row in prepared.result.rows if row.output in targets)
    return replace(prepared, standings=tuple(standings), result=replace(prepared.result, rows=rows))


def _on(at: Standing, device: str) -> Standing:
    if at.job.options.device not in ANY_GPU:
        return at
    options = at.job.options.model_copy(update={"device": device})
    return replace(at, job=replace(at.job, options=options))
