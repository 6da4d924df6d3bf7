"""The JSON files and texts of a tokenizer."""

from pathlib import Path
from typing import Any

from gpukit.errors import TokenizerError
from gpukit.formats import folder


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, None where there is no such file; `TokenizerError` else."""
    return folder.read_json(path, TokenizerError)


def read_text(path: Path) -> str:
    """The text in `path`, which is there; `TokenizerError` where it is no UTF-8."""
    return folder.read_text(path, TokenizerError)
