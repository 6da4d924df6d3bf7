"""Many files from one pass: the bytes and sums of single runs, each source byte read once."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import checkpoints, gguf_models
from support.loras import lora

import gpukit_kernels as kernels
from gpukit.conversion import pipeline
from gpukit.conversion.engine import Wish
from gpukit.conversion.run import Result, run_plan
from gpukit.conversion.run_many import run_plans, shared_outputs
from gpukit.conversion.slabs import bytes_read, cut, readings
from gpukit.errors import ArgumentError, CheckpointError, DiskError
from gpukit.events import Event, Step, Warned
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.imatrix import Imatrix
from gpukit.planning.overrides import make_overrides
from gpukit.planning.plan import Options, QuantizePlan
from gpukit.planning.planner import plan_quantize
from gpukit.sources.base import Source
from gpukit.sources.merged import Chosen, Merge
from gpukit.sources.opening import open_source
from gpukit_kernels.cpu import compiled

KINDS = ("F16", "Q4_0", "Q8_0", "F32", "Q6_K")
ENGINES = ("eager", "compiled", "numpy")
PLAIN = Options()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Wish:
    """Who computes, with all programs there."""
    if request.param == "eager":
        monkeypatch.setattr(kernels, "plan_backend", lambda *_: "eager")
        return "torch"
    if compiled.compiler() is None:
        pytest.skip("no C compiler")
    assert compiled.merger() is not None
    for kind in ("Q4_0", "Q8_0", "Q6_K"):
        for weighted in (False, True):
            importance = torch.ones(256) if weighted else None
            kernels.quantize(torch.ones(1, 256), kind, importance, backend="compiled")
    if request.param == "compiled":
        monkeypatch.setattr(kernels, "plan_backend", lambda *_: "compiled")
        return "torch"
    return "numpy"


def plans_of(
    source: Source, kinds: Sequence[str], options: Sequence[Options] = ()
) -> list[QuantizePlan]:
    given = [*options, *[PLAIN] * (len(kinds) - len(options))]
    return [plan_quantize(source, kind, each) for kind, each in zip(kinds, given, strict=True)]


def assert_as_single(
    source: Source, plans: Sequence[QuantizePlan], folder: Path, engine: Wish
) -> list[Result]:
    """Files and sums of one pass are those of a pass for each."""
    outs = [folder / f"many-{n}.gguf" for n in range(len(plans))]
    found = run_plans(source, plans, outs, device="cpu", engine=engine)
    for plan, result in zip(plans, found, strict=True):
        single = run_plan(source, plan, folder / "single.gguf", device="cpu", engine=engine)
        assert len(result.paths) == len(single.paths)
        for ours, wanted in zip(result.paths, single.paths, strict=True):
            assert ours.read_bytes() == wanted.read_bytes(), ours
        assert result.size == single.size
        assert_alike(result.as_json(), single.as_json())
    return found


def assert_alike(found: dict[str, object], wanted: dict[str, object]) -> None:
    """The same sums, but for the order in which pieces were added up."""
    for part in ("types", "classes", "changes"):
        one, other = (json.loads(json.dumps(each[part])) for each in (found, wanted))
        assert one.keys() == other.keys()
        for name in one:
            assert one[name] == {
                key: pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
                for key, value in other[name].items()
            }, (part, name)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("weights", [1 << 22, 3000])
@pytest.mark.parametrize("name", ["eight-experts", "tied"])
def test_files_are_those_of_single_runs(
    name: str, weights: int, engine: Wish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "SLAB_WEIGHTS", weights)
    given = Options(imatrix=Imatrix(Path("x"), gguf_models.importance(name)))
    # The same importance, read again, and none: what is equal is encoded once.
    again = Options(imatrix=Imatrix(Path("x"), gguf_models.importance(name)))
    with open_source(gguf_models.build(name, tmp_path)) as source:
        # Programs for float32 are those of other tests.
        single = run_plan(source, plan_quantize(source, "F32"), tmp_path / "f32.gguf", device="cpu")
    with open_source(single.path) as source:
        plans = plans_of(source, [*KINDS, "Q4_0", "Q6_K"], [PLAIN, given, PLAIN, PLAIN, again])
        assert_as_single(source, plans, tmp_path, engine)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_merged_on_the_way(
    dtype: torch.dtype, engine: Wish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "SLAB_WEIGHTS", 1 << 16)
    base = checkpoints.build("plain", tmp_path)
    tensors = {name: x.to(dtype) for name, x in checkpoints.weights("plain").items()}
    save_file(tensors, base / "model.safetensors")
    adapters = [lora(base, tmp_path / f"lora-{n}", seed=n) for n in range(2)]
    merge = Merge(tuple(Chosen(path, 1 - n / 3) for n, path in enumerate(adapters)))
    with open_source(base, merge=merge) as source:
        found = assert_as_single(source, plans_of(source, [*KINDS, "BF16"]), tmp_path, engine)
    assert all(result.changes for result in found)


def test_splits_types_of_tensors_and_safetensors(tmp_path: Path) -> None:
    patterns = make_overrides(["attn_q=Q8_0", "ffn_down=F16"])
    options = [Options(split_max_size=9000), Options(overrides=patterns), Options(keep_split=True)]
    with open_source(gguf_models.build("eight-layers", tmp_path, 20)) as source:
        plans = plans_of(source, ["Q8_0", "Q4_0", "Q8_0"], options)
        assert [len(plan.parts) > 1 for plan in plans] == [True, False, True]
        outputs, _ = shared_outputs(plans)
        # Two types of each that is no norm, but one where a pattern wants Q8_0, too.
        norms = sum(output.spec.type == "F32" for output in outputs)
        assert len(outputs) == norms + 2 * (len(source.tensors) - norms) - 8
        assert_as_single(source, plans, tmp_path, "auto")
        floats = plans_of(source, ["F16", "BF16"])
        outs = [tmp_path / "a.safetensors", tmp_path / "b.gguf"]
        run_plans(source, floats, outs, device="cpu")
        for plan, out in zip(floats, outs, strict=True):
            single = run_plan(source, plan, tmp_path / f"single{out.suffix}", device="cpu")
            assert out.read_bytes() == single.path.read_bytes()


def test_types_that_tensors_keep(tmp_path: Path) -> None:
    model = gguf_models.build("tied", tmp_path)
    with open_source(model) as source:
        path = run_plan(source, plan_quantize(source, "Q4_0"), tmp_path / "q.gguf").path
    with open_source(path) as source:
        keep = Options(allow_requantize=True)
        plans = [plan_quantize(source, None)]
        plans += plans_of(source, ["Q8_0", "F32", "Q4_0"], [keep] * 3)
        assert_as_single(source, plans, tmp_path, "auto")


def test_each_source_byte_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SLAB_WEIGHTS", 1000)
    events: list[Event] = []
    with open_source(gguf_models.build("eight-layers", tmp_path)) as source:
        read: list[tuple[int, int, int]] = []
        fill = source.read

        def counted(index: int, row: int, buffer: memoryview) -> None:
            read.append((index, row, len(buffer)))
            fill(index, row, buffer)

        monkeypatch.setattr(source, "read", counted)
        kinds = ["F16", "Q4_0", "Q8_0"]
        outs = [tmp_path / f"{kind}.gguf" for kind in kinds]
        found = run_plans(source, plans_of(source, kinds), outs, device="cpu", report=events.append)
        stored = sum(source.stored_bytes(i, t.rows) for i, t in enumerate(source.tensors))
    assert len({place[:2] for place in read}) == len(read) > 50
    assert sum(size for *_, size in read) == stored
    assert {result.read_bytes for result in found} == {stored}
    steps = [event for event in events if isinstance(event, Step)]
    assert (steps[-1].done, steps[-1].total) == (stored, stored)


def test_slabs_shrink_with_the_number_of_outputs(tmp_path: Path) -> None:
    with open_source(gguf_models.build("eight-layers", tmp_path)) as source:
        one, many = (shared_outputs(plans_of(source, k))[0] for k in (["F16"], KINDS))
        assert pipeline.bytes_per_weight(one) == pipeline.BYTES_PER_WEIGHT
        assert pipeline.bytes_per_weight(many) == 12 + 4 * len(KINDS)
        for weights in (256, 5000):
            slabs = list(cut(source, many, weights))
            rows = [
                (pieces[0].begin, pieces[0].rows * many[pieces[0].output].spec.ne[0])
                for slab in slabs
                for pieces in readings(slab, many)
            ]
            assert len(rows) < sum(map(len, slabs))
            assert sum(n for _, n in rows) == sum(t.n_elements for t in source.tensors)
        assert bytes_read(slabs[0], many) <= 5000 * 4


MEMORY = """
import resource, sys
from pathlib import Path
from gpukit.conversion.run_many import run_plans
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def read(): return int(Path("/proc/self/io").read_text().split()[1])
out = Path(sys.argv[2])
with open_source(Path(sys.argv[1])) as source:
    kinds = ("BF16", "F32", "F16")
    plans = [plan_quantize(source, kind) for kind in kinds]
    before, had = peak(), read()
    run_plans(source, plans, [out / f"{k}.gguf" for k in kinds], device="cpu", budget=16 << 20)
