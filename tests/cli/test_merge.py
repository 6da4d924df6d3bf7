"""`gpukit merge` and `convert --adapter` as a user calls them: what they print, and that a kill or
a full disk leaves everything as it was."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from support import forked
from support.command_line import gpukit
from support.loras import lora
from support.zoo_build import build


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("merge")
    base = build("qwen2", root)
    return base, lora(base, root / "my-lora")


def test_a_gguf_and_a_folder(made: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = made
    out = tmp_path / "merged.gguf"
    done = gpukit("merge", base, out, "--adapter", f"{adapter}:0.5", "--type", "Q4_K_M")
    assert (done.returncode, out.is_file()) == (0, True), done.stderr
    assert "merged" in done.stdout
    assert "blk.*.attn_q.weight" in done.stdout
    assert "direction" in done.stdout
    folder = tmp_path / "folder"
    done = gpukit("merge", base, folder, "--adapter", adapter, "--json", "--quiet")
    assert done.stderr == ""
    said = json.loads(done.stdout)
    assert said["path"] == str(folder)
    assert said["changes"]["model.layers.*.self_attn.q_proj.weight"]["direction"] > 0.99
    assert {p.name for p in folder.iterdir()} >= {"config.json", "model.safetensors", "README.md"}
    assert str(base) not in (folder / "README.md").read_text()  # a path says nothing to others
    for quiet in (out, tmp_path / "again"):
        done = gpukit("merge", base, quiet, "--adapter", adapter, "--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    planned = gpukit("convert", base, out, "--adapter", adapter, "--dry-run", "--json")
    assert json.loads(planned.stdout)["tensors"]


def test_what_a_refusal_names_is_an_option_of_the_command(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = made
    small, out, pattern = tmp_path / "q4.gguf", tmp_path / "q8.gguf", tmp_path / "{type}.gguf"
    assert gpukit("convert", base, small, "--type", "Q4_K_M").returncode == 0
    for words in (
        ("merge", small, out, "--adapter", adapter, "--type", "Q8_0"),
        ("merge", small, "--types", "Q8_0,Q5_0", "--out", pattern, "--adapter", adapter),
        ("convert", small, out, "--type", "Q8_0"),
        ("convert", small, out, "--type", "Q8_0", "--dry-run"),
        ("convert", small, "--types", "Q8_0,Q5_0", "--out", pattern),
        ("convert", small, "--types", "Q8_0,Q5_0", "--out", pattern, "--dry-run"),
    ):
        done = gpukit(*words)
        assert (done.returncode, "--allow-requantize" in done.stderr) == (2, True), words
        done = gpukit(*words, "--allow-requantize")
        assert done.returncode == 0, (words, done.stderr)
    done = gpukit("merge", base, tmp_path / "f", "--adapter", adapter, "--allow-requantize")
    assert (done.returncode, "allow_requantize is for a GGUF" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--adapter", "none"), 1, "none: no such file or folder"),
        ((), 2, "no adapter to merge"),
        (("--adapter", "{}", "--type", "Q9"), 2, "unknown type"),
        (("--adapter", "{}", "--combine", "mean"), 2, "no method mean"),
        (("--adapter", "{}", "--density", "0.5"), 2, "--density is for --combine"),
        (("--adapter", "{}", "--merge-base", "nf5"), 2, "unknown; known: full, nf4"),
        (("--adapter", "{}", "--moe-layout", "x"), 2, "unknown; known: peft"),
        (("--adapter", "{}", "--device", "tpu"), 2, "tpu"),
        (("--converter", "llama.cpp"), 2, "merge takes no --converter: merge into a folder of any"),
    ],
)
def test_one_line_for_what_is_wrong(
    words: tuple[str, ...], code: int, message: str, made: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = made
    words = tuple(word.format(adapter) for word in words)
    for out in ("a.gguf", "folder"):
        done = gpukit("merge", base, tmp_path / out, *words, "--quiet")
        assert done.returncode == code, done.stderr
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert not list(tmp_path.iterdir())


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", [".gguf", ""])
def test_a_killed_merge_leaves_what_was_there(
    kind: str, made: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = made
    out = tmp_path / f"out{kind}"
    words = ["merge", base, out, "--adapter", adapter, "--type", "F32"]
    if kind:
        out.write_bytes(b"what was there")
    before = snapshot(tmp_path), snapshot(base), snapshot(adapter)
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 143
    assert (snapshot(tmp_path), snapshot(base), snapshot(adapter)) == before
    done = gpukit("merge", base, tmp_path / f"again{kind}", "--adapter", adapter)
    assert done.returncode == 0


# Says when the first rows are summed, by whichever engine, and takes its time: what is under way
# ends before the command does.
SLOW = """
import time
import gpukit_kernels
from gpukit.conversion import arrays
from gpukit_cli import app
def slow(*args):
    print("writing", flush=True)
    time.sleep(2)
gpukit_kernels.merge_lora = arrays.merged_rows = slow
app.main()
"""


def test_a_full_disk(made: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = made
    for out in ("a.gguf", "folder"):
        words = ("merge", base, tmp_path / out, "--adapter", adapter, "--type", "F32")
        with TemporaryFile() as said:
            assert forked.command(*words, err=said, longest=1 << 20).wait() == 1
            said.seek(0)
            assert "File too large" in said.read().decode().splitlines()[-1]
        assert not list(tmp_path.iterdir())
