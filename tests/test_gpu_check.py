"""scripts/gpu_check where there is no CUDA device."""

import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--out", tmp_path / "x.json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "Error: no CUDA device here; gpu_check checks kernels on one\n"
    assert not (tmp_path / "x.json").exists()
    done = subprocess.run(
        [sys.executable, SCRIPT, "--seconds", "soon"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "invalid float value: 'soon'" in done.stderr


def test_each_type_is_checked_on_ten_million_weights() -> None:
    loader = SourceFileLoader("gpu_check", str(SCRIPT))
    spec = spec_from_loader("gpu_check", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    assert module.CHECKED >= 10_000_000
    # The same share of them for each kind of value.
    sizes = [values.numel() for _, values in module.kinds(256, 1 << 16)]
    assert len(sizes) == 8
    assert sum(sizes) == 1 << 16
