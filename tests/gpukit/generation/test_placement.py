"""Where layers go, with devices of which only the size is known; and a model whose layers pass
through two places beside one that is there as a whole."""

from dataclasses import replace
from pathlib import Path
from threading import Lock

import pytest
import torch
from support.checkpoints import DATA
from support.zoo_build import build

import gpukit
from gpukit.conversion.run import run_plan
from gpukit.errors import GpukitError
from gpukit.generation import filling, loading, placement as placements, placing
from gpukit.generation.filling import Want, fill
from gpukit.generation.loading import load_model
from gpukit.generation.placement import GIB, HEADROOM, Placement, Room, Sizes, placed, sizes_of
from gpukit.models.streamed import Elsewhere, HeadElsewhere
from gpukit.planning.planner import plan_quantize
from gpukit.sources.base import Source
from gpukit.sources.opening import open_source

FIRST, SECOND, THIRD = (torch.device("meta", number) for number in range(3))
SIZES = Sizes((GIB,) * 8, ends=2 * GIB, small=1 << 20, kept=1 << 20)


def rooms(*gib: float) -> list[Room]:
    devices = (FIRST, SECOND, THIRD)
    return [Room(d, HEADROOM + int(g * GIB)) for d, g in zip(devices, gib, strict=False)]


def test_tensors_are_counted_by_layers() -> None:
    nbytes = {"token_embd.weight": 7, "blk.0.attn_q.weight": 5, "blk.1.attn_q.weight": 4,
              "blk.1.attn_norm.weight": 3, "output_norm.weight": 2, "blk.9.odd": 1}  # fmt: skip
    vectors = frozenset({"blk.1.attn_norm.weight", "output_norm.weight"})
    assert sizes_of(nbytes, vectors, 2, 11) == Sizes((5, 4), 10, 3, 11)


def test_what_fits_stays() -> None:
    found = placed(SIZES, rooms(10.1), 0, "m")
    assert found == Placement((FIRST,) * 8)
    assert found.is_simple


@pytest.mark.parametrize(
    ("gib", "streamed"),
    [(9.1, [2, 5, 7]), (8.1, [1, 3, 5, 7]), (4.1, [0, 1, 2, 3, 4, 5, 6, 7])],
)
def test_what_does_not_fit_comes_for_each_pass(gib: float, streamed: list[int]) -> None:
    found = placed(SIZES, rooms(gib), 99 * GIB, "m")
    # As few as possible, evenly, with two places for those.
    assert sorted(found.streamed) == streamed
    assert set(found.devices) == {FIRST}
    assert not found.is_simple
    layer = min(found.streamed)
    assert found.comes(f"blk.{layer}.ffn_up.weight", vector=False) == layer
    assert found.comes(f"blk.{layer}.ffn_norm.weight", vector=True) is None


def test_devices_share_layers_by_their_room() -> None:
    found = placed(SIZES, rooms(6, 6), 0, "m")
    assert found.devices == (FIRST,) * 3 + (SECOND,) * 5  # what is in no layer is on the first
    assert not found.streamed
    assert found.device_of("token_embd.weight") == FIRST
    assert found.device_of("output.weight") == SECOND
    uneven = placed(SIZES, rooms(2.2, 4.2, 6.2), 0, "m").devices
    assert [uneven.count(device) for device in (FIRST, SECOND, THIRD)] == [0, 3, 5]


@pytest.mark.parametrize(("gib", "host"), [(3.9, 99), (9.1, 1.5)])
def test_no_room_is_told(gib: float, host: float) -> None:
    with pytest.raises(GpukitError) as error:
        placed(SIZES, rooms(gib), int(host * GIB), "a.gguf")
    (line,) = str(error.value).splitlines()
    assert line.startswith("a.gguf: its weights need 10.0 GiB and 2 GiB beside them")
    assert f"meta:0 has {gib + 2:.1f} GiB free, the host {host:.1f} GiB" in line


