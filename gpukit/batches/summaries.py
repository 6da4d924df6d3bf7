"""Where the summary of a batch goes: two files of its own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpukit.batches.matrix import expand
from gpukit.batches.reading import read_plan
from gpukit.batches.summary_page import page
from gpukit.errors import ArgumentError
from gpukit.formats.atomic import atomic_write, disk_errors
from gpukit.formats.outputs import check_output

# How the JSON begins, blanks left out, and what is in the page.
BEGINNING, MARK = b'{"plan":', b'"gpukit-batch"'


def check_summary(summary: Path, plan: Path) -> None:
    """`ArgumentError` where a summary at `summary` would replace anything but an earlier one, the
    plan and results that are still to be made among it; errors of `check_output` and `expand`."""
    jobs, _ = expand(read_plan(plan))
    results = {job.output.resolve() for job in jobs if job.output is not None}
    for path in _places(summary):
        check_output(path, [plan])
        if path.resolve() in results:
            raise ArgumentError(f"--summary {path}: a result of {plan} goes there; name another")
        if path.exists() and not _is_summary(path):
            raise ArgumentError(
                f"--summary {path}: something else than a summary is there; name another file"
            )


def write_summary(summary: Path, document: Mapping[str, Any]) -> None:
    """Write `document`, of `BatchResult.as_json`, and the page of it; `DiskError` where the disk
    refuses."""
    data, shown = _places(summary)
    atomic_write(data, (json.dumps(document, indent=1) + "\n").encode())
    atomic_write(shown, page(document).encode("utf-8", "backslashreplace"))


def _places(summary: Path) -> tuple[Path, Path]:
    """Where the JSON and the page of a summary go; either of them may be named."""
    if summary.suffix.lower() in (".json", ".html"):
        return summary.with_suffix(".json"), summary.with_suffix(".html")
    if summary.name in ("", ".."):
        raise ArgumentError(f"--summary {summary}: a folder; name the file to write")
    return summary, summary.with_name(f"{summary.name}.html")


def _is_summary(path: Path) -> bool:
    """Whether a file begins as one or is such a page, or is empty."""
    with disk_errors(path), path.open("rb") as file:
        start = file.read(64)
        return b"".join(start.split()).startswith(BEGINNING) or not start or MARK in file.read()
