"""`create` with importance weights, and from the parts of a split model."""

from pathlib import Path

import numpy as np
import pytest
from support import gguf_models
from support.checkpoints import DATA
from support.loras import lora

import gpukit
from gpukit.conversion.run import run_plan
from gpukit.errors import ArgumentError, FormatError, GGUFError
from gpukit.evaluation.collecting import collect, prepare
from gpukit.events import Event, Step
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.imatrix import Imatrix
from gpukit.planning.plan import Options
from gpukit.planning.planner import plan_quantize
from gpukit.recipes.create import create, plan_create
from gpukit.sources.merged import Chosen, Merge
from gpukit.sources.opening import open_source
from gpukit.store import Store
from gpukit.store.modelfile import Modelfile

TINY = DATA / "tiny-shakespeare"


def write_dat(path: Path, entries: dict[str, np.ndarray]) -> Path:
    out = np.int32(len(entries)).tobytes()
    for name, values in entries.items():
        head = np.array([len(name)], "<i4").tobytes() + name.encode()
        out += head + np.array([1, values.size], "<i4").tobytes() + values.astype("<f4").tobytes()
    path.write_bytes(out)
    return path


def importance(folder: Path) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    with open_source(folder) as source:
        return {
            t.name: random.random(t.ne[0], np.float32)
            for t in source.tensors
            if len(t.ne) == 2 and t.name.startswith("blk.")
        }


def test_importance_reaches_the_stored_bytes(tmp_path: Path) -> None:
    entries = importance(TINY)
    file = write_dat(tmp_path / "x.dat", entries)
    store = Store(tmp_path / "store")
    made = create(store, "tiny", Modelfile(str(TINY), tmp_path), "Q4_0", imatrix=file, device="cpu")
    with open_source(TINY) as source:
        plan = plan_quantize(source, "Q4_0", Options(imatrix=Imatrix(file, entries)))
        run_plan(source, plan, tmp_path / "x.gguf")
    stored = store.weights(made.name, store.manifest(made.name))
    assert stored.read_bytes() == (tmp_path / "x.gguf").read_bytes()
    with open_source(TINY) as source:
        run_plan(source, plan_quantize(source, "Q4_0"), tmp_path / "plain.gguf")
    assert stored.read_bytes() != (tmp_path / "plain.gguf").read_bytes()


def test_importance_that_is_of_no_use(tmp_path: Path) -> None:
    store, model = Store(tmp_path / "store"), Modelfile(str(TINY), tmp_path)
    with pytest.raises(ArgumentError, match="importance is for quantising; add -q TYPE"):
        create(store, "tiny", model, imatrix=tmp_path / "x.dat")
    with pytest.raises(FormatError, match="no such file; an importance matrix is needed"):
        create(store, "tiny", model, "Q4_0", imatrix=tmp_path / "x.dat")
    assert not store.models()


def test_parts_are_joined(tmp_path: Path) -> None:
    first = gguf_models.build("eight-layers", tmp_path, 20)
    whole = gguf_models.build("eight-layers", tmp_path)
    store = Store(tmp_path / "store")
    made = create(store, "joined", Modelfile(str(first), tmp_path))
    assert store.weights(made.name, store.manifest(made.name)).read_bytes() == whole.read_bytes()
    made = create(store, "small", Modelfile(str(first), tmp_path), "Q4_0", device="cpu")
    with GGUFFile(store.weights(made.name, store.manifest(made.name))) as file:
        assert file.tensors["blk.0.ffn_up.weight"].type == "Q4_0"
    sorted(tmp_path.glob("eight-layers-*"))[2].unlink()
    with pytest.raises(GGUFError, match="missing; 1 of the"):
        create(store, "lacking", Modelfile(str(first), tmp_path))


TEXT = DATA / "imatrix" / "text.txt"


