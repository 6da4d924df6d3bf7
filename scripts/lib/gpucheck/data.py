"""Values for the quantisers' corners, and what the CPU's reference makes of them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gpukit_kernels import QuantType, dequantize, quantize, verified

KINDS = 8


def kinds(width: int, count: int) -> Iterator[tuple[str, Tensor]]:
    """Float32 `[rows, width]` tensors, about `count` values together; 16 divides the rows."""
    random = torch.Generator().manual_seed(7)
    rows = max(1, count // width // KINDS // 16) * 16

    def normal() -> Tensor:
        return torch.randn(rows, width, generator=random)

    def powers(low: int, high: int, group: int) -> Tensor:
        exponents = torch.randint(low, high, (rows, width // group), generator=random)
        return exponents.repeat_interleave(group, dim=1)

    yield "gaussian", normal()
    yield "bf16", normal().bfloat16().float()
    yield "heavy-tailed", normal() / torch.rand(rows, width, generator=random).clamp_min(1e-4)
    yield "shifted", normal() + 100
    kept = torch.rand(rows, width, generator=random) < 0.02
    yield "sparse, -0", torch.where(kept, normal(), torch.tensor(-0.0))
    yield "a constant a row", normal()[:, :1].repeat(1, width)
    yield "a scale a group", torch.ldexp(normal(), powers(-30, 20, 32))
    # Through float64: ldexp in float32 underflows before it multiplies.
    yield "subnormal to huge", torch.ldexp(normal().double(), powers(-148, 120, 16)).float()


def any_bytes(row: QuantType, count: int, finite: bool) -> Tensor:
    """uint8 `[count, nbytes]`: random; with `finite` zeros in place of blocks with NaN or inf."""
    random = torch.Generator().manual_seed(5)
    blocks = torch.randint(0, 256, (count, row.nbytes), dtype=torch.uint8, generator=random)
    if finite:
        blocks[~dequantize(blocks, row, backend="eager").isfinite().all(dim=1)] = 0
    return blocks


def reference(row: QuantType, width: int, count: int) -> list[dict[str, Any]]:
    """For each kind the values, their blocks and the blocks' values; random blocks of a type that
    is only read."""
    if not row.encode:
        blocks = any_bytes(row, count // row.block // 16 * 16, finite=False)
        found = [{"kind": "any bytes", "blocks": blocks}]
    else:
        found = []
        for kind, values in kinds(width, count):
            for dtype in [torch.float32] + [torch.bfloat16] * (kind in ("bf16", "heavy-tailed")):
                given = values.to(dtype)
                blocks = quantize(given, row, backend="eager").view(-1, row.nbytes)
                found.append({"kind": f"{kind}, {dtype}", "values": given, "blocks": blocks})
    for entry in found:
        entry["decoded"] = dequantize(entry["blocks"], row, backend="eager")
    return found


def weighted_reference(
    row: QuantType, width: int, count: int, dtypes: list[torch.dtype]
) -> list[dict[str, Any]]:
    """For each kind values, importance and blocks: one matrix, and eight experts at once."""
    random = torch.Generator().manual_seed(11)
    found = []
    for at, (kind, values) in enumerate(kinds(width, count)):
        for given in (values, values.view(8, -1, width)) if at < 3 else (values,):
            for dtype in dtypes:
                importance = torch.rand(*given.shape[:-2], width, generator=random) ** 3
                entry = {"kind": f"{kind}, {dtype}, {given.ndim - 1}d", "values": given.to(dtype)}
                blocks = quantize(entry["values"], row, importance, backend="eager")
                blocks = blocks.view(-1, row.nbytes)
                found.append({**entry, "importance": importance, "blocks": blocks})
    return found


def differing(got: Tensor, wanted: Tensor) -> Tensor:
    """bool `[blocks]`: those that differ in any bit; a NaN equals a NaN."""
    if got.dtype.is_floating_point:
        bits = {4: torch.int32, 2: torch.int16}[got.element_size()]
        differ = (got.view(bits) != wanted.view(bits)) & ~(got.isnan() & wanted.isnan())
    else:
        differ = got != wanted
    return differ.any(dim=1)


def hexes(values: Tensor) -> str:
    """The bytes of `values` as they lie in memory, in hex."""
    return values.contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes().hex()


def compare(kind: str, given: Tensor, got: Tensor, wanted: Tensor) -> dict[str, Any] | None:
    """None where all blocks `[blocks, unit]` are equal; else how many are not, and the first."""
    wrong = differing(got, wanted.to(got.device))
    count = int(wrong.sum())
    if not count:
        return None
    first = int(wrong.nonzero()[0])
    return {
        "kind": kind,
        "differ": count,
        "of": len(wrong),
        "first": first,
        "given": hexes(given[first]),
        "got": hexes(got[first]),
        "wanted": hexes(wanted[first]),
    }


def passed_by() -> list[dict[str, Any]]:
    """The kernels that were not used, since at their first use they were found wrong."""
    return [{"kind": f"passed by: {name}"} for name in verified.refused()]
