"""Layers that guess further tokens, by every way to a file: alone, left out, and verified so."""

from pathlib import Path

import pytest
from support.zoo_build import build

import gpukit

WISHES = {"alone": True, "without": False, "all": None}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with such a layer, and its three files."""
    root = tmp_path_factory.mktemp("guessing")
    folder = build("qwen3.5-yarn", root).rename(root / "model")
    for name, mtp in WISHES.items():
        gpukit.convert(folder, root / f"{name}.gguf", pre="qwen35", mtp=mtp, device="cpu")
    return root


@pytest.mark.parametrize("name", WISHES)
def test_a_file_is_what_the_same_wish_gives(name: str, root: Path) -> None:
    found = gpukit.verify(
        root / f"{name}.gguf", root / "model", pre="qwen35", mtp=WISHES[name], device="cpu"
    )
    assert found.equal


def test_another_wish_is_told_with_the_remedy(root: Path) -> None:
    model, without = root / "model", root / "without.gguf"
    with pytest.raises(gpukit.FormatError, match=r"alone.gguf: .* only the layers .*; add --mtp$"):
        gpukit.verify(root / "alone.gguf", model, pre="qwen35")
    found = gpukit.verify(without, model, pre="qwen35", device="cpu")
    assert not found.equal
    assert [note for note in found.notes if note.endswith("no layers that guess further tokens; "
                                                          "add --no-mtp")]  # fmt: skip
    found = gpukit.verify(without, root / "all.gguf", device="cpu")
    assert any(note.endswith("with the model folder and --no-mtp") for note in found.notes)
    with pytest.raises(gpukit.ArgumentError, match="mtp is for comparing with a source"):
        gpukit.verify(without, mtp=False)


def test_what_guesses_alone_is_no_model_to_run(root: Path) -> None:
    with pytest.raises(gpukit.GGUFError, match=r"alone\.gguf: it has only the layers that guess"):
        gpukit.load(root / "alone.gguf")


@pytest.mark.parametrize("name", ["alone", "without"])
def test_a_model_of_the_store(name: str, root: Path, tmp_path: Path) -> None:
    store, options = gpukit.Store(tmp_path), gpukit.Options(mtp=WISHES[name])
    described = gpukit.Modelfile(source=str(root / "model"))
    store.create("m", described, pre="qwen35", options=options, device="cpu")
    assert store.resolve("m").gguf.read_bytes() == (root / f"{name}.gguf").read_bytes()
    with pytest.raises(gpukit.ArgumentError, match="--mtp and --no-mtp are for a FROM that is a m"):
        store.create("x", gpukit.Modelfile(source=str(root / "all.gguf")), options=options)


def test_a_batch_makes_each(root: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    text = (
        f"sources: [{root / 'model'}]\ntypes: [F32]\noutput: '{{source}}.gguf'\n"
        "options: {device: cpu, pre: qwen35, mtp: false}\n"
    )
    plan.write_text(text)
    (row,) = gpukit.batch(plan).rows
    made = Path(row.output).read_bytes()
    gpukit.convert(root / "model", tmp_path / "x", "F32", pre="qwen35", mtp=False, device="cpu")
    assert made == (tmp_path / "x").read_bytes()
    plan.write_text(text.replace("false", "true"))
    with pytest.raises(gpukit.ArgumentError, match="mtp was False and is True"):
        gpukit.batch(plan)


def test_importance_that_is_heard_is_for_what_is_written(root: Path, tmp_path: Path) -> None:
    """Nothing comes to layers that guess: to have them alone no text need be read."""
    with pytest.raises(gpukit.ArgumentError, match="--calibrate: no tensor becomes a type that"):
        gpukit.quantize(
            root / "model", tmp_path / "x.gguf", "Q4_0", calibrate="and then " * 600,
            pre="qwen35", options=gpukit.Options(mtp=True), device="cpu",
        )  # fmt: skip
