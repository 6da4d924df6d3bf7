"""`gpukit batch`: many files from a plan in YAML."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpukit_cli.options import DryRun, Json, Quiet
from gpukit_cli.output import complain, print_json, print_table
from gpukit_cli.progress import human_bytes, reporter

if TYPE_CHECKING:
    from gpukit import BatchResult
    from gpukit.batches.result import Row

STATUS, LOGS = "status", "logs"
# Of an evaluation: the column, the number, and how it is written.
MEASURES = {
    "PPL": ("perplexity", "{:.4f}"),
    "KLD": ("kld", "{:.5f}"),
    "SAME TOP": ("same_top", "{:.2%}"),
}


def batch(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[status|logs] PLAN [JOB]",
            help="The plan, a YAML file; with the word status before it, how its jobs stand, with "
            "logs what they, or JOB, have reported.",
            show_default="none",
        ),
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Go on with the next job after one that failed.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Write anew what was made of something else, or by something else.",
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Every N-th source from the I-th on, for several machines.",
            show_default="all",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            metavar="N",
            help="Processes at a time, each with what reads the same; they share the cores.",
            show_default="one a GPU, or one",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="auto|ADDRESS",
            help="Let the nodes of a Ray cluster do the work, --jobs tasks each.",
            show_default="this machine",
        ),
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option(
            "--summary",
            metavar="FILE",
            help="Write what --json prints to FILE, too, and a page beside it, which ends in .html "
            "instead of .json; with --dry-run and status as well. Only a summary is replaced.",
            show_default="none",
        ),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of a plan.")
    ] = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make every file of a plan: sources x adapters x types. What is done already is left alone."""
    if schema:
        from gpukit.batches.schema import json_schema

        print_json(json_schema())
        return
    import gpukit
    from gpukit.batches.preparing import shard_of

    words = words or []
    part = shard_of(shard) if shard is not None else None
    if words[:1] == [LOGS] and len(words) in (2, 3):
        _show_logs(Path(words[1]), words[2] if len(words) == 3 else None, part, json)
        return
    plan, wants_status = _plan(words)
    if summary is not None:
        from gpukit.batches.summaries import check_summary

        check_summary(summary, plan)
    if wants_status or dry_run:
        with reporter(quiet) as report:
            if wants_status:
                found = gpukit.batch_status(plan, shard=part, report=report)
            else:
                found = gpukit.plan_batch(plan, force=force, shard=part, jobs=jobs, report=report)
        _show(found, json, summary)
        if found.refused:
            more = f" (and {len(found.refused) - 1} more)" if len(found.refused) > 1 else ""
            complain(found.refused[0] + more)
            raise typer.Exit(1)
        return
    # What draws a table takes time to import.
    from gpukit_cli.batch_progress import watcher

    with reporter(quiet, bars=False) as report, watcher(quiet) as watch:
        found = gpukit.batch(
            plan, keep_going=keep_going, force=force, shard=part, jobs=jobs, ray=ray,
            report=report, watch=watch,
        )  # fmt: skip
    _show(found, json, summary)
    if failed := found.failed:
        complain(f"{len(failed)} of {len(found.rows)} jobs failed; {failed[0].output}: "
                 f"{failed[0].why.removeprefix(failed[0].output + ': ')}")  # fmt: skip
        raise typer.Exit(1)
    if missed := found.not_evaluated:
        assert missed[0].evaluation is not None
        complain(f"{len(missed)} of {len(found.rows)} results could not be evaluated; "
                 f"{missed[0].output}: {missed[0].evaluation['why']}")  # fmt: skip
        raise typer.Exit(1)


# As a line tells it.
_MEMORY = {"memory": "memory for buffers"}


def _plan(words: list[str]) -> tuple[Path, bool]:
    """The plan that the words name, and whether its status is wanted."""
    from gpukit.errors import ArgumentError

    wants_status = len(words) == 2 and words[0] == STATUS
    if len(words) != 1 + wants_status or words in ([STATUS], [LOGS]):
        told = f"{len(words)} words" if len(words) > 1 else "no plan"
        raise ArgumentError(f"{told}; name one plan, as in gpukit batch plan.yaml")
    return Path(words[-1]), wants_status


def _show_logs(plan: Path, job: str | None, part: tuple[int, int] | None, json: bool) -> None:
    """Print what jobs have reported, each line with its time."""
    from gpukit.batches.logs import batch_logs
    from gpukit.errors import one_line

    found = batch_logs(plan, job, shard=part)
    if json:
        print_json({"plan": str(plan), "jobs": [log.as_json() for log in found]})
        return
    for log in found:
        print(_from_here(log.output))
        for line in log.lines:
            text = f": {one_line(line.text)}" if line.text else ""
            print(f"  {line.time} {one_line(line.event)}{text}")


def _show(found: "BatchResult", json: bool, summary: Path | None) -> None:
    """Print every job and the sums; the document goes to `summary`, too."""
    document = found.as_json()
    if summary is not None:
        from gpukit.batches.summaries import write_summary

        write_summary(summary, document)
    if json:
        print_json(document)
        return
    from gpukit.batches.pushing import told

    measured = any(row.evaluation is not None for row in found.rows)
    names = MEASURES if measured else ()
    rows: list[tuple[str, ...]] = [("SOURCE", "ADAPTER", "TYPE", "OUTPUT", "SIZE", *names, "STATE")]
    for row in found.rows:
        size = human_bytes(row.size) if row.size is not None else "-"
        why = f": {row.why}" if row.why else ""
        place = _from_here(row.output)
        numbers = _measures(row.numbers) if measured else ()
        state = f"{row.state}{why}{told(row.push)}{_not_measured(row)}"
        rows.append((row.source, row.adapter, row.type, place, size, *numbers, state))
    print_table(rows)
    print(_totals(document, found))


def _measures(numbers: Mapping[str, Any]) -> tuple[str, ...]:
    """What an evaluation gave, as cells of the table; a dash for what there is none of."""
    return tuple(
        form.format(numbers[key]) if isinstance(numbers.get(key), int | float) else "-"
        for key, form in MEASURES.values()
    )


def _not_measured(row: "Row") -> str:
    """Why there are no numbers of an evaluation that is asked for."""
    found = row.evaluation
    if found is None or row.numbers:
        return ""
    return f", not evaluated: {found['why']}" if found.get("why") else ", to be evaluated"


def _from_here(output: str) -> str:
    """A path below the folder where the user is as it is from there."""
    here = f"{Path.cwd()}/"
    return output.removeprefix(here)


def _totals(document: dict[str, Any], found: "BatchResult") -> str:
    counts = ", ".join(f"{n} {state}" for state, n in found.counts.items())
    parts = [f"{len(found.rows)} jobs ({counts}), {human_bytes(document['size'])}"]
    parts += [f"{need.place} needs {human_bytes(need.needed)} of {human_bytes(need.free)} free"
              for need in found.disks]  # fmt: skip
    if found.memory is not None:
        need = found.memory
        what = _MEMORY.get(need.place, need.place)
        parts.append(f"{what}: {human_bytes(need.needed)} of {human_bytes(need.free)} free")
    parts += [f"{need.place} needs {human_bytes(need.needed)} of {human_bytes(need.free)} free"
              for need in found.gpus]  # fmt: skip
    if found.workers > 1:
        parts.append(f"{found.workers} workers")
    if found.seconds:
        parts.append(f"{found.seconds:.1f} s")
    return "; ".join(parts)
