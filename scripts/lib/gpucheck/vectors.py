"""Products of one row of x with weights of the shapes of an 8 B model: which tile is the fastest,
and whether another order of a weight's bytes would repay."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gpucheck.base import Plan
from gpucheck.planes import PARTS, planes
from gpukit_kernels import QuantType, dequantize, quantize
from gpukit_kernels.table import VectorParts
from gpukit_kernels.vector_kernels_triton import multiply_kernel
from gpukit_kernels.vectors_triton import (
    Prepared,
    allowed_error,
    has_prepared,
    launch_shape,
    prepare,
)

# Rows and width of: a square one, then output, keys, gate, down and vocabulary of 8 B.
SHAPES = (
    (8192, 8192), (4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336), (128256, 4096)
)  # fmt: skip
# Rows of W that a program has, and its threads.
TILES = ((4, 128), (2, 128), (8, 128), (4, 64), (4, 256))
# Bytes of weights that take turns, more than the second-level cache holds.
TURNS = 200_000_000

Clock = Callable[[Plan, Callable[[int], object], int], float]


def forms(row: QuantType) -> Iterator[tuple[str, VectorParts]]:
    """What the blocks are read as: as they lie, and the candidates."""
    if row.triton is not None and row.triton.vectors is not None:
        yield "blocks", row.triton.vectors
        if row.name in PARTS:
            yield "planes", PARTS[row.name]


def shapes(plan: Plan) -> tuple[tuple[int, int], ...]:
    return SHAPES if plan.cuda else ((16, 512),)


def tiles(plan: Plan) -> tuple[tuple[int, int], ...]:
    return TILES if plan.cuda else TILES[:1]


def compile_vectors(plan: Plan, row: QuantType) -> None:
    """Have every kernel compiled that the two functions below launch."""
    for width in sorted({width for _, width in shapes(plan)}):
        x = torch.randn(1, width, device=plan.device)
        blocks = torch.zeros(16, row.row_bytes(width), dtype=torch.uint8, device=plan.device)
        out = torch.empty(1, 16, device=plan.device)
        for _, parts in forms(row):
            for tile in tiles(plan):
                _multiply(x, blocks, row, parts, tile, out)


def check_vectors(plan: Plan, row: QuantType) -> dict[str, Any]:
    """Every form and tile against float64, as a share of what is allowed; above 1 is wrong."""
    rows, width = (256, plan.width) if plan.cuda else (16, 512)
    values = torch.randn(rows, width, device=plan.device).bfloat16()
    blocks = quantize(values, row, backend="triton")
    weights = dequantize(blocks, row, backend="triton")
    x = torch.randn(1, width, device=plan.device)
    exact, allowed = x.double() @ weights.double().t(), allowed_error(x, weights)
    wrong = []
    if not has_prepared(row, torch.device(plan.device), 1, width):
        wrong.append({"kind": "differs at its first use", "share": 0.0})
    for name, parts in forms(row):
        packed = planes(blocks, row) if name == "planes" else blocks
        for tile in tiles(plan):
            out = torch.full((1, rows), torch.nan, device=plan.device)
            _multiply(x, packed, row, parts, tile, out)
            share = ((out.double() - exact).abs() / allowed).nan_to_num(nan=torch.inf).max()
            if not share <= 1:
                wrong.append({"kind": f"{name} {tile}", "share": float(share)})
    return {"wrong": wrong}


def time_vectors(plan: Plan, row: QuantType, seconds: Clock) -> dict[str, Any]:
    """Rates of every form, tile and shape, by the clock `rates.seconds`; x is prepared already."""
    return {
        "rates": [rate for shape in shapes(plan) for rate in _timed(plan, row, seconds, *shape)]
    }


def _timed(
    plan: Plan, row: QuantType, seconds: Clock, rows: int, width: int
) -> Iterator[dict[str, Any]]:
    size = rows * row.row_bytes(width)
    copies = min(max(2, -(-TURNS // size)), 48) if plan.cuda else 2
    some = torch.randint(0, 120, (size,), dtype=torch.uint8, device=plan.device)
    blocks = [some.clone().view(rows, -1) for _ in range(copies)]
    x = torch.randn(1, width, device=plan.device)
    ready, out = prepare(x), torch.empty(1, rows, device=plan.device)
    for name, parts in forms(row):
        for tile in tiles(plan):

            def call(i: int, p: VectorParts = parts, t: tuple[int, int] = tile) -> None:
                _multiply(x, blocks[i], row, p, t, out, ready)

            took = seconds(plan, call, copies)
            yield {
                "what": f"{name} {rows}x{width} {tile[0]}/{tile[1]}",
                "seconds": took,
                "weights_per_s": rows * width / took,
                "gb_per_s": size / took / 1e9,
            }


def _multiply(
    x: Tensor, blocks: Tensor, row: QuantType, parts: VectorParts, tile: tuple[int, int],
    out: Tensor, ready: Prepared | None = None,
) -> None:  # fmt: skip
    p = ready or prepare(x)
    rows, width = len(blocks), x.shape[1]
    shape = launch_shape(parts, row, width, 1, tile)
    multiply_kernel[(-(-rows // tile[0]),)](
        p.levels, p.steps, p.sums, blocks, None, out, 1, rows, width, **shape
    )
