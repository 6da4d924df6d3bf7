"""What a file was made from, in its metadata where it is asked for, and nowhere else."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import DATA
from support.loras import lora
from support.zoo_build import build

import gpukit
from gpukit.formats.digests import digest
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_split import GGUFModel


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def noted(path: Path) -> dict[str, Any]:
    """The metadata that tells of the making, without its prefix."""
    with GGUFModel(path) as file:
        keys = [key for key in file.fields if key.startswith("gpukit.")]
        return {key.removeprefix("gpukit."): file.get(key) for key in keys}


def tensors(path: Path) -> dict[str, bytes]:
    with GGUFModel(path) as file:
        found = {}
        for name, info in file.tensors.items():
            data = bytearray(info.nbytes)
            file.read_into(info, memoryview(data))
            found[name] = bytes(data)
        return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with its adapter and a GGUF of it beside it."""
    root = tmp_path_factory.mktemp("provenance")
    base = build("qwen2", root)
    lora(base, root / "lora")
    gpukit.convert(base, root / "plain.gguf", "BF16", device="cpu")
    gpukit.convert(base, root / "noted.gguf", "BF16", provenance=True, device="cpu")
    return base


def test_a_conversion(base: Path) -> None:
    plain, told = base.parent / "plain.gguf", base.parent / "noted.gguf"
    assert noted(plain) == {}
    assert tensors(plain) == tensors(told)
    with GGUFFile(plain) as a, GGUFFile(told) as b:
        assert list(a.fields) == [key for key in b.fields if not key.startswith("gpukit.")]
    found = noted(told)
    assert found["version"] == gpukit.__version__
    assert found["matches"].startswith("llama.cpp ")
    assert found["source.name"] == "qwen2"
    assert (found["recipe.type"], found["recipe.options"]) == ("BF16", [])
    files = dict(zip(found["source.files"], found["source.digests"], strict=True))
    assert files["config.json"] == sha256(base / "config.json")
    assert files["model.safetensors"] == ""  # nobody has read all of it for that
    at = found["source.files"].index("model.safetensors")
    weights = (base / "model.safetensors").read_bytes()
    assert found["source.sizes"][at] == len(weights)
    end = 8 + int.from_bytes(weights[:8], "little")
    assert found["source.headers"][at] == hashlib.sha256(weights[:end]).hexdigest()
    assert str(base.parent) not in json.dumps(found)  # a path says nothing to others


def test_a_merge_names_its_adapters(base: Path, tmp_path: Path) -> None:
    adapter = base.parent / "lora"
    out, imatrix = tmp_path / "x.gguf", DATA / "imatrix" / "tiny-shakespeare.gguf"
    gpukit.merge(base, [(adapter, 0.3)], out, "Q8_0", provenance=True, device="cpu")
    found = noted(out)
    assert (found["adapters.count"], found["adapters.0.name"]) == (1, "lora")
    assert found["adapters.0.weight"] == 0.3
    files = dict(zip(found["adapters.0.files"], found["adapters.0.digests"], strict=True))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert files[name] == sha256(adapter / name)
    how = gpukit.Combining("ties", density=0.5)
    gpukit.merge(base, [adapter], out, combine=how, provenance=True, device="cpu")
    assert noted(out)["recipe.options"] == ["--combine ties", "--density 0.5"]
    tiny = DATA / "tiny-shakespeare"
    gpukit.convert(tiny, out, "Q4_0", imatrix=imatrix, provenance=True, device="cpu")
    assert noted(out)["imatrix.digest"] == sha256(imatrix)


