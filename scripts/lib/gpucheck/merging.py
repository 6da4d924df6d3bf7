"""Low-rank deltas merged on the device: the bytes of the CPU's."""

from typing import Any

import torch
from torch import Tensor

from gpucheck.base import Plan
from gpucheck.data import compare, passed_by
from gpukit_kernels import Factors, QuantType, merge_lora

# The dense type and two that a model is merged into.
MERGED = ("Q4_K", "Q8_0", "BF16")
RANK = 16


def short(factors: list[Factors]) -> list[Factors]:
    """The same rounded to bfloat16: products are exact, and sums may be fused."""
    return [f._replace(b=f.b.bfloat16().float(), a=f.a.bfloat16().float()) for f in factors]


def _drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factors_of(rows: int, width: int, ranks: tuple[int, ...], dora: bool) -> list[Factors]:
    """Adapters of these ranks, the last one with magnitudes if `dora`."""
    found = []
    for n, rank in enumerate(ranks):
        b, a = _drawn(rows, rank, seed=2 * n), _drawn(rank, width, seed=2 * n + 1) * 0.02
        last = dora and n == len(ranks) - 1
        found.append(Factors(b, a, 0.7 + n, _drawn(rows, seed=99).abs() if last else None))
    return found


def on_device(plan: Plan, factors: list[Factors]) -> list[Factors]:
    return [
        Factors(
            f.b.to(plan.device), f.a.to(plan.device), f.scale,
            None if f.magnitude is None else f.magnitude.to(plan.device),
        )
        for f in factors
    ]  # fmt: skip


# Ranks that 16 divides in sum, so that these are the kernels that the rates use.
CASES = (((RANK,), False), ((11, 5), False), ((11, 5), True))


def check_merge(plan: Plan, row: QuantType) -> dict[str, Any]:
    """Bytes of merging into blocks of `row`, from BF16 and from such blocks, against the CPU's."""
    rows, width = (256, plan.width) if plan.cuda else (16, 256)
    weight = _drawn(rows, width, seed=7).bfloat16()
    wrong: list[dict[str, Any] | None] = []
    blocks = 0
    cases = [(*case, False) for case in CASES] + [(*CASES[0], True)]
    for ranks, dora, exact in cases:
        factors = factors_of(rows, width, ranks, dora)
        if exact:
            factors = short(factors)
        here = on_device(plan, factors)
        wanted = merge_lora(weight, factors, out=row)
        got = merge_lora(weight.to(plan.device), here, out=row, backend="triton")
        again = merge_lora(wanted, factors, row, row)
        back = merge_lora(wanted.to(plan.device), here, row, row, backend="triton")
        dense = merge_lora(weight, factors)
        float32 = merge_lora(weight.to(plan.device), here, backend="triton")
        what = f"ranks {ranks}{', DoRA' if dora else ''}{', bfloat16' if exact else ''}"
        for kind, found, right in (
            (f"into, {what}", got, wanted),
            (f"from and into, {what}", back, again),
            (f"float32, {what}", float32.view(torch.uint8), dense.view(torch.uint8)),
        ):
            size = row.nbytes if kind[0] != "f" or kind.startswith("from") else 4
            right = right.view(-1, size)
            wrong.append(compare(kind, right, found.view(-1, size), right))
            blocks += len(right)
    return {"blocks": blocks, "wrong": [*filter(None, wrong), *passed_by()]}


def compile_merge(plan: Plan, row: QuantType) -> None:
    """What `check_merge` and `rates.time_merge` launch."""
    check_merge(plan, row)
