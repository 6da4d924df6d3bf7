"""The JSON files and texts of a tokenizer."""

from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def sound(folder: Path) -> Iterator[None]:
    """`TokenizerError` for files in `folder` that are not built as they must be."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OSError) as error:
        raise TokenizerError(
            f"{folder}: tokenizer.json, tokenizer_config.json, config.json or a chat template: "
            f"{type(error).__name__}: {error}; fetch them again"
        ) from None
