"""create from a checkpoint and with -q: one pass into the store, whatever happens on the way."""

import shutil
from pathlib import Path

import pytest
from support.zoo import ZOO
from support.zoo_build import build

from gpukit import Options, make_overrides
from gpukit.errors import ArgumentError, CheckpointError, GpukitError
from gpukit.events import Event, Status
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.recipes.create import create
from gpukit.store import Store
from gpukit.store.blobs import digest_of
from gpukit.store.modelfile import parse, read

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "tests" / "data"
MODELFILE = DATA / "Modelfile"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def types(path: Path) -> set[str]:
    with GGUFFile(path) as file:
        return {info.type for info in file.tensors.values()}


def test_a_checkpoint_to_q8_0_in_one_pass(store: Store) -> None:
    events: list[Event] = []
    foreign: set[str] = set()

    def report(event: Event) -> None:
        events.append(event)
        if store.blobs.exists():
            foreign.update(p.name for p in store.blobs.iterdir() if len(p.name) != 71)

    create(store, "tiny", read(MODELFILE), "q8_0", report=report)
    lines = [event.text for event in events if isinstance(event, Status)]
    assert lines[:3] == [
        "converting model", "quantizing BF16 model to Q8_0", "verifying conversion",
    ]  # fmt: skip
    assert [line.split(" sha256:")[0] for line in lines[3:]] == [
        "creating new layer", "creating new layer", "creating new layer", "writing manifest",
        "success",
    ]  # fmt: skip
    assert foreign == set()
    model = store.resolve("tiny")
    assert types(model.gguf) == {"Q8_0", "F32"}
    assert model.params == {"num_ctx": 1024, "temperature": 0.7, "top_k": 40}
    manifest = store.manifest(store.find("tiny"))
    assert digest_of(model.gguf.read_bytes()) == manifest.layers[0].digest
    config = store.config(store.find("tiny"), manifest)
    assert (config.file_type, config.model_family, config.model_type) == ("Q8_0", "llama", "4.20M")
    assert [path.name for path in store.scratch.iterdir()] == ["lock"]


def test_without_a_type_the_checkpoints_own(store: Store) -> None:
    events: list[Event] = []
    create(store, "tiny", read(MODELFILE), report=events.append)
    lines = [event.text for event in events if isinstance(event, Status)]
    assert lines[:2] == ["converting model", "verifying conversion"]
    model = store.resolve("tiny")
    assert types(model.gguf) == {"BF16", "F32"}
    assert store.config(store.find("tiny"), store.manifest(store.find("tiny"))).file_type == "BF16"


def test_a_stored_model_is_quantised(store: Store) -> None:
    create(store, "base", read(MODELFILE))
    events: list[Event] = []
    create(store, "small", parse("FROM base\nSYSTEM hi"), "Q4_0", report=events.append)
    lines = [event.text for event in events if isinstance(event, Status)]
    assert "quantizing BF16 model to Q4_0" in lines
    assert lines[3].startswith("creating new layer sha256:")
    assert types(store.resolve("small").gguf) >= {"Q4_0", "F32"}
    layers = store.manifest(store.find("small")).layers
    assert [(layer.kind, layer.origin) for layer in layers] == [
        ("model", ""), ("license", "base:latest"), ("system", ""), ("params", ""),
    ]  # fmt: skip

    with pytest.raises(
        ArgumentError, match="only supported for F16, BF16 and F32 models"
    ) as caught:
        create(store, "smaller", parse("FROM small"), "Q4_0")
    assert "FROM small:latest" in str(caught.value)
    assert "Q4_0" in str(caught.value)

    # The type that it has already: nothing to do, the same blob.
    create(store, "same", parse("FROM base"), "bf16")
    assert store.resolve("same").gguf == store.resolve("base").gguf


def test_a_gguf_file_is_quantised(store: Store, tmp_path: Path) -> None:
    create(store, "base", read(MODELFILE))
    shutil.copy(store.resolve("base").gguf, tmp_path / "x.gguf")
    events: list[Event] = []
    create(store, "m", parse("FROM x.gguf", folder=tmp_path), "Q4_0", report=events.append)
    lines = [event.text for event in events if isinstance(event, Status)]
    assert lines[:3] == ["parsing GGUF", "quantizing BF16 model to Q4_0", "verifying conversion"]
    # What llama-quantize makes of the converted file is what one pass makes of the checkpoint.
    create(store, "direct", read(MODELFILE), "Q4_0")
    assert store.resolve("direct").gguf == store.resolve("m").gguf


def test_an_unknown_type_lists_the_known(store: Store) -> None:
    with pytest.raises(ArgumentError, match="Q4_K_M") as caught:
        create(store, "m", read(MODELFILE), "Q9_X")
    assert "Q9_X" in str(caught.value)
    assert not store.root.exists()


@pytest.mark.parametrize("harm", ["no config", "cut off", "unknown architecture"])
def test_bad_checkpoints_write_nothing(store: Store, tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DATA / "tiny-shakespeare", folder)
    if harm == "no config":
        (folder / "config.json").unlink()
    elif harm == "cut off":
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[:-100])
    else:
        text = (folder / "config.json").read_text().replace("LlamaForCausalLM", "OtherForCausalLM")
        (folder / "config.json").write_text(text)
    with pytest.raises(GpukitError) as caught:
        create(store, "m", parse("FROM ./model", folder=tmp_path), "Q8_0")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not store.root.exists()


def test_an_adapter_folder_is_no_model(store: Store, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="an adapter, not a model"):
        create(store, "m", parse("FROM .", folder=tmp_path))


def test_types_of_tensors_and_blocks_that_become_others(store: Store, tmp_path: Path) -> None:
    folder = build("gpt-oss-otherwise", tmp_path)
    text, pre = f"FROM {folder}", ZOO[folder.name].pre
    with pytest.raises(ArgumentError, match=r"is the type MXFP4_MOE, or --tensor-type _exps=MXFP4"):
        create(store, "gpt", parse(text), "Q4_0", pre=pre)
    options = Options(make_overrides(["_exps=MXFP4", "attn_q=F16"]))
    create(store, "gpt", parse(text), "Q4_0", pre=pre, options=options)
    assert {"MXFP4", "F16", "Q4_0"} <= types(store.resolve("gpt").gguf)
    options = Options(allow_requantize=True)
    create(store, "lossy", parse(text), "Q4_0", pre=pre, options=options)
    assert "MXFP4" not in types(store.resolve("lossy").gguf)
    # And of a GGUF that is quantised already.
    create(store, "again", parse("FROM lossy"), "Q8_0", options=options)
    assert types(store.resolve("again").gguf) == {"Q8_0", "F32"}


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (None, Options(allow_requantize=True), "--allow-requantize: it is for quantising; add -q"),
        (None, Options(make_overrides(["a=F16"])), "--tensor-type a=F16: it is for quantising"),
        ("Q8_0", Options(split_max_size=1 << 20), "takes overrides, allow_requantize and mtp; "),
    ],
)
def test_options_that_a_model_cannot_have(
    kind: str | None, options: Options, words: str, store: Store
) -> None:
    with pytest.raises(ArgumentError, match=words):
        create(store, "tiny", read(MODELFILE), kind, options=options)
