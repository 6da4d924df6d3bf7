"""What jobs read: fetched once, and opened once for all types that are made of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpukit.batches.foreign import bridge_of
from gpukit.batches.matrix import Job
from gpukit.batches.reading import combining, overrides_of
from gpukit.conversion.within import Losses, Measured, plan_within
from gpukit.events import Report, ignore
from gpukit.formats.imatrix import Imatrix, read_imatrix
from gpukit.planning.plan import Options, QuantizePlan
from gpukit.planning.provenance import Recipe, has_provenance, with_provenance
from gpukit.planning.targets import Candidate
from gpukit.recipes.chosen import chosen
from gpukit.recipes.references import fetched_adapter
from gpukit.remote.hub import HubModel
from gpukit.sources.base import Source
from gpukit.sources.opening import open_source
from gpukit_kernels.devices import Device

if TYPE_CHECKING:
    from gpukit.sources.merged import Merge


class Inputs:
    """Where models and adapters are on this machine, each fetched once; errors as
    `Reference.fetch`."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._sources: dict[str, Path] = {}
        self._adapters: dict[HubModel, Path] = {}
        self._losses: dict[tuple[str, object, object, str], Losses] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: all places, but nobody to report to."""
        return {**self.__dict__, "_report": ignore}

    def source(self, job: Job) -> Path:
        """The file or folder of a job's model."""
        key = str(job.reference.model)
        if key not in self._sources:
            self._sources[key] = job.reference.fetch(self._report)
        return self._sources[key]

    def of(self, jobs: Sequence[Job]) -> "Inputs":
        """The same with what is known of weights only for `jobs`: for another process."""
        models, found = {_model(job) for job in jobs}, copy(self)
        found._losses = {k: losses for k, losses in self._losses.items() if k[0] in models}
        return found

    def measured(self, job: Job) -> Measured:
        """What the tensors of a job's source lose as other types: looked at once, by who asks
        first, for all jobs that read the same with the same importance."""

        def measured(
            source: Source, tensors: Sequence[Candidate], device: Device, report: Report
        ) -> Losses:
            key = (_model(job), job.adapter.adapters, _way(job), _digest(tensors))
            if key not in self._losses:
                # What measures computes with torch.
                from gpukit.conversion.sensitivity import measure

                self._losses[key] = measure(source, tensors, device, report)
            return self._losses[key]

        return measured

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
    """Runs of jobs that read the same in the same way: one opening does for all of them."""
    for _, run in groupby(jobs, key=_read_by):
        yield list(run)


def gathered(jobs: Sequence[Job]) -> list[list[Job]]:
    """All jobs that read the same in the same way, wherever they stand among `jobs`: one pass makes
    them."""
    found: dict[object, list[Job]] = {}
    for job in jobs:
        found.setdefault(_read_by(job), []).append(job)
    return list(found.values())


def _read_by(job: Job) -> object:
    way = (_way(job), job.options.device, job.options.memory)
    return (job.stored is None, str(job.reference.model), job.adapter.adapters, way)


def _model(job: Job) -> str:
    return str(job.reference.model)


def _way(job: Job) -> object:
    """What besides the model and the adapters decides which values are read."""
    o = job.options
    how = bridge_of(o, job.wanted.type)
    return (o.pre, o.mtp, how, o.strict, o.moe_layout, o.merge_base, o.combine)


def _digest(tensors: Sequence[Candidate]) -> str:
    """What tells tensors, the types that they may have, and the importance of their columns from
    others."""
    found = sha256()
    for tensor in tensors:
        columns = b"" if tensor.importance is None else tensor.importance.tobytes()
        found.update(f"{tensor.index} {tensor.types} {len(columns)} ".encode() + columns)
    return found.hexdigest()


@contextmanager
def opened(job: Job, inputs: Inputs, report: Report) -> Iterator[Source]:
    """The model of a job with its adapters; the errors of `gpukit.plan`."""
    merge = merge_of(job, inputs, report)
    how = bridge_of(job.options, job.wanted.type)
    with open_source(inputs.source(job), job.options.pre, merge, how, job.options.mtp) as source:
        yield source


def merge_of(job: Job, inputs: Inputs, report: Report) -> "Merge | None":
    """What is merged on a job's way; None for nothing."""
    weights = [weight for _, weight in job.adapter.adapters]
    return chosen(
        [*zip(inputs.adapters(job), weights, strict=True)],
        combine=combining(job.options), merge_base=job.options.merge_base,
        strict=job.options.strict, moe_layout=job.options.moe_layout, report=report,
    )  # fmt: skip


def planned(
    source: Source, job: Job, inputs: Inputs, report: Report, importance: Imatrix | None = None
) -> QuantizePlan:
    """What `source`, which `opened` has given, becomes by a job, as `gpukit.plan` plans it, with
    the `importance` that was collected for it."""
    options, fields = _options(job), source.fields
    if importance is not None:
        options = replace(options, imatrix=importance)
    try:
        if job.options.provenance or has_provenance(fields):
            recipe = Recipe(
                job.wanted.type, options, job.options.pre, merge_of(job, inputs, ignore),
                bridge_of(job.options, job.wanted.type),
            )  # fmt: skip
            source.fields = with_provenance(source, recipe)
        return plan_within(
            source, job.wanted.type, options, job.options.device, report, inputs.measured(job)
        )
    finally:
        source.fields = fields  # the next job of it has a recipe of its own


def _options(job: Job) -> Options:
    """What a job asks for besides a file type; the errors of `Options` and of the files."""
    o = job.options
    return Options(
        overrides=overrides_of(o),
        imatrix=read_imatrix(Path(o.imatrix)) if o.imatrix is not None else None,
        allow_requantize=o.allow_requantize,
        keep_split=o.keep_split,
        split_max_size=o.split_max_size,
        target_bpw=job.wanted.target_bpw,
        target_size=job.wanted.target_size,
        like=Path(job.wanted.like) if job.wanted.like is not None else None,
        mtp=o.mtp,
    )  # fmt: skip
