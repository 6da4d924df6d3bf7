"""The torch reference against llama.cpp: the same bytes encoded, the same floats decoded."""

from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from support import quant_kinds
from support.quant_kinds import WIDTH

from gpukit_kernels import QUANTS, QuantError, dequantize, quantize

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "kernels.npz"
WRITTEN = [name for name, row in QUANTS.items() if row.encodable]
WEIGHTED = [name for name, row in QUANTS.items() if row.weighted]
# Those that have bytes without importance.
PLAIN = [name for name, row in QUANTS.items() if row.encode]
WIDTHS = (32, 64, 256, 288, 4096, 11008, 28672)
# Blocks of random bytes.
BLOCKS = 2048


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def same_bytes(got: torch.Tensor, expected: np.ndarray, nbytes: int) -> None:
    """Equal, or a message that counts the blocks that differ and shows the first."""
    blocks, wanted = got.numpy().reshape(-1, nbytes), expected.reshape(-1, nbytes)
    assert blocks.shape == wanted.shape
    # There is nothing of a row that llama.cpp ends the process for.
    given = (wanted != quant_kinds.ENDED).any(axis=1)
    (differ,) = np.nonzero((blocks != wanted).any(axis=1) & given)
    if differ.size:
        at = differ[0]
        pytest.fail(
            f"{differ.size} of {len(blocks)} blocks differ; block {at} is\n"
            f"{blocks[at].tobytes().hex()}\nand should be\n{wanted[at].tobytes().hex()}"
        )


def gguf_values(blocks: np.ndarray, name: str) -> np.ndarray:
    """float32 values as gguf-py decodes them."""
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    return values.astype(np.float32)


def same_floats(got: torch.Tensor, expected: np.ndarray) -> None:
    """Equal in every bit, zeros' signs included; a NaN is a NaN."""
    values = got.numpy()
    differ = values.view(np.int32) != expected.view(np.int32)
    differ &= ~(np.isnan(values) & np.isnan(expected))
    assert not differ.any(), f"{differ.sum()} of {differ.size} values differ"


@cache
def encoded(name: str, weighted: bool) -> torch.Tensor:
    """uint8 `[kinds, rows, row_bytes]`: all golden values by the reference, at once."""
    with np.load(GOLDEN) as file:
        values = np.stack([file[f"values/{kind}"] for kind in quant_kinds.FINITE])
        importance = torch.from_numpy(file["importance"]) if weighted else None
    return quantize(torch.from_numpy(values), name, importance, backend="eager")


@pytest.mark.parametrize("kind", quant_kinds.FINITE)
@pytest.mark.parametrize("name", [name for name in PLAIN if name != "F32"])
def test_golden(golden: dict[str, np.ndarray], name: str, kind: str) -> None:
    blocks = golden[f"blocks/{name}/{kind}"]
    made = encoded(name, False)[list(quant_kinds.FINITE).index(kind)]
    same_bytes(made, blocks, QUANTS[name].nbytes)
    same_floats(dequantize(torch.from_numpy(blocks), name), gguf_values(blocks, name))


@pytest.mark.parametrize("kind", quant_kinds.FINITE)
@pytest.mark.parametrize("name", WEIGHTED)
def test_golden_with_importance(golden: dict[str, np.ndarray], name: str, kind: str) -> None:
    made = encoded(name, True)[list(quant_kinds.FINITE).index(kind)]
    same_bytes(made, golden[f"weighted/{name}/{kind}"], QUANTS[name].nbytes)


def test_every_type_has_golden_bytes(golden: dict[str, np.ndarray]) -> None:
    made = {key.split("/")[1] for key in golden if key.startswith("blocks/")}
    assert made == set(PLAIN) - {"F32"}
    made = {key.split("/")[1] for key in golden if key.startswith("weighted/")}
    assert made == set(WEIGHTED)


