"""The jobs that a plan means: sources x adapters x types, with their names, places and options."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gpukit.batches import foreign
from gpukit.batches.document import Place
from gpukit.batches.entries import NONE, Input, adapters_of, checked, sources_of
from gpukit.batches.matching import matches
from gpukit.batches.reading import ReadPlan
from gpukit.batches.targets import check_targets, target_of
from gpukit.errors import ArgumentError, GpukitError
from gpukit.formats.paths import expanded
from gpukit.recipes.references import Reference, locate
from gpukit.store.names import ModelName
from gpukit.store.store import Store

if TYPE_CHECKING:
    from gpukit.batches.schema import (
        Calibrate,
        Evaluate,
        JobOptions,
        Matrix,
        Push,
    )
    from gpukit.batches.schema_entries import Type

# These have no use for importance.
FLOATS = ("F32", "F16", "BF16")
# What a divergence is from, where no other model is named.
SOURCE = "source"


@dataclass(frozen=True)
class Job:
    """One result to be made: `source` with `adapter` as `wanted`, which is called `type`, at the
    path `output` or in the store under the name `stored`. `group` numbers the sources, from 0 on.
    """

    number: int
    group: int
    source: Input
    adapter: Input
    type: str
    wanted: "Type"
    options: "JobOptions"
    output: Path | None = None
    stored: ModelName | None = None
    place: Place = field(default=(), compare=False)
    evaluate: "Evaluate | None" = None
    calibrate: "Calibrate | None" = None
    kept: Path = field(default=Path(), compare=False)
    push: "Push | None" = None

    @property
    def is_split(self) -> bool:
        """Whether the result may be several files."""
        return self.options.split_max_size is not None or self.options.keep_split

    @property
    def target(self) -> str:
        """The result as a user names it."""
        return str(self.output) if self.stored is None else self.stored.display

    @property
    def reference(self) -> Reference:
        """What the source's word means."""
        assert self.source.source is not None
        return self.source.source


def expand(read: ReadPlan) -> tuple[list[Job], list[str]]:
    """Every job of a plan in order, and lines for the user. Nothing but names is looked at.

    `ArgumentError` and NotFoundError, with file and line, for what is not there and for results
    that would be in one place.
    """
    jobs: list[Job] = []
    groups: dict[str, int] = {}
    used: set[int] = set()
    for place, source, adapter, wanted in _combinations(read, used):
        group = groups.setdefault(str(source.source), len(groups))
        kind = wanted.called
        options = _options(read, source, adapter, kind)
        output, stored = _target(read, source.name, adapter.name, kind)
        wanted = _placed(read, place, source, adapter, wanted)
        jobs.append(
            Job(len(jobs) + 1, group, source, adapter, kind, wanted, options, output, stored, place,
                _evaluate(read, source.name, adapter.name, kind),
                _calibrate(read, (source.name, adapter.name, kind), options, wanted), read.kept,
                target_of(read, (source.name, adapter.name, kind), in_store=stored is not None))
        )  # fmt: skip
    if not jobs:
        raise read.document.fault(("exclude",), "nothing is left of the matrix; exclude less")
    _check_different(read, jobs)
    for job in jobs:
        names, adapters = (job.source.name, job.adapter.name, job.type), bool(job.adapter.adapters)
        heard = job.calibrate is not None
        foreign.check(read, names, job.options, adapters=adapters, calibrate=heard)
    check_targets(read, [(job.push, job.target) for job in jobs])
    return jobs, [*_idle(read, jobs, used), *foreign.told((j.source.name, j.options) for j in jobs)]


def _combinations(read: ReadPlan, used: set[int]) -> Iterator[tuple[Place, Input, Input, "Type"]]:
    """Of each combination: where it stands, source, adapter, type. `used` gets the numbers of
    `exclude` that leave something out."""
    matrices: list[tuple[Place, Matrix]] = [((), read.plan)]
    matrices += [(("include", i), more) for i, more in enumerate(read.plan.include)]
    for at, matrix in matrices:
        sources = [s for i, e in enumerate(matrix.sources)
                   for s in sources_of(read, (*at, "sources", i), e)]  # fmt: skip
        adapters = [(i, a) for i, e in enumerate(matrix.adapters)
                    for a in adapters_of(read, (*at, "adapters", i), e)]  # fmt: skip
        for place, source in sources:
            for _, adapter in adapters:
                for wanted in matrix.types:
                    names = (source.name, adapter.name, wanted.called)
                    rules = () if at else read.plan.exclude
                    out = [i for i, match in enumerate(rules) if matches(match, *names)]
                    used.update(out)
                    if not out:
                        yield place, source, adapter, wanted


def _idle(read: ReadPlan, jobs: Sequence[Job], used: set[int]) -> Iterator[str]:
    """A line for each rule that no job comes under."""
    for i in range(len(read.plan.exclude)):
        if i not in used:
            yield f"{read.document.where(('exclude', i))}: excludes nothing"
    for i, rule in enumerate(read.plan.overrides):
        if not any(matches(rule.match, j.source.name, j.adapter.name, j.type) for j in jobs):
            yield f"{read.document.where(('overrides', i))}: matches no job"


def _options(read: ReadPlan, source: Input, adapter: Input, kind: str) -> "JobOptions":
    """The options of a job: those of the plan, and over them those of what matches; paths from the
    plan's folder on."""
    found = read.plan.options
    for rule in read.plan.overrides:
        if matches(rule.match, source.name, adapter.name, kind):
            over = {name: getattr(rule.options, name) for name in rule.options.model_fields_set}
            found = found.model_copy(update=over)
    paths: dict[str, str] = {}
    if found.imatrix is not None:
        named = found.imatrix.format(source=source.name, adapter=adapter.name, type=kind)
        paths["imatrix"] = str(read.folder / expanded(named))
    if found.tensor_type_file is not None:
        paths["tensor_type_file"] = str(read.folder / expanded(found.tensor_type_file))
    for name, path in paths.items():
        if not os.path.exists(path):
            raise read.document.fault(("options", name), f"{path}: no such file")
    return foreign.placed(read, (source.name, adapter.name, kind), found.model_copy(update=paths))


