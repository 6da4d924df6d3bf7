"""The types with codebooks: llama.cpp's values, gguf-py's codebooks, shapes, where importance is
needed."""

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from support import quant_kinds

from gpukit_kernels import QUANTS, QuantError, dequantize, grids, merge_lora, quantize
from gpukit_kernels.launch import triton_pair
from gpukit_kernels.search.neighbours import DISTANCES

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "decoded.npz"
NAMES = [name for name in QUANTS if name in DISTANCES or name == "IQ1_M"]
NEEDING = [name for name in NAMES if QUANTS[name].facts.needs_importance]
CPU = torch.device("cpu")
# Levels of a codebook's row, their bits, and their values: eight of two bits or four of four.
BOOKS = {
    "IQ2_XXS": (8, lambda level: [8, 25, 43][level]),
    "IQ2_XS": (8, lambda level: [8, 25, 43][level]),
    "IQ2_S": (8, lambda level: [8, 25, 43][level]),
    "IQ3_XXS": (4, lambda level: [4, 12, 20, 28, 36, 44, 52, 62][level]),
    "IQ3_S": (4, lambda level: 2 * level + 1),
    "IQ1_S": (8, lambda level: level - 1),
}


def test_every_type_has_golden_values() -> None:
    with np.load(GOLDEN) as golden:
        assert set(golden) == {f"{what}/{name}" for what in ("blocks", "values") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_golden_values(name: str) -> None:
    with np.load(GOLDEN) as golden:
        blocks, expected = golden[f"blocks/{name}"], golden[f"values/{name}"]
    values = dequantize(torch.from_numpy(blocks), name).numpy()
    assert np.array_equal(values.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("name", BOOKS)
def test_codebooks_are_those_of_gguf(name: str) -> None:
    size, value = BOOKS[name]
    theirs = getattr(gguf.quants, name)
    theirs.init_grid()
    rows = grids.grid(name, CPU).tolist()
    assert theirs.grid_shape == (len(rows), size)
    bits = 16 // size
    mine = [[value((row >> (bits * j)) & ((1 << bits) - 1)) for j in range(size)] for row in rows]
    assert np.array_equal(theirs.grid.reshape(-1, size), np.array(mine))


def test_the_file_of_codebooks_has_no_other() -> None:
    size = Path(grids.__file__).with_name("grids.bin").stat().st_size
    assert size == sum(2 * len(grids.grid(name, CPU)) for name in BOOKS)


def test_signs_of_eight_are_those_of_gguf() -> None:
    signs = grids.eight_signs(torch.arange(128))
    assert bytes(signs.tolist()) == gguf.quants.IQ2_XXS.ksigns


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_made_once(name: str) -> None:
    table = triton_pair(QUANTS[name]).table
    assert table is not None
    assert table(CPU) is table(torch.device("cpu"))


@pytest.fixture
def quiet_numpy() -> Iterator[None]:
    """The interpreter computes with numpy, which warns of numbers that nobody looks at."""
    with np.errstate(all="ignore"):
        yield


@pytest.mark.sampled(3)
@pytest.mark.usefixtures("quiet_numpy")
@pytest.mark.parametrize("name", NEEDING)
@pytest.mark.parametrize("backend", [None, "eager", "compiled", "triton"])
def test_they_need_importance(name: str, backend: str | None) -> None:
    values = torch.ones(2, 256)
    with pytest.raises(QuantError, match=f"^{name} needs importance, one number for each column"):
        quantize(values, name, backend=backend)
    with pytest.raises(QuantError, match=f"^{name} needs importance"):
        merge_lora(values, [], out=name)
    blocks = quantize(values, name, torch.ones(256), backend=backend)
    assert blocks.shape == (2, QUANTS[name].nbytes)


@pytest.mark.sampled(3)
@pytest.mark.usefixtures("quiet_numpy")
@pytest.mark.parametrize("name", NAMES)
def test_rows_with_importance_by_triton(name: str) -> None:
    values = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    wanted = quantize(values, name, torch.ones(256), backend="eager")
    assert torch.equal(quantize(values, name, torch.ones(256), backend="triton"), wanted)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (0,), (2, 0, 3)])
def test_any_leading_shape(name: str, lead: tuple[int, ...]) -> None:
    count = torch.Size(lead).numel()
    blocks = quant_kinds.blocks_of(QUANTS[name], count, 512)
    blocks = blocks.view(*lead, blocks.shape[-1])
    values = dequantize(blocks, name)
    assert values.shape == (*lead, 512)
    assert values.dtype == torch.float32
    assert torch.equal(values.view(-1), dequantize(blocks.reshape(-1), name))
    on_meta = dequantize(blocks.to("meta"), name, torch.float16, backend="eager")
    assert (on_meta.shape, on_meta.dtype) == (values.shape, torch.float16)


@pytest.mark.parametrize("name", NAMES)
def test_narrow_floats_and_strides(name: str) -> None:
    blocks = quant_kinds.blocks_of(QUANTS[name], 14, 512)
    kept = blocks.clone()
    wide = dequantize(blocks, name)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(dequantize(blocks, name, dtype), wide.to(dtype))
    assert torch.equal(dequantize(blocks[::3], name), wide[::3])
    assert torch.equal(
        dequantize(blocks.view(2, 7, -1).transpose(0, 1), name),
        wide.view(2, 7, -1).transpose(0, 1),
    )
    assert torch.equal(blocks, kept)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_independent(name: str) -> None:
    # More blocks than one tile holds, an odd number.
    blocks = quant_kinds.blocks_of(QUANTS[name], 2049, 256)
    whole = dequantize(blocks, name)
    for at in (0, 1, 2047, 2048):
        assert torch.equal(whole[at], dequantize(blocks[at], name))


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_blocks_do_not_divide(name: str) -> None:
    row = QUANTS[name]
    with pytest.raises(QuantError, match=rf"^rows of 288 are no multiple of 256 \({name}\)$"):
        row.row_bytes(288)
    with pytest.raises(QuantError, match=rf"{row.nbytes + 1} bytes .* {row.nbytes} \({name}\)"):
        dequantize(torch.zeros(row.nbytes + 1, dtype=torch.uint8), name)
