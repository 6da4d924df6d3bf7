"""gc, and verify of the store, as a user calls them."""

import json
import os
from pathlib import Path

from support.command_line import gpukit
from support.stores import ORPHAN, add

from gpukit import Store
from gpukit.formats.gguf_fields import TensorSpec, string
from gpukit.formats.gguf_writer import GGUFWriter


def weights(path: Path) -> bytes:
    spec = TensorSpec("token_embd.weight", (32, 4), "F16")
    with GGUFWriter(path, [string("general.architecture", "llama")], [spec]) as writer:
        writer.write(0, bytes(256))
    return path.read_bytes()


def test_verify_and_gc(tmp_path: Path) -> None:
    variables = {"GPUKIT_MODELS": str(tmp_path / "models")}
    store = Store(tmp_path / "models")
    manifest = add(store, "tiny:q4", "MIT", model=weights(tmp_path / "a.gguf"))
    add(store, "stub", tensor=b"x")
    done = gpukit("verify", "tiny:q4", **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiny:q4: every digest is right (3 blobs, ")
    assert "sound by itself" in done.stdout
    done = gpukit("verify", "--all", **variables)
    assert done.stdout.splitlines()[-1] == "2 models, 0 of them damaged"
    assert "hashing blobs" in done.stderr
    store.remove("stub")
    done = gpukit("verify", "--all", **variables)
    assert done.stdout.splitlines()[-1] == "1 model, 0 of them damaged"
    add(store, "stub", tensor=b"x")
    blob = store.blobs / manifest.layers[1].digest.replace(":", "-")
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    done = gpukit("verify", "tiny:q4", "--quiet", **variables)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"tiny:q4: model blob {manifest.layers[1].digest} hashes to sha256:" in done.stdout
    done = gpukit("verify", "--all", "--json", "--quiet", **variables)
    stub, tiny = json.loads(done.stdout)["models"]
    assert (stub["name"], stub["whole"]) == ("stub:latest", True)
    assert (tiny["blobs"], len(tiny["problems"])) == (3, 1)
    done = gpukit("verify", "tiny:q4", "--all", **variables)
    assert done.returncode == 2
    assert done.stderr == "Error: verify: name a FILE or a model, or give --all alone\n"
    orphan = store.blobs / ORPHAN
    orphan.write_text("x")
    said = gpukit("gc", **variables).stdout
    assert said == "removed 0 files, 0 B; 1 younger than an hour stays\n"
    os.utime(orphan, (0, 0))
    done = gpukit("gc", "--dry-run", **variables)
    assert done.stdout.splitlines()[0] == ORPHAN
    assert gpukit("gc", "--json", **variables).stdout.count(ORPHAN) == 1
    assert not orphan.exists()


def test_a_stored_model_is_called_by_its_name(tmp_path: Path) -> None:
    """Not by the path of its weights, be it a heading or a fault."""
    variables = {"GPUKIT_MODELS": str(tmp_path / "models")}
    store = Store(tmp_path / "models")
    add(store, "tiny:q4", model=weights(tmp_path / "a.gguf"))
    store.copy("tiny:q4", "copy")
    for command, told in (
        (("inspect", "copy"), "copy:latest: GGUF v3"),
        (("verify", "tiny:q4"), "tiny:q4: sound by itself"),
        (("verify", "tiny:q4", "--from", "copy"), "tiny:q4: equal to what copy:latest gives"),
        (("quantize", "tiny:q4", "x", "Q8_0", "--pre", "qwen2"), "Error: tiny:q4: a GGUF has its"),
        (("convert", "copy", "x", "--mtp"), "Error: copy:latest: a GGUF has its layers; --mtp"),
    ):
        done = gpukit(*command, folder=tmp_path, **variables)
        assert told in done.stdout + done.stderr, command
        assert "sha256-" not in done.stdout + done.stderr