def _wish(read: ReadPlan, key: str, names: tuple[str, str, str]) -> tuple[Any, Place]:
    """What a job is told under `key`: the plan's, and over it that of what matches, with the text's
    path from the plan's folder on; and where that stands. None for nothing."""
    found = getattr(read.plan, key)
    place: Place = (key,)
    for i, rule in enumerate(read.plan.overrides):
        wish = getattr(rule, key)
        if wish is None or not matches(rule.match, *names):
            continue
        place = ("overrides", i, key)
        if wish is False or found is None:
            found = wish or None
        else:
            over = {name: getattr(wish, name) for name in wish.model_fields_set}
            found = found.model_copy(update=over)
    if found is None:
        return None, place
    if found.text is None:
        raise read.document.fault(place, f"'text' is missing in {key}: a file of text")
    text = read.folder / expanded(found.text)
    if not text.is_file():
        raise read.document.fault((*place, "text"), f"{text}: no such file")
    return found.model_copy(update={"text": str(text)}), place


def _calibrate(
    read: ReadPlan, names: tuple[str, str, str], options: "JobOptions", wanted: "Type"
) -> "Calibrate | None":
    """What a job's source reads first; None for nothing, for floats, and where an importance matrix
    is named."""
    if wanted.type in FLOATS or options.imatrix is not None:
        return None
    found, place = _wish(read, "calibrate", names)
    if found is not None and (options.combine is not None or options.merge_base != "full"):
        raise read.document.fault(
            place, "what is heard is with adapters beside the weights; with combine or merge_base "
            "name an importance matrix of the merged model",
        )  # fmt: skip
    return cast("Calibrate | None", found)


def _evaluate(read: ReadPlan, source: str, adapter: str, kind: str) -> "Evaluate | None":
    """What a job's result is measured by, with paths from the plan's folder on; None for
    nothing."""
    found, place = _wish(read, "evaluate", (source, adapter, kind))
    if found is None:
        return None
    paths = {}
    if found.against is not None and found.against != SOURCE:
        there = read.folder / expanded(found.against)
        if not there.exists():
            _reference(read, (*place, "against"), found.against)
        paths["against"] = str(there) if there.exists() else found.against
    return cast("Evaluate", found.model_copy(update=paths))


def _reference(read: ReadPlan, place: Place, word: str) -> None:
    """The errors of `locate`, with the line."""
    try:
        locate(word, folder=read.folder)
    except GpukitError as error:
        raise type(error)(f"{read.document.where(place)}: {error}") from None


def _placed(read: ReadPlan, place: Place, source: Input, adapter: Input, wanted: "Type") -> "Type":
    """`wanted` with the path of the GGUF whose types are taken, from the plan's folder on."""
    checked(read, place, wanted.called)
    if wanted.like is None:
        return wanted
    path = read.folder / expanded(wanted.like.format(source=source.name, adapter=adapter.name))
    if not path.exists():
        raise read.document.fault((*place[:-2], "types"), f"like: {path}: no such file")
    return wanted.model_copy(update={"like": str(path)})


def _target(
    read: ReadPlan, source: str, adapter: str, kind: str
) -> tuple[Path | None, ModelName | None]:
    """Where a result goes: a path, or a name in the store."""
    plan = read.plan
    if plan.store is False:
        assert plan.output is not None
        pattern = str(expanded(plan.output))
        path = read.folder / pattern.format(source=source, adapter=adapter, type=kind)
        return Path(os.path.normpath(path)), None
    pattern = plan.output or ("{source}:{type}" if adapter == NONE else "{source}-{adapter}:{type}")
    name = pattern.format(source=source, adapter=adapter.replace("+", "-"), type=kind)
    prefix = plan.store if isinstance(plan.store, str) else ""
    try:
        return None, Store().find(prefix + name)
    except ArgumentError as error:
        raise read.document.fault(("output",) if plan.output else ("store",), str(error)) from None


def _check_different(read: ReadPlan, jobs: Sequence[Job]) -> None:
    """`ArgumentError` for two jobs with one result, and for a result over something that is
    read."""
    seen: dict[str, Job] = {}
    for job in jobs:
        # Names of the store are one in any case.
        key = job.target if job.stored is None else job.target.lower()
        if (other := seen.get(key)) is not None:
            what = " and ".join(f"{j.source.name} with {j.adapter.name} as {j.type}"
                                for j in (other, job))  # fmt: skip
            raise read.document.fault(
                ("output",), f"{job.target} would be the result of {what}; tell them apart by "
                "{source}, {adapter} and {type}, or name them",
            )  # fmt: skip
        seen[key] = job
    inputs = {os.path.realpath(path) for job in jobs for path in _inputs(job)}
    for job in jobs:
        if job.output is not None and os.path.realpath(job.output) in inputs:
            raise read.document.fault(
                ("output",), f"{job.output} is read by this plan; write to another name"
            )


def _inputs(job: Job) -> Iterator[Path | str]:
    if isinstance(job.reference.model, Path):
        yield job.reference.model
    yield from (path for path, _ in job.adapter.adapters if isinstance(path, Path))
    yield from filter(None, (job.options.imatrix, job.options.tensor_type_file, job.wanted.like))
