"""--types and --out of the commands that make many files of one reading."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpukit_cli.progress import reporter
from gpukit_cli.results import print_plans, print_results

if TYPE_CHECKING:
    from gpukit import Plans, Report, Result

Types = Annotated[
    str | None,
    typer.Option(
        "--types",
        metavar="TYPE,TYPE,…",
        help="Several file types from one reading of IN, each a file; {type} in OUT becomes its "
        "name.",
        show_default="none",
    ),
]
OutPattern = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="OUT",
        help="With --types: OUT as an option, as model-{type}.gguf.",
        show_default="none",
    ),
]


def asked(
    command: str, types: str | None, out: Path | None, pattern: Path | None, **instead: object
) -> tuple[list[str], Path]:
    """The types of --types, none without it, and what is to be written; `instead` are options that
    are not for several types, by name.

    `ArgumentError` for what is missing, stands twice or does not go together.
    """
    from gpukit.errors import ArgumentError

    kinds = [kind.strip() for kind in (types or "").split(",") if kind.strip()]
    if types is not None and not kinds:
        raise ArgumentError("--types names no type; give some, as in --types Q4_K_M,Q8_0")
    if out is not None and pattern is not None:
        raise ArgumentError(f"{out} and --out {pattern} are both OUT; give one")
    if pattern is not None and not kinds:
        raise ArgumentError(f"--out is for --types; name {pattern} behind IN")
    for name, value in instead.items():
        if kinds and value is not None:
            option = name if name.isupper() else f"--{name.replace('_', '-')}"
            raise ArgumentError(f"--types and {option} {value} exclude each other; give one")
    place = out or pattern
    if place is None:
        raise ArgumentError(f"Missing argument 'OUT' (see gpukit {command} --help)")
    return kinds, place


def many(
    plan: "Callable[[Report], Plans] | None",
    make: "Callable[[Report], list[Result]]",
    *,
    dry_run: bool = False,
    quiet: bool,
    json: bool,
) -> None:
    """Make files and print what became of them; a `dry_run` only what `plan` says."""
    with reporter(quiet) as report:
        if dry_run and plan is not None:
            plans = plan(report)
        else:
            results = make(report)
    if dry_run and plan is not None:
        print_plans(plans, json=json, quiet=quiet)
    else:
        print_results(results, json=json, quiet=quiet)
