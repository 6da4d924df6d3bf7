"""create with ADAPTER: adapters checked against FROM, stored as layers, and applied beside it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import checkpoints
from support.adapters import LINEAR, quiet, train_beside
from support.gguf_adapters import write_adapter
from support.llama_cpp_server import greedy

import gpukit
from gpukit.errors import (
    AdapterError,
    ArgumentError,
    GGUFError,
    GpukitError,
    ModelfileError,
    NotFoundError,
    SafetensorsError,
    StoreError,
)
from gpukit.events import Event, Status, Warned
from gpukit.formats.gguf_fields import TensorSpec, string
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.generation.loading import load_model
from gpukit.recipes.create import create, plan_create
from gpukit.recipes.show import show
from gpukit.sources.merged import Chosen, Merge
from gpukit.store import Store, copy, remove
from gpukit.store.blobs import digest_of
from gpukit.store.modelfile import parse

REAL = Path(__file__).resolve().parents[4] / "shared" / "models" / "tiny-shakespeare-wiki-lora"
PROMPT = "The city was founded in"
IDS = list(range(3, 30))
ADAPTED = {f"blk.{n}.attn_q.weight": (256, 256) for n in (0, 1)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint `plain`, the same as plain.gguf, and adapters: `lora` of PEFT, two GGUFs."""
    root = tmp_path_factory.mktemp("adapters")
    folder = checkpoints.build("plain", root)
    train_beside(folder, root / "lora", {"target_modules": LINEAR})
    gpukit.quantize(folder, root / "plain.gguf", "F16", device="cpu")
    for number, name in enumerate(("a", "b")):
        write_adapter(root / f"{name}.gguf", "llama", ADAPTED, 8.0, 4, seed=number, size=0.2)
    return root


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def make(
    store: Store, name: str, text: str, folder: Path, quantize: str | None = None
) -> list[str]:
    """Create from the text of a Modelfile; the lines that it reports."""
    events: list[Event] = []
    create(store, name, parse(text, folder=folder), quantize, report=events.append)
    return [event.text for event in events if isinstance(event, Status | Warned)]


def layers(store: Store, name: str) -> list[tuple[str, str]]:
    manifest = store.manifest(store.find(name))
    return [(layer.kind, layer.origin) for layer in manifest.layers]


def logits(store: Store, name: str) -> torch.Tensor:
    found = store.resolve(name)
    merge = Merge(tuple(map(Chosen, found.adapters)))
    decoder = load_model(found.gguf, "cpu", adapters=merge).decoder
    return decoder.forward(IDS, decoder.cache(64), every=True)


def test_gguf_adapters_are_layers_as_they_are(store: Store, made: Path) -> None:
    text = "FROM plain.gguf\nSYSTEM hi\nADAPTER ./a.gguf\nADAPTER b.gguf\nPARAMETER top_k 1\n"
    lines = make(store, "m", text, made)
    assert lines[:3] == ["parsing GGUF"] * 3
    assert layers(store, "m") == [
        ("model", "plain.gguf"), ("adapter", "a.gguf"), ("adapter", "b.gguf"), ("system", ""),
        ("params", ""),
    ]  # fmt: skip
    manifest = store.manifest(store.find("m"))
    for layer, name in zip(manifest.of("adapter"), ("a", "b"), strict=True):
        assert layer.media_type == "application/vnd.ollama.image.adapter"
        assert layer.digest == digest_of((made / f"{name}.gguf").read_bytes())
    config = store.config(store.find("m"), manifest)
    assert config.model_families == ("llama",)
    both = Merge((Chosen(made / "a.gguf"), Chosen(made / "b.gguf")))
    decoder = load_model(made / "plain.gguf", "cpu", adapters=both).decoder
    wanted = decoder.forward(IDS, decoder.cache(64), every=True)
    assert torch.equal(logits(store, "m"), wanted)
    make(store, "bare", "FROM plain.gguf", made)
    assert not torch.allclose(logits(store, "bare"), wanted)


