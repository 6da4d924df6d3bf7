"""What evaluating a result means: what tells it from another, what goes together, what it takes."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from gpukit.batches.journal import EVALUATED, Record
from gpukit.batches.matrix import SOURCE, Job
from gpukit.batches.opening import Inputs
from gpukit.batches.states import State
from gpukit.formats.atomic import disk_errors
from gpukit.planning.fingerprint import file_facts, files_of


def wanted(job: Job) -> dict[str, Any]:
    """What the evaluation of a job is of, as far as a later run must know it; what the result is
    made of its journal says already. `DiskError` for a file that cannot be read."""
    wish = job.evaluate
    assert wish is not None
    assert wish.text is not None
    of = wish.model_dump(exclude={"text", "against"}, exclude_none=True)
    of["text"] = file_facts(Path(wish.text))
    if wish.against is not None:
        path = Path(wish.against)
        of["against"] = wish.against
        if wish.against != SOURCE and path.exists():
            of["against"] = [*map(file_facts, files_of(path))]
    return of


def evaluation_of(record: Record | None, of: Mapping[str, Any]) -> dict[str, Any]:
    """How an evaluation `of` this stands by the record of a result: `state`, and the numbers, or
    `why` there are none."""
    found = record.evaluation if record is not None else None
    if found is None or found["of"] != of:
        return {"state": State.TO_DO.value}
    if found["event"] == EVALUATED:
        return {"state": State.DONE.value, **found["numbers"]}
    return {"state": State.FAILED.value, "why": found["error"]}


def groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """Those that follow each other and are measured beside the same model, which is loaded once."""
    return [list(group) for _, group in groupby(jobs, key=_beside)]


def spread(jobs: Sequence[Job]) -> list[list[Job]]:
    """The same for several processes: what is of one source, with the same adapters, is for one."""
    found: dict[object, list[Job]] = {}
    for job in jobs:
        key = (_beside(job), str(job.reference.model), job.adapter.adapters)
        found.setdefault(key, []).append(job)
    return list(found.values())


def _beside(job: Job) -> object:
    """What tells the reference of one job from that of another."""
    wish, o = job.evaluate, job.options
    assert wish is not None
    if wish.against != SOURCE:
        return (wish, o.device)
    way = (o.pre, o.strict, o.moe_layout, o.merge_base, o.combine)
    return (wish, o.device, str(job.reference.model), job.adapter.adapters, way)


def host_bytes(job: Job, size: int, inputs: Inputs) -> int:
    """Bytes of memory of the weights of a result of `size` bytes, and of what it stands beside."""
    wish = job.evaluate
    assert wish is not None
    if wish.against is None:
        return size
    if wish.against == SOURCE:
        read = [inputs.source(job), *inputs.adapters(job)]
    else:
        read = [path for path in (Path(wish.against),) if path.exists()]
    return size + sum(_size(file) for path in read for file in files_of(path))


def memory_to_measure(results: Sequence[tuple[Job, int]], inputs: Inputs) -> list[int]:
    """Bytes of memory that each group of results takes when it is measured, of so many bytes each:
    what one process holds at a time."""
    sizes = {job.number: size for job, size in results}
    return [
        max(host_bytes(job, sizes[job.number], inputs) for job in group)
        for group in spread([job for job, _ in results])
    ]


def _size(path: Path) -> int:
    with disk_errors(path):
        return path.stat().st_size
