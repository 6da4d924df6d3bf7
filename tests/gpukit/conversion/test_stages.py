"""Readers and writers around a device that is fast: several of each, slow ones, ones that fail."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import gguf_models

from gpukit.conversion import pipeline, stages, torch_engine
from gpukit.conversion.engine import Buffer
from gpukit.conversion.torch_engine import Conversion
from gpukit.errors import DiskError, GGUFError
from gpukit.formats import placed_writer
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.formats.imatrix import Imatrix
from gpukit.planning.plan import Options
from gpukit.planning.planner import plan_quantize
from gpukit.sources.gguf import GGUFSource
from gpukit.sources.opening import open_source
from gpukit_kernels import Lane

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def deep(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device with several slabs under way, fed as a GPU is, in slabs of a row or two."""
    monkeypatch.setattr(Lane, "depth", 2)
    monkeypatch.setattr(pipeline, "GPU_SLAB_WEIGHTS", 512)
    # Its buffers are given back before their results are written, but only where none is a view.
    monkeypatch.setattr(Conversion, "holds", lambda self, slab: _passes(self, slab))
    before = {*threading.enumerate()}
    yield
    # But for those that Python makes up for a thread that asks for itself at its very end.
    left = {*threading.enumerate()} - before
    assert all(isinstance(thread, threading._DummyThread) for thread in left)


def _passes(engine: Conversion, slab: stages.Slab) -> bool:
    return any(
        engine.source.passes(o.index, o.spec.type)
        for o in (engine.outputs[piece.output] for piece in slab)
    )


def through(
    model: Path, out: Path, lanes: int = 1, budget: int = 1 << 30, digest: bool = False
) -> GGUFWriter:
    with open_source(model) as source:
        plan = plan_quantize(source, "Q8_0")
        with GGUFWriter(out, plan.fields, plan.specs, digest=digest) as writer:
            engine = Conversion(source, plan.outputs, [CPU] * lanes)
            pipeline.pass_through(engine, writer, "", budget, lambda _e: None)
    return writer


def wanted(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    with monkeypatch.context() as as_the_cpu:
        as_the_cpu.setattr(Lane, "depth", 0)
        as_the_cpu.setattr(Conversion, "holds", lambda _self, _slab: True)
        through(model, folder / "wanted.gguf")
    return (folder / "wanted.gguf").read_bytes()


@pytest.mark.parametrize("lanes", [1, 3])
def test_writers_in_any_order_leave_the_same_bytes(
    lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gguf_models.build("eight-layers", tmp_path)
    right = wanted(model, tmp_path, monkeypatch)
    write, names, slow = placed_writer.write_at, set(), iter([0.2, 0, 0, 0.1] * 1000)

    def late(fd: int, data: memoryview, at: int) -> None:
        names.add(threading.current_thread().name)
        time.sleep(next(slow) / 20)
        write(fd, data, at)

    monkeypatch.setattr(placed_writer, "write_at", late)
    through(model, tmp_path / "a.gguf", lanes)
    assert (tmp_path / "a.gguf").read_bytes() == right
    assert len([name for name in names if name.startswith("gpukit-write")]) == 3


def test_a_digest_is_taken_on_the_way_by_one_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gguf_models.build("eight-layers", tmp_path)
    monkeypatch.setattr(placed_writer, "read_at", None)  # nothing is read again
    writer = through(model, tmp_path / "a.gguf", digest=True)
    monkeypatch.undo()
    assert (
        writer.digest
        == placed_writer.hashlib.sha256((tmp_path / "a.gguf").read_bytes()).hexdigest()
    )


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_reader_that_is_slow(lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = gguf_models.build("eight-layers", tmp_path)
    right = wanted(model, tmp_path, monkeypatch)
    read, slow = GGUFSource.read, iter([0.3, *[0, 0, 0.02] * 1000])

    def late(self: GGUFSource, index: int, row: int, buffer: memoryview) -> None:
        time.sleep(next(slow))
        read(self, index, row, buffer)

    monkeypatch.setattr(GGUFSource, "read", late)
    through(model, tmp_path / "a.gguf", lanes)
    assert (tmp_path / "a.gguf").read_bytes() == right


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("fails", ["read", "write", "buffer", "end"])
def test_one_thread_that_fails_stops_all(
    fails: str, lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gguf_models.build("eight-layers", tmp_path)
    left = iter([False] * 4 + [True] * 100)
    owner, error = {
        "read": (GGUFSource, GGUFError("the file ends")),
        "write": (GGUFWriter, DiskError("No space left on device")),
        "buffer": (Conversion, MemoryError("no memory is left")),
        "end": (Conversion, KeyboardInterrupt("told to end")),
    }[fails]
    call = getattr(owner, fails)

    def failing(*args: object) -> object:
        if next(left):
            raise error
        return call(*args)

    monkeypatch.setattr(owner, fails, failing)
    with pytest.raises(type(error), match=str(error)):
        through(model, tmp_path / "a.gguf", lanes)
    assert not list(tmp_path.glob("*a.gguf*"))


@pytest.mark.parametrize("budget", [1 << 16, 1 << 20])
def test_buffers_stay_within_the_budget(
    budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gguf_models.build("thirty-two-layers", tmp_path)
    monkeypatch.setattr(pipeline, "GPU_SLAB_WEIGHTS", 1 << 24)
    sizes, make = [], Conversion.buffer

    def counted(self: Conversion, nbytes: int) -> Buffer:
        sizes.append(nbytes)
        return make(self, nbytes)

    monkeypatch.setattr(Conversion, "buffer", counted)
    through(model, tmp_path / "a.gguf", budget=budget)
    # A quarter is for what is read: as much again is made of it at most, and half is room.
    assert 0 < sum(sizes) <= budget // 4


def test_importance_goes_to_a_device_at_once(tmp_path: Path) -> None:
    options = Options(imatrix=Imatrix(Path("x"), gguf_models.importance("eight-experts")))
    with open_source(gguf_models.build("eight-experts", tmp_path)) as source:
        outputs = plan_quantize(source, "Q4_K_M", options).outputs
    found = torch_engine._columns(outputs, torch.device("meta"))
    given = [(o.importance, columns) for o, columns in zip(outputs, found, strict=True)]
    assert all((importance is None) == (columns is None) for importance, columns in given)
    there = [columns for columns in found if columns is not None]
    assert {tuple(columns.shape) for columns in there} == {(1, 256), (8, 256)}
    assert len({columns.untyped_storage()._cdata for columns in there}) == 1
