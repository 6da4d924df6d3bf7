"""From a word to an adapter: paths, and ids of the hub, against a hub on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from support.hub import Hub, serve

from gpukit.errors import ArgumentError, NotFoundError
from gpukit.recipes.references import adapter_path

CONFIG = {"adapter_config.json": b"{}"}
REPOS: dict[str, Mapping[str, bytes]] = {
    "org/peft": {**CONFIG, "adapter_model.safetensors": b"1", "adapter_model.bin": b"2",
                 "README.md": b"a card", "optimizer.pt": b"not wanted", "LICENSE": b"MIT"},
    "org/mlx": {**CONFIG, "adapters.safetensors": b"1", "0000100_adapters.safetensors": b"2"},
    "org/gguf": {"a-lora.gguf": b"GGUF", "README.md": b""},
    "org/model": {"config.json": b"{}", "model.safetensors": b"1"},
    "org/half": CONFIG,
}  # fmt: skip
SCRIPT = """
import json, sys
from gpukit.errors import GpukitError
from gpukit.recipes.references import adapter_path
try:
    path = adapter_path(sys.argv[1])
    print(json.dumps([path.name, sorted(p.name for p in path.iterdir()) if path.is_dir() else []]))
except GpukitError as error:
    print(error)
"""
Ask = Callable[..., str]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve(Hub(REPOS)) as hub:
        yield hub


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Ask:
    def run(word: str, **variables: str) -> str:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        place = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, word],
            capture_output=True, text=True, check=True, env=kept | place | variables,
        )  # fmt: skip
        return done.stdout.strip()

    return run


def test_ids_of_the_hub(hub: Hub, ask: Ask) -> None:
    wanted = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert json.loads(ask("hf.co/org/peft"))[1] == wanted
    assert json.loads(ask("hf.co/org/mlx"))[1] == ["adapter_config.json", "adapters.safetensors"]
    assert json.loads(ask("https://huggingface.co/org/gguf"))[0] == "a-lora.gguf"
    assert json.loads(ask("hf.co/org/gguf/a-lora.gguf"))[0] == "a-lora.gguf"
    assert "org/model: no adapter_config.json there, so no adapter" in ask("hf.co/org/model")
    assert "org/half: no weights of an adapter (adapter_model.saf" in ask("hf.co/org/half")
    assert "optimizer.pt" not in hub.fetched()
    # A second time nobody is asked.
    assert json.loads(ask("hf.co/org/peft", HF_HUB_OFFLINE="1"))[1] == wanted


def test_paths_come_first_and_what_is_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    assert adapter_path("lora", folder=tmp_path) == tmp_path / "lora"
    assert adapter_path(tmp_path / "lora") == tmp_path / "lora"
    with pytest.raises(
        NotFoundError, match=r"org/x: no such .*; for an adapter of .* hf\.co/org/x"
    ):
        adapter_path("org/x")
    with pytest.raises(NotFoundError, match=r"no such file or folder$"):
        adapter_path(tmp_path / "hf.co" / "org" / "x")
    for word in ("", " ", "a\0b"):
        with pytest.raises(ArgumentError, match="the path of an adapter or an id of the hub"):
            adapter_path(word)