def test_what_was_asked_for_in_a_quantisation(base: Path, tmp_path: Path) -> None:
    types = gpukit.make_overrides(["ffn_down=Q8_0"], output_type="F16", pure=True)
    options = gpukit.Options(overrides=types, split_max_size=500_000)
    plain = base.parent / "plain.gguf"
    with gpukit.plan(plain, "q4_0", options=options, provenance=True) as plan:
        result = plan.write(tmp_path / "x.gguf", device="cpu")
    assert len(result.paths) > 1
    found = noted(result.path)
    assert found["recipe.type"] == "Q4_0"
    assert found["recipe.options"] == [
        "--tensor-type ffn_down=Q8_0", "--output-tensor-type F16", "--pure",
        "--split-max-size 500000",
    ]  # fmt: skip
    assert found["source.files"] == ["plain.gguf"]
    with GGUFFile(plain) as file:
        header = plain.read_bytes()[: file.data_start]
    assert found["source.headers"] == [hashlib.sha256(header).hexdigest()]


def test_within_a_target_it_counts(base: Path, tmp_path: Path) -> None:
    size = (base.parent / "plain.gguf").stat().st_size * 2 // 3
    out = tmp_path / "x.gguf"
    gpukit.convert(base, out, target_size=size, provenance=True, device="cpu")
    assert out.stat().st_size <= size
    assert noted(out)["recipe.options"] == [f"--target-size {size}"]


def test_a_source_that_has_it_passes_it_on(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    gpukit.quantize(base.parent / "noted.gguf", out, "Q8_0", device="cpu")
    found, before = noted(out), noted(base.parent / "noted.gguf")
    assert found["recipe.type"] == "Q8_0"
    assert found["source.name"] == "noted.gguf"
    assert {key: found[f"source.{key}"] for key in before} == before
    # One without it gives the file of llama-quantize.
    gpukit.quantize(base.parent / "plain.gguf", out, "Q8_0", device="cpu")
    assert noted(out) == {}


def test_verifying_takes_no_notice_but_of_other_files(base: Path, tmp_path: Path) -> None:
    told = base.parent / "noted.gguf"
    found = gpukit.verify(told, base, device="cpu")
    assert (found.equal, found.metadata, found.notes) == (True, (), ())
    found = gpukit.verify(told, base.parent / "plain.gguf", device="cpu")
    assert found.equal
    assert "says that it was made from" in found.notes[0]


def test_in_the_store(base: Path, tmp_path: Path) -> None:
    store = gpukit.Store(tmp_path / "models")
    made = gpukit.Modelfile(source=str(base))
    store.create("tiny", made, "Q8_0", provenance=True, device="cpu")
    assert noted(store.resolve("tiny").gguf)["source.name"] == "qwen2"
    # What another model is made of is a blob, whose name is its digest.
    store.create("less", gpukit.Modelfile(source=str(base.parent / "plain.gguf")), device="cpu")
    blob = store.resolve("less").gguf
    assert digest(blob).whole == sha256(blob)
    heard: list[object] = []
    plain = gpukit.Modelfile(source=str(base.parent / "plain.gguf"))
    store.create("same", plain, provenance=True, report=heard.append, device="cpu")
    warned = [event.text for event in heard if isinstance(event, gpukit.Warned)]
    assert any("taken as it is, so that no provenance is noted in it" in line for line in warned)


def test_of_the_hub_repository_and_revision(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models--org--tiny" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    gpukit.convert(folder, tmp_path / "x.gguf", provenance=True, device="cpu")
    found = noted(tmp_path / "x.gguf")
    assert (found["source.repo"], found["source.revision"]) == ("org/tiny", "0" * 40)
    with GGUFFile(tmp_path / "x.gguf") as file:
        assert file.get("general.source.repo_url") == "https://huggingface.co/org/tiny"


def test_where_it_has_no_place(base: Path, tmp_path: Path) -> None:
    with pytest.raises(gpukit.ArgumentError, match="--provenance is metadata of a GGUF"):
        gpukit.convert(base.parent / "plain.gguf", tmp_path / "x.safetensors", provenance=True)
    with pytest.raises(gpukit.ArgumentError, match="provenance is for a GGUF; name a"):
        gpukit.merge(base, [base.parent / "lora"], tmp_path / "folder", provenance=True)
