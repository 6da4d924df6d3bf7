"""Several processes at one store, one of them killed: `scripts/crowd` lets many work for long."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts/crowd"
SHORT = ["--processes", "4", "--seconds", "4", "--kill-every", "1.5", "--seed", "1"]


@pytest.mark.thorough
def test_a_crowd_leaves_a_store_that_is_whole() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, *SHORT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 kills" in done.stdout
    assert " 0 faults" in done.stdout
