"""Jobs whose sources llama.cpp's converter reads: how it is used, and what it cannot go with."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.batches.document import Place
from gpukit.batches.matching import matches
from gpukit.batches.reading import ReadPlan, overrides_of
from gpukit.errors import ArgumentError, GpukitError
from gpukit.formats.paths import expanded
from gpukit.recipes.bridge import bridge
from gpukit.sources.base import Source
from gpukit.sources.converter import ConverterSource
from gpukit.sources.converter_process import Converter

if TYPE_CHECKING:
    from gpukit.batches.schema import JobOptions

# What source, adapter and type of a job are called.
Names = tuple[str, str, str]


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
    how = converter_of(options)
    return bridge(how, (type,), overrides=overrides_of(options)) if how is not None else None


def placed(read: ReadPlan, names: Names, options: "JobOptions") -> "JobOptions":
    """The `options` of the job of `names` with the converter's paths from the plan's folder on.
    `ArgumentError`, with file and line, for a checkout that is none and for arguments that make no
    sense."""
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
        raise read.document.fault(_place(read, names), str(error)) from None
    return options


def check(
    read: ReadPlan, names: Names, options: "JobOptions", *, adapters: bool, calibrate: bool
) -> None:
    """`ArgumentError`, with file and line, for what of the job of `names` a converter cannot go
    with."""
    how = converter_of(options)
    try:
        bridge(how, (), pre=options.pre, mtp=options.mtp, adapters=adapters, calibrate=calibrate)
    except ArgumentError as error:
        source, adapter, kind = names
        told = f"{source} with {adapter} as {kind}: {error}"
        raise read.document.fault(_place(read, names), told) from None


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


def _place(read: ReadPlan, names: Names) -> Place:
    """Where a plan names the converter of the job of `names`."""
    found: Place = ("options", "converter")
    for i, rule in enumerate(read.plan.overrides):
        if "converter" in rule.options.model_fields_set and matches(rule.match, *names):
            found = ("overrides", i, "options", "converter")
    return found
