"""What several verbs are tried with."""

from pathlib import Path

import pytest
from support.loras import lora
from support.zoo_build import build


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and an adapter of all its linear layers."""
    root = tmp_path_factory.mktemp("qwen")
    base = build("qwen2", root)
    return base, lora(base, root / "lora")
