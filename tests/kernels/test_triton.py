"""The Triton kernels against llama.cpp's bytes and the reference; off a GPU in the interpreter.

The interpreter's time goes by operations, not by elements, so most tests widen a kernel's tile
until one program does all the blocks.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from _pytest.mark import ParameterSet
from support import quant_kinds
from torch import Tensor

from gpukit_kernels import (
    QUANTS,
    QuantType,
    bits,
    bits_triton,
    dequantize,
    launch,
    nearest_triton,
    proven,
    quantize,
)

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "kernels.npz"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAMES = list(QUANTS)
WRITTEN = [name for name in NAMES if proven.has_encoder(QUANTS[name], False)]
WEIGHTED = [name for name in NAMES if proven.has_encoder(QUANTS[name], True)]
KINDS = list(quant_kinds.FINITE)
# Those whose search takes the interpreter longest: it has a block or two of each kind of values.
NEAREST = [name for name in NAMES if launch.triton_pair(QUANTS[name]).nearest]


def quickly(names: list[str]) -> list[ParameterSet]:
    """`names`; of NEAREST one stands for the others, whose bytes with importance are looked at."""
    slow = set(NEAREST) - {"IQ2_S"}
    return [
        pytest.param(name, marks=[pytest.mark.thorough] if name in slow else []) for name in names
    ]


@pytest.fixture(autouse=True)
def quiet_numpy() -> Iterator[None]:
    """The interpreter computes with numpy, which warns where the format overflows on purpose."""
    with np.errstate(all="ignore"):
        yield


def wide(row: QuantType, blocks: int) -> QuantType:
    """`row` with a tile that holds `blocks` blocks."""
    assert row.triton is not None
    tile = 1 << (blocks - 1).bit_length()
    return replace(row, triton=replace(row.triton, tile=tile, weighted_tile=tile))


def encode(values: Tensor, row: QuantType, importance: Tensor | None = None) -> Tensor:
    """uint8 `[blocks, nbytes]` from the kernel, in one program off a GPU."""
    if DEVICE.type == "cpu":
        row = wide(row, values.numel() // row.block)
    if importance is not None:
        importance = importance.to(DEVICE)
    return launch.encode_triton(values.to(DEVICE), row, importance).cpu()


def assert_same_blocks(got: Tensor, wanted: Tensor, kinds: list[str]) -> None:
    """Equal, or which kinds of values, in equal shares of the blocks, have how many wrong ones.

    Blocks that llama.cpp ends the process for are not asked about.
    """
    ended = (wanted == quant_kinds.ENDED).all(dim=1)
    differ = ((got != wanted).any(dim=1) & ~ended).view(len(kinds), -1).sum(dim=1)
    assert not differ.any(), {kind: int(n) for kind, n in zip(kinds, differ, strict=True) if n}


def assert_same_floats(got: Tensor, wanted: Tensor) -> None:
    """Equal in every bit; a NaN is a NaN."""
    got = got.cpu()
    bits = torch.int32 if got.dtype is torch.float32 else torch.int16
    differ = (got.view(bits) != wanted.view(bits)) & ~(got.isnan() & wanted.isnan())
    assert not differ.any(), f"{int(differ.sum())} of {differ.numel()} values differ"


def golden(what: str, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Values, their importance, and llama.cpp's blocks of the type `name`."""
    row = QUANTS[name]
    some = slice(2 if name in NEAREST and DEVICE.type == "cpu" else None)
    with np.load(GOLDEN) as found:
        values = np.concatenate([found[f"values/{kind}"][some] for kind in KINDS])
        importance = found["importance"]
        if name == "F32":
            blocks = values.view(np.uint8)
        else:
            blocks = np.concatenate([found[f"{what}/{name}/{kind}"][some] for kind in KINDS])
    blocks = blocks.reshape(-1, row.nbytes)
    return torch.from_numpy(values), torch.from_numpy(importance), torch.from_numpy(blocks)


def some_of_all_kinds(name: str) -> Tensor:
    """float32 `[n, 256]` for the type `name`, all finite as float16, too."""
    rows = 2 if name in NEAREST and DEVICE.type == "cpu" else 8
    made = np.concatenate([quant_kinds.make(kind, rows, seed=1) for kind in KINDS])
    return torch.from_numpy(made).clamp(-6e4, 6e4)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", quickly(WRITTEN))
def test_golden_and_reference_bytes(name: str) -> None:
    row, more = QUANTS[name], some_of_all_kinds(name)
    values, _, wanted = golden("blocks", name)
    got = encode(torch.cat([values, more]), row)
    assert_same_blocks(got[: len(wanted)], wanted, KINDS)
    referred = quantize(more, name, backend="eager").view(-1, row.nbytes)
    assert_same_blocks(got[len(wanted) :], referred, KINDS)
    if name != "F32":
        decoded = dequantize(wanted.to(DEVICE), name, backend="triton")
        expected = gguf.quants.dequantize(wanted.numpy(), gguf.GGMLQuantizationType[name])
        assert_same_floats(decoded, torch.from_numpy(expected.astype(np.float32)))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", WEIGHTED)
def test_golden_bytes_with_importance(name: str) -> None:
    values, importance, wanted = golden("weighted", name)
    assert_same_blocks(encode(values, QUANTS[name], importance), wanted, KINDS)


