"""What callers give: values of a wrong kind are refused in one line, before work begins."""

from os import PathLike
from pathlib import Path

from gpukit.errors import ArgumentError, unlike


def text_of(given: object, wanted: str) -> str:
    """`given`, a text; else `ArgumentError`, which says that `wanted` is wanted."""
    if not isinstance(given, str):
        raise ArgumentError(unlike(wanted, given))
    return given


def texts_of(given: object, wanted: str) -> tuple[str, ...]:
    """The texts of a list, or of what else gives several; `ArgumentError` as `text_of`, for one
    text, too: its letters are no list."""
    try:
        if isinstance(given, str | bytes):
            raise TypeError
        found: tuple[object, ...] = tuple(given)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentError(unlike(wanted, given)) from None
    return tuple(text_of(each, f"{wanted}: a text in it") for each in found)


def path_of(given: object, wanted: str) -> Path:
    """The path that `given` is; `ArgumentError` as `text_of` for what can be none."""
    if not isinstance(given, str | PathLike) or "\0" in str(given):
        raise ArgumentError(unlike(wanted, given))
    return Path(given)


def path_or_none(given: object, wanted: str) -> Path | None:
    """As `path_of`, None for None."""
    return None if given is None else path_of(given, wanted)
