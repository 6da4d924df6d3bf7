"""`create` with importance weights, and from the parts of a split model."""

from pathlib import Path

import numpy as np
import pytest
from support import gguf_models
from support.checkpoints import DATA

from gpukit.conversion.run import run_plan
from gpukit.errors import ArgumentError, FormatError, GGUFError
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.imatrix import Imatrix
from gpukit.planning.plan import Options
from gpukit.planning.planner import plan_quantize
from gpukit.recipes.create import create
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
    stored = store.weights(made, store.manifest(made))
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
    assert store.weights(made, store.manifest(made)).read_bytes() == whole.read_bytes()
    made = create(store, "small", Modelfile(str(first), tmp_path), "Q4_0", device="cpu")
    with GGUFFile(store.weights(made, store.manifest(made))) as file:
        assert file.tensors["blk.0.ffn_up.weight"].type == "Q4_0"
    sorted(tmp_path.glob("eight-layers-*"))[2].unlink()
    with pytest.raises(GGUFError, match="missing; 1 of the"):
        create(store, "lacking", Modelfile(str(first), tmp_path))