print(peak() - before, read() - had)
"""


def test_memory_is_bounded_and_the_system_counts_one_reading(tmp_path: Path) -> None:
    folder = checkpoints.build("plain", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": 120_000, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = checkpoints.weights("plain")
    del tensors["lm_head.weight"]
    tensors["model.embed_tokens.weight"] = torch.full((120_000, 256), 0.01, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    child = subprocess.run(
        [sys.executable, "-c", MEMORY, folder, tmp_path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    grown, read = map(int, child.stdout.split())
    # 61 MB pass through buffers of 16 MiB.
    assert grown < 64 << 10
    stored = (folder / "model.safetensors").stat().st_size
    # Beside it modules are loaded, and what was written is looked at.
    assert stored <= read < 1.5 * stored


@pytest.mark.parametrize("fault", ["value", "place", "input"])
def test_faults_leave_nothing(fault: str, tmp_path: Path) -> None:
    model = gguf_models.build("eight-layers", tmp_path)
    outs = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    kind, what = CheckpointError, r"blk\.3\.ffn_up\.weight: value \[1, 1\] is nan"
    if fault == "value":
        with GGUFFile(model) as file:
            at = file.tensors["blk.3.ffn_up.weight"].offset
        data = bytearray(model.read_bytes())
        data[at + 514 : at + 516] = b"\xc0\x7f"
        model.write_bytes(data)
    elif fault == "place":
        (tmp_path / "link.gguf").symlink_to(outs[0])
        outs[1] = tmp_path / "link.gguf"
        kind, what = ArgumentError, r"link.gguf: the place of .*a.gguf, too"
    else:
        outs[1] = model
        kind, what = ArgumentError, "input and output are the same file"
    before = sorted(tmp_path.iterdir())
    with open_source(model) as source, pytest.raises(kind, match=what):
        run_plans(source, plans_of(source, ["Q4_0", "Q8_0"]), outs, device="cpu")
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_that_fills_up(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gguf_models.build("eight-layers", tmp_path)
    before = sorted(tmp_path.iterdir())
    with open_source(model) as source:
        plans = plans_of(source, ["F16", "BF16", "Q8_0"])
        assert plans[0].size < 300_000 < plans[0].size + plans[1].size
        outs = [small_disk / "a.gguf", small_disk / "b.gguf", tmp_path / "c.gguf"]
        wanted = rf"a.gguf and 1 more: {plans[0].size + plans[1].size} bytes are needed, \d+ are"
        with pytest.raises(DiskError, match=wanted):
            run_plans(source, plans, outs, device="cpu")
        # Room that goes away between the look and the writing.
        monkeypatch.setattr("gpukit.conversion.run_many.check_room", lambda _: None)
        with pytest.raises(DiskError, match=r"small/[ab].gguf: No space left on device"):
            run_plans(source, plans, outs, device="cpu")
    assert (list(small_disk.iterdir()), sorted(tmp_path.iterdir())) == ([], before)


def test_each_warning_is_told_once(tmp_path: Path) -> None:
    events: list[Event] = []
    with open_source(gguf_models.build("width-100", tmp_path)) as source:
        plans = plans_of(source, ["Q4_0", "Q4_0", "Q8_0"])
        plans = [replace(plan, warnings=("once", *plan.warnings)) for plan in plans]
        outs = [tmp_path / f"{n}.gguf" for n in range(3)]
        run_plans(source, plans, outs, device="cpu", report=events.append)
    told = [event.text for event in events if isinstance(event, Warned)]
    assert len(told) == len(set(told)) == 1 + len({*plans[0].warnings, *plans[2].warnings}) - 1
    assert np.fromfile(outs[0], np.uint8).tobytes() == outs[1].read_bytes()
