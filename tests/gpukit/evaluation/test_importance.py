"""Importance as it is collected, beside llama-imatrix's and beside arithmetic."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from support import checkpoints, zoo_build
from support.checkpoints import DATA

from gpukit.errors import GpukitError
from gpukit.evaluation.importance import Collector, in_all
from gpukit.evaluation.importance_statistics import statistics
from gpukit.evaluation.windows import Windows, cut, read_text
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.imatrix import Collection, Sums, read_collection
from gpukit.generation.loading import LoadedModel, load_model
from gpukit.models.weights import Site

PEER = DATA / "imatrix"


def folder(name: str, root: Path) -> Path:
    if name == "tiny-shakespeare":
        return DATA / name
    return (checkpoints if name in checkpoints.VARIANTS else zoo_build).build(name, root)


def loaded(name: str, root: Path, collector: Collector) -> tuple[LoadedModel, Windows]:
    model = load_model(folder(name, root), "cpu", observe=collector)
    num_ctx, chunks = (64, 12) if name == "tiny-shakespeare" else (32, 6)
    text = read_text(PEER / "text.txt")
    return model, cut(text, model.tokenizer, num_ctx, chunks=chunks)


def read(model: LoadedModel, windows: Windows, numbers: range, collector: Collector) -> None:
    for number in numbers:
        cache = model.decoder.cache(windows.num_ctx)
        model.decoder.forward(windows.inputs(number), cache, every=True)
        collector.end_chunk()


@pytest.mark.parametrize("name", ["tiny-shakespeare", "mixtral-12", "phi3-4k", "tied"])
def test_the_sums_of_llama_imatrix(name: str, tmp_path: Path) -> None:
    collector = Collector(process_output=True)
    model, windows = loaded(name, tmp_path, collector)
    read(model, windows, range(len(windows)), collector)
    peer = read_collection(PEER / f"{name}.gguf")
    assert collector.entries.keys() == peer.entries.keys()
    found = Collection(collector.entries, (), 0, windows.num_ctx)
    assert (in_all(found), windows.num_ctx) == (peer.chunks, peer.chunk_size)
    for tensor, sums in collector.entries.items():
        other = peer.entries[tensor]
        np.testing.assert_array_equal(sums.counts, other.counts)
        # Both are sums of float32 products of up to 512 terms, four layers deep: 2e-5 at most. With
        # AMX each product is off by 3 * 2^-16, and values are sums of some that cancel: 1e-3.
        np.testing.assert_allclose(sums.squares, other.squares, rtol=1e-3)
        assert sums.sums is not None
        assert other.sums is not None
        most = float(np.sqrt(other.squares * other.counts[:, None]).max())
        np.testing.assert_allclose(sums.sums, other.sums, rtol=0, atol=1e-3 * most)


def test_only_what_llama_imatrix_collects_by_default(tmp_path: Path) -> None:
    collector = Collector()
    model, windows = loaded("tied", tmp_path, collector)
    model.decoder.forward(windows.inputs(0), model.decoder.cache(32))
    collector.end_chunk()
    assert collector.entries
    assert all(name.startswith("blk.") for name in collector.entries)
    assert {int(sums.counts[0]) for sums in collector.entries.values()} == {32}


def test_routers_and_fused_maps_are_collected(tmp_path: Path) -> None:
    collector = Collector()
    model, windows = loaded("mixtral-12", tmp_path, collector)
    read(model, windows, range(1), collector)
    assert collector.entries["blk.0.ffn_gate_inp.weight"].counts.tolist() == [32]
    experts = collector.entries["blk.0.ffn_down_exps.weight"]
    assert experts.squares.shape == (12, 64)
    assert experts.counts.sum() == 3 * 32
    for expert in np.flatnonzero(experts.counts == 0):
        assert not experts.squares[expert].any()


def test_going_on_gives_the_same_bits(tmp_path: Path) -> None:
    whole, first, second = Collector(), Collector(), Collector()
    for collector, parts in ((whole, [range(3)]), (first, [range(1)]), (second, [range(1, 3)])):
        model, windows = loaded("mixtral-12", tmp_path / f"{id(collector)}", collector)
        if collector is second:
            collector.begin(first.entries)
        for part in parts:
            read(model, windows, part, collector)
    assert whole.entries.keys() == second.entries.keys()
    for name, sums in whole.entries.items():
        other = second.entries[name]
        np.testing.assert_array_equal(sums.squares, other.squares)
        np.testing.assert_array_equal(sums.sums, other.sums)
        np.testing.assert_array_equal(sums.counts, other.counts)


def test_a_long_run_loses_nothing() -> None:
    """2^24 and as much again: float32 sums of single rows would stand still."""
    collector, site = Collector(), Site("blk.0.a.weight", 0, 4)
    start = Sums(
        np.full((1, 2), 2**24, np.float32), np.array([2**24]), np.zeros((1, 2), np.float32)
    )
    collector.begin({site.name: start})
    for _ in range(4):
        collector(site, torch.ones(2, 8, 2))
        collector.end_chunk()
    sums = collector.entries[site.name]
    assert sums.squares.tolist() == [[2**24 + 64] * 2]
    assert sums.counts.tolist() == [2**24 + 64]
    assert sums.sums is not None
    assert sums.sums.tolist() == [[64, 64]]


def test_what_is_no_number_is_refused() -> None:
    collector = Collector()
    x = torch.ones(3, 4)
    x[1, 2] = float("nan")
    collector(Site("blk.7.a_exps.weight", 8, 4, matrices=5), x)
    with pytest.raises(GpukitError, match=r"blk\.7\.a_exps\.weight, expert 2: column 2 has a sum"):
        collector.end_chunk()
    collector = Collector()
    collector(Site("blk.7.a.weight", 0, 4), torch.full((3, 4), 1e30))
    with pytest.raises(GpukitError, match=r"blk\.7\.a\.weight: column 0 has .* of inf"):
        collector.end_chunk()


@pytest.mark.parametrize("name", ["tiny-shakespeare", "mixtral-12", "phi3-4k", "tied"])
def test_the_statistics_of_llama_imatrix(name: str) -> None:
    path = PEER / f"{name}.gguf"
    found = statistics(read_collection(path).entries)
    with GGUFFile(path) as file:
        names = [n.removesuffix(".stats") for n in file.tensors if n.endswith(".stats")]
        peer = {n: file.read(file.tensors[f"{n}.stats"]).view("<f4") for n in names}
    assert found.keys() == peer.keys()
    for tensor, values in peer.items():
        # Doubles, added in another order; averages that are float32 there, and cancel.
        np.testing.assert_allclose(found[tensor].values(), values, rtol=1e-4, atol=1e-7)


def entries(**rows: list[list[float]]) -> Mapping[str, Sums]:
    found = {}
    for name, values in rows.items():
        x = np.array(values, np.float32)
        sums = Sums((x**2).sum(0, keepdims=True), np.array([len(x)]), x.sum(0, keepdims=True))
        found[name.replace("_", ".", 2) + ".weight"] = sums
    return found


def test_statistics_by_hand() -> None:
    found = statistics(
        entries(
            blk_10_a=[[2, 0, 0, 0]], blk_9_a=[[1, 0, 0, 0], [1, 0, 0, 0]], blk_2_a=[[1, 1, 1, 1]]
        )
    )
    assert list(found) == ["blk.2.a.weight", "blk.9.a.weight", "blk.10.a.weight"]
    last = found["blk.10.a.weight"]
    assert (last.sum_sq, last.elements, last.least, last.most) == (4, 4, 0, 4)
    assert (last.active, last.zd, last.h_norm, last.mean) == (0.25, 0.25, 0, 0.5)
    assert (last.gain, last.l2_dist, last.cossim, last.pearson) == (2, 1, 1, 1)
    flat = found["blk.2.a.weight"]
    assert (flat.h_norm, flat.std_deviation, flat.skewness, flat.kurtosis) == (100, 0, 0, 0)
    assert np.isnan([flat.gain, flat.cossim]).all()
    # The layer before is the nearest that has the tensor.
    assert found["blk.9.a.weight"].cossim == 0.5


def test_statistics_of_little() -> None:
    nothing = Sums(np.zeros((2, 3), np.float32), np.zeros(2, np.int64))
    assert statistics({"blk.0.a.weight": nothing}) == {}
    silent = Sums(np.zeros((1, 1), np.float32), np.ones(1, np.int64))
    found = statistics(
        {"blk.0.a.weight": silent, "blk.1.a.weight": silent, "output.weight": silent}
    )
    assert list(found) == ["blk.0.a.weight", "blk.1.a.weight", "output.weight"]
    assert found["blk.1.a.weight"].gain == 1
    assert np.isnan(found["blk.1.a.weight"].cossim)
    assert np.isnan(found["output.weight"].gain)
    wider = Sums(np.ones((1, 2), np.float32), np.ones(1, np.int64))
    assert np.isnan(
        statistics({"blk.0.a.weight": silent, "blk.1.a.weight": wider})["blk.1.a.weight"].l2_dist
    )
