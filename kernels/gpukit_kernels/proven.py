"""Which encoders and merges may be used on a GPU: those whose bytes there are the reference's.

At the first use in a process each is compared by `verified.py`, on values chosen to be hard: one
compilation, which the first use needs anyway, and some ten milliseconds of the reference.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gpukit_kernels import launch, merge, merge_triton
from gpukit_kernels.cpu import merge as cpu_merge, tiles
from gpukit_kernels.factors import Factors
from gpukit_kernels.table import FLOATS, QuantType
from gpukit_kernels.verified import sample, verified

# Rows and width of a sample, whatever the block.
ROWS, WIDTH = 16, 1024


def encodes(row: QuantType, dtype: torch.dtype, weighted: bool, device: torch.device) -> bool:
    """Whether there is a kernel for `row`, with importance if `weighted`, whose bytes of values of
    `dtype` on `device` are right, which of what is no GPU is not asked."""
    if not has_encoder(row, weighted):
        return False
    return device.type != "cuda" or encoder_verified(row, dtype, weighted, device)


def has_encoder(row: QuantType, weighted: bool) -> bool:
    """Whether Triton encodes `row`, with importance if `weighted`; if not, the CPU does."""
    pair = launch.triton_pair(row)
    if pair.nearest:
        return weighted or pair.nearest.plain
    return (pair.weighted if weighted else pair.encode) is not None


def encoder_verified(
    row: QuantType, dtype: torch.dtype, weighted: bool, device: torch.device
) -> bool:
    """As `encodes`, for any device."""
    values = hard_values(row)
    if launch.triton_pair(row).lanes and not weighted:
        # What the C makes of these is known by lanes, a block of each.
        strange = values.view(-1, row.block)
        strange[7, 3], strange[8, 4], strange[9, -1] = torch.nan, torch.inf, -torch.inf
    values, importance = values.to(dtype), None
    if weighted:
        importance = torch.rand(WIDTH, generator=torch.Generator().manual_seed(1))
        importance[::7] = 0.0

    def got() -> Tensor:
        given = None if importance is None else importance.to(device)
        return launch.encode_triton(values.to(device), row, given)

    def wanted() -> Tensor:
        blocks = values.view(-1, row.block)
        found = torch.empty((len(blocks), row.nbytes), dtype=torch.uint8)
        columns = None
        if importance is not None:
            columns = tiles.Importance(importance.view(1, -1, row.block), ROWS)
        tiles.encode_eager(blocks, row, found, columns)
        return found

    what = "encoding with importance" if weighted else "encoding"
    return verified(f"{what} of {_name(dtype)}", row.name, device, got, wanted)


def hard_values(row: QuantType) -> Tensor:
    """float32 `[ROWS, WIDTH]`, finite as float16, too: magnitudes from block to block, and blocks
    of zeros of both signs, of ties, of one large value, of what is subnormal."""
    random = torch.Generator().manual_seed(0)
    values = torch.randn((ROWS * WIDTH // row.block, row.block), generator=random)
    values *= torch.exp2(torch.randint(-20, 8, (len(values), 1), generator=random))
    values[1] = torch.where(values[0] < 0, -0.0, 0.0)
    values[2] = torch.where(values[0] < 0, -1.5, 1.5)
    values[3] = torch.arange(row.block) % 9 - 4.0
    values[4, row.block // 2 :] = -6e4
    values[5] *= 1e-40
    values[6, 1:] = 0.0
    return values.view(ROWS, WIDTH)


def merges(
    row: QuantType,
    kind: QuantType,
    width: int,
    factors: Sequence[Factors[Tensor]],
    device: torch.device,
) -> bool:
    """Whether there is a kernel that merges deltas of as many adapters as `factors` into `row`, to
    `kind`, rows of `width`, on `device` with the right bytes, which of no GPU is not asked."""
    if not has_encoder(kind, weighted=False):
        return False
    if device.type != "cuda":
        return True
    return merger_verified(row, kind, width, [f.magnitude is not None for f in factors], device)


def merger_verified(
    row: QuantType, kind: QuantType, width: int, lengths: Sequence[bool], device: torch.device
) -> bool:
    """As `merges`, for any device; `lengths` are the adapters', and which of them have some."""
    # Only floats have widths with a tail, which other code sees to.
    even = width % merge_triton.COLUMNS == 0
    width = 512 if even else 500
    if row.name in FLOATS:
        random = torch.Generator().manual_seed(2)
        values = torch.randn((ROWS, width), generator=random)
        weight = values.to(FLOATS[row.name]).view(torch.uint8)
    else:
        weight, _ = sample(row, ROWS, width)

    def found(short: bool, place: torch.device) -> Tensor:
        some, one = _adapters(width, lengths, short, place), weight.to(place)[None]
        if place == device:
            return merge_triton.merge_triton(one, row, some, kind)[0]
        out = one.new_empty((ROWS, kind.row_bytes(width)))
        steps = cpu_merge.Steps(tiles.decode_eager, merge.merge, tiles.encode_eager)
        cpu_merge.merge_rows(one[0], row, [f.of(0) for f in some], out, kind, steps)
        return out

    # Kernels for as many adapters with lengths as these have are other kernels.
    what = f"merging {len(lengths)} adapters, {sum(lengths)} with lengths, {'' if even else 'odd '}"
    return verified(
        f"{what}rows",
        f"{row.name} to {kind.name}",
        device,
        lambda: torch.cat([found(short, device) for short in (True, False)]),
        lambda: torch.cat([found(short, torch.device("cpu")) for short in (True, False)]),
    )


def _adapters(
    width: int, lengths: Sequence[bool], short: bool, place: torch.device
) -> list[Factors[Tensor]]:
    """Adapters of rank 16 for a weight `[1, ROWS, width]`; all products are exact if `short`."""
    random = torch.Generator().manual_seed(3)
    found = []
    for with_lengths in lengths:
        b = torch.randn((1, ROWS, 16), generator=random)
        a = torch.randn((1, 16, width), generator=random)
        if short:
            b, a = b.bfloat16().float(), a.bfloat16().float()
        magnitude = torch.rand((1, ROWS), generator=random).to(place) if with_lengths else None
        found.append(Factors(b.to(place), a.to(place), 0.7, magnitude))
    return found


def _name(dtype: torch.dtype) -> str:
    return next(name for name, known in FLOATS.items() if known is dtype)
