"""`gpukit imatrix` as a user calls it."""

import json
import time
from pathlib import Path

import pytest
from support import forked
from support.checkpoints import DATA
from support.command_line import gpukit

from gpukit.formats.imatrix import read_imatrix

TINY = DATA / "tiny-shakespeare"
PEER = DATA / "imatrix"
TEXT = PEER / "text.txt"


def test_collect_describe_and_quantise(tmp_path: Path) -> None:
    out = tmp_path / "imatrix.gguf"
    words = ("imatrix", TINY, "-f", TEXT, "-o", out, "--num-ctx", 64, "--chunks", 4)
    done = gpukit(*words, "--device", "cpu", "--process-output")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out}: ")
    assert ", 29 tensors, 4 chunks of 64 in " in done.stdout
    assert "collecting importance" in done.stderr
    shown = gpukit("imatrix", "--in-file", out, "--show-statistics")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].split()[:3] == ["LAYER", "TENSOR", "SUM"]
    assert [line.split()[:2] for line in lines[1:30]][-1] == ["-", "output"]
    assert lines[-1] == f"{out}: 29 tensors, 4 chunks of 64: {TEXT}"
    assert shown.stderr == ""
    made = gpukit("quantize", TINY, tmp_path / "q2.gguf", "Q2_K_S", "--imatrix", out, "--quiet")
    assert made.returncode == 0, made.stderr


def test_json_and_quiet(tmp_path: Path) -> None:
    out = tmp_path / "x.dat"
    words = ("imatrix", "--in-file", PEER / "tiny-shakespeare.gguf", "-o", out, "--json")
    done = gpukit(*words, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["format"], found["chunks"], found["size"]) == ("dat", 12, out.stat().st_size)
    assert found["statistics"][0]["gain"] == "NaN"
    done = gpukit(*words[:-1], "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    again = json.loads(gpukit("imatrix", "--in-file", out, "--show-statistics", "--json").stdout)
    assert again["statistics"][0]["tensor"] == "blk.0.attn_k.weight"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "neither a model and a text nor files to add up (--in-file)"),
        ((TINY,), "no text for the model to read; give one with --file"),
        (("-f", TEXT), "no model to read the text; name one"),
        (("--show-statistics",), "--show-statistics of 0 files; give one --in-file"),
        ((TINY, "-f", TEXT, "-o", TINY), "a folder; name the file to write"),
        (("--in-file", TEXT, "-o", "x.gguf"), "no importance matrix: "),
    ],
)
def test_one_line_for_what_is_wrong(
    words: tuple[object, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = gpukit("imatrix", *words)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert told in line
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_killed_outright_goes_on(tmp_path: Path) -> None:
    out, state = tmp_path / "x.gguf", tmp_path / "x.gguf.unfinished"
    words = ("imatrix", TINY, "-f", TEXT, "-o", out, "--num-ctx", 32, "--save-every", 1)
    run = forked.command(*words, "--device", "cpu")
    until = time.monotonic() + 120
    while not state.exists() and run.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    run.kill()
    run.wait()
    if out.exists():
        pytest.skip("it was faster than its end")
    before = read_imatrix(state).chunks
    assert before >= 1
    done = gpukit(*words, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert f"going on behind chunk {before} of 51, from {state}" in done.stderr
    assert read_imatrix(out).chunks == 51
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_quantize_with_a_text(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    words = ("quantize", TINY, out, "Q2_K_S", "--calibrate", TEXT, "--device", "cpu")
    done = gpukit(*words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.index("collecting importance") < done.stderr.index("quantizing BF16 model")
    assert "warning" not in done.stderr
    refused = gpukit(*words, "--imatrix", PEER / "tiny-shakespeare.gguf")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"Error: --calibrate and --imatrix {PEER}")
    assert len(refused.stderr.splitlines()) == 1


def test_create_with_a_text(tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text(f"FROM {TINY}\n")
    words = ("create", "tiny", "-f", tmp_path / "Modelfile", "--calibrate", TEXT)
    store = {"GPUKIT_MODELS": str(tmp_path / "models")}
    done = gpukit(*words, "-q", "Q2_K_S", "--device", "cpu", **store)
    assert done.returncode == 0, done.stderr
    assert done.stderr.index("collecting importance") < done.stderr.index("quantizing BF16 model")
    assert "warning" not in done.stderr
    planned = gpukit(*words, "-q", "Q2_K_S", "--dry-run", **store)
    assert (planned.returncode, planned.stderr) == (0, "")
    refused = gpukit(*words, **store)
    assert refused.returncode == 2
    assert "importance is for quantising; add -q TYPE" in refused.stderr
