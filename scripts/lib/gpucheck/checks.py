"""Whether the kernels are right: bytes, decoded values, products, and what streams bring."""

from typing import Any

import torch
from torch import Tensor

from gpucheck.base import ROOT, Plan
from gpucheck.data import any_bytes, compare, passed_by
from gpucheck.jobs import counts, odd, product
from gpukit_kernels import (
    Lane,
    QuantType,
    by_name,
    dense_triton,
    dequantize,
    quantize,
    vectors_triton,
)
from gpukit_kernels.products_triton import FEW_ROWS, VECTOR_ROWS_OF_X

GOLDEN = ROOT / "tests" / "data" / "golden" / "kernels.npz"


def _told(blocks: int, wrong: list[dict[str, Any] | None]) -> dict[str, Any]:
    return {"blocks": blocks, "wrong": [*filter(None, wrong), *passed_by()]}


def check_bytes(plan: Plan, row: QuantType) -> dict[str, Any]:
    """Bytes and decoded values of every kind of value against the CPU's."""
    wrong: list[dict[str, Any] | None] = []
    blocks = 0
    for entry in torch.load(plan.at / f"bytes-{row.name}.pt"):
        kind, wanted = entry["kind"], entry["blocks"]
        if row.encode:
            values = entry["values"]
            got = quantize(values.to(plan.device), row, backend="triton").view(-1, row.nbytes)
            wrong.append(compare(f"bytes of {kind}", values.view(-1, row.block), got, wanted))
        here = wanted.to(plan.device)
        for dtype in (torch.float32, torch.bfloat16):
            decoded = dequantize(here, row, dtype, backend="triton")
            # NaN and infinity by the CPU's conversion too.
            expected = entry["decoded"].to(dtype)
            wrong.append(compare(f"values of {kind} as {dtype}", wanted, decoded, expected))
        blocks += len(wanted)
    return _told(blocks, wrong)


def check_weighted(plan: Plan, row: QuantType) -> dict[str, Any]:
    """Bytes with importance against the CPU's."""
    wrong, blocks = [], 0
    for entry in torch.load(plan.at / f"weighted-{row.name}.pt"):
        values, wanted = entry["values"], entry["blocks"]
        importance = entry["importance"].to(plan.device)
        got = quantize(values.to(plan.device), row, importance, backend="triton")
        got = got.view(-1, row.nbytes)
        wrong.append(compare(entry["kind"], values.reshape(-1, row.block), got, wanted))
        blocks += len(wanted)
    return _told(blocks, wrong)


def check_odd(plan: Plan, row: QuantType) -> dict[str, Any]:
    """Bytes and values where 16 does not divide the number of blocks."""
    values, blocks, decoded = odd(plan, row)
    wanted = quantize(values, row, backend="eager")
    expected = dequantize(wanted, row, backend="eager")
    flat = wanted.view(-1, row.nbytes)
    wrong = [
        compare("odd bytes", values.view(-1, row.block), blocks.view(-1, row.nbytes), flat),
        compare("odd values", flat, decoded.view(-1, row.block), expected.view(-1, row.block)),
    ]
    return _told(len(flat), wrong)


def check_products(plan: Plan, row: QuantType) -> dict[str, Any]:
    """Products against float64, as a share of what the arithmetic allows; above 1 is wrong.

    So is a way that was given up at its first use (`verified`), however right the other one is.
    """
    rows, width = (1024, plan.width) if plan.cuda else (16, 512)
    blocks = weight(plan, row, rows, width)
    weights = dequantize(blocks, row, backend="triton").double()
    shares: dict[str, float] = {}
    wrong, device = [], torch.device(plan.device)
    for count in counts(plan, row):
        x = torch.randn(count, width, device=plan.device)
        exact = x.double() @ weights.t()
        by_integers = count <= VECTOR_ROWS_OF_X and vectors_triton.has_prepared(row)
        if by_integers:
            allowed = vectors_triton.allowed_error(x, weights)
            right = vectors_triton.has_prepared(row, device, count, width, len(blocks))
        elif count <= FEW_ROWS:
            allowed, right = width * 2.0**-24 * (x.double().abs() @ weights.abs().t()), True
        else:
            allowed = dense_triton.allowed_error(x, weights)
            right = dense_triton.is_right(row, device)
        if not right:
            wrong.append({"kind": f"{count} rows of x differ at their first use", "share": 0.0})
        error = (product(plan, x, blocks, row).double() - exact).abs() / allowed
        shares[str(count)] = float(error.nan_to_num(nan=float("inf")).max())
    wrong += [{"kind": f"{n} rows of x", "share": s} for n, s in shares.items() if not s <= 1]
    return {"share_of_tolerance": shares, "wrong": wrong}


def weight(plan: Plan, row: QuantType, rows: int, width: int) -> Tensor:
    """Blocks of a weight on the device; random ones of a type that is only read."""
    if row.encode:
        values = torch.randn(rows, width, device=plan.device).bfloat16()
        return quantize(values, row, backend="triton")
    some = any_bytes(row, min(rows, 256) * (width // row.block), finite=True)
    some = some.to(plan.device).view(-1, row.row_bytes(width))
    return some.repeat(-(-rows // len(some)), 1)[:rows].contiguous()


def check_golden(plan: Plan) -> dict[str, Any]:
    """Bytes against llama.cpp's own, as far as the repository holds some.

    Values are repeated until 16 divides the number of blocks: those kernels are compiled already.
    """
    import numpy as np

    wrong, blocks = [], 0
    with np.load(GOLDEN) as golden:
        for key in golden.files:
            what, _, rest = key.partition("/")
            name, _, kind = rest.partition("/")
            if what != "blocks" or name not in plan.types:
                continue
            row = by_name(name)
            values = torch.from_numpy(golden[f"values/{kind}"]).repeat(16, 1)
            wanted = torch.from_numpy(golden[key]).repeat(16, 1).view(-1, row.nbytes)
            got = quantize(values.to(plan.device), row, backend="triton").view(-1, row.nbytes)
            wrong.append(compare(f"{name} {kind}", values.view(-1, row.block), got, wanted))
            blocks += len(wanted)
    return _told(blocks, wrong)


def check_turns(plan: Plan, row: QuantType) -> dict[str, Any]:
    """Bytes that came through pinned memory and several streams against one launch's."""
    lane, wrong, under_way, blocks = Lane(torch.device(plan.device)), [], [], 0
    for rows in (16, 640, 32, 2000) * 4 if plan.cuda else (16, 32):
        part = torch.randn(rows, 2048).bfloat16()
        host, turn = part.pin_memory() if plan.cuda else part, lane.turn()
        with turn:
            result = turn.take(quantize(turn.put(host), row, backend="triton"))
        under_way.append((part, host, turn, result))
    for part, _, turn, result in under_way:
        turn.wait()
        wanted = quantize(part.to(plan.device), row, backend="triton").view(-1, row.nbytes)
        got = result.view(-1, row.nbytes)
        wrong.append(compare("streams", part.view(-1, row.block), got, wanted.cpu()))
        blocks += len(got)
    return _told(blocks, wrong)
