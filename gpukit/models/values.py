"""Checked access to a config.json and to GGUF metadata: one clear line for what makes no sense."""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpukit.errors import CheckpointError, GGUFError
from gpukit.formats.gguf_fields import Field

MOST = (1 << 31) - 1
# As many as llama.cpp loads; what is made of a configuration takes room for every one.
MOST_LAYERS = 512
MOST_EXPERTS = 1024


def whole(config: Mapping[str, Any], key: str, default: int | None = None, most: int = MOST) -> int:
    """A positive whole number up to `most`; null and a missing key mean the default."""
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise CheckpointError(f"config.json: no {key}; a positive whole number is needed")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise CheckpointError(f"config.json: {key} is {value!r}; a positive whole number is needed")
    if value > most:
        limit = f"llama.cpp loads {most} at most"
        if most == MOST:
            limit = f"a whole number up to {most} is needed"
        raise CheckpointError(f"config.json: {key} is {str(value)[:40]}; {limit}")
    return value


def natural(
    config: Mapping[str, Any], key: str, default: int | None = None, most: int = MOST
) -> int:
    """A whole number from 0 to `most`; null and a missing key mean the default."""
    value = default if config.get(key) is None else config[key]
    return 0 if value == 0 and not isinstance(value, bool) else whole(config, key, default, most)


# Metadata are float32; what is outside would become zero or infinity.
SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127


def real(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A positive number in float32's range; null and a missing key mean the default."""
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise CheckpointError(f"config.json: no {key}; a positive number is needed")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"config.json: {key} is {value!r}; a number is needed")
    if not SMALLEST <= value <= LARGEST:
        shown = str(value)[:40]
        raise CheckpointError(
            f"config.json: {key} is {shown}; a positive number in float32's range is needed"
        )
    return float(value)


@contextmanager
def inside(key: str) -> Iterator[None]:
    """`CheckpointError` of what is read from the object `key` of a config.json says so."""
    try:
        yield
    except CheckpointError as error:
        what = str(error).removeprefix("config.json: ")
        raise CheckpointError(f"config.json: {key}: {what}") from None


@contextmanager
def of_folder(folder: Path) -> Iterator[None]:
    """`CheckpointError` that begins with config.json says in which folder."""
    try:
        yield
    except CheckpointError as error:
        if not str(error).startswith("config.json"):
            raise
        raise CheckpointError(f"{folder}{os.sep}{error}") from None


def flag(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """A truth value; null and a missing key mean the default."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key} is {value!r}; true or false is needed")
    return default if value is None else value


def section(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A JSON object; null and a missing key mean an empty one."""
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(f"config.json: {key} is {value!r}; an object is needed")
    return value


def stored(fields: Mapping[str, Field], key: str, default: Any = None) -> Any:
    """The value of a metadata number; `GGUFError` where it is missing or no positive number."""
    found = fields.get(key)
    value = default if found is None else found.value
    if value is None:
        raise GGUFError(f"no {key} in the metadata")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise GGUFError(f"{key} is {str(value)[:60]!r}; a number is needed")
    if not math.isfinite(value) or value <= 0:
        raise GGUFError(f"{key} is {value}; a finite positive number is needed")
    return value


def optional(fields: Mapping[str, Field], key: str) -> float:
    """The value of a metadata number, 0 where it is missing or 0."""
    found = fields.get(key)
    return 0.0 if found is None or found.value == 0 else float(stored(fields, key))


def count(
    fields: Mapping[str, Field], key: str, default: int | None = None, most: int = MOST
) -> int:
    """The value of a metadata number that counts something: positive, whole and up to `most`."""
    value = stored(fields, key, default)
    if not isinstance(value, int) or value > most:
        raise GGUFError(f"{key} is {value}; a whole number up to {most} is needed")
    return value
