"""The checks and timings in one process on the GPU, the most important ones that are ready first.

If it ends early, what it had begun is lost and the next process goes on behind that.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gpucheck import checks, host, merging, pipeline, rates, vectors
from gpucheck.base import (
    NEXT,
    TOP,
    Plan,
    as_tests_interpret,
    claim,
    compilations,
    guarded,
    load_plan,
    stable_keys,
    write_json,
)
from gpucheck.jobs import NEEDS, ODD, jobs, path_of
from gpukit_kernels import by_name

STEPS = (
    "bytes",
    "weighted",
    "rates",
    "merge",
    "products",
    "vectors",
    "odd",
    "golden",
    "turns",
    "engine",
    "forward",
    "prefill",
    "attention",
    "copies",
    "small",
    "big",
    "host",
)
TURNS = ("Q4_K", "Q8_0")
# Seconds that must be left when a step begins.
COSTS = {
    "engine": 25.0, "prefill": 20.0, "copies": 12.0, "small": 30.0, "big": 25.0, "host": 20.0,
}  # fmt: skip
COST = 6.0
# Seconds without a job's result after which a step does without it.
PATIENCE = 60.0
ENDED = 75


@dataclass(frozen=True)
class Step:
    name: str
    work: Callable[[], dict[str, Any]]
    needs: tuple[str, ...] = ()

    def path(self, plan: Plan) -> Any:
        return plan.at / f"step-{self.name.replace(' ', '_')}.json"


def _of_type(plan: Plan, name: str) -> list[Step]:
    row = by_name(name)

    def timed(found: dict[str, Any]) -> dict[str, Any]:
        rates.note_copy(plan)
        return found

    works: dict[str, Callable[[], dict[str, Any]]] = {
        "bytes": lambda: checks.check_bytes(plan, row),
        "rates": lambda: timed(rates.time_row(plan, row)),
        "products": lambda: timed(
            {**checks.check_products(plan, row), **rates.time_products(plan, row)}
        ),
    }  # fmt: skip
    if name in TOP:
        works["vectors"] = lambda: timed(
            {
                **vectors.check_vectors(plan, row),
                **vectors.time_vectors(plan, row, rates.seconds),
            }
        )
    if row.weighted is not None:
        works["weighted"] = lambda: checks.check_weighted(plan, row)
    if name in merging.MERGED:
        works["merge"] = lambda: timed(
            {**merging.check_merge(plan, row), **rates.time_merge(plan, row)}
        )
    if name in ODD:
        works["odd"] = lambda: checks.check_odd(plan, row)
    needed = [job for job in jobs(plan) if job.split()[0] == name]
    found = []
    for step in ("bytes", "weighted", "rates", "merge", "products", "vectors", "odd"):
        if step in works and step in plan.steps:
            needs = [j for j in needed if j.split(maxsplit=1)[1].startswith(NEEDS[step])]
            found.append(Step(f"{name} {step}", works[step], tuple(needs)))
    return found


def steps(plan: Plan) -> list[Step]:
    """All of the plan, the most important first."""
    found: list[Step] = [Step("facts", lambda: _facts(plan))]
    ordered = [name for name in (*TOP, *NEXT) if name in plan.types]
    ready = [j for j in jobs(plan) if j.split(maxsplit=1)[1].startswith("encode f32")]
    for name in ordered:
        found += _of_type(plan, name)
    if "golden" in plan.steps:
        found.append(Step("golden", lambda: checks.check_golden(plan), tuple(ready)))
    for name in TURNS if "turns" in plan.steps else ():
        if name in plan.types:
            row = by_name(name)
            needs = tuple(j for j in jobs(plan) if j == f"{name} encode bf16")
            found.append(Step(f"{name} turns", lambda r=row: checks.check_turns(plan, r), needs))
    needs = tuple(j for j in jobs(plan) if j.split()[0] in ("Q4_K", "Q6_K"))
    for step in ("engine", "forward", "prefill", "attention", "copies"):
        if step in plan.steps:
            whole = step in ("engine", "prefill")
            found.append(Step(step, lambda s=step: _model(plan, s), needs if whole else ()))
    if "small" in plan.steps:
        # What the command would compile once more.
        needs = tuple(j for j in jobs(plan) if j.split()[0] in ("small", *TOP))
        found.append(Step("small", lambda: pipeline.check_small(plan), needs))
    for kind in pipeline.BIG if "big" in plan.steps else ():
        # All jobs: it is timed with the CPU's cores to itself.
        needs = tuple(jobs(plan))
        step = Step(f"big {kind}", lambda k=kind: pipeline.time_big(plan, k), needs)
        found.append(step)
    if "host" in plan.steps:
        found.append(Step("host", lambda: host.time_host(plan), tuple(jobs(plan))))
    for name in plan.types:
        if name not in ordered:
            found += _of_type(plan, name)
    return found


def _model(plan: Plan, step: str) -> dict[str, Any]:
    """A step of whole models, which need what gpukit needs; kernels do not."""
    from gpucheck import engine, forward, prompts

    rates.note_copy(plan)
    works = {
        "engine": engine.time_engine,
        "forward": forward.check_forward,
        "prefill": prompts.time_prompts,
        "attention": forward.time_attention,
        "copies": forward.time_copies,
    }
    return works[step](plan)


def _facts(plan: Plan) -> dict[str, Any]:
    """The device."""
    begin = time.monotonic()
    torch.zeros(1, device=plan.device)
    context = time.monotonic() - begin
    found: dict[str, Any] = {"context_s": context}
    if plan.cuda:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
        }
    return found


def _broken(plan: Plan) -> bool:
    """Whether the device refuses everything from now on, as after an illegal access."""
    if not plan.cuda:
        return False
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device=plan.device).item()
    except Exception:
        return True
    return False


def main() -> None:
    plan = load_plan(sys.argv[1])
    torch.set_num_threads(2)
    as_tests_interpret()
    stable_keys()
    compiled = compilations()
    left, waited = steps(plan), time.monotonic()
    while left:
        patient = time.monotonic() - waited < PATIENCE
        step = next(
            (s for s in left if not patient or all(path_of(plan, n).exists() for n in s.needs)),
            None,
        )
        room = plan.until - time.monotonic()
        if step is None:
            if room < COST:
                break
            time.sleep(0.05)
            continue
        left.remove(step)
        if room < COSTS.get(step.name.split()[0], COST):
            continue
        path = step.path(plan)
        if not claim(path.with_suffix(".begun")):
            continue
        known = len(compiled)
        found = guarded(step.work)
        write_json(path, {**found, "compiled": compiled[known:]})
        waited = time.monotonic()
        if _broken(plan):
            os._exit(ENDED)
        if plan.cuda:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
