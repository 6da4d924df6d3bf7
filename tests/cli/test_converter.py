"""--converter on the command line."""

import time
from pathlib import Path

import numpy as np
from support.command_line import gpukit
from support.converter_folders import TREE, toy


def test_a_class_that_only_the_converter_knows(tmp_path: Path) -> None:
    folder, out = toy(tmp_path / "toy"), tmp_path / "a.gguf"
    failed = gpukit("quantize", folder, out, "Q4_0")
    assert failed.returncode == 1
    assert "unknown architecture 'ToyModel'" in failed.stderr
    assert "gpukit quantize --converter DIR" in failed.stderr
    planned = gpukit("quantize", folder, out, "Q4_0", "--converter", TREE, "--dry-run")
    assert "blk.0.ffn_gate_exps.weight" in planned.stdout
    assert "its code is run" in planned.stderr
    assert not out.exists()


def test_options_that_need_a_converter(tmp_path: Path) -> None:
    for option in ("--converter-arg=--mmproj", "--trust-remote-code"):
        failed = gpukit("convert", tmp_path, tmp_path / "a.gguf", option)
        assert failed.returncode == 2
        assert f"{option.partition('=')[0]} is for --converter DIR" in failed.stderr


def test_a_killed_run_leaves_no_converter_and_is_gone_on_with(tmp_path: Path) -> None:
    folder, scratch = toy(tmp_path / "toy", "kill the parent once"), tmp_path / "scratch"
    scratch.mkdir()
    words = ("quantize", folder, tmp_path / "a.gguf", "Q4_0", "--converter", TREE, "--resume")
    assert gpukit(*words, TMPDIR=str(scratch)).returncode == -9
    assert not (tmp_path / "a.gguf").exists()
    # The converter's folder goes when it does.
    ends = time.monotonic() + 30
    while [*scratch.iterdir()]:
        assert time.monotonic() < ends
        time.sleep(0.05)
    assert gpukit(*words).returncode == 0
    assert gpukit("quantize", folder, tmp_path / "b.gguf", "Q4_0", *words[4:6]).returncode == 0
    ours, theirs = (np.fromfile(tmp_path / name, np.uint8) for name in ("a.gguf", "b.gguf"))
    assert np.array_equal(ours, theirs)
