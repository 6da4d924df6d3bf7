"""The pipeline: slabs, several devices, importance, and that faults end it."""

import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from support import gguf_models

from gpukit.conversion import pipeline
from gpukit.conversion.engine import Buffer
from gpukit.conversion.run import run_plan
from gpukit.conversion.slabs import Slab, cut
from gpukit.conversion.torch_engine import Conversion, Work
from gpukit.errors import ArgumentError, CheckpointError
from gpukit.events import Event, Warned
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.formats.imatrix import Imatrix
from gpukit.planning.plan import Options
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source
from gpukit_kernels import Lane

CPU = torch.device("cpu")


def through(model: Path, out: Path, places: list[torch.device], options: Options) -> bytes:
    with open_source(model) as source:
        plan = plan_quantize(source, "Q4_0", options)
        with GGUFWriter(out, plan.fields, plan.specs) as writer:
            engine = Conversion(source, plan.outputs, places)
            pipeline.pass_through(engine, writer, "", 1 << 30, lambda _e: None)
    return out.read_bytes()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["eight-layers", "eight-experts"])
@pytest.mark.parametrize("weighted", [False, True])
def test_slabs_and_devices_do_not_change_the_bytes(
    name: str, weighted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gguf_models.build(name, tmp_path)
    options = Options()
    if weighted:
        options = Options(imatrix=Imatrix(Path("x"), gguf_models.importance(name)))
    wanted = through(model, tmp_path / "a.gguf", [CPU], options)
    for weights, devices in ((1, 1), (300, 3), (1100, 1), (3000, 3)):
        monkeypatch.setattr(pipeline, "SLAB_WEIGHTS", weights)
        assert through(model, tmp_path / "b.gguf", [CPU] * devices, options) == wanted


def test_slabs_hold_every_row_once_and_are_no_larger_than_asked(tmp_path: Path) -> None:
    model = gguf_models.build("eight-experts", tmp_path)
    options = Options(imatrix=Imatrix(Path("x"), gguf_models.importance("eight-experts")))
    with open_source(model) as source:
        outputs = plan_quantize(source, "Q4_K_M", options).outputs
        for weights in (256, 1024, 5000, 1 << 20):
            slabs = list(cut(source, outputs, weights))
            rows = [(p.output, p.row + i) for slab in slabs for p in slab for i in range(p.rows)]
            assert rows == [(n, row) for n, o in enumerate(outputs) for row in range(o.spec.rows)]
            for slab in slabs:
                assert sum(p.rows * outputs[p.output].spec.ne[0] for p in slab) <= weights
    assert len(slabs) == 1


def test_a_device_that_is_late_holds_up_the_others_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gguf_models.build("eight-layers", tmp_path)
    wanted = through(model, tmp_path / "a.gguf", [CPU], Options())
    begin, late = Conversion.begin, [True]

    def slow(self: Conversion, slab: Slab, buffer: Buffer, lane: Lane) -> Work:
        if slab[0].output == slab[0].row == 0 and late.pop():
            time.sleep(1)  # the others fill every buffer with what comes after
        return begin(self, slab, buffer, lane)

    monkeypatch.setattr(Conversion, "begin", slow)
    monkeypatch.setattr(Lane, "depth", 2)
    monkeypatch.setattr(pipeline, "SLAB_WEIGHTS", 1)
    out: list[bytes] = []
    thread = Thread(
        target=lambda: out.append(through(model, tmp_path / "b.gguf", [CPU] * 2, Options())),
        daemon=True,
    )
    thread.start()
    thread.join(60)
    assert out == [wanted]


@pytest.mark.parametrize("places", [[CPU], [CPU] * 3])
def test_the_first_fault_ends_all(
    places: list[torch.device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gguf_models.build("eight-layers", tmp_path)
    with GGUFFile(model) as file:
        at = file.tensors["blk.3.ffn_up.weight"].offset
    data = bytearray(model.read_bytes())
    data[at + 514 : at + 516] = b"\xc0\x7f"
    model.write_bytes(data)
    monkeypatch.setattr(pipeline, "SLAB_WEIGHTS", 256)
    with pytest.raises(CheckpointError, match=r"blk\.3\.ffn_up\.weight: value \[1, 1\] is nan"):
        through(model, tmp_path / "b.gguf", places, Options())
    assert not (tmp_path / "b.gguf").exists()


def test_importance_of_another_model_and_missing_entries(tmp_path: Path) -> None:
    model = gguf_models.build("eight-layers", tmp_path)
    entries = gguf_models.importance("eight-layers")
    short = {**entries, "blk.2.attn_q.weight": np.ones(100, np.float32)}
    ends = {**entries, "token_embd.weight": np.ones(100, np.float32)}
    events: list[Event] = []
    with open_source(model) as source:
        with pytest.raises(ArgumentError, match=r"blk\.2\.attn_q\.weight has 100 values.* 256;"):
            plan_quantize(source, "Q4_K_M", Options(imatrix=Imatrix(Path("i.dat"), short)))
        plan = plan_quantize(
            source, "Q4_K_M", Options(imatrix=Imatrix(Path("i.dat"), ends, "d", 3))
        )
        run_plan(source, plan, tmp_path / "x.gguf", report=events.append)
    warned = [event.text for event in events if isinstance(event, Warned)]
    assert warned == [
        "i.dat has nothing on 1 tensor (blk.1.attn_k.weight): quantised without importance"
    ]
    with GGUFFile(tmp_path / "x.gguf") as file:
        noted = {key: file.get(key) for key in file.fields if key.startswith("quantize.")}
    assert noted == {
        "quantize.imatrix.file": "i.dat",
        "quantize.imatrix.dataset": "d",
        "quantize.imatrix.entries_count": len(ends),
        "quantize.imatrix.chunks_count": 3,
    }


def test_devices_are_named_once(tmp_path: Path) -> None:
    with open_source(gguf_models.build("tied", tmp_path)) as source:
        plan = plan_quantize(source, "Q8_0")
        for names, what in (("cpu,cpu", "named twice"), ("cuda:98,cuda:99", "cuda:98 is not here")):
            with pytest.raises(ArgumentError, match=what):
                run_plan(source, plan, tmp_path / "x.gguf", device=names)


def test_rows_that_blocks_do_not_fit_are_told(tmp_path: Path) -> None:
    with open_source(gguf_models.build("width-100", tmp_path)) as source:
        plan = plan_quantize(source, "Q4_K_M")
        (line,) = [line for line in plan.warnings if "Q4_K" in line]
        assert line == (
            "6 tensors (token_embd.weight, blk.0.attn_k.weight, ...): rows of 100 are no multiple "
            "of 256, F16 instead of Q4_K"
        )
