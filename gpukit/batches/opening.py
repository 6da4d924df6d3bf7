"""What jobs read: fetched once, and opened once for all types that are made of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from gpukit.batches.matrix import Job
from gpukit.batches.reading import combining
from gpukit.conversion.within import plan_within
from gpukit.events import Report
from gpukit.formats.imatrix import read_imatrix
from gpukit.planning.overrides import make_overrides, read_patterns
from gpukit.planning.plan import Options, QuantizePlan
from gpukit.recipes.chosen import chosen
from gpukit.recipes.references import fetched_adapter
from gpukit.remote.hub import HubModel
from gpukit.sources.base import Source
from gpukit.sources.opening import open_source


class Inputs:
    """Where models and adapters are on this machine, each fetched once; errors as
    `Reference.fetch`."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._sources: dict[str, Path] = {}
        self._adapters: dict[HubModel, Path] = {}

    def source(self, job: Job) -> Path:
        """The file or folder of a job's model."""
        key = str(job.reference.model)
        if key not in self._sources:
            self._sources[key] = job.reference.fetch(self._report)
        return self._sources[key]

    def adapters(self, job: Job) -> list[Path]:
        """The files or folders of a job's adapters."""
        return [self._adapter(place) for place, _ in job.adapter.adapters]

    def _adapter(self, place: Path | HubModel) -> Path:
        if isinstance(place, Path):
            return place
        if place not in self._adapters:
            self._adapters[place] = fetched_adapter(place, self._report)
        return self._adapters[place]


def together(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Runs of jobs that read the same in the same way: one opening, and one day one reading, does
    for all of them."""
    for _, run in groupby(jobs, key=_read_by):
        yield list(run)


def _read_by(job: Job) -> object:
    o = job.options
    way = (o.pre, o.strict, o.moe_layout, o.merge_base, o.combine)
    return (job.stored is None, str(job.reference.model), job.adapter.adapters, way)


@contextmanager
def opened(job: Job, inputs: Inputs, report: Report) -> Iterator[Source]:
    """The model of a job with its adapters; the errors of `gpukit.plan`."""
    weights = [weight for _, weight in job.adapter.adapters]
    merge = chosen(
        [*zip(inputs.adapters(job), weights, strict=True)],
        combine=combining(job.options), merge_base=job.options.merge_base,
        strict=job.options.strict, moe_layout=job.options.moe_layout, report=report,
    )  # fmt: skip
    with open_source(inputs.source(job), job.options.pre, merge) as source:
        yield source


def planned(source: Source, job: Job, report: Report) -> QuantizePlan:
    """What `source` becomes by a job, as `gpukit.plan` plans it."""
    o = job.options
    patterns = [*o.tensor_types]
    if o.tensor_type_file is not None:
        patterns += read_patterns(Path(o.tensor_type_file))
    options = Options(
        overrides=make_overrides(
            patterns, pure=o.pure, leave_output=o.leave_output_tensor,
            output_type=o.output_tensor_type, embedding_type=o.token_embedding_type,
        ),
        imatrix=read_imatrix(Path(o.imatrix)) if o.imatrix is not None else None,
        allow_requantize=o.allow_requantize,
    )  # fmt: skip
    return plan_within(source, job.type, options, o.device, report)
