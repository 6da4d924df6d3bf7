"""`gpukit batch`: many files from a plan in YAML."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpukit_cli.options import DryRun, Json, Quiet
from gpukit_cli.output import complain, print_json, print_table
from gpukit_cli.progress import human_bytes, reporter

if TYPE_CHECKING:
    from gpukit import BatchResult

STATUS = "status"


def batch(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[status] PLAN",
            help="The plan, a YAML file; with the word status before it, how its jobs stand.",
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
    summary: Annotated[
        Path | None,
        typer.Option(
            "--summary",
            metavar="FILE",
            help="Write what --json prints to FILE, too.",
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

    plan, wants_status = _plan(words or [])
    part = shard_of(shard) if shard is not None else None
    if wants_status or dry_run:
        with reporter(quiet) as report:
            if wants_status:
                found = gpukit.batch_status(plan, shard=part, report=report)
            else:
                found = gpukit.plan_batch(plan, force=force, shard=part, report=report)
        _show(found, json, summary)
        if found.refused:
            more = f" (and {len(found.refused) - 1} more)" if len(found.refused) > 1 else ""
            complain(found.refused[0] + more)
            raise typer.Exit(1)
        return
    if summary is not None:
        _check_summary(summary)
    # What draws a table takes time to import.
    from gpukit_cli.batch_progress import watcher

    with reporter(quiet, bars=False) as report, watcher(quiet) as watch:
        found = gpukit.batch(
            plan, keep_going=keep_going, force=force, shard=part, report=report, watch=watch
        )
    _show(found, json, summary)
    if failed := found.failed:
        complain(f"{len(failed)} of {len(found.rows)} jobs failed; {failed[0].output}: "
                 f"{failed[0].why.removeprefix(failed[0].output + ': ')}")  # fmt: skip
        raise typer.Exit(1)


def _plan(words: list[str]) -> tuple[Path, bool]:
    """The plan that the words name, and whether its status is wanted."""
    from gpukit.errors import ArgumentError

    wants_status = len(words) == 2 and words[0] == STATUS
    if len(words) != 1 + wants_status or words == [STATUS]:
        told = f"{len(words)} words" if len(words) > 1 else "no plan"
        raise ArgumentError(f"{told}; name one plan, as in gpukit batch plan.yaml")
    return Path(words[-1]), wants_status


def _check_summary(path: Path) -> None:
    from gpukit.formats.outputs import check_output

    check_output(path)


def _show(found: "BatchResult", json: bool, summary: Path | None) -> None:
    """Print every job and the sums; the document goes to `summary`, too."""
    document = found.as_json()
    if summary is not None:
        import json as encoding

        from gpukit.formats.atomic import atomic_write

        atomic_write(summary, (encoding.dumps(document, indent=1) + "\n").encode())
    if json:
        print_json(document)
        return
    rows = [("SOURCE", "ADAPTER", "TYPE", "OUTPUT", "SIZE", "STATE")]
    for row in found.rows:
        size = human_bytes(row.size) if row.size is not None else "-"
        why = f": {row.why}" if row.why else ""
        place = _from_here(row.output)
        rows.append((row.source, row.adapter, row.type, place, size, f"{row.state}{why}"))
    print_table(rows)
    print(_totals(document, found))


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
        parts.append(
            f"memory for buffers: {human_bytes(need.needed)} of {human_bytes(need.free)} free"
        )
    if found.seconds:
        parts.append(f"{found.seconds:.1f} s")
    return "; ".join(parts)