@pytest.mark.thorough
@pytest.mark.parametrize("name", WEIGHTED)
def test_experts_have_an_importance_each(name: str) -> None:
    # Rows of three blocks, and a tile that takes the end of one expert and half the next.
    width = 3 * QUANTS[name].block
    random = torch.Generator().manual_seed(5)
    values = torch.randn(3, 5, width, generator=random).bfloat16()
    importance = torch.rand(3, width, generator=random)
    wanted = quantize(values, name, importance, backend="eager")
    row = wide(QUANTS[name], 32)
    got = launch.encode_triton(values.to(DEVICE), row, importance.to(DEVICE))
    assert torch.equal(got.cpu().view_as(wanted), wanted)
    each = [quantize(v, name, w, backend="eager") for v, w in zip(values, importance, strict=True)]
    assert torch.equal(torch.stack(each), wanted)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float16, marks=pytest.mark.thorough),
        torch.bfloat16,
    ],
)
@pytest.mark.parametrize("name", quickly(WRITTEN))
def test_reference_bytes_of_16_bits(name: str, dtype: torch.dtype) -> None:
    row = QUANTS[name]
    values = some_of_all_kinds(name).to(dtype)
    wanted = quantize(values, name, backend="eager").view(-1, row.nbytes)
    assert_same_blocks(encode(values, row), wanted, KINDS)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", quickly(WRITTEN))
def test_the_launched_tile_and_its_odd_tail(name: str) -> None:
    row = QUANTS[name]
    assert row.triton is not None
    count = row.triton.tile + 1
    values = torch.randn(count, row.block, generator=torch.Generator().manual_seed(2))
    got = quantize(values.to(DEVICE), name, backend="triton")
    assert torch.equal(got.cpu(), quantize(values, name, backend="eager"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_decode_as_in_the_reference(name: str, dtype: torch.dtype) -> None:
    row = QUANTS[name]
    # Every pattern of scale occurs: subnormal, infinite and NaN too. An odd count leaves a tail.
    count = 2 * launch.DECODE_VALUES // row.block + 1
    blocks = torch.randint(
        0, 256, (count, row.nbytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)
    )
    wanted = dequantize(blocks, name, dtype, backend="eager")
    assert_same_floats(dequantize(blocks.to(DEVICE), name, dtype, backend="triton"), wanted)


@pytest.mark.parametrize("name", [name for name in NAMES if QUANTS[name].block > 1])
def test_blocks_may_begin_at_any_byte(name: str) -> None:
    row = QUANTS[name]
    blocks = quant_kinds.blocks_of(row, 5, row.block)
    for shift in (1, 2, 3):
        buffer = torch.zeros(blocks.numel() + shift, dtype=torch.uint8, device=DEVICE)
        view = buffer[shift:].view_as(blocks)
        view.copy_(blocks)
        got = dequantize(view, name, backend="triton")
        assert torch.equal(got.cpu(), dequantize(blocks, name))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", quickly(NAMES))
def test_nothing_is_written_beyond_the_last_block(name: str) -> None:
    row = QUANTS[name]
    pair = launch.triton_pair(row)
    blocks = torch.full((5, row.nbytes), 0xAA, dtype=torch.uint8, device=DEVICE)
    facts = {"BLOCK": row.block, "NBYTES": row.nbytes, "TILE": 4, "enable_fp_fusion": False}
    if pair.encode is not None:
        values = torch.randn(3, row.block, device=DEVICE)
        launch.encode_kernel[(1,)](values, blocks, 3, ENCODE=pair.encode, LANES=pair.lanes, **facts)
        assert torch.equal(blocks[:3].cpu(), quantize(values.cpu(), name, backend="eager"))
        assert (blocks[3:] == 0xAA).all()
    if pair.nearest is not None:
        values = torch.randn(3, row.block, device=DEVICE)
        ones = torch.ones(row.block, device=DEVICE)
        book = pair.nearest.book(DEVICE)
        nearest_triton.nearest_kernel[(1,)](
            values, ones, book, blocks, 3, 1, 3, ENCODE=pair.nearest.encode, **facts
        )
        wanted = quantize(values.cpu(), name, ones.cpu(), backend="eager")
        assert torch.equal(blocks[:3].cpu(), wanted)
        assert (blocks[3:] == 0xAA).all()
    out = torch.full((5, row.block), torch.nan, device=DEVICE)
    launch.decode_kernel[(1,)](
        blocks, launch.device_table(pair, DEVICE), out, 3, DECODE=pair.decode, **facts
    )
    assert torch.equal(out[:3].cpu(), dequantize(blocks[:3].cpu(), name, backend="eager"))
    assert out[3:].isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_nothing(name: str) -> None:
    row = QUANTS[name]
    if row.encode:
        blocks = quantize(torch.empty(0, row.block, device=DEVICE), name, backend="triton")
        assert blocks.shape == (0, row.nbytes)
    blocks = torch.empty(0, row.nbytes, dtype=torch.uint8, device=DEVICE)
    assert dequantize(blocks, name, backend="triton").shape == (0, row.block)


@triton.jit
def half_kernel(values, out):
    at = tl.arange(0, 8)
    v = tl.load(values + at)
    tl.store(out + at, bits_triton.half_bits_tl(v))
    tl.store(out + 8 + at, bits_triton.given_half_bits_tl(v))


def test_the_nan_that_a_gpu_makes_has_the_sign_of_the_processors() -> None:
    patterns = [
        0x7FFFFFFF,
        0xFFC00000,
        0x7FC00000,
        0x7F800001,
        0x7F800000,
        0x80000001,
        0,
        0x3F801FFF,
    ]
    values = torch.tensor(patterns).to(torch.int32).view(torch.float32)
    out = torch.empty(2, 8, dtype=torch.int16, device=DEVICE)
    half_kernel[(1,)](values.to(DEVICE), out)
    given = bits.half_bits(values)
    made = given.clone()
    made[0] = 0xFE00
    assert torch.equal(out.cpu().to(torch.int32) & 0xFFFF, torch.stack([made, given]))
