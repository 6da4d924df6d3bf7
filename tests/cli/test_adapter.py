"""gpukit adapter as a user meets it."""

import json
from pathlib import Path

import pytest
from support.adapters import LINEAR, Trained, train
from support.command_line import gpukit


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    config = {"r": 2, "lora_alpha": 3, "target_modules": LINEAR, "alpha_pattern": {"q_proj": 7}}
    return train(tmp_path_factory.mktemp("made"), "llama", config)


def test_one_line_tells_what_was_written(made: Trained, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    done = gpukit("adapter", made.adapter, out, "--base", made.base, "--type", "f16")
    assert (done.returncode, done.stderr) == (0, f"writing {out}\n")
    assert done.stdout == (
        f"{out}: {out.stat().st_size / 1000:.1f} KB, llama, 14 pairs (28 F16), rank 2, alpha 3, "
        "the scale of 2 multiplied into B\n"
    )


def test_quiet(made: Trained, tmp_path: Path) -> None:
    words = ("--base", made.base, "--quiet")
    done = gpukit("adapter", made.adapter, tmp_path / "x.gguf", *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = gpukit("adapter", tmp_path / "lora", *words, "--extract", made.merged, "--rank", 2)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_json(made: Trained, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    words = ("adapter", made.adapter, out, "--base", made.base, "--json", "--quiet")
    done = gpukit(*words)
    assert done.stderr == ""
    assert json.loads(done.stdout) == {
        "path": str(out), "size": out.stat().st_size, "architecture": "llama", "alpha": 3.0,
        "ranks": [2], "pairs": 14, "folded": 2, "types": {"F32": 28}, "warnings": [],
    }  # fmt: skip


@pytest.mark.thorough
def test_extract(made: Trained, tmp_path: Path) -> None:
    out = tmp_path / "lora"
    words = ("adapter", out, "--base", made.base, "--extract", made.merged, "--rank", 2)
    done = gpukit(*words, "--device", "cpu")
    assert (done.returncode, done.stderr) == (0, f"comparing weights\nwriting {out}\n")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["tensors", "number", "kept", "||dW||", "/", "||W||"]
    assert lines[1].split()[:4] == ["down_proj", "2", "100.00", "%"]
    assert lines[-2].endswith("decomposed 14 exactly")
    assert lines[-1].startswith(f"{out}: ")
    assert lines[-1].endswith(", rank 2, 100.00 % kept")
    done = gpukit(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "something is there; name a folder to be made" in done.stderr
    words = ("adapter", tmp_path / "other", *words[2:])
    found = json.loads(gpukit(*words, "--json", "--quiet").stdout)
    assert (found["rank"], found["exact"], found["randomised"]) == (2, 14, 0)
    assert found["classes"]["q_proj"]["kept"] > 0.999


def test_faults_are_one_line(made: Trained, tmp_path: Path) -> None:
    for words, code, told in (
        ((made.adapter, tmp_path / "x.gguf"), 2, "Missing option '--base'"),
        ((made.adapter, tmp_path / "x.gguf", "--base", "nowhere"), 1, "nowhere: no such file"),
        ((made.base, tmp_path / "x.gguf", "--base", made.base), 1, "a whole model is there"),
        ((made.adapter, tmp_path, "--base", made.base), 2, "a folder; name the file to write"),
        ((made.adapter, tmp_path / "x.gguf", "--base", made.base, "--moe-layout", "mine"), 2,
         "unknown layout 'mine' of experts; known: peft, peft-0.18, unsloth"),
        ((made.adapter, "--base", made.base), 2, "Missing argument 'OUT'"),
        ((made.adapter, "x", "--base", made.base, "--embeddings"), 2,
         "--embeddings belongs to --extract: leave it out"),
        ((made.adapter, "x", "--base", made.base, "--rank", "2"), 2, "--rank belongs to --extr"),
        (("x", "y", "--base", made.base, "--extract", made.merged), 2, "one folder to make, not x"),
        (("x", "--base", made.base, "--extract", made.merged, "--strict"), 2, "reads no adapter"),
        (("x", "--base", made.base, "--extract", made.merged, "--rank", "0"), 2, "'--rank'"),
    ):  # fmt: skip
        done = gpukit("adapter", *words)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.count("\n") == 1
        assert told in done.stderr
    assert not list(tmp_path.iterdir())
