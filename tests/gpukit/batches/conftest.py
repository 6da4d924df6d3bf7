"""Workers of a batch that begin at once."""

import subprocess
from types import SimpleNamespace

import pytest
from support.forked import Forked

from gpukit.batches import workers


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forks stand for the workers' own Pythons."""
    stand_in = SimpleNamespace(
        Popen=Forked, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
    )
    monkeypatch.setattr(workers, "subprocess", stand_in)
