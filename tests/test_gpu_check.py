"""scripts/gpu_check where there is no CUDA device."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command_line import surroundings
from support.forked import python

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path / "x.json"))
    assert done.returncode == 1
    assert done.stderr == "Error: no CUDA device here; gpu_check checks kernels on one\n"
    assert not (tmp_path / "x.json").exists()
    done = run("--seconds", "soon")
    assert done.returncode == 2
    assert "invalid float value: 'soon'" in done.stderr


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """What the script says in a fork, which has torch."""
    code = f"import runpy\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    return python(code, words, surroundings())


STEPS = "bytes,rates,merge,products,vectors,odd,golden,forward,prefill,attention,copies"


@pytest.mark.thorough
def test_every_kind_of_step_runs_where_kernels_are_interpreted(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--interpret", "--types", "Q8_0", "--workers", "1",
         "--steps", STEPS, "--out", tmp_path / "x.json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "x.json").read_text())
    assert set(report["steps"]) == {
        "facts", "Q8_0 bytes", "Q8_0 rates", "Q8_0 merge", "Q8_0 products", "Q8_0 vectors",
        "Q8_0 odd", "golden", "forward", "prefill", "attention", "copies",
    }  # fmt: skip
    assert not report["left_out"]
    assert report["steps"]["Q8_0 bytes"]["blocks"] > 1000
    assert report["steps"]["golden"]["blocks"] == 15 * 16 * 48
    assert "wrong" not in report["steps"]["golden"]
    assert "wrong" not in report["steps"]["Q8_0 bytes"]
    assert report["steps"]["Q8_0 merge"]["blocks"] > 1000
    assert "wrong" not in report["steps"]["Q8_0 merge"]
    assert "wrong" not in report["steps"]["Q8_0 vectors"]
    assert len(report["steps"]["Q8_0 vectors"]["rates"]) == 2  # blocks and planes
    assert max(report["steps"]["Q8_0 products"]["share_of_tolerance"].values()) < 1
    assert len(report["steps"]["prefill"]["models"]) == 5
    for name in ("forward", "prefill", "attention", "copies"):
        assert "wrong" not in report["steps"][name]
    assert not any("error" in job for job in report["jobs"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted")
def test_the_engine_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent / "lib")
    # Interpreted, products of prepared rows take a minute a token.
    monkeypatch.setattr("gpukit.models.step_products.has_prepared", lambda *_: False)
    from gpucheck.base import Plan
    from gpucheck.engine import time_engine

    with np.errstate(all="ignore"):
        found = time_engine(Plan(str(tmp_path), "cpu", [], [], 0.0))
    told = [rate["what"] for rate in found["rates"]]
    assert told[0] == "token at 3"
    assert {"norm", "prepare", "gated", "head", "q Q4_K", "attend 3"} < set(told)
    assert not found["wrong"]


def test_a_differing_block_is_told_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent / "lib")
    from gpucheck.data import compare

    wanted = torch.arange(12, dtype=torch.uint8).view(3, 4)
    assert compare("any", wanted, wanted.clone(), wanted) is None
    got = wanted.clone()
    got[1, 2] = 255
    assert compare("any", wanted, got, wanted) == {
        "kind": "any", "differ": 1, "of": 3, "first": 1,
        "given": "04050607", "got": "0405ff07", "wanted": "04050607",
    }  # fmt: skip