def test_a_model_built_on_it_has_its_adapters_and_more(store: Store, made: Path) -> None:
    make(store, "ns/base", "FROM plain.gguf\nADAPTER a.gguf\nSYSTEM hi\n", made)
    lines = make(store, "child", "FROM ns/base\nADAPTER b.gguf\nSYSTEM ho\n", made)
    assert sum("using existing layer" in line for line in lines) == 2
    assert layers(store, "child") == [
        ("model", "ns/base:latest"), ("adapter", "ns/base:latest"), ("adapter", "b.gguf"),
        ("system", ""),
    ]  # fmt: skip
    make(store, "whole", "FROM plain.gguf\nADAPTER a.gguf\nADAPTER b.gguf\n", made)
    assert torch.equal(logits(store, "child"), logits(store, "whole"))
    remove(store, "ns/base")
    remove(store, "whole")
    assert logits(store, "child").isfinite().all()
    copy(store, "child", "other")
    remove(store, "child")
    assert len(store.resolve("other").adapters) == 2
    remove(store, "other")
    assert not list(store.blobs.iterdir())


def test_what_show_says(store: Store, made: Path) -> None:
    make(store, "m", "FROM plain.gguf\nADAPTER a.gguf\nADAPTER b.gguf\n", made)
    found = show(store, "m")
    paths = store.resolve("m").adapters
    rows = [(each.path, each.tensors, each.ranks, each.size) for each in found.adapters]
    assert rows == [(path, 2, (4,), path.stat().st_size) for path in paths]
    document = json.loads(json.dumps(found.as_json()))
    assert [each["path"] for each in document["adapters"]] == list(map(str, paths))
    commands = [line for line in found.modelfile.splitlines() if not line.startswith("#")]
    weights = store.resolve("m").gguf
    assert commands[1:4] == [f"FROM {weights}", *(f"ADAPTER {path}" for path in paths)]
    # What it prints makes the same model again.
    make(store, "again", found.modelfile, made)
    assert store.resolve("again").adapters == paths


def test_a_dry_run_foretells_the_layers(store: Store, made: Path) -> None:
    text = "FROM ./plain\nADAPTER a.gguf\nADAPTER lora\nSYSTEM hi\n"
    planned = plan_create(store, "m", parse(text, folder=made))
    assert not store.root.exists()
    make(store, "m", text, made)
    found = store.manifest(store.find("m")).layers
    assert [(each.kind, each.size) for each in planned.layers] == [
        (each.kind, each.size) for each in found
    ]
    assert [each.kind for each in found] == ["model", "adapter", "adapter", "system"]


def test_a_stored_adapter_is_no_part_of_the_weights(
    store: Store, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, "m", "FROM plain.gguf\nADAPTER a.gguf\n", made)
    monkeypatch.setenv("GPUKIT_MODELS", str(store.root))
    with pytest.raises(StoreError, match="m: a model with 1 adapter beside its weights"):
        gpukit.quantize("m", tmp_path / "x.gguf", "Q8_0")
    model = gpukit.load("m", "cpu")
    assert torch.equal(model.logits(IDS), logits(store, "m"))


REFUSED: Mapping[str, tuple[type[GpukitError], str]] = {
    "ADAPTER ./none": (NotFoundError, "ADAPTER ./none: .*none: no such file or folder"),
    "ADAPTER org/name": (NotFoundError, "ADAPTER org/name: .*write hf.co/org/name"),
    'ADAPTER ""': (ModelfileError, "ADAPTER '': the path of an adapter"),
    "ADAPTER ./plain": (AdapterError, "plain: no adapter_config.json; a whole model is there"),
    "ADAPTER ./plain.gguf": (AdapterError, "plain.gguf: a GGUF of general.type 'model'"),
    "ADAPTER ./qwen.gguf": (AdapterError, "qwen.gguf: made for 'qwen2', the base is 'llama'"),
    "ADAPTER ./wide.gguf": (AdapterError, r"\[256, 4\] for a tensor of \[256, 256\] in the base"),
    "ADAPTER ./deep.gguf": (AdapterError, r"blk\.7\.attn_q\.weight: a llama GGUF of this base"),
    "ADAPTER ./nan.gguf": (AdapterError, r"nan.gguf: .*holds nan at \[3, 5\]"),
    "ADAPTER ./cut.gguf": (GGUFError, "cut.gguf: "),
    "ADAPTER ./nan": (AdapterError, r"holds inf at \[0, 1\]"),
    "ADAPTER ./cut": (SafetensorsError, "cut/adapter_model.safetensors"),
    "ADAPTER ./other": (AdapterError, "this adapter was made for another base"),
    "ADAPTER ./dora": (AdapterError, r"DoRA.*\(gpukit merge\); --merge does it here$"),
    "ADAPTER a.gguf\nADAPTER ./a.gguf": (ArgumentError, "a.gguf is the same adapter; remove one"),
    "ADAPTER a.gguf\nADAPTER link.gguf": (ArgumentError, "a.gguf is the same adapter; remove one"),
    "ADAPTER ./lora\nADAPTER lora/adapter_model.safetensors": (ArgumentError, "the same adapter"),
}


