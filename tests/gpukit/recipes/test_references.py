"""From a word to a model: the same answer, whichever command asks."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpukit.errors import ArgumentError, CheckpointError, NotFoundError, StoreError
from gpukit.events import Event, Warned
from gpukit.recipes.references import Reference, locate
from gpukit.remote.hub import HubModel
from gpukit.store import ModelName, Store, change
from gpukit.store.manifest import CONFIG_TYPE, LAYER_PREFIX, Manifest
from gpukit_cli.app import main


def add(store: Store, name: str, **layers: bytes) -> None:
    with change(store) as changes:
        found = [changes.add_bytes(data, LAYER_PREFIX + kind) for kind, data in layers.items()]
        config = changes.add_bytes(b"{}", CONFIG_TYPE)
        changes.publish(ModelName.parse(name), Manifest(config, tuple(found)))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with a few models, the working folder beside it with files and folders."""
    store = Store(tmp_path / "models")
    for name in (
        "stored", "empty", "full", "stray", "held", "one-gguf", "org/name", "hf.co/org/kept",
    ):  # fmt: skip
        add(store, name, model=b"GGUF", system=b"Hi.")
    work = tmp_path / "work"
    for folder in ("empty", "full", "held", "one-gguf", "bare", "hf.co/org/kept", "hf.co/org/lost"):
        (work / folder).mkdir(parents=True)
    (work / "full" / "model.safetensors").touch()
    (work / "held" / "config.json").touch()
    (work / "one-gguf" / "x.gguf").touch()
    (work / "stray").write_text("notes")
    (work / "notes").write_text("notes")
    for name in ("plain", "held-file", "x.gguf"):
        (work / name).write_bytes(b"GGUF")
    (work / "weights.safetensors").touch()
    add(store, "held-file", model=b"GGUF")
    monkeypatch.chdir(work)
    monkeypatch.setenv("GPUKIT_MODELS", str(store.root))
    return store


STORED: dict[str, str] = {
    # A name, in any spelling that the store takes for the same.
    "stored": "stored:latest",
    "Stored:LATEST": "stored:latest",
    "registry.ollama.ai/library/stored": "stored:latest",
    "org/name": "org/name:latest",
    # Beside a folder without weights and a file that is no GGUF.
    "empty": "empty:latest",
    "stray": "stray:latest",
    # An id of the hub that somebody has stored, beside an empty folder called so.
    "hf.co/org/kept": "hf.co/org/kept:latest",
}
PATHS = (
    # Weights, a GGUF, or what shall hold some, go before a stored model.
    "full", "held", "one-gguf", "held-file", "plain",
    # Whatever begins or ends as a path is one.
    "./empty", "./empty/../full", ".", "..", "x.gguf", "weights.safetensors", "./stray",
    # What is there, and nothing else: its reader says what it lacks.
    "bare", "notes",
)  # fmt: skip
# Of these the store has a model of the same name.
HIDING = ("full", "held", "one-gguf", "held-file")
HUB: dict[str, HubModel] = {
    "hf.co/org/name": HubModel("org/name"),
    "huggingface.co/org/name@v2": HubModel("org/name", "v2"),
    "https://huggingface.co/org/name": HubModel("org/name"),
    "hf.co/org/name/a.gguf": HubModel("org/name", file="a.gguf"),
    "hf.co/org/lost": HubModel("org/lost"),
}
# What is not there: how the line begins, and what it says besides.
MISSING = {
    "./stored": ("./stored: no such file or folder", ""),
    "/no/such": ("/no/such: no such file or folder", ""),
    "stored.gguf": ("stored.gguf: no such file or folder", ""),
    "~nobody-here/x": ("~nobody-here/x: ", ""),
    "nothing": ("nothing: no such file or folder, and no model of that name in ", "/models"),
    "storde": ("storde: no such file or folder, and ", "/models: did you mean 'stored:latest'?"),
    "stored:7b": ("stored:7b: no such file or folder, and no model of that name in ", "stored:"),
    "else/where": ("else/where: no such ", "for a model of the Hugging Face hub write hf.co/else/"),
    "a:b:c": ("a:b:c: no such file or folder, and invalid model name", ""),
    "some/long/way/to/it": ("some/long/way/to/it: no such file or folder, and invalid model", ""),
    "x" * 5000: ("x" * 100 + "…: File name too long, and invalid model name", ""),
}
WRONG = {"": "'': a path, the name", " ": "' ': a path", "a\0b": "a path", "hf.co/org": "no id on"}


@pytest.mark.parametrize("word", [*STORED, *PATHS, *HUB])
def test_what_a_word_means(store: Store, word: str) -> None:
    found = locate(word)
    meant: object = STORED.get(word) or HUB.get(word) or Path(word)
    model = found.model
    assert (model.display if isinstance(model, ModelName) else model) == meant
    assert found == Reference(word, model, found.store, found.hidden)
    assert (found.hidden is not None) == (word in HIDING)
    assert found.store.root == store.root


