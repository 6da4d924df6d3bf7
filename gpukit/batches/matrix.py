"""The jobs that a plan means: sources x adapters x types, with their names, places and options."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.batches.document import Place
from gpukit.batches.journal import journal_of
from gpukit.batches.reading import ReadPlan
from gpukit.errors import ArgumentError, GpukitError, NotFoundError
from gpukit.formats.folder import file_names, has_weights, model_name
from gpukit.formats.gguf_split import part_of
from gpukit.formats.paths import expanded
from gpukit.recipes.chosen import split_weight
from gpukit.recipes.references import Reference, locate, locate_adapter
from gpukit.remote.hub import HubModel
from gpukit.store.names import ModelName
from gpukit.store.store import Store

if TYPE_CHECKING:
    from gpukit.batches.schema import Adapter, JobOptions, Match, Matrix, Source

ADAPTER_FILES = ("adapter_config.json", "adapters.safetensors", "adapter_model.safetensors")
NONE = "none"


@dataclass(frozen=True)
class Input:
    """A model and what it is called, or adapters merged together, each with its weight."""

    name: str
    source: Reference | None = None
    adapters: tuple[tuple[Path | HubModel, float], ...] = ()


@dataclass(frozen=True)
class Job:
    """One result to be made: `source` with `adapter` as file type `type`, at the path `output` or
    in the store under the name `stored`. `group` numbers the sources, from 0 on."""

    number: int
    group: int
    source: Input
    adapter: Input
    type: str
    options: "JobOptions"
    output: Path | None = None
    stored: ModelName | None = None
    place: Place = field(default=(), compare=False)

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
    for place, source, adapter, kind in _combinations(read, used):
        group = groups.setdefault(str(source.source), len(groups))
        options = _options(read, source, adapter, kind)
        output, stored = _target(read, source.name, adapter.name, kind)
        jobs.append(
            Job(len(jobs) + 1, group, source, adapter, kind, options, output, stored, place)
        )
    if not jobs:
        raise read.document.fault(("exclude",), "nothing is left of the matrix; exclude less")
    _check_different(read, jobs)
    return jobs, list(_idle(read, jobs, used))


def _combinations(read: ReadPlan, used: set[int]) -> Iterator[tuple[Place, Input, Input, str]]:
    """Of each combination: where it stands, source, adapter, type. `used` gets the numbers of
    `exclude` that leave something out."""
    matrices: list[tuple[Place, Matrix]] = [((), read.plan)]
    matrices += [(("include", i), more) for i, more in enumerate(read.plan.include)]
    for at, matrix in matrices:
        sources = [s for i, e in enumerate(matrix.sources)
                   for s in _sources(read, (*at, "sources", i), e)]  # fmt: skip
        adapters = [(i, a) for i, e in enumerate(matrix.adapters)
                    for a in _adapters(read, (*at, "adapters", i), e)]  # fmt: skip
        for place, source in sources:
            for _, adapter in adapters:
                for kind in matrix.types:
                    names = (source.name, adapter.name, kind)
                    rules = () if at else read.plan.exclude
                    out = [i for i, match in enumerate(rules) if matches(match, *names)]
                    used.update(out)
                    if not out:
                        yield place, source, adapter, kind


def matches(match: "Match", source: str, adapter: str, kind: str) -> bool:
    """Whether a combination is among those that `match` means."""
    pairs = ((match.source, source), (match.adapter, adapter), (match.type, kind))
    return all(
        any(fnmatchcase(word.lower(), pattern.lower()) for pattern in patterns)
        for patterns, word in pairs
    )


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
    return found.model_copy(update=paths)


def _sources(read: ReadPlan, place: Place, entry: "Source") -> list[tuple[Place, Input]]:
    """The models that an entry of `sources` means, by name."""
    words: list[str | Path] = [entry.path]
    if _is_glob(read, entry.path):
        words = list(_matching_models(read, entry.path))
        if not words:
            raise read.document.fault(place, f"{entry.path}: no model matches, neither among paths "
                                      f"from {read.folder} on nor in the store")  # fmt: skip
    if entry.name is not None and len(words) > 1:
        raise read.document.fault(
            place, f"{entry.path}: {len(words)} models match; one name is for one model"
        )
    found = []
    for word in words:
        try:
            reference = locate(word, folder=read.folder)
        except (NotFoundError, ArgumentError) as error:
            raise type(error)(f"{read.document.where(place)}: {error}") from None
        name = entry.name or _name_of(reference.model)
        found.append((place, Input(_checked(read, place, name), reference)))
    return found


def _adapters(read: ReadPlan, place: Place, entry: "Adapter") -> list[Input]:
    """What an entry of `adapters` means: one thing to merge, or of a glob one for each match."""
    if len(entry.paths) == 1 and _is_glob(read, entry.paths[0]):
        path, weight = split_weight(entry.paths[0])
        matched = [p for p in _matching_paths(read, str(path)) if _is_adapter(p)]
        if not matched or entry.name is not None:
            raise read.document.fault(place, f"{path}: {len(matched)} adapters match; name them"
                                      if entry.name else f"{path}: no adapter matches")  # fmt: skip
        return [_together(read, place, [(p, weight)], None) for p in matched]
    parts: list[tuple[Path | HubModel, float]] = []
    for word in entry.paths:
        bare, weight = (word, 1.0) if (read.folder / word).exists() else split_weight(word)
        try:
            parts.append((locate_adapter(bare, folder=read.folder), weight))
        except GpukitError as error:
            raise type(error)(f"{read.document.where(place)}: {error}") from None
    return [_together(read, place, parts, entry.name)]


def _together(
    read: ReadPlan, place: Place, parts: list[tuple[Path | HubModel, float]], name: str | None
) -> Input:
    names = [_name_of(part) + (f"-{weight:g}" if weight != 1 else "") for part, weight in parts]
    name = name or "+".join(names) or NONE
    return Input(_checked(read, place, name), adapters=tuple(parts))


def _is_glob(read: ReadPlan, word: str) -> bool:
    return glob.has_magic(word) and not (read.folder / word).exists()


def _matching_paths(read: ReadPlan, pattern: str) -> list[Path]:
    return sorted(map(Path, glob.glob(str(read.folder / expanded(pattern)))))


def _matching_models(read: ReadPlan, pattern: str) -> Iterable[str | Path]:
    """The paths of models that match, else the names in the store that do."""
    paths = [path for path in _matching_paths(read, pattern) if _is_model(path)]
    if paths:
        return paths
    names = [name.display for name in Store().names()]
    return [name for name in names if fnmatchcase(name.lower(), pattern.lower())]


def _is_model(path: Path) -> bool:
    """Whether a path that matches is a model; what a batch has made of one is none."""
    if path.is_dir():
        return (path / "config.json").exists() and has_weights(path)
    part = part_of(path.name)
    first = part is None or part[1] == 1
    return path.suffix == ".gguf" and first and not journal_of(path).exists()


def _is_adapter(path: Path) -> bool:
    if path.is_dir():
        return bool({*ADAPTER_FILES} & {*file_names(path)})
    return path.suffix == ".gguf"


def _name_of(model: Path | ModelName | HubModel) -> str:
    """What stands in the names of results for a model or an adapter."""
    if isinstance(model, ModelName):
        return model.display.removesuffix(":latest").replace("/", "-").replace(":", "-")
    if isinstance(model, HubModel):
        return Path(model.file).stem if model.file else model.repo.rpartition("/")[2]
    if model.is_dir():
        return model_name(model)
    part = part_of(model.name)
    return part[0] if part else model.stem


def _checked(read: ReadPlan, place: Place, name: str) -> str:
    if "/" in name or "\0" in name or name in (".", ".."):
        raise read.document.fault(place, f"{name!r} is no name; leave / out")
    return name


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
    yield from filter(None, (job.options.imatrix, job.options.tensor_type_file))