def test_a_text_is_as_good_as_its_importance_matrix(tmp_path: Path) -> None:
    file = gpukit.imatrix(TINY, TEXT, tmp_path / "x.gguf", device="cpu").path
    store = Store(tmp_path / "store")
    model = Modelfile(str(TINY), tmp_path)
    made = [
        create(store, "one", model, "Q2_K_S", imatrix=file, device="cpu"),
        create(store, "two", model, "Q2_K_S", calibrate=TEXT, device="cpu"),
        create(store, "three", model, "Q2_K_S", calibrate=TEXT.read_text(), device="cpu"),
    ]
    noted, tensors = [], []
    for name in (each.name for each in made):
        with GGUFFile(store.weights(name, store.manifest(name))) as found:
            tensors.append({n: found.read(t).tobytes() for n, t in found.tensors.items()})
            noted.append({
                key.removeprefix("quantize.imatrix."): field.value
                for key, field in found.fields.items() if key.startswith("quantize.imatrix.")
            })  # fmt: skip
    assert tensors[0] == tensors[1] == tensors[2]
    counts = {"entries_count": 28, "chunks_count": 3}
    assert noted == [
        {"file": str(file)[:127], "dataset": str(TEXT)[:127], **counts},
        {"dataset": str(TEXT)[:127], **counts},
        counts,
    ]


def test_a_dry_run_with_a_text_reads_nothing(tmp_path: Path) -> None:
    store, model = Store(tmp_path / "store"), Modelfile(str(TINY), tmp_path)
    told: list[Event] = []
    planned = plan_create(store, "tiny", model, "Q2_K_S", calibrate=TEXT, report=told.append)
    assert not [event for event in told if isinstance(event, Step)]
    assert planned.weights.warnings == ()
    made = create(store, "tiny", model, "Q2_K_S", calibrate=TEXT, device="cpu")
    path = store.weights(made.name, store.manifest(made.name))
    assert path.stat().st_size == planned.weights.size


def test_a_text_that_is_of_no_use(tmp_path: Path) -> None:
    store, model = Store(tmp_path / "store"), Modelfile(str(TINY), tmp_path)
    lossy = gpukit.convert(TINY, tmp_path / "q8.gguf", "Q8_0", device="cpu").path
    told: list[Event] = []
    for source, kind, more, error in (
        (model, None, {"calibrate": TEXT}, "--calibrate: importance is for quantising; add -q T"),
        (model, "Q4_0", {"calibrate": TEXT, "imatrix": tmp_path / "x.dat"}, "both are importance"),
        (model, "Q4_0", {"calibrate": "I am."}, r"windows of 512 .* give a longer text$"),
        (model, "Q4_0", {"calibrate": Path("nowhere")}, "nowhere: No such file or directory"),
        (model, "Q8_0", {"calibrate": TEXT}, "--calibrate: no tensor becomes a type that takes"),
        (Modelfile(str(lossy), tmp_path), "Q4_0", {"calibrate": TEXT}, "only supported for F16"),
    ):
        with pytest.raises(ArgumentError, match=error):
            create(store, "tiny", source, kind, device="cpu", report=told.append, **more)
    assert not [event for event in told if isinstance(event, Step)]
    assert not store.models()


def test_what_is_merged_is_heard(tmp_path: Path) -> None:
    adapter = lora(TINY, tmp_path / "lora")
    merged = gpukit.merge(TINY, [adapter], tmp_path / "merged.gguf", "F32", device="cpu").path
    beside = prepare(TINY, [TEXT], 512, chunks=1, adapters=Merge((Chosen(adapter),)))
    heard = collect(beside, "cpu").entries
    wanted = collect(prepare(merged, [TEXT], 512, chunks=1), "cpu").entries
    plain = collect(prepare(TINY, [TEXT], 512, chunks=1), "cpu").entries
    for name, sums in wanted.items():
        np.testing.assert_allclose(heard[name].squares, sums.squares, rtol=1e-3)
    last = "blk.3.ffn_down.weight"
    assert not np.allclose(plain[last].squares, wanted[last].squares, rtol=0.1)
    store = Store(tmp_path / "store")
    model = Modelfile(str(TINY), tmp_path, adapters=(str(adapter),))
    made = create(store, "merged", model, "Q3_K_S", calibrate=TEXT, device="cpu")
    with GGUFFile(store.weights(made.name, store.manifest(made.name))) as file:
        assert file.get("quantize.imatrix.entries_count") == 28
