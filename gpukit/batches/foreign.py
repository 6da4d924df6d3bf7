"""Jobs whose sources llama.cpp's converter reads: how it is used, and what it cannot go with."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.batches.document import Place
from gpukit.batches.reading import ReadPlan, overrides_of
from gpukit.errors import ArgumentError, GpukitError
from gpukit.formats.paths import expanded
from gpukit.recipes.bridge import bridge
from gpukit.sources.base import Source
from gpukit.sources.converter import ConverterSource
from gpukit.sources.converter_process import Converter

if TYPE_CHECKING:
    from gpukit.batches.schema import JobOptions


def converter_of(options: "JobOptions") -> Converter | None:
    """The converter that options name; None for none."""
    found = options.converter
    if found is None:
        return None
    python = Path(found.python) if found.python is not None else None
    return Converter(Path(found.path), found.arguments, python, found.trust_remote_code)


def bridge_of(options: "JobOptions", type: str | None) -> Converter | None:
    """The same as a job of `type` uses it: alone, so that its bytes do not depend on what is made
    beside it."""
    return bridge(converter_of(options), (type,), overrides=overrides_of(options))


def placed(read: ReadPlan, options: "JobOptions") -> "JobOptions":
    """`options` with the converter's paths from the plan's folder on. `ArgumentError`, with file
    and line, for a checkout that is none and for arguments that make no sense."""
    found = options.converter
    if found is None:
        return options
    paths = {"path": str(read.folder / expanded(found.path))}
    if found.python is not None and "/" in found.python:
        paths["python"] = str(read.folder / expanded(found.python))
    options = options.model_copy(update={"converter": found.model_copy(update=paths)})
    how = converter_of(options)
    assert how is not None
    try:
        how.check()
    except GpukitError as error:
        raise read.document.fault(_place(read), str(error)) from None
    return options


def check(
    read: ReadPlan, who: str, options: "JobOptions", *, adapters: bool, calibrate: bool
) -> None:
    """`ArgumentError`, with file and line, for what of the job `who` a converter cannot go with."""
    how = converter_of(options)
    try:
        bridge(how, (), pre=options.pre, adapters=adapters, calibrate=calibrate)
    except ArgumentError as error:
        raise read.document.fault(_place(read), f"{who}: {error}") from None


def check_evaluated(source: Source, result: str) -> None:
    """`ArgumentError` where `result`, which is to be measured, is no model that gpukit can run."""
    if isinstance(source, ConverterSource) and not source.is_known:
        raise ArgumentError(
            f"{result}: gpukit cannot run architecture {source.architecture!r}, so this cannot be "
            "measured; leave it out, with `evaluate: false` in `overrides`"
        )


def told(jobs: Iterable[tuple[str, "JobOptions"]]) -> Iterator[str]:
    """A line for each checkout whose code is run, from the names of sources and their options."""
    sources: dict[Path, dict[str, None]] = {}
    for name, options in jobs:
        if (how := converter_of(options)) is not None:
            sources.setdefault(how.tree, {})[name] = None
    for tree, names in sources.items():
        first, *rest = names
        more = f" and {len(rest)} more" if rest else ""
        yield f"{first}{more}: planned by llama.cpp's converter in {tree}; its code is run"


def _place(read: ReadPlan) -> Place:
    """Where a plan names a converter: the first place."""
    places: list[Place] = [("options", "converter")]
    rules = range(len(read.plan.overrides))
    places += [("overrides", i, "options", "converter") for i in rules]
    return next(place for place in places if place in read.document.lines)