@pytest.fixture(scope="module")
def hostile(made: Path) -> Path:
    """The folder with everything that is refused, too."""
    stacked = {"blk.0.attn_q.weight": (256, 512)}
    write_adapter(made / "qwen.gguf", "qwen2", ADAPTED, 8.0, 4)
    write_adapter(made / "wide.gguf", "llama", stacked, 8.0, 4)
    write_adapter(made / "deep.gguf", "llama", {"blk.7.attn_q.weight": (256, 256)}, 8.0, 4)
    write_adapter(made / "nan.gguf", "llama", ADAPTED, 8.0, 4)
    with GGUFFile(made / "nan.gguf") as file:
        info = file.tensors["blk.1.attn_q.weight.lora_a"]
        at = info.offset + 4 * (3 * 256 + 5)
    data = bytearray((made / "nan.gguf").read_bytes())
    data[at : at + 4] = b"\xff\xff\xff\xff"
    (made / "nan.gguf").write_bytes(data)
    (made / "cut.gguf").write_bytes((made / "a.gguf").read_bytes()[:-40])
    (made / "link.gguf").symlink_to("a.gguf")
    for name in ("nan", "cut"):
        shutil.copytree(made / "lora", made / name)
    path = made / "nan" / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 1] = float("inf")
    save_file(tensors, path)
    path = made / "cut" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    other = checkpoints.build("narrow-heads", made)
    train_beside(other, made / "other", {"target_modules": LINEAR})
    train_beside(made / "plain", made / "dora", {"target_modules": LINEAR, "use_dora": True})
    return made


@pytest.mark.parametrize("lines", REFUSED)
def test_what_is_refused_writes_nothing(store: Store, hostile: Path, lines: str) -> None:
    error, message = REFUSED[lines]
    for source in ("./plain", "plain.gguf"):
        with pytest.raises(error, match=message) as caught:
            make(store, "m", f"FROM {source}\n{lines}\n", hostile)
        assert "\n" not in str(caught.value)
        assert not store.root.exists()


def test_an_adapter_is_no_model(store: Store, made: Path) -> None:
    with pytest.raises(ArgumentError, match="a GGUF of type adapter, not a model: FROM names the "):
        make(store, "m", "FROM ./a.gguf", made)
    assert not store.root.exists()


@pytest.mark.parametrize("source", ["./plain", "./plain.gguf", "stored"])
def test_with_a_type_or_merge_they_go_into_the_weights(
    store: Store, made: Path, tmp_path: Path, source: str
) -> None:
    text = f"FROM {source}\nADAPTER a.gguf\nADAPTER lora\n"
    if source == "stored":
        make(store, "stored", "FROM plain.gguf\nADAPTER a.gguf\nSYSTEM hi\n", made)
        text = "FROM stored\nADAPTER lora\n"
    planned = plan_create(store, "small", parse(text, folder=made), "q8_0")
    make(store, "small", text, made, "q8_0")
    found = store.resolve("small")
    assert found.adapters == ()
    assert [layer.kind for layer in planned.layers] == [kind for kind, _ in layers(store, "small")]
    base = "plain" if source == "./plain" else "plain.gguf"
    adapters = [made / "a.gguf", made / "lora"]
    gpukit.convert(made / base, tmp_path / "x.gguf", "Q8_0", adapters=adapters, device="cpu")
    assert found.gguf.read_bytes() == (tmp_path / "x.gguf").read_bytes()
    # Without a type the one that the weights have.
    create(store, "plain", parse(text, folder=made), merge=True)
    gpukit.convert(made / base, tmp_path / "y.gguf", adapters=adapters, device="cpu")
    assert store.resolve("plain").gguf.read_bytes() == (tmp_path / "y.gguf").read_bytes()


