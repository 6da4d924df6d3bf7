"""Ids of the Hugging Face hub on the command line, against a hub on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.checkpoints import build
from support.hub import COMMIT, Hub, serve

INDEX = "model.safetensors.index.json"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = build("plain", tmp_path_factory.mktemp("hub"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    other = {"pytorch_model.bin": b"not wanted", "onnx/model.onnx": b"nor this", "LICENSE": b"MIT"}
    repos = {
        "org/tiny-1M": files | other,
        "org/secret": files,
        "org/empty": {"README.md": b""},
        "org/odd-index": files | {INDEX: b'{"weight_map": [[1], null]}'},
        "org/ggufs": {"a-Q4_K_M.gguf": b"", "a-Q8_0.gguf": b"GGUF", "config.json": b"{}"},
    }
    gated = {"org/gated": files}
    with serve(Hub(repos | gated, private=("org/secret",), gated=("org/gated",))) as hub:
        yield hub


@pytest.fixture
def gpukit(hub: Hub, tmp_path: Path) -> Run:
    def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        place = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "GPUKIT_MODELS": str(tmp_path / "store"),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            [sys.executable, "-m", "gpukit_cli", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env=kept | place | variables,
        )

    return run


def test_a_model_of_the_hub_and_again_without_it(gpukit: Run, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    done = gpukit("convert", "hf.co/org/tiny-1M", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["size"] == out.stat().st_size
    assert "fetching hf.co/org/tiny-1M" in done.stderr
    # What a conversion reads and nothing else.
    names = {"config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"}
    assert {name.rpartition("/")[2] for name in hub.fetched()} == names
    assert (tmp_path / "home/hub/models--org--tiny-1M/snapshots" / COMMIT).is_dir()
    found = json.loads(gpukit("inspect", out, "--json").stdout)
    assert found["metadata"]["general.name"]["value"] == "Tiny 1M"

    asked = len(hub.asked)
    again = tmp_path / "b.gguf"
    done = gpukit("convert", "org/tiny-1M", again, "--hub", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == out.read_bytes()
    assert len(hub.asked) == asked
    done = gpukit("convert", "hf.co/org/tiny-1M", again, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert "warning: hf.co/org/tiny-1M: the hub cannot be reached" in done.stderr


def test_a_private_one_wants_the_token(gpukit: Run, hub: Hub, tmp_path: Path) -> None:
    words = ("convert", f"https://huggingface.co/org/secret@{COMMIT}", tmp_path / "a.gguf")
    done = gpukit(*words)
    assert done.returncode == 1
    assert "hf.co/org/secret: not on http" in done.stderr
    assert "set HF_TOKEN" in done.stderr
    assert gpukit(*words, HF_TOKEN=hub.token).returncode == 0


def test_create_from_the_hub(gpukit: Run, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text("FROM hf.co/org/tiny-1M\nSYSTEM Hi.\n")
    done = gpukit("create", "tiny", "-f", tmp_path / "Modelfile", "-q", "Q8_0")
    assert done.returncode == 0, done.stderr
    assert "tiny:latest" in gpukit("list").stdout


def test_an_index_that_is_none(gpukit: Run, tmp_path: Path) -> None:
    done = gpukit("convert", "hf.co/org/odd-index", tmp_path / "a.gguf")
    assert done.returncode == 1
    assert f"{INDEX}: no weight_map of file names" in done.stderr


REFUSED = {
    "hf.co/org/nothing": "hf.co/org/nothing: not on http",
    "hf.co/org/gated": "access must be granted on http",
    "hf.co/org/tiny-1M@v9": "no revision 'v9'",
    "hf.co/org/empty": "hf.co/org/empty: no weights there",
    "hf.co/org/ggufs": "2 .gguf files (a-Q4_K_M.gguf, a-Q8_0.gguf): name one, as hf.co/org/",
    "hf.co/org/ggufs/b.gguf": "no b.gguf there",
    "hf.co/org": "hf.co/org: no id on the Hugging Face hub; hf.co/org/name is one",
    "hf.co/or g/name": "no id on the Hugging Face hub",
    "hf.co/org/--x": "hf.co/org/--x: ",
}
# Settings of the hub are read when its package is imported, so each case cannot have its own here.
LOCATE = """
import sys
from pathlib import Path
from gpukit.errors import GpukitError
from gpukit.remote.hub import located
for name in sys.argv[1:]:
    try:
        print(located(Path(name), lambda event: None))
    except GpukitError as error:
        print(error.exit_code, error)
"""


def test_what_the_hub_does_not_give(hub: Hub, tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", LOCATE, *REFUSED, "hf.co/org/ggufs/a-Q8_0.gguf", "org/tiny-1M"],
        capture_output=True,
        text=True,
        check=True,
        env=kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)},
    )
    *refused, gguf, local = done.stdout.splitlines()
    for line, words in zip(refused, REFUSED.values(), strict=True):
        assert words in line
        assert line.startswith("2 " if "no id" in words or "--x" in words else "1 ")
    assert Path(gguf).read_bytes() == b"GGUF"
    # Without being asked nothing is looked for on the hub.
    assert local == "org/tiny-1M"


def test_nothing_cached_and_nobody_there(gpukit: Run, tmp_path: Path) -> None:
    words = ("convert", "hf.co/org/tiny-1M", tmp_path / "a.gguf")
    done = gpukit(*words, HF_HUB_OFFLINE="1")
    assert "not in the cache, and HF_HUB_OFFLINE is set" in done.stderr
    done = gpukit(*words, HF_ENDPOINT="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in done.stderr
