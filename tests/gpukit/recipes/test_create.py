"""create: layers, their order and their bytes, from a .gguf file and from a stored model."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import gpukit
from gpukit.errors import (
    ArgumentError,
    CheckpointError,
    FormatError,
    GGUFError,
    GpukitError,
    ModelfileError,
    NotFoundError,
    StoreError,
)
from gpukit.events import Event, Status, Warned
from gpukit.formats.gguf_fields import Field, TensorSpec, string, u32
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.recipes.create import create
from gpukit.recipes.show import show
from gpukit.store import Store, remove
from gpukit.store.blobs import digest_of
from gpukit.store.modelfile import Modelfile, parse


def write_gguf(
    path: Path, *more: Field, arch: str = "llama", file_type: int = 1, type: str = "F16"
) -> Path:
    """A GGUF of one small tensor."""
    fields = [string("general.architecture", arch), u32("general.file_type", file_type), *more]
    spec = TensorSpec("token_embd.weight", (32, 4), type)
    with GGUFWriter(path, fields, [spec]) as writer:
        writer.write(0, np.arange(spec.nbytes, dtype=np.uint8).tobytes())
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", u32("llama.context_length", 128))


def make(
    store: Store, name: str, text: str, folder: Path, quantize: str | None = None
) -> list[str]:
    """Create from the text of a Modelfile; the lines that it reports."""
    events: list[Event] = []
    create(store, name, parse(text, folder=folder), quantize, report=events.append)
    return [event.text for event in events if isinstance(event, Status | Warned)]


def kinds(store: Store, name: str) -> list[str]:
    return [layer.kind for layer in store.manifest(store.find(name)).layers]


FULL = (
    "FROM tiny.gguf\nMESSAGE user Hi\nMESSAGE assistant Yes?\nPARAMETER stop <|end|>\n"
    "PARAMETER temperature 0.6\nLICENSE MIT\nLICENSE Apache\nSYSTEM Be brief.\n"
    "TEMPLATE {{ .Prompt }}\nRENDERER r\nPARSER p\nREQUIRES 0.14.0\nPARAMETER mirostat 1\n"
)


def test_a_gguf_as_it_is(store: Store, gguf: Path, tmp_path: Path) -> None:
    digest = digest_of(gguf.read_bytes())
    lines = make(store, "M:1", FULL, tmp_path)
    manifest = store.manifest(store.find("M:1"))
    assert lines == [
        "parameter mirostat is deprecated",
        "parsing GGUF",
        *(f"creating new layer {layer.digest}" for layer in manifest.layers),
        "writing manifest",
        "success",
    ]
    assert kinds(store, "M:1") == [
        "model", "template", "system", "license", "license", "params", "messages",
    ]  # fmt: skip
    weights = manifest.layers[0]
    assert (weights.digest, weights.size) == (digest, gguf.stat().st_size)
    assert weights.origin == "tiny.gguf"
    texts = [store.text(store.find("M:1"), layer) for layer in manifest.layers[1:]]
    assert texts == [
        "{{ .Prompt }}", "Be brief.", "MIT", "Apache",
        '{"stop":["\\u003c|end|\\u003e"],"temperature":0.6}\n',
        '[{"role":"user","content":"Hi"},{"role":"assistant","content":"Yes?"}]\n',
    ]  # fmt: skip
    assert manifest.config is not None
    config = store.text(store.find("M:1"), manifest.config)
    assert config == (
        '{"model_format":"gguf","model_family":"llama","model_families":["llama"],'
        '"model_type":"128","file_type":"F16","renderer":"r","parser":"p","requires":"0.14.0",'
        '"architecture":"amd64","os":"linux"}\n'
    )
    assert gguf.exists()
    assert (store.blobs / f"sha256-{digest[7:]}").stat().st_nlink == 1


def test_the_same_again_uses_what_is_there(store: Store, gguf: Path, tmp_path: Path) -> None:
    make(store, "m", FULL, tmp_path)
    first = store.manifest_bytes(store.find("m"))
    files = sorted(store.blobs.iterdir())
    lines = make(store, "M", FULL, tmp_path)
    assert sum("using existing layer" in line for line in lines) == 7
    assert not any("creating" in line for line in lines)
    assert store.manifest_bytes(store.find("m")) == first
    assert sorted(store.blobs.iterdir()) == files


def test_from_a_stored_model(store: Store, gguf: Path, tmp_path: Path) -> None:
    make(store, "ns/base", FULL, tmp_path)
    text = "FROM NS/Base\nPARAMETER top_k 5\nPARAMETER stop END\nLICENSE GPL\nSYSTEM Louder!\n"
    lines = make(store, "child", text, tmp_path)
    # Inherited layers keep their order; what is set anew moves to the end.
    assert kinds(store, "child") == [
        "model", "template", "license", "license", "messages", "system", "license", "params",
    ]  # fmt: skip
    layers = store.manifest(store.find("child")).layers
    assert [layer.origin for layer in layers] == ["ns/base:latest"] * 5 + [""] * 3
    assert [line.split()[0] for line in lines[:-2]] == ["using"] * 5 + ["creating"] * 3
    model = store.resolve("child")
    assert model.params == {"stop": ["END"], "temperature": 0.6, "top_k": 5}
    assert model.system == "Louder!"
    assert show(store, "child").config.renderer == "r"
    remove(store, "ns/base")
    assert store.resolve("child").gguf.exists()


def test_inherited_params_move_to_the_end(store: Store, gguf: Path, tmp_path: Path) -> None:
    make(store, "base", FULL, tmp_path)
    make(store, "child", "FROM base", tmp_path)
    assert kinds(store, "child")[-2:] == ["messages", "params"]
    assert store.manifest(store.find("child")).layers[-1].origin == ""
    assert store.resolve("child").params == store.resolve("base").params


def test_a_model_built_on_itself(store: Store, gguf: Path, tmp_path: Path) -> None:
    make(store, "m", "FROM tiny.gguf\nSYSTEM one\n", tmp_path)
    make(store, "m", "FROM m\nSYSTEM two\n", tmp_path)
    assert store.resolve("m").system == "two"
    assert len(list(store.blobs.iterdir())) == 3


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("FROM ./none", NotFoundError, "FROM ./none: .*none: no such file or folder"),
        ("FROM none.gguf", NotFoundError, "no such file or folder"),
        ("FROM ~nobody-here/x", NotFoundError, "FROM ~nobody-here/x: "),
        ("FROM none", NotFoundError, "no such file or folder, and no model of that name in "),
        ("FROM a/../b", NotFoundError, "no such file or folder, and invalid model name"),
        ("FROM ./empty", CheckpointError, "no Modelfile or safetensors files found"),
        ("FROM ./two", CheckpointError, r"2 .gguf files \(a.gguf, b.gguf\): name one"),
        ("FROM ./text.txt", GGUFError, "text.txt"),
        ("FROM ./cut.gguf", GGUFError, "cut.gguf"),
        ("FROM ./adapter.gguf", ArgumentError, "a GGUF of type adapter"),
        ("FROM ./part.gguf", GGUFError, "one of 3 parts of a model, but not called"),
        ("FROM ./bare.gguf", FormatError, "general.architecture is missing"),
        ("FROM tiny.gguf\nDRAFT ./small", NotFoundError, "DRAFT ./small: .*: no such file; a GGUF"),
        ('FROM ""', ModelfileError, "FROM '': a path, the name of a model in the store or an id"),
        ("FROM a\0b", ModelfileError, "a path, the name of a model in the store or an id of"),
        ("FROM " + "x" * 5000, NotFoundError, "x…: File name too long, and invalid model name"),
        ("FROM /dev/null", GpukitError, "/dev/null: cannot be opened: no regular file"),
        ("FROM ./pipe", GpukitError, "pipe: cannot be opened: no regular file"),
        ("FROM ./pipe.gguf", GpukitError, "pipe.gguf: cannot be opened: no regular file"),
        ("FROM ./one/model.safetensors", ArgumentError, "model.safetensors: weights without their"),
        ("FROM one/model.safetensors", ArgumentError, "name the folder that has config.json besid"),
        ("FROM ./one/pytorch_model.bin", ArgumentError, "name the folder that has config.json bes"),
        ("FROM ./one/config.json", ArgumentError, "config.json: one file of a model; name the fol"),
        ("FROM one/config.json", ArgumentError, "one file of a model; name the folder, .*one$"),
    ],
)
def test_bad_sources_write_nothing(
    store: Store, gguf: Path, tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    for name in ("model.safetensors", "pytorch_model.bin", "config.json"):
        (tmp_path / "one" / name).write_bytes(b"")
    for name in ("pipe", "pipe.gguf"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "text.txt").write_text("hello")
    for name in ("a", "b"):
        write_gguf(tmp_path / "two" / f"{name}.gguf")
    (tmp_path / "cut.gguf").write_bytes(gguf.read_bytes()[:-8])
    write_gguf(tmp_path / "adapter.gguf", string("general.type", "adapter"))
    write_gguf(tmp_path / "part.gguf", u32("split.count", 3))
    write_gguf(tmp_path / "bare.gguf", arch="")
    with pytest.raises(error, match=message) as caught:
        make(store, "m", text, tmp_path)
    assert "\n" not in str(caught.value)
    assert not store.root.exists()


def test_a_template_that_no_text_was_parsed_for(store: Store, gguf: Path) -> None:
    modelfile = Modelfile(source=str(gguf), template="{{ if .Prompt }}")
    with pytest.raises(ModelfileError, match=r"^TEMPLATE: \(line 1\): template error: {{if}} is"):
        create(store, "m", modelfile)
    assert not store.root.exists()


def test_a_model_that_is_removed_at_once(store: Store, gguf: Path) -> None:
    """What was made is told, whatever becomes of it: it was there."""

    def report(event: Event) -> None:
        if event == Status("success"):
            remove(store, "m")

    made = gpukit.Store(store.root).create("m", Modelfile(source=str(gguf)), report=report)
    assert (made.name.display, made.size > gguf.stat().st_size) == ("m:latest", True)
    assert not store.names()


def test_bad_names_write_nothing(store: Store, gguf: Path, tmp_path: Path) -> None:
    for name in ("../x", "", "a//b", "x" * 81, "m:"):
        with pytest.raises(ArgumentError, match=r"^invalid model name"):
            make(store, name, "FROM tiny.gguf", tmp_path)
    assert not store.root.exists()


def test_a_folder_with_one_gguf(store: Store, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write_gguf(tmp_path / "folder" / "x.gguf")
    (tmp_path / "folder" / "config.json").write_text("{}")
    make(store, "m", "FROM ./folder", tmp_path)
    assert store.manifest(store.find("m")).layers[0].origin == "x.gguf"


def test_a_stray_folder_does_not_hide_a_model(store: Store, gguf: Path, tmp_path: Path) -> None:
    make(store, "base", "FROM tiny.gguf", tmp_path)
    (tmp_path / "base").mkdir()
    make(store, "child", "FROM base", tmp_path)
    assert store.manifest(store.find("child")).layers[0].origin == "base:latest"
    with pytest.raises(CheckpointError, match="no Modelfile or safetensors"):
        make(store, "child", "FROM ./base", tmp_path)


def test_a_base_with_a_missing_blob(store: Store, gguf: Path, tmp_path: Path) -> None:
    make(store, "base", "FROM tiny.gguf\nSYSTEM hi\n", tmp_path)
    before = store.manifest_bytes(store.find("base"))
    system = store.manifest(store.find("base")).layers[1]
    (store.blobs / f"sha256-{system.digest[7:]}").unlink()
    with pytest.raises(StoreError, match=f"model 'base:latest': blob {system.digest} is missing"):
        make(store, "child", "FROM base", tmp_path)
    assert [name.display for name in store.names()] == ["base:latest"]
    # Making it again mends it.
    make(store, "base", "FROM tiny.gguf\nSYSTEM hi\n", tmp_path)
    assert store.manifest_bytes(store.find("base")) == before
    assert store.resolve("base").system == "hi"


def test_show(store: Store, gguf: Path, tmp_path: Path) -> None:
    make(store, "m", FULL, tmp_path)
    found = show(store, "M")
    assert (found.architecture, found.parameter_size, found.context_length) == ("llama", "128", 128)
    assert (found.quantization, found.embedding_length) == ("F16", None)
    assert found.capabilities == ("completion",)
    document = json.loads(json.dumps(found.as_json(verbose=True)))
    assert document["details"]["quantization_level"] == "F16"
    assert document["model_info"]["general.architecture"] == "llama"
    assert document["tensors"] == [{"name": "token_embd.weight", "type": "F16", "shape": [32, 4]}]
    assert "tensors" not in found.as_json()
    with pytest.raises(StoreError, match="model 'x' not found"):
        show(store, "x")


def test_the_shown_modelfile_makes_the_same_model(store: Store, gguf: Path, tmp_path: Path) -> None:
    make(store, "m", FULL, tmp_path)
    text = show(store, "m").modelfile
    assert text.startswith('# Modelfile generated by "gpukit show"\n')
    assert f"\nFROM {store.blobs}/sha256-" in text
    make(store, "again", text, Path("/"))
    first, second = (store.manifest(store.find(name)) for name in ("m", "again"))
    assert [layer.digest for layer in first.blobs] == [layer.digest for layer in second.blobs]
