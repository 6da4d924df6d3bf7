"""How fast the kernels are: weights and bytes a second beside a copy on the same device."""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpucheck.base import Plan, write_text
from gpucheck.checks import weight
from gpucheck.jobs import counts, product
from gpucheck.merging import RANK, factors_of, on_device, short
from gpukit_kernels import QuantType, dequantize, issue_rate, merge_lora, operations, quantize
from gpukit_kernels.dense_triton import halves

COPIES = 2


def seconds(plan: Plan, call: Callable[[int], object], copies: int = COPIES) -> float:
    """Median seconds of `call(i)`, i taking turns over the copies; on a GPU by device events.

    Calls are recorded as a graph and replayed behind another replay: a kernel that is shorter than
    its launch is timed, not the launch.
    """
    for i in range(copies):
        call(i)
    if not plan.cuda:
        start = time.perf_counter()
        call(0)
        return time.perf_counter() - start
    calls = 2 * copies
    play = _recorded(call, copies, calls)
    play()
    times = []
    for _ in range(plan.repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        play()
        begin.record()
        play()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000 / calls)
    return statistics.median(times)


def _recorded(call: Callable[[int], object], copies: int, calls: int) -> Callable[[], None]:
    """All `calls` in one go: a graph's replay, or one by one where they cannot be recorded."""

    def one_by_one() -> None:
        for i in range(calls):
            call(i % copies)

    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph):
            one_by_one()
    except RuntimeError as error:
        print(f"no graph: {error}", file=sys.stderr)
        torch.cuda.synchronize()
        return one_by_one
    return graph.replay


def copy_rate(plan: Plan) -> float:
    """Bytes a second, read plus written, of a copy within the device, by a kernel: in a graph the
    copy of torch is left to the copy engines, which are slower."""
    source = [torch.randn(2 * plan.timed, device=plan.device) for _ in range(COPIES)]
    target = torch.empty_like(source[0])
    return 2 * source[0].nbytes / seconds(plan, lambda i: torch.neg(source[i], out=target))


def note_copy(plan: Plan) -> float:
    """The best rate of a copy so far, this one included: others' work makes single ones slow."""
    noted = plan.at / "copy"
    best = max(copy_rate(plan), float(noted.read_text()) if noted.exists() else 0.0)
    write_text(noted, str(best))  # which others read meanwhile
    return best


def time_row(plan: Plan, row: QuantType) -> dict[str, Any]:
    """Rates of encoding from bf16, with importance and without, and of decoding."""
    rates: list[dict[str, Any]] = []

    def told(what: str, took: float, width: int, counted: float | None = None) -> None:
        moved = plan.timed * width + plan.timed // row.block * row.nbytes
        rates.append(
            {
                "what": what,
                "seconds": took,
                "weights_per_s": plan.timed / took,
                "gb_per_s": moved / took / 1e9,
            }
        )
        issue = issue_rate(torch.device(plan.device))
        if counted and issue:
            rates[-1]["share_of_issue"] = counted * plan.timed / took / issue

    width = min(4096, plan.timed)
    rows = plan.timed // width
    if row.encode:
        values = [torch.randn(rows, width, device=plan.device).bfloat16() for _ in range(COPIES)]
        blocks = [quantize(v, row, backend="triton") for v in values]
        took = seconds(plan, lambda i: quantize(values[i], row, backend="triton"))
        told("encode bf16", took, 2, operations(row))
        if row.weighted is not None:
            importance = torch.rand(width, device=plan.device)
            took = seconds(plan, lambda i: quantize(values[i], row, importance, backend="triton"))
            told("encode weighted", took, 2, operations(row, True))
    else:
        blocks = [weight(plan, row, rows, width) for _ in range(COPIES)]
    for name, dtype in (("bf16", torch.bfloat16), ("f32", torch.float32)):
        took = seconds(plan, lambda i, d=dtype: dequantize(blocks[i], row, d, backend="triton"))
        told(f"decode {name}", took, dtype.itemsize)
    return {"rates": rates}


def time_products(plan: Plan, row: QuantType) -> dict[str, Any]:
    """Products with a square weight, beside torch's bf16 product with the decoded weight."""
    side, copies = plan.side, 4 if plan.cuda else 1
    width = max(side, 256)
    blocks = [weight(plan, row, side, width) for _ in range(copies)]
    dense = [dequantize(b, row, torch.bfloat16, backend="triton") for b in blocks[:2]]
    rates = [_decoding(plan, row, blocks)]
    for count in counts(plan, row):
        x = torch.randn(count, width, device=plan.device)
        y = x.bfloat16()
        took = seconds(plan, lambda i, x=x: product(plan, x, blocks[i], row), copies)
        beside = seconds(plan, lambda i, y=y: y @ dense[i].t(), len(dense))
        moved = blocks[0].nbytes + 4 * count * (side + width)
        rates.append(
            {
                "what": f"product {count}",
                "seconds": took,
                "weights_per_s": side * width / took,
                "tflops": 2 * count * side * width / took / 1e12,
                "gb_per_s": moved / took / 1e9,
                "torch_bf16_seconds": beside,
            }
        )
    return {"rates": rates}


def _decoding(plan: Plan, row: QuantType, blocks: list[Tensor]) -> dict[str, Any]:
    """The rate of making float16 of a weight, which products of many rows begin with."""
    rows = len(blocks[0])
    weights = blocks[0].numel() // row.nbytes * row.block
    took = seconds(plan, lambda i: halves(blocks[i], row, weights // rows), len(blocks))
    return {
        "what": "halves",
        "seconds": took,
        "weights_per_s": weights / took,
        "gb_per_s": (blocks[0].nbytes + 2 * weights) / took / 1e9,
    }


def time_merge(plan: Plan, row: QuantType) -> dict[str, Any]:
    """The rate of merging an adapter of rank 16 into BF16 weights, in blocks of `row`."""
    width = min(plan.width, plan.timed)
    rows = plan.timed // width
    values = [torch.randn(rows, width, device=plan.device).bfloat16() for _ in range(COPIES)]
    drawn = factors_of(rows, width, (RANK,), False)
    moved = plan.timed * 2 + plan.timed // row.block * row.nbytes
    rates = []
    for kind, some in (("float32", drawn), ("bfloat16", short(drawn))):
        there = on_device(plan, some)
        took = seconds(plan, lambda i, f=there: merge_lora(values[i], f, out=row, backend="triton"))
        rate = {
            "what": f"merge rank {RANK} of {kind} bf16 to {row.name}",
            "seconds": took,
            "weights_per_s": plan.timed / took,
            "gb_per_s": moved / took / 1e9,
        }
        rates.append(rate)
    return {"rates": rates}
