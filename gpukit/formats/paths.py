"""Paths as people write them."""

from pathlib import Path

from gpukit.errors import ArgumentError


def expanded(text: str) -> Path:
    """The path that `text` means; `ArgumentError` for a `~` that is nobody's home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        who = text.partition("/")[0].removeprefix("~")
        why = f"there is no user {who}" if who else "there is no home folder; set HOME"
        raise ArgumentError(f"{text}: {why}") from None
