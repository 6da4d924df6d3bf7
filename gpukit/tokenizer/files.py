"""The JSON files of a tokenizer."""

import json
from pathlib import Path
from typing import Any

from gpukit.errors import TokenizerError


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, None where there is no such file."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: no JSON: {error}") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: no JSON object")
    return value
