"""--converter on the command line."""

from pathlib import Path

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
