"""--converter on the command line."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.command_line import gpukit
from support.converter_folders import TREE, toy
from support.loras import lora


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


@pytest.mark.thorough
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


def test_adapters_go_into_a_folder_first(tmp_path: Path) -> None:
    folder, merged = _with_a_layer(tmp_path / "toy"), tmp_path / "merged"
    adapter = lora(folder, tmp_path / "adapter", targets=("q_proj",))
    failed = gpukit("merge", folder, tmp_path / "a.gguf", "--adapter", adapter)
    assert failed.returncode == 1
    assert "(adapters first: gpukit merge BASE FOLDER --adapter DIR)" in failed.stderr
    failed = gpukit("convert", folder, merged, "--adapter", adapter, "--converter", TREE)
    assert failed.returncode == 2
    assert "merge it into a folder first (gpukit merge BASE FOLDER" in failed.stderr
    assert gpukit("merge", folder, merged, "--adapter", adapter).returncode == 0
    for path in folder.glob("*.npy"):  # what the made-up class reads
        shutil.copy(path, merged)
    out = tmp_path / "b.gguf"
    assert gpukit("quantize", merged, out, "Q4_0", "--converter", TREE).returncode == 0
    assert out.exists()


def _with_a_layer(folder: Path) -> Path:
    """A model of the made-up class with a weight that an adapter can be for."""
    toy(folder)
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"model.layers.0.self_attn.q_proj.weight": weight}, folder / "model.safetensors")
    return folder
