"""What callers give: values of a wrong kind are refused in one line, before work begins."""

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from gpukit.errors import ArgumentError, unlike


def text_of(given: object, wanted: str) -> str:
    """`given`, a text; else `ArgumentError`, which says that `wanted` is wanted."""
    if not isinstance(given, str):
        raise ArgumentError(unlike(wanted, given))
    return given


def texts_of(given: object, wanted: str) -> tuple[str, ...]:
    """The texts of a list, or of what else gives several; `ArgumentError` as `text_of`, for one
    text, too: its letters are no list."""
    found = list_of(given, wanted)
    texts = tuple(each for each in found if isinstance(each, str))
    if len(texts) < len(found):
        raise ArgumentError(unlike(wanted, list(found)))
    return texts


def list_of(given: object, wanted: str) -> tuple[Any, ...]:
    """What a list has, or whatever else gives several things, once; `ArgumentError` as
    `text_of` for what gives none, and for a text."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ArgumentError(unlike(wanted, given))
    return tuple(given)


def path_of(given: object, wanted: str) -> Path:
    """The path that `given` is; `ArgumentError` as `text_of` for what can be none."""
    if not isinstance(given, str | PathLike) or "\0" in str(given):
        raise ArgumentError(unlike(wanted, given))
    return Path(given)


def path_or_none(given: object, wanted: str) -> Path | None:
    """As `path_of`, None for None."""
    return None if given is None else path_of(given, wanted)
