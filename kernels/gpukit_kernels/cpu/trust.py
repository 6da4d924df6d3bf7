"""Compiled code beside the reference, before anybody uses it: compilers differ."""

import torch

from gpukit_kernels import merge
from gpukit_kernels.cpu import products, tiles
from gpukit_kernels.cpu.build import compiler
from gpukit_kernels.cpu.merge import by_program
from gpukit_kernels.cpu.merger import Merger
from gpukit_kernels.cpu.program import MERGE, Decoder, Program
from gpukit_kernels.factors import Factors
from gpukit_kernels.table import QuantType
from gpukit_kernels.turns import alone

# Blocks that every type encodes both ways before its compiled code is trusted.
CHECKED = ((torch.float32, 256), (torch.bfloat16, 32), (torch.float16, 32))

# Rows of 256 values that are decoded both ways.
DECODED_BLOCKS = 100

# Rows and columns of a weight that deltas are added to both ways: of every kind of tile some.
MERGED = (7, 257)
# Numbers of any bits that are rounded both ways, not divided by vectors.
CONVERTED = (1 << 16) + 5


def check_merger(found: Merger) -> None:
    """Raise where the sums of `found` are not those of the reference."""
    random = torch.Generator().manual_seed(0)
    rows, width = MERGED
    weight = torch.randn((rows, width), generator=random)
    magnitude = torch.rand(rows, generator=random)
    ranks = ((3, 0.7, None), (16, 1.5, magnitude))
    factors = [
        Factors(
            torch.randn((rows, rank), generator=random),
            torch.randn((rank, width), generator=random),
            *rest,
        )
        for rank, *rest in ranks
    ]
    with alone():
        wanted = merge.merge(weight, factors)
    got = by_program(found)(weight.clone(), factors)
    wrong = (got.view(torch.int32) != wanted.view(torch.int32)).any(dim=1)
    _refuse(MERGE, int(wrong.sum()), f"{rows} rows")
    _check_conversions(found, random)


def _check_conversions(found: Merger, random: torch.Generator) -> None:
    """Raise where `found` does not make the numbers of 16 bits, NaN apart, float32 as torch does,
    rounds float32 to others, or finds another largest magnitude."""
    bits = torch.arange(1 << 16).to(torch.int16)
    floats = torch.randint(-(1 << 31), 1 << 31, (CONVERTED,), generator=random).to(torch.int32)
    values = floats.view(torch.float32)
    finite = values[values.isfinite()]
    for some in (values, finite, finite[:3]):
        most = torch.tensor(found.largest(some.numpy())).view(torch.int32)
        wanted = (some.view(torch.int32) & 0x7FFFFFFF).max()
        _refuse(MERGE, int(most != wanted), f"magnitudes of {len(some)} values")
    for dtype in (torch.bfloat16, torch.float16):
        numbers, got = bits.view(dtype), torch.empty(1 << 16)
        wide, narrow = numbers.float(), values.to(dtype)
        rounded = torch.empty(CONVERTED, dtype=torch.int16)
        kind = "uint16" if dtype is torch.bfloat16 else "float16"
        found.widen(bits.numpy().view(kind), got.numpy())
        found.narrow(values.numpy(), rounded.numpy().view(kind))
        wrong = (got.view(torch.int32) != wide.view(torch.int32)) & ~wide.isnan()
        _refuse(MERGE, int(wrong.sum()), f"{1 << 16} values of {dtype}")
        wrong = (rounded != narrow.view(torch.int16)) & ~values.isnan()
        _refuse(MERGE, int(wrong.sum()), f"{CONVERTED} values rounded to {dtype}")


def check_decoder(found: Decoder, row: QuantType, name: str) -> None:
    """Raise where the values of `found` are not those of the reference."""
    random = torch.Generator().manual_seed(0)
    count = DECODED_BLOCKS * max(256 // row.block, 1)
    blocks = torch.randint(0, 256, (count, row.nbytes), generator=random, dtype=torch.uint8)
    wanted, got = (torch.empty((count, row.block)) for _ in range(2))
    with alone():
        tiles.decode_eager(blocks, row, wanted)
    products.decode(blocks, found, None, got)
    same = (got.view(torch.int32) == wanted.view(torch.int32)) | (got.isnan() & wanted.isnan())
    _refuse(name, int((~same).any(dim=1).sum()), f"{count} blocks")


def check_program(program: Program, row: QuantType, name: str) -> None:
    """Raise where the bytes of `program` are not those of the reference: compilers differ."""
    random = torch.Generator().manual_seed(0)
    most = max(count for _, count in CHECKED)
    values = torch.randn((most, row.block), generator=random)
    values *= torch.exp2(torch.randint(-20, 20, (most, 1), generator=random))
    values[::16, ::2] = 0.0
    importance = None
    if name != row.name:
        importance = tiles.Importance(torch.rand((2, 2, row.block), generator=random), 7)
    for dtype, count in CHECKED:
        some = values[:count].to(dtype)
        expected, got = (torch.empty((count, row.nbytes), dtype=torch.uint8) for _ in range(2))
        with alone():
            tiles.encode_eager(some, row, expected, importance)
        tiles.encode_program(some, row, got, program, importance)
        _refuse(name, int((got != expected).any(dim=1).sum()), f"{count} blocks of {dtype}")


def _refuse(name: str, wrong: int, tried: str) -> None:
    """Raise where any of what was `tried` is wrong."""
    if wrong:
        raise RuntimeError(
            f"compiled {name} gets {wrong} of {tried} wrong with torch "
            f"{torch.__version__} and {compiler()}"
        )
