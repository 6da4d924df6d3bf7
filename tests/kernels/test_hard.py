"""Hard values, hard importance and every width of row: llama.cpp's bytes, eager, compiled, Triton.

Off a GPU the Triton kernels run in the interpreter, with a tile that takes all blocks: its time is
the number of operations, so all that one launch can take is one.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import hard_values as hard, quant_kinds
from torch import Tensor

from gpukit_kernels import QUANTS, launch, proven, quantize
from gpukit_kernels.cpu import compiled

GOLDEN: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parents[1] / "data" / "golden" / "hard.json").read_text()
)
NAMES = list(GOLDEN)
WEIGHTED = [name for name in NAMES if QUANTS[name].weighted]
PLAIN = [name for name in NAMES if QUANTS[name].encode]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# What the interpreter does of them; a GPU does the others, too.
INTERPRETED_WIDTHS = (288, 4096)
INTERPRETED_IMPORTANCE = ("mostly zero", "wide")
WRITTEN = [name for name in PLAIN if proven.has_encoder(QUANTS[name], False)]
WRITTEN_WEIGHTED = [name for name in WEIGHTED if proven.has_encoder(QUANTS[name], True)]

Encode = Callable[[np.ndarray, str, np.ndarray | None], np.ndarray]


@pytest.fixture(autouse=True)
def quiet_numpy() -> Iterator[None]:
    """The interpreter computes with numpy, which warns where the format overflows on purpose."""
    with np.errstate(all="ignore"):
        yield


def by(backend: str) -> Encode:
    def encode(values: np.ndarray, name: str, importance: np.ndarray | None) -> np.ndarray:
        weights = None if importance is None else torch.from_numpy(importance)
        return quantize(torch.from_numpy(values), name, weights, backend=backend).numpy()

    return encode


def by_triton(values: np.ndarray, name: str, importance: np.ndarray | None) -> np.ndarray:
    """uint8 `[blocks, nbytes]` by one launch; `values` are `[experts, rows, n]` with importance,
    which is `[experts, n]`."""
    row = QUANTS[name]
    if DEVICE.type == "cpu":
        assert row.triton is not None
        tile = 1 << (values.size // row.block - 1).bit_length()
        row = replace(row, triton=replace(row.triton, tile=tile, weighted_tile=tile))
    weights: Tensor | None = None if importance is None else torch.from_numpy(importance)
    on_device = None if weights is None else weights.to(DEVICE)
    return launch.encode_triton(torch.from_numpy(values).to(DEVICE), row, on_device).cpu().numpy()


COMPILED = pytest.param(
    by("compiled"),
    id="compiled",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(compiled.compiler() is None, reason="no C compiler"),
        pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning"),
    ],
)
BACKENDS = pytest.mark.parametrize("encode", [pytest.param(by("eager"), id="eager"), COMPILED])
interpreted = pytest.mark.thorough if DEVICE.type == "cpu" else lambda test: test


def digest(blocks: np.ndarray, name: str, what: str) -> str:
    """That of `blocks`; rows that llama.cpp ends the process for are as they are in its digest."""
    ended = GOLDEN[name].get(f"{what}, ended", "").split()
    blocks[list(map(int, ended))] = quant_kinds.ENDED
    return hard.digest(blocks)


def test_every_type_kind_and_width_has_a_digest() -> None:
    assert set(NAMES) == {n for n, row in QUANTS.items() if row.encodable} - {"F32"}
    for name, found in GOLDEN.items():
        widths = {str(w) for w in hard.WIDTHS if not w % QUANTS[name].block}
        wanted = {*hard.KINDS, *widths} if name in PLAIN else set()
        if name in WEIGHTED:
            wanted |= {f"all, {kind}" for kind in hard.IMPORTANCE} | {f"{w}, cubes" for w in widths}
            wanted.add("scarce")
        assert {what for what in found if not what.endswith(", ended")} == wanted


@pytest.mark.sampled(2)
@BACKENDS
@pytest.mark.parametrize("name", PLAIN)
def test_hard_values(name: str, encode: Encode) -> None:
    blocks = encode(hard.everything(), name, None).reshape(len(hard.KINDS), hard.ROWS, -1)
    found = {kind: digest(some, name, kind) for kind, some in zip(hard.KINDS, blocks, strict=True)}
    assert found.items() <= GOLDEN[name].items()


@pytest.mark.sampled(6)
@BACKENDS
@pytest.mark.parametrize("name", WEIGHTED)
def test_hard_importance(name: str, encode: Encode) -> None:
    wrong = []
    for kind in hard.IMPORTANCE:
        blocks = encode(hard.everything(), name, hard.importance(kind))
        if digest(blocks, name, f"all, {kind}") != GOLDEN[name][f"all, {kind}"]:
            wrong.append(kind)
    assert not wrong


@pytest.mark.sampled(4)
@BACKENDS
@pytest.mark.parametrize("name", WEIGHTED)
def test_groups_with_scales_below_zero(name: str, encode: Encode) -> None:
    # Q4_K lets their codes spill into other bits, Q5_K does not.
    blocks = encode(hard.scarce(), name, hard.importance("mostly zero"))
    assert digest(blocks, name, "scarce") == GOLDEN[name]["scarce"]


@pytest.mark.sampled(6)
@BACKENDS
@pytest.mark.parametrize("name", NAMES)
def test_widths(name: str, encode: Encode) -> None:
    wrong = []
    for width in hard.WIDTHS:
        if width % QUANTS[name].block:
            continue
        what = str(width)
        if name in PLAIN:
            blocks = encode(hard.wide(width), name, None)
            if digest(blocks, name, what) != GOLDEN[name][what]:
                wrong.append(what)
        if name in WEIGHTED:
            blocks = encode(hard.wide(width), name, hard.importance("cubes", width))
            if digest(blocks, name, f"{what}, cubes") != GOLDEN[name][f"{what}, cubes"]:
                wrong.append(f"{what}, cubes")
    assert not wrong


def widths(name: str) -> list[int]:
    every = INTERPRETED_WIDTHS if DEVICE.type == "cpu" else hard.WIDTHS
    return [width for width in every if not width % QUANTS[name].block]


@interpreted
@pytest.mark.parametrize("name", WRITTEN)
def test_values_and_widths_by_triton(name: str) -> None:
    # Without importance a kernel sees blocks only.
    kinds = {kind: hard.values(kind) for kind in hard.KINDS}
    parts = {**kinds, **{str(width): hard.wide(width) for width in widths(name)}}
    together = np.concatenate([part.ravel() for part in parts.values()])
    ends = np.cumsum([part.size // QUANTS[name].block for part in parts.values()])
    blocks = np.split(by_triton(together, name, None), ends[:-1])
    found = {
        what: digest(some.reshape(len(parts[what]), -1), name, what)
        for what, some in zip(parts, blocks, strict=True)
    }
    assert found.items() <= GOLDEN[name].items()


@interpreted
@pytest.mark.parametrize("name", WRITTEN_WEIGHTED)
def test_importance_by_triton(name: str) -> None:
    every, scarce = hard.everything(), hard.scarce()
    kinds = INTERPRETED_IMPORTANCE if DEVICE.type == "cpu" else tuple(hard.IMPORTANCE)
    parts = {f"all, {kind}": (every, kind) for kind in kinds}
    parts["scarce"] = (scarce, "mostly zero")
    # Experts have as many rows each.
    rows = max(len(every), len(scarce))
    values = [np.resize(some, (rows, hard.WIDTH)) for some, _ in parts.values()]
    importance = [hard.importance(kind) for _, kind in parts.values()]
    blocks = by_triton(np.stack(values), name, np.stack(importance))
    found = {
        what: digest(each[: len(some)], name, what)
        for (what, (some, _)), each in zip(
            parts.items(), blocks.reshape(len(parts), rows, -1), strict=True
        )
    }
    assert found.items() <= GOLDEN[name].items()


@interpreted
@pytest.mark.parametrize("name", WRITTEN_WEIGHTED)
def test_widths_with_importance_by_triton(name: str) -> None:
    found = {}
    for width in widths(name):
        blocks = by_triton(hard.wide(width), name, hard.importance("cubes", width))
        what = f"{width}, cubes"
        found[what] = digest(blocks, name, what)
    assert found.items() <= GOLDEN[name].items()
