"""general.*: what a model is called, where it comes from, how its makers sample from it.

Read by the gguf package, as llama.cpp's converter does, from the model card (README.md),
generation_config.json, config.json and the folder's name; checked here before it is written.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpukit.errors import CheckpointError
from gpukit.formats.folder import model_name
from gpukit.formats.gguf_fields import Field, ValueType
from gpukit.formats.recorder import recorded, recorder

# In a list of languages YAML takes `no` for a truth value.
YAML_WORDS = {True: "yes", False: "no"}


@dataclass(frozen=True)
class Parameters:
    """How many weights a model has, how many of them one expert has, and how many experts."""

    total: int
    expert: int = 0
    experts: int = 0

    @property
    def shared(self) -> int:
        """Those that are no expert's."""
        return self.total - self.expert * self.experts


def general_fields(
    folder: Path, arch: str, parameters: Parameters, name: str | None
) -> list[Field]:
    """The metadata of `folder` in the converter's order; `name` replaces general.name.

    A size in the folder's name that is far from `parameters` is none. `CheckpointError` for files
    that cannot be read and for values that cannot be written.
    """
    import gguf

    def described(writer: Any) -> None:
        metadata = _metadata(folder, name, parameters.total)
        if metadata.size_label is None:
            metadata.size_label = gguf.size_label(
                parameters.total, parameters.shared, parameters.expert, parameters.experts
            )
        writer.add_type("model")
        metadata.set_gguf_meta_model(writer)

    return _recorded(folder, arch, described)


def adapter_fields(folder: Path, arch: str, parameters: int) -> list[Field]:
    """The metadata of the adapter in `folder`, whose deltas are of tensors of so many weights, as
    llama.cpp's converter writes it; errors as `general_fields`."""

    def described(writer: Any) -> None:
        # The package takes a number below 0 for that of an adapter: not all of a model.
        metadata = _metadata(folder, None, -parameters)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        metadata.set_gguf_meta_model(writer)

    return _recorded(folder, arch, described)


def _metadata(folder: Path, name: str | None, parameters: int) -> Any:
    """What the package finds out about `folder`."""
    import gguf

    generation = _loaded(folder, "generation_config.json", gguf.Metadata.load_generation_config)
    with _named(folder) as link:
        metadata = gguf.Metadata.load(None, link, name, parameters)
    if metadata.sampling_penalty_repeat is None:
        metadata.sampling_penalty_repeat = generation.get("repetition_penalty")
    if metadata.name is None:
        metadata.name = model_name(folder)
    return metadata


def _recorded(folder: Path, arch: str, describe: Callable[[Any], None]) -> list[Field]:
    """What `describe` adds to a writer, checked."""
    import gguf

    # The package logs what it does not understand; without a handler Python would print that.
    logging.getLogger("metadata").addHandler(logging.NullHandler())
    _loaded(folder, "README.md", gguf.Metadata.load_model_card)
    try:
        writer = recorder(arch)
        describe(writer)
        fields = recorded(writer)
    except CheckpointError:
        raise
    except Exception as error:  # the package trusts a card's values to be of their types
        raise CheckpointError(
            f"{folder}: the head of README.md or _name_or_path in config.json: {_reason(error)}; "
            "mend or remove it"
        ) from None
    return [checked(field, folder) for field in fields]


@contextmanager
def _named(folder: Path) -> Iterator[Path]:
    """A path of `folder` that ends with the model's name, from which the package guesses much."""
    path = Path(os.path.abspath(folder))
    if path.name == model_name(folder):
        yield path
        return
    with TemporaryDirectory() as scratch:
        link = Path(scratch) / model_name(folder)
        link.symlink_to(path)
        yield link


def _loaded(folder: Path, file: str, load: Callable[[Path], Any]) -> dict[str, Any]:
    try:
        found = load(folder)
    except Exception as error:  # YAML alone raises a dozen types
        raise CheckpointError(f"{folder / file}: {_reason(error)}; mend or remove it") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder / file}: no JSON object; mend or remove it")
    return found


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def checked(field: Field, folder: Path) -> Field:
    """`field` with a value of its type; `CheckpointError` where there is none."""
    try:
        if field.type is ValueType.ARRAY:
            values = [_text(value) for value in field.value]
            return Field(field.key, field.type, values, ValueType.STRING)
        if field.type is ValueType.STRING:
            return Field(field.key, field.type, _text(field.value))
        return Field(field.key, field.type, _number(field.value, field.type))
    except (TypeError, ValueError, OverflowError):
        settings = field.key.startswith("general.sampling.")
        file = "generation_config.json" if settings else "README.md"
        raise CheckpointError(
            f"{folder / file}: {field.key} would be {str(field.value)[:80]!r}, which is no "
            f"{field.type.name.lower()}; mend or remove it"
        ) from None


def _text(value: Any) -> str:
    if isinstance(value, dict | list | tuple | set) or value is None:
        raise TypeError
    text = YAML_WORDS[value] if isinstance(value, bool) else str(value)
    text.encode()  # half a surrogate pair is no text
    return text


def _number(value: Any, kind: ValueType) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if kind is ValueType.FLOAT32:
        return float(value)
    low = -(1 << 31) if kind is ValueType.INT32 else 0
    if int(value) != value or not low <= value < low + (1 << 32):
        raise ValueError
    return int(value)