def test_what_cannot_be_merged(store: Store, made: Path, tmp_path: Path) -> None:
    make(store, "base", "FROM plain.gguf\nADAPTER a.gguf\n", made)
    before = sorted(store.blobs.iterdir())
    shutil.copy(made / "a.gguf", tmp_path / "copied.gguf")
    lora = made / "lora"
    for text, error, message in (
        (f"FROM base\nADAPTER {tmp_path / 'copied.gguf'}", ArgumentError, "would have it twice"),
        (f"FROM base\nADAPTER lora\nADAPTER {lora}/adapter_model.safetensors", ArgumentError,
         "the model would have it twice"),
        ("FROM base\nADAPTER ./plain", AdapterError, "a whole model is there, not an adapter"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            make(store, "m", text, made, "Q8_0")
    # What stays no adapter can be merged.
    train_beside(made / "plain", tmp_path / "dora", {"target_modules": LINEAR, "use_dora": True})
    dora = parse(f"FROM ./plain\nADAPTER {tmp_path / 'dora'}", folder=made)
    create(store, "dora", dora, merge=True)
    remove(store, "dora")
    with pytest.raises(ArgumentError, match="--merge: there is no ADAPTER to be merged"):
        create(store, "m", parse("FROM ./plain.gguf", folder=made), merge=True)
    assert sorted(store.blobs.iterdir()) == before


def test_an_adapter_that_the_base_has_already(store: Store, made: Path, tmp_path: Path) -> None:
    make(store, "base", "FROM plain.gguf\nADAPTER a.gguf\n", made)
    before = sorted(store.blobs.iterdir())
    shutil.copy(made / "a.gguf", tmp_path / "copied.gguf")
    for words in (["copied.gguf"], [str(made / "b.gguf"), str(made / "a.gguf")]):
        text = "".join(f"ADAPTER {word}\n" for word in words)
        with pytest.raises(ArgumentError, match=r"would have sha256:\w+… twice"):
            make(store, "child", f"FROM base\n{text}", tmp_path)
        assert sorted(store.blobs.iterdir()) == before


def test_an_adapter_of_another_name_is_a_warning(store: Store, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "lora", tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(path.read_text().replace(str(made / "plain"), "org/Other"))
    lines = make(store, "m", f"FROM {made / 'plain'}\nADAPTER ./lora\n", tmp_path)
    assert "made for org/Other, the base is plain" in lines[0]
    # A stored model goes by the name that it has there, too.
    make(store, "other", f"FROM {made / 'plain.gguf'}\n", tmp_path)
    lines = make(store, "m", "FROM other\nADAPTER ./lora\n", tmp_path)
    assert not any("made for" in line for line in lines)


def test_one_of_peft_becomes_what_gpukit_adapter_writes(
    store: Store, made: Path, tmp_path: Path
) -> None:
    lines = make(store, "m", "FROM ./plain\nADAPTER ./lora\n", made)
    assert lines[:2] == ["converting adapter", "converting model"]
    assert layers(store, "m") == [("model", ""), ("adapter", "")]
    gpukit.write_adapter(made / "lora", made / "plain", tmp_path / "x.gguf")
    (path,) = store.resolve("m").adapters
    assert path.read_bytes() == (tmp_path / "x.gguf").read_bytes()
    decoder = load_model(made / "plain", "cpu", adapters=Merge((Chosen(made / "lora"),))).decoder
    beside = decoder.forward(IDS, decoder.cache(64), every=True)
    # The scale is in alpha there: a rounding apart.
    assert (logits(store, "m") - beside).abs().max() < 1e-5 * beside.abs().max()


@pytest.mark.peer
@pytest.mark.skipif(not REAL.is_dir(), reason="the shared adapter is not here")
def test_a_real_adapter_says_what_peft_and_llama_cpp_say(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUKIT_MODELS", str(store.root))
    base = REAL.with_name("tiny-shakespeare")
    make(store, "wiki", f"FROM {base}\nADAPTER {REAL}\n", base)
    found = store.resolve("wiki")
    said = gpukit.load("wiki", "cpu").generate(PROMPT, temperature=0, num_predict=40)
    plain = gpukit.load(base, "cpu").generate(PROMPT, temperature=0, num_predict=40)
    assert said.text != plain.text
    beside = gpukit.load(base, "cpu", adapters=[REAL])
    assert beside.generate(PROMPT, temperature=0, num_predict=40).text == said.text
    ids = beside.tokenizer.encode(PROMPT)
    assert _peft(base, ids, 40) == list(said.tokens)
    assert greedy(found.gguf, PROMPT, 40, found.adapters) == said.text


def _peft(base: Path, ids: list[int], count: int) -> list[int]:
    """The likeliest tokens that transformers and PEFT give behind `ids`."""
    with quiet():
        plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        wrapped = peft.PeftModel.from_pretrained(plain, REAL).eval()
        out = wrapped.generate(input_ids=torch.tensor([ids]), max_new_tokens=count, do_sample=False)
    return [int(token) for token in out[0, len(ids) :]]


def test_a_base_that_says_too_little(store: Store, made: Path, tmp_path: Path) -> None:
    spec = TensorSpec("token_embd.weight", (32, 4), "F16")
    for arch, message in (
        ("llama", r"x\.gguf: .*llama\."),
        ("odd", "x.gguf: cannot run archi.*odd"),
    ):
        with GGUFWriter(
            tmp_path / "x.gguf", [string("general.architecture", arch)], [spec]
        ) as file:
            file.write(0, bytes(spec.nbytes))
        with pytest.raises(GGUFError, match=message):
            make(store, "m", f"FROM ./x.gguf\nADAPTER {made / 'a.gguf'}\n", tmp_path)
    assert not store.root.exists()


def test_of_what_llama_cpp_cannot_run_a_warning_tells(store: Store, tmp_path: Path) -> None:
    folder = checkpoints.build("tied", tmp_path)
    write_adapter(
        tmp_path / "a.gguf", "llama", {"token_embd.weight": (2048, 256)}, 8.0, 4, size=0.2
    )
    lines = make(store, "m", f"FROM {folder}\nADAPTER ./a.gguf\n", tmp_path)
    assert any("its embedding, of which llama.cpp takes no adapter" in line for line in lines)
    make(store, "bare", f"FROM {folder}\n", tmp_path)
    assert (logits(store, "m") - logits(store, "bare")).abs().max() > 0.01


def test_beside_quantised_weights(store: Store, made: Path, tmp_path: Path) -> None:
    gpukit.quantize(made / "plain", tmp_path / "small.gguf", "Q8_0", device="cpu")
    make(store, "m", f"FROM ./small.gguf\nADAPTER {made / 'lora'}\n", tmp_path)
    assert store.resolve("m").gguf.read_bytes() == (tmp_path / "small.gguf").read_bytes()
    make(store, "exact", "FROM ./plain\nADAPTER ./lora\n", made)
    exact, found = logits(store, "exact"), logits(store, "m")
    # What Q8_0 loses of the base, half a step of 127 a value, and nothing of the adapter.
    assert (found - exact).abs().max() < 0.05 * exact.abs().max()
    with pytest.raises(ArgumentError, match="quantization is only supported for F16, BF16 and F32"):
        make(store, "less", "FROM m", tmp_path, "Q4_0")
    create(store, "merged", parse("FROM m"), merge=True)
    assert store.resolve("merged").adapters == ()
