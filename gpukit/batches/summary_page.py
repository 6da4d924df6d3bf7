"""The summary of a batch as a page: its document (`BatchResult.as_json`) and nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from gpukit.batches.pushing import told
from gpukit.batches.states import State
from gpukit.evaluation.pages import NONE, as_script, number, percent, rendered, visible

TEMPLATE = Path(__file__).with_name("summary_page.html")
COLUMNS = ("Size", "Bits per weight", "Seconds", "Rate")
MEASURED = ("PPL", "ΔPPL", "Mean KLD", "99.9 %", "Same top")
NOTE = (
    "± is the standard error; that of PPL is of the text, those of ΔPPL and KLD are of the "
    "comparison. KLD is the Kullback-Leibler divergence in nats, a token. ● is on the Pareto line "
    "of its source. A small difference within the error is no difference."
)
Job = Mapping[str, Any]


def page(document: Mapping[str, Any]) -> str:
    """The page of what `BatchResult.as_json` gives."""
    jobs: Sequence[Job] = document["jobs"]
    measured = any(job["evaluation"] is not None for job in jobs)
    groups = [list(group) for _, group in groupby(jobs, key=_origin)]
    best = {id(job) for group in groups for job in _best(group)}
    return rendered(
        TEMPLATE,
        title=Path(document["plan"]).name,
        heading=_heading(jobs),
        facts=[*_facts(document)],
        lines=[*document["refused"], *document["warnings"]],
        columns=COLUMNS + (MEASURED if measured else ()),
        jobs=[_row(job, measured, id(job) in best) for job in jobs],
        why=any(_why(job) for job in jobs),
        measured=NOTE if measured else "",
        plots=[*_plots(groups)],
        data=as_script(document),
    )


def _heading(jobs: Sequence[Job]) -> str:
    done = sum(job["state"] == State.DONE.value for job in jobs)
    return f"{done} of {len(jobs)} jobs done"


def _facts(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from gpukit.evaluation.report_plot import in_bytes

    yield "Plan", document["plan"]
    if document["shard"] is not None:
        yield "Shard", document["shard"]
    yield "Jobs", ", ".join(f"{n} {state}" for state, n in document["counts"].items())
    for title, key in (("Evaluations", "evaluation"), ("Pushes", "push")):
        found = [job[key]["state"] for job in document["jobs"] if job[key]]
        if found:
            counts = {state: found.count(state) for state in dict.fromkeys(found)}
            yield title, ", ".join(f"{n} {state}" for state, n in counts.items())
    yield "Size", in_bytes(document["size"])
    if document["seconds"]:
        yield "Seconds", number(document["seconds"], 1)
    for need in document["disks"]:
        needed, free = in_bytes(need["needed"]), in_bytes(need["free"])
        yield "Disk", f"{need['place']}: {needed} needed, {free} free before"
    yield "gpukit", document["gpukit"]


def _row(job: Job, measured: bool, best: bool) -> dict[str, Any]:
    """The cells of a job's row, values and errors."""
    from gpukit.evaluation.report_plot import in_bytes

    size, seconds, bits = job["size"], job["seconds"], job["bits_per_weight"]
    is_made = job["state"] == State.DONE.value and size is not None and seconds
    cells = [
        (NONE if size is None else in_bytes(size), ""),
        (number(bits, 2), ""),
        (number(seconds, 1), ""),
        (f"{in_bytes(size / seconds)}/s" if is_made else NONE, ""),
    ]
    if measured:
        cells += _measures(job["evaluation"] or {})
    state = job["state"]
    evaluation = (job["evaluation"] or {}).get("state")
    if evaluation == State.FAILED.value:
        state += ", not evaluated"
    bad = state not in (State.DONE.value, State.TO_DO.value, State.RUNNING.value)
    state += told(job["push"])
    return {
        "type": job["type"], "origin": _origin(job), "state": state, "bad": bad, "best": best,
        "cells": cells, "why": _why(job),
    }  # fmt: skip


def _measures(found: Job) -> Iterator[tuple[str, str]]:
    """What an evaluation gave, with errors."""
    for key, error, places in (
        ("perplexity", "error", 4),
        ("difference", "difference_error", 4),
        ("kld", "kld_error", 6),
        ("kld_999", "", 4),
    ):
        spread = found.get(error)
        yield number(found.get(key), places), "" if spread is None else number(spread, places)
    spread = found.get("same_top_error")
    yield percent(found.get("same_top")), "" if spread is None else percent(spread)


def _origin(job: Job) -> str:
    """Where a job's result comes from: its source, and what was merged into it."""
    source, adapter = job["source"], job["adapter"]
    return str(source) if adapter == "none" else f"{source} + {adapter}"


def _why(job: Job) -> str:
    return str(job["why"] or (job["evaluation"] or {}).get("why") or "")


def _known(group: Sequence[Job]) -> tuple[str, list[Job]]:
    """What the results of a group are compared by, and those of which that is known."""
    for measure in ("kld", "perplexity"):
        found = [
            job for job in group
            if isinstance((job["evaluation"] or {}).get(measure), int | float) and job["size"]
        ]  # fmt: skip
        if found:
            return measure, found
    return "", []


def _best(group: Sequence[Job]) -> list[Job]:
    """The results of a group that no other beats in both size and what it lost."""
    from gpukit.evaluation.report_plot import pareto

    measure, known = _known(group)
    return [known[n] for n in pareto([(job["size"], job["evaluation"][measure]) for job in known])]


def _plots(groups: Sequence[Sequence[Job]]) -> Iterator[tuple[str, Any]]:
    """Of each source of which something is known, its name, and size against what was lost."""
    from gpukit.evaluation.report_plot import DIVERGENCE, PERPLEXITY, Point, size_plot

    for n, group in enumerate(groups):
        measure, known = _known(group)
        if not known:
            continue
        best = {id(job) for job in _best(group)}
        points = []
        for job in known:
            found = job["evaluation"]
            error = found["kld_error" if measure == "kld" else "error"]
            spread = error if isinstance(error, int | float) else 0.0
            label, at_best = visible(job["type"]), id(job) in best
            points.append(Point(label, job["size"], found[measure], spread, at_best))
        axis = DIVERGENCE if measure == "kld" else PERPLEXITY
        yield (
            f"{_origin(known[0])}: size against {axis.name}",
            size_plot(points, None, axis, f"plot-{n}"),
        )
