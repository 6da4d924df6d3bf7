"""A folder with a model that speaks."""

from pathlib import Path

import pytest
from support.command_line import gpukit
from support.shells import TINY


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that speaks."""
    folder = tmp_path_factory.mktemp("spoken")
    done = gpukit("convert", TINY, "tiny.gguf", "--type", "F16", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "tiny.gguf"
