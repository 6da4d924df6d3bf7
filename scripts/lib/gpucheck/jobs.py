"""What worker processes do meanwhile: compile kernels by using them, and make references.

A worker calls the public functions with small tensors of the kind that the checks give them, so
that Triton leaves on disk what the checks look for: of integers only whether 16 divides them counts
there. A job is claimed by a file, and its result is another.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpucheck import merging, pipeline, vectors
from gpucheck.base import (
    TOP,
    Plan,
    as_tests_interpret,
    claim,
    guarded,
    load_plan,
    stable_keys,
    write_json,
)
from gpucheck.data import reference, weighted_reference
from gpukit_kernels import QuantType, by_name, dequantize, matmul, quantize
from gpukit_kernels.products_triton import matmul_triton

# Rows of x in products; a type that is only read has the first and the last.
COUNTS = (1, 4, 16, 512)
# More, for the first types: whole prompts, whose kernels are those of 512.
PROMPT = 4096
# Types whose sizes are odd, and whose importance comes with float32 values too.
ODD = ("Q4_K", "Q8_0")
WIDE = ("Q4_K", "Q6_K")


def counts(plan: Plan, row: QuantType) -> tuple[int, ...]:
    if not plan.cuda:
        return (1, 17)
    if row.name in TOP:
        return (*COUNTS, PROMPT)
    return COUNTS if row.encode else (1, 4, 512)


def product(plan: Plan, x: Tensor, blocks: Tensor, row: QuantType) -> Tensor:
    """`matmul` by the GPU's kernels, also where they are interpreted."""
    return matmul(x, blocks, row) if plan.cuda else matmul_triton(x, blocks, row)


def weighted_dtypes(name: str) -> list[torch.dtype]:
    return [torch.bfloat16] + [torch.float32] * (name in WIDE)


def _values(plan: Plan, dtype: torch.dtype) -> Tensor:
    return torch.randn(16, plan.width, device=plan.device).to(dtype)


def _encode(plan: Plan, row: QuantType, dtype: torch.dtype) -> None:
    quantize(_values(plan, dtype), row, backend="triton")


def _weighted(plan: Plan, row: QuantType, dtype: torch.dtype) -> None:
    importance = torch.rand(plan.width, device=plan.device)
    quantize(_values(plan, dtype), row, importance, backend="triton")


def _blocks(plan: Plan, row: QuantType) -> Tensor:
    shape = (16, row.row_bytes(plan.width))
    return torch.zeros(shape, dtype=torch.uint8, device=plan.device)


def _decode(plan: Plan, row: QuantType) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        dequantize(_blocks(plan, row), row, dtype, backend="triton")


def _product(plan: Plan, row: QuantType, count: int) -> None:
    product(plan, torch.randn(count, plan.width, device=plan.device), _blocks(plan, row), row)


def _odd(plan: Plan, row: QuantType) -> None:
    odd(plan, row)


def odd(plan: Plan, row: QuantType) -> tuple[Tensor, Tensor, Tensor]:
    """Values whose blocks 16 does not divide, their blocks, and those decoded."""
    values = torch.randn(7, 768, generator=torch.Generator().manual_seed(9)).bfloat16()
    blocks = quantize(values.to(plan.device), row, backend="triton")
    return values, blocks, dequantize(blocks, row, backend="triton")


def _reference(plan: Plan, row: QuantType) -> None:
    torch.save(reference(row, plan.width, plan.checked), plan.at / f"bytes-{row.name}.pt")


def _weighted_reference(plan: Plan, row: QuantType) -> None:
    found = weighted_reference(row, plan.width, plan.weighted, weighted_dtypes(row.name))
    torch.save(found, plan.at / f"weighted-{row.name}.pt")


Job = tuple[float, Callable[[], Any]]


def _kernels(plan: Plan, row: QuantType) -> dict[str, Job]:
    """Jobs that compile, with about their seconds."""
    large = row.block == 256
    found: dict[str, Job] = {}
    dtypes = {"bf16": torch.bfloat16, "f32": torch.float32}
    if row.encode:
        for name, dtype in dtypes.items():
            cost = 14.0 if large else 3.0
            found[f"encode {name}"] = (cost, lambda d=dtype: _encode(plan, row, d))
    if row.weighted is not None:
        for name, dtype in dtypes.items():
            if dtype in weighted_dtypes(row.name):
                cost = 26.0 if large else 6.0
                found[f"weighted {name}"] = (cost, lambda d=dtype: _weighted(plan, row, d))
    found["decode"] = (3.0, lambda: _decode(plan, row))
    for count in counts(plan, row):
        if count != PROMPT:
            cost = 4.0 if count <= 4 else 7.0 if large else 4.0
            found[f"product {count}"] = (cost, lambda n=count: _product(plan, row, n))
    if row.name in TOP:
        found["vectors"] = (16.0, lambda: vectors.compile_vectors(plan, row))
    if row.name in merging.MERGED:
        found["merge"] = (24.0 if large else 4.0, lambda: merging.compile_merge(plan, row))
    if row.name in ODD:
        found["odd"] = (14.0, lambda: _odd(plan, row))
    return found


# Compiled jobs that each step waits for, by the beginning of their names.
NEEDS = {
    "bytes": ("encode", "decode", "reference"),
    "weighted": ("weighted",),
    "merge": ("merge", "encode"),
    "rates": ("encode", "weighted b", "decode"),
    "products": ("product", "encode"),
    "vectors": ("vectors", "encode", "decode"),
    "odd": ("odd",),
}


def jobs(plan: Plan) -> dict[str, Job]:
    """Name -> seconds and work, in the order in which they are begun: the first types' first,
    and of these and of the others the longest."""
    found: dict[str, Job] = {}
    wanted = {prefix for step in plan.steps for prefix in NEEDS.get(step, ())}
    for name in plan.types:
        row = by_name(name)
        mine = _kernels(plan, row)
        mine["reference"] = (6.0, lambda row=row: _reference(plan, row))
        if row.weighted is not None:
            mine["weighted reference"] = (9.0, lambda row=row: _weighted_reference(plan, row))
        for what, job in mine.items():
            if any(what.startswith(prefix) for prefix in wanted):
                found[f"{name} {what}"] = job
    if "small" in plan.steps:
        for label in pipeline.SMALL:
            found[f"small {label}"] = (9.0, lambda s=label: pipeline.on_the_cpu(plan, s))
    if "big" in plan.steps:
        found["big file"] = (8.0, lambda: pipeline.big_file(plan))
    return dict(sorted(found.items(), key=lambda item: (_rank(item[0]), -item[1][0])))


def _rank(job: str) -> int:
    return 0 if job.split()[0] in TOP else 1


def path_of(plan: Plan, job: str) -> Path:
    return plan.at / f"job-{job.replace(' ', '_')}.json"


def main() -> None:
    """Do jobs until none is left."""
    plan = load_plan(sys.argv[1])
    torch.set_num_threads(1)
    as_tests_interpret()
    stable_keys()
    for name, (_, work) in jobs(plan).items():
        result = path_of(plan, name)
        if claim(result.with_suffix(".claimed")):
            write_json(result, guarded(lambda work=work: _done(plan, work)))


def _done(plan: Plan, work: Callable[[], Any]) -> dict[str, Any]:
    found = work()
    if plan.cuda and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return found if isinstance(found, dict) else {}


if __name__ == "__main__":
    main()