@pytest.mark.parametrize("kind", [*quant_kinds.FINITE, *quant_kinds.NOT_FINITE])
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.peer
@pytest.mark.thorough
def test_peer(name: str, kind: str) -> None:
    row = QUANTS[name]
    values = quant_kinds.make(kind, quant_kinds.rows_of(name))
    expected = quant_kinds.need_peer().quantize(values, row.id)
    same_bytes(quant_kinds.references(name, False)[kind], expected, row.nbytes)
    if name != "F32":
        same_floats(dequantize(torch.from_numpy(expected), name), gguf_values(expected, name))


@pytest.mark.parametrize("kind", quant_kinds.FINITE)
@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.peer
@pytest.mark.thorough
def test_peer_with_importance(name: str, kind: str) -> None:
    row = QUANTS[name]
    values = quant_kinds.make(kind, quant_kinds.rows_of(name))
    importance = quant_kinds.importance(WIDTH)
    expected = quant_kinds.need_peer().quantize(values, row.id, importance)
    same_bytes(quant_kinds.references(name, True)[kind], expected, row.nbytes)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [
    # llama.cpp makes tables for them, for twenty seconds in each process.
    pytest.param(name, marks=[pytest.mark.thorough] if name.startswith(("IQ1", "IQ2")) else [])
    for name in WRITTEN
])  # fmt: skip
@pytest.mark.peer
def test_widths(name: str, width: int) -> None:
    row, peer = QUANTS[name], quant_kinds.need_peer()
    if width % row.block:
        with pytest.raises(QuantError, match=f"rows of {width} are no multiple of {row.block}"):
            quantize(torch.zeros(1, width), name, torch.zeros(width) if row.weighted else None)
        return
    rng = np.random.default_rng(width)
    values = rng.standard_t(4, (2, width)).astype(np.float32)
    if row.encode:
        expected = peer.quantize(values, row.id)
        same_bytes(quantize(torch.from_numpy(values), name, backend="eager"), expected, row.nbytes)
    importance = quant_kinds.importance(width)
    expected = peer.quantize(values, row.id, importance)
    got = quantize(torch.from_numpy(values), name, torch.from_numpy(importance), backend="eager")
    same_bytes(got, expected, row.nbytes)


def any_bytes(name: str) -> np.ndarray:
    """uint8 `[blocks, nbytes]`: scales that are subnormal, infinite or NaN too."""
    return np.random.default_rng(5).integers(0, 256, (BLOCKS, QUANTS[name].nbytes), dtype=np.uint8)


@pytest.mark.parametrize("name", QUANTS)
def test_any_bytes_decode_as_in_gguf(name: str) -> None:
    blocks = any_bytes(name)
    same_floats(dequantize(torch.from_numpy(blocks), name), gguf_values(blocks, name))


@pytest.mark.parametrize("name", [name for name in QUANTS if QUANTS[name].block > 1])
@pytest.mark.peer
def test_any_bytes_decode_as_in_the_peer(name: str) -> None:
    blocks = any_bytes(name)
    expected = quant_kinds.need_peer().dequantize(blocks, name, QUANTS[name].block)
    same_floats(dequantize(torch.from_numpy(blocks), name), expected)


def test_f32_is_the_bits() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, (5, 96), dtype=np.uint32)
    values = torch.from_numpy(bits.view(np.float32))
    blocks = quantize(values, "F32")
    assert np.array_equal(blocks.numpy(), bits.view(np.uint8))
    assert np.array_equal(dequantize(blocks, "F32").numpy().view(np.uint32), bits)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_16_bit_pattern_survives(name: str) -> None:
    # NaN patterns may change: the C reads them as float32 and writes them quietened.
    blocks = torch.arange(65536).to(torch.int32).view(torch.uint8).view(-1, 4)[:, :2].flatten()
    values = dequantize(blocks, name)
    back = quantize(values, name).view(-1, 2)
    keep = ~values.isnan()
    assert torch.equal(back[keep], blocks.view(-1, 2)[keep])
    assert dequantize(back.flatten(), name)[~keep].isnan().all()
