"""Paths as people write them."""

from pathlib import Path

from gpukit.errors import NotFoundError


def expanded(text: str) -> Path:
    """The path that `text` means; `NotFoundError` for a `~` that is nobody's home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        who = text.partition("/")[0].removeprefix("~")
        why = f"there is no user {who}" if who else "there is no home folder; set HOME"
        raise NotFoundError(f"{text[:100]}: {why[:100]}") from None
