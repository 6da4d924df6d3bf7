"""Projectors and drafts of a Modelfile, and text to model to text: nothing of either is lost."""

import json
from pathlib import Path

import numpy as np
import pytest

from gpukit.errors import GpukitError, ModelfileError
from gpukit.formats.gguf_fields import Field, TensorSpec, string, u32
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.recipes.create import create, plan_create
from gpukit.recipes.show import show
from gpukit.store import Store
from gpukit.store.modelfile import Modelfile, parse, read


def write_gguf(path: Path, arch: str, *more: Field, seed: int = 0) -> Path:
    fields = [string("general.architecture", arch), u32("general.file_type", 1), *more]
    spec = TensorSpec("token_embd.weight", (32, 4), "F16")
    with GGUFWriter(path, fields, [spec]) as writer:
        writer.write(0, np.full(spec.nbytes, seed, dtype=np.uint8).tobytes())
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    write_gguf(tmp_path / "model.gguf", "llama", u32("llama.block_count", 1))
    write_gguf(tmp_path / "small.gguf", "llama", u32("llama.block_count", 1), seed=1)
    write_gguf(tmp_path / "mmproj.gguf", "clip", u32("clip.vision.block_count", 2))
    write_gguf(tmp_path / "sound.gguf", "x", string("general.type", "mmproj"), seed=3)
    write_gguf(tmp_path / "lora.gguf", "llama", string("general.type", "adapter"), seed=4)
    (tmp_path / "folder").mkdir()
    return Store(tmp_path / "models")


TEXT = """\
FROM model.gguf
DRAFT small.gguf
FROM mmproj.gguf
FROM sound.gguf
SYSTEM hi
"""


def layers(store: Store, name: str) -> list[tuple[str, str]]:
    return [(each.kind, each.digest) for each in store.manifest(store.find(name)).layers]


def test_projectors_and_drafts_are_layers_as_they_are(store: Store, tmp_path: Path) -> None:
    create(store, "m", parse(TEXT, folder=tmp_path))
    made = layers(store, "m")
    assert [kind for kind, _ in made] == ["model", "projector", "projector", "draft", "system"]
    planned = plan_create(store, "m", parse(TEXT, folder=tmp_path)).layers
    assert [each.kind for each in planned] == [kind for kind, _ in made]
    found = show(store, "m")
    assert "vision" in found.capabilities
    assert [path.read_bytes() for path in (*found.projectors, *found.drafts)] == [
        (tmp_path / f"{name}.gguf").read_bytes() for name in ("mmproj", "sound", "small")
    ]
    document = json.loads(json.dumps(found.as_json()))
    assert len(document["projectors"]) == 2
    assert len(document["drafts"]) == 1
    create(store, "again", parse(found.modelfile))
    assert layers(store, "again") == made
    # A model of the store brings them, and what it has already is not there twice.
    create(store, "on", parse("FROM m\nDRAFT small.gguf\nFROM mmproj.gguf\n", folder=tmp_path))
    assert layers(store, "on") == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM model.gguf\nFROM small.gguf", r"FROM small.gguf: a second model \(the first is mod"),
        ("FROM model.gguf\nFROM lora.gguf", "FROM lora.gguf: a second model"),
        ("FROM model.gguf\nFROM other", "FROM other: .*other: no such file; a GGUF is wanted"),
        ("FROM model.gguf\nFROM folder", "FROM folder: no GGUF file: make one of it with gpukit c"),
        ("FROM mmproj.gguf", "a GGUF of type projector, not a model: FROM names the model, a sec"),
        ("FROM model.gguf\nDRAFT small", "DRAFT small: .*small: no such file; a GGUF is wanted"),
        ("FROM model.gguf\nDRAFT folder", "DRAFT folder: no GGUF file"),
        ("FROM model.gguf\nDRAFT mmproj.gguf", "DRAFT .*mmproj.gguf: a GGUF of type projector"),
        ("FROM model.gguf\nDRAFT ./folder/../model.gguf",
         "^DRAFT must not reference the same local path as FROM: /.*model.gguf$"),
    ],
)  # fmt: skip
def test_what_is_refused_writes_nothing(
    store: Store, tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(GpukitError, match=message) as caught:
        create(store, "m", parse(text, folder=tmp_path))
    assert "\n" not in str(caught.value)
    assert not store.root.exists()


HARD = [
    "two\nlines", " led and trailed ", 'say "hi"', '"all"', 'x"\ny', "# no comment",
    "é\u00a0\u200d", "\r\nends of lines\r\n", "\x1fodd\x07", "FROM x\nSYSTEM y",
    "\U0001f469\u200d\U0001f680",
]  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("value", HARD)
def test_text_to_model_to_text(store: Store, tmp_path: Path, value: str, encoding: str) -> None:
    """What is in the text is in the model, and what the model shows makes it again."""
    quoted = f'"{value}"' if '"""' in value or value.endswith('"') else f'"""{value}"""'
    text = (
        f"FROM model.gguf\nSYSTEM {quoted}\nLICENSE {quoted}\nMESSAGE user {quoted}\n"
        f"PARAMETER stop {quoted}\nPARAMETER stop b\nPARAMETER top_p 0.7\nPARAMETER seed -3\n"
        "PARAMETER use_mmap F\nRENDERER r\nPARSER p\nREQUIRES v0.14.0-rc1\n"
    )
    file = tmp_path / "Modelfile"
    file.write_bytes(text.encode(encoding))
    create(store, "m", read(file))
    found = show(store, "m")
    assert (found.system, found.licenses, found.messages[0].content) == (value, (value,), value)
    assert found.params == {"seed": -3, "stop": [value, "b"], "top_p": 0.7, "use_mmap": False}
    create(store, "again", parse(found.modelfile))
    assert layers(store, "again") == layers(store, "m")
    first, second = (store.manifest(store.find(name)).config for name in ("m", "again"))
    assert first == second
    shown = show(store, "again").modelfile
    assert shown.partition("\n\n")[2] == found.modelfile.partition("\n\n")[2]


def test_a_text_without_a_form_is_told_and_the_rest_shown(store: Store, tmp_path: Path) -> None:
    create(store, "n", Modelfile(source=str(tmp_path / "model.gguf"), system='a"\nb"""\nc'))
    found = show(store, "n")
    assert found.as_json()["modelfile"] is None
    assert found.as_json()["system"] == 'a"\nb"""\nc'
    with pytest.raises(ModelfileError, match="SYSTEM: no quoting can hold"):
        _ = found.modelfile
