"""A folder with a model that speaks."""

import subprocess
from pathlib import Path

import pytest
from support.shells import COMMAND, TINY, environment


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that speaks."""
    folder = tmp_path_factory.mktemp("spoken")
    convert = [*COMMAND, "convert", str(TINY), "tiny.gguf", "--type", "F16"]
    subprocess.run(convert, env=environment(folder), cwd=folder, check=True, capture_output=True)
    return folder / "tiny.gguf"