@pytest.fixture(scope="module", params=["q4_k_m", "experts", "fused", "biases", "shared"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placement")
    if request.param == "q4_k_m":
        gpukit.convert(DATA / "tiny-shakespeare", folder / "m.gguf", "Q4_K_M", device="cpu")
        return folder / "m.gguf"
    if request.param == "biases":
        with open_source(build("gpt-oss-otherwise", folder), "gpt-4o") as source:
            run_plan(source, plan_quantize(source), folder / "m.gguf")
        return folder / "m.gguf"
    names = {"experts": "mixtral-12", "fused": "phi3-4k", "shared": "gemma4-e2b"}
    return build(names[request.param], folder)


@pytest.mark.parametrize("streamed", [{0}, {0, 1}, {0, 1, 2}])
def test_streamed_is_as_resident(
    model: Path, streamed: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [5, 6, 7, 8, 300, 4]
    whole = load_model(model, "cpu").decoder
    layers = whole.config.n_layer
    wanted = whole.forward(ids, whole.cache(20), every=True)
    some = Placement((whole.device,) * layers, frozenset(streamed & set(range(layers))))
    monkeypatch.setattr(placing, "placed", lambda *_: some)
    decoder = load_model(model, "cpu").decoder
    for _ in range(2):
        cache = decoder.cache(20)
        first = decoder.forward(ids[:4], cache, every=True)
        rest = decoder.forward(ids[4:], cache, every=True)
        assert torch.allclose(torch.cat((first, rest)), wanted, rtol=0, atol=1e-4)


def test_taps_of_delta_networks_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are decoded when a decoder is put together, before anything comes for a pass."""
    folder, ids = build("qwen3.5-yarn", tmp_path), [5, 6, 7, 8, 9]
    whole = load_model(folder, "cpu", "qwen35").decoder
    wanted = whole.forward(ids, whole.cache(5), every=True)
    layers = whole.config.n_layer
    every = Placement((whole.device,) * layers, frozenset(range(layers)))
    monkeypatch.setattr(placing, "placed", lambda *_: every)
    decoder = load_model(folder, "cpu", "qwen35").decoder
    found = decoder.forward(ids, decoder.cache(5), every=True)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-4)


def test_blocks_and_the_head_are_moved_to(model: Path) -> None:
    """Two devices are not here: what would run on the second is not run."""
    with open_source(model) as source:
        found = loading.Description.of(source)
        config, style = found.config, found.arch.style
        there = placing.place_weights(source, config, style, placing.rooms([torch.device("cpu")]))
    built = load_model(model, "cpu").decoder
    apart = Placement((built.device,) * (config.n_layer - 1) + (FIRST,))
    moved = replace(there, placement=apart).decoder(built)
    assert [isinstance(block, Elsewhere) for block in moved.blocks] == [
        *[False] * (config.n_layer - 1), True,
    ]  # fmt: skip
    assert moved.places == apart.devices
    assert isinstance(moved.head, HeadElsewhere)
    # Keys and values that belong to an earlier layer stay where that is.
    last = config.n_layer - 1
    kept = moved.cache(8).layer(last)[0].device.type
    assert kept == ("meta" if config.kv_layer(last) == last else "cpu")


def test_a_small_device_streams_and_a_smaller_one_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m.gguf"
    gpukit.convert(DATA / "tiny-shakespeare", file, "F16", device="cpu")
    monkeypatch.setattr(placements, "HEADROOM", 0)
    found = []
    for part in (2.0, 0.9, 0.2):
        room = [Room(torch.device("cpu"), int(part * file.stat().st_size))]
        monkeypatch.setattr(loading, "rooms", lambda devices, room=room: room)
        try:
            found.append(len(load_model(file, "cpu").decoder.places))
        except GpukitError as error:
            found.append(str(error))
    assert found[:2] == [0, 4]
    assert "m.gguf: its weights need 0.0 GiB" in str(found[2])


def test_pieces_are_read_by_several(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_model(model, "cpu").decoder
    monkeypatch.setattr(filling, "PIECE", 1000)
    monkeypatch.setattr(filling, "READERS", 3)
    again = load_model(model, "cpu").decoder
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(whole.states(ids), again.states(ids))


class Wavering(Source):
    """Rows of four bytes, of which the first reading of tensor 1 goes wrong."""

    def __init__(self) -> None:
        self.rows = torch.arange(2 * 40, dtype=torch.uint8).view(2, 10, 4)
        self.wrong = True
        self.lock = Lock()

    def read(self, index: int, row: int, buffer: memoryview) -> None:
        count = len(buffer) // 4
        data = self.rows[index, row : row + count].clone()
        with self.lock:
            if index == 1 and self.wrong:
                data[-1, -1] += 1
                self.wrong = False
        buffer[:] = data.view(-1).numpy().data


def test_a_piece_that_arrives_wrong_is_copied_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Wavering, "__abstractmethods__", frozenset())
    monkeypatch.setattr(filling, "PIECE", 12)
    monkeypatch.setattr(filling, "_is_copy", lambda place: True)
    source, places = Wavering(), [torch.zeros(10, 4, dtype=torch.uint8) for _ in range(2)]
    fill(source, [Want(index, place) for index, place in enumerate(places)])
    assert torch.equal(torch.stack(places), source.rows)
    (line,) = caplog.messages
    assert line.startswith("copies to cpu brought something else for 1 of 8 pieces; gpukit uses")
