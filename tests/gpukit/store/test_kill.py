"""A command that is killed at any step leaves the store as it was, and the next one clears up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import checkpoints
from support.gguf_adapters import write_adapter

from gpukit.formats.gguf_fields import TensorSpec, string, u32
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.recipes.create import create
from gpukit.store import Store, change
from gpukit.store.manifest import CONFIG_TYPE, LAYER_PREFIX, Manifest
from gpukit.store.modelfile import Modelfile

ROOT = Path(__file__).resolve().parents[3]
RUNNER = Path(__file__).with_name("kill_runner.py")
pytestmark = pytest.mark.slow


def prepare(root: Path) -> Store:
    """A store with two models that share layers, an orphan and a download of Ollama's."""
    store = Store(root)
    for name, texts in (("old", ("shared", "old only")), ("other", ("shared",))):
        with change(store) as changes:
            layers = [changes.add_bytes(text.encode(), LAYER_PREFIX + "license") for text in texts]
            config = changes.add_bytes(b'{"model_format":"gguf"}\n', CONFIG_TYPE)
            changes.publish(store.find(name), Manifest(config, tuple(layers)))
    (store.blobs / f"sha256-{'0' * 64}").write_text("somebody's orphan")
    (store.blobs / f"sha256-{'1' * 64}-partial").write_text("a download")
    return store


def kill_everywhere(
    action: str, store: Store, extra: Path, moments: int = 0, **environment: str
) -> int:
    """Kill `action` at each of its steps, and at random moments; how many steps there were."""
    done = subprocess.run(
        [sys.executable, str(RUNNER), action, str(store.root), str(extra)],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "KILL_RANDOM": str(moments),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kills: int
    kills, killed_at_moments = json.loads(done.stdout.splitlines()[-1])
    assert killed_at_moments == moments
    return kills


@pytest.mark.parametrize(("action", "least"), [("remove_model", 20), ("copy_over", 30)])
def test_rm_and_cp(tmp_path: Path, action: str, least: int) -> None:
    assert kill_everywhere(action, prepare(tmp_path / "models"), tmp_path) >= least


def write_gguf(path: Path) -> None:
    fields = [string("general.architecture", "llama"), u32("general.file_type", 1)]
    spec = TensorSpec("token_embd.weight", (32, 4), "F16")
    with GGUFWriter(path, fields, [spec]) as writer:
        writer.write(0, bytes(range(256)))


@pytest.mark.parametrize(
    "action", ["create_model", pytest.param("replace_model", marks=pytest.mark.thorough)]
)
def test_create_from_a_gguf(tmp_path: Path, action: str) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "Modelfile").write_text(
        "FROM ./tiny.gguf\nLICENSE shared\nSYSTEM new\nPARAMETER top_k 3\n"
    )
    moments = 12 if action == "create_model" else 0
    assert kill_everywhere(action, prepare(tmp_path / "models"), tmp_path, moments) >= 80


@pytest.mark.thorough
def test_create_from_a_checkpoint(tmp_path: Path) -> None:
    """One pass from safetensors to Q8_0: at every seventh step, and at random moments."""
    (tmp_path / "Modelfile").write_text(
        f"FROM {ROOT / 'tests/data/tiny-shakespeare'}\nLICENSE shared\n"
    )
    store = prepare(tmp_path / "models")
    settings = {"KILL_QUANTIZE": "Q8_0", "KILL_STRIDE": "7"}
    assert kill_everywhere("create_model", store, tmp_path, moments=6, **settings) >= 20


@pytest.mark.thorough
def test_create_with_an_adapter(tmp_path: Path) -> None:
    """A base of the store and an adapter beside it, at every fifth step."""
    checkpoints.build("plain", tmp_path)
    adapted = {"blk.0.attn_q.weight": (256, 256)}
    write_adapter(tmp_path / "a.gguf", "llama", adapted, 8.0, 4)
    store = prepare(tmp_path / "models")
    base = Modelfile(source=str(tmp_path / "plain"))
    create(store, "base", base)
    (tmp_path / "Modelfile").write_text("FROM base\nADAPTER ./a.gguf\nLICENSE shared\n")
    assert kill_everywhere("create_model", store, tmp_path, KILL_STRIDE="5") >= 15
