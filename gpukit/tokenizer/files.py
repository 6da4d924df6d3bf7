"""The JSON files of a tokenizer."""

from pathlib import Path
from typing import Any

from gpukit.errors import TokenizerError
from gpukit.formats import folder


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, None where there is no such file; `TokenizerError` else."""
    return folder.read_json(path, TokenizerError)