def test_a_stored_model_brings_what_it_sets_and_a_path_only_itself(store: Store) -> None:
    opened = locate("stored").open()
    assert opened.system == "Hi."
    assert locate("stored").fetch() == opened.gguf
    assert opened.gguf.parent == store.blobs
    plain = locate("./full").open()
    assert (plain.gguf, plain.name, plain.system) == (Path("full"), None, "")
    add(store, "adapted", model=b"GGUF", adapter=b"GGUF")
    with pytest.raises(
        StoreError, match=r"with 1 adapter beside its weights: merge them .* FROM adapted"
    ):
        locate("adapted").fetch()
    assert [path.parent for path in locate("adapted").open().adapters] == [store.blobs]


@pytest.mark.parametrize("word", ["full", "./full", "plain", "stored"])
def test_a_stored_model_that_is_hidden_is_told_of(store: Store, word: str) -> None:
    told: list[Event] = []
    locate(word).open(told.append)
    wanted = ["full is what is in this folder, not the model of the store: full:latest names that"]
    found = [event.text for event in told if isinstance(event, Warned)]
    assert found == (wanted if word == "full" else [])


def test_what_is_told_to_be_on_the_hub_is_there(store: Store) -> None:
    for word in ("org/name", "hf.co/org/kept"):
        assert locate(word, hub=True).model == HubModel(word.removeprefix("hf.co/"))
    with pytest.raises(ArgumentError, match="full: no id on the Hugging Face hub"):
        locate("full", hub=True)


def test_a_folder_with_a_gguf_instead_of_a_checkpoint_means_it(store: Store) -> None:
    folder = Path("one-gguf")
    assert locate("./one-gguf").fetch() == folder / "x.gguf"
    (folder / "config.json").touch()
    assert locate("./one-gguf").fetch() == folder / "x.gguf"
    (folder / "y-00001-of-00002.gguf").touch()
    (folder / "y-00002-of-00002.gguf").touch()
    with pytest.raises(
        CheckpointError, match=r"2 .gguf files \(x.gguf, y-00001-of-00002.gguf\): n"
    ):
        locate("./one-gguf").fetch()
    (folder / "x.gguf").unlink()
    assert locate("./one-gguf").fetch() == folder / "y-00001-of-00002.gguf"
    (folder / "model.safetensors").touch()
    assert locate("./one-gguf").fetch() == folder
    (folder / "model.safetensors").unlink()
    (folder / "z.gguf").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="outside the folder"):
        locate("./one-gguf").fetch()


@pytest.mark.parametrize("word", MISSING)
def test_what_is_not_there(store: Store, word: str) -> None:
    begins, holds = MISSING[word]
    with pytest.raises(NotFoundError) as caught:
        locate(word)
    assert caught.value.exit_code == 1
    assert str(caught.value).startswith(begins)
    assert holds in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", WRONG)
def test_what_is_no_word_for_a_model(store: Store, word: str) -> None:
    with pytest.raises(ArgumentError, match=WRONG[word]) as caught:
        locate(word)
    assert caught.value.exit_code == 2


def test_a_path_is_never_a_name(store: Store) -> None:
    assert locate(Path("empty")).model == Path("empty")
    with pytest.raises(NotFoundError, match=r"^stored: no such file or folder$"):
        locate(Path("stored"))


def test_relative_paths_start_at_a_folder(store: Store, tmp_path: Path) -> None:
    elsewhere = tmp_path / "work" / "full"
    assert locate("./model.safetensors", folder=elsewhere).model == elsewhere / "model.safetensors"
    with pytest.raises(NotFoundError, match=r"^./x: /.*/full/x: no such file or folder$"):
        locate("./x", folder=elsewhere)


@pytest.fixture
def answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """The exit code and the last line on stderr of a command."""

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["gpukit", *words])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x")))
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), capsys.readouterr().err.splitlines()[-1]

    return call


@pytest.mark.parametrize("word", ["nothing", "./stored", "storde", "a:b:c", "hf.co/org", "stored"])
def test_every_command_gives_the_same_answer(
    store: Store, answer: Callable[..., tuple[int, str]], word: str
) -> None:
    Path("Modelfile").write_text(f"FROM {word}\n")
    answers = [
        answer("run", word, "x", "--device", "cpu"),
        answer("inspect", word),
        answer("convert", word, "out.gguf"),
        answer("quantize", word, "out.gguf", "q8_0"),
    ]
    created = answer("create", "new")
    assert len(set(answers)) == 1
    code, line = answers[0]
    if word == "stored":  # found, and no GGUF: four bytes
        assert (code, created[0]) == (1, 1)
        assert line == "Error: stored:latest: 4 bytes are too few for a GGUF header of 24"
        assert "/blobs/sha256-" in created[1]
        return
    with pytest.raises((NotFoundError, ArgumentError)) as caught:
        locate(word)
    assert (code, line) == (caught.value.exit_code, f"Error: {caught.value}")
    assert created[0] == code
    assert created[1].startswith(f"Error: FROM {word}: ")
    assert created[1].endswith(line.partition(f"{word}: ")[2])
    assert not Path("out.gguf").exists()
