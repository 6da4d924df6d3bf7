"""A YAML file as plain values, and the line where each of them stands."""

import errno
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from gpukit.errors import ArgumentError, did_you_mean
from gpukit.formats.positioned import read_whole

# Bytes, values and levels of a plan: one of a thousand sources stays far below.
MOST_BYTES, MOST_VALUES, MOST_LEVELS = 4 << 20, 200_000, 32
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^{}]*))?\}|(?P<bad>\{))")
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null")}

# The keys and numbers that lead to a value.
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """What the file at `path` says, and the line of each place in it."""

    path: Path
    value: Any
    lines: Mapping[Place, int]

    def line(self, place: Place) -> int:
        """The line of `place`, or of the nearest around it."""
        while place not in self.lines and place:
            place = place[:-1]
        return self.lines.get(place, 1)

    def where(self, place: Place) -> str:
        """File and line of `place`, as a message begins."""
        return f"{self.path}:{self.line(place)}"

    def fault(self, place: Place, text: str) -> ArgumentError:
        """`text` as an error that names the file and the line."""
        return ArgumentError(f"{self.where(place)}: {text}")


def read_document(path: Path) -> Document:
    """The YAML at `path`; `ArgumentError` with the line of what is none, of a key that stands twice
    and of what is nested too deeply."""
    try:
        text = read_whole(path, MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        what = "this is no plan" if error.errno == errno.EFBIG else "name the YAML file of a plan"
        raise ArgumentError(f"{path}: {error.strerror}: {what}") from None
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{path}: no text: byte {error.start} is not UTF-8") from None
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            reader = _Reader(path, loader)
            return Document(path, reader.value(node, ()), reader.lines)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        told = " ".join(filter(None, (error.context, error.problem)))
        raise ArgumentError(f"{path}{line}: no YAML: {told}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ArgumentError(f"{path}: no YAML: {' '.join(str(error).split())}") from None


class _Reader:
    """Makes values of nodes and notes their lines."""

    def __init__(self, path: Path, loader: yaml.SafeLoader) -> None:
        self.lines: dict[Place, int] = {}
        self._path = path
        self._loader = loader
        self._count = 0

    def value(self, node: Any, place: Place) -> Any:
        if node is None:
            return None
        self.lines.setdefault(place, node.start_mark.line + 1)
        self._count += 1
        # Names for what is repeated let a small file mean a large one.
        if self._count > MOST_VALUES or len(place) > MOST_LEVELS:
            much = f"{MOST_VALUES} values or {MOST_LEVELS} levels"
            raise ArgumentError(f"{self._path}:{node.start_mark.line + 1}: over {much}")
        if isinstance(node, yaml.MappingNode):
            return dict(self._items(node, place))
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*place, i)) for i, item in enumerate(node.value)]
        return self._loader.construct_object(node) if node.tag in _PLAIN else str(node.value)

    def _items(self, node: yaml.MappingNode, place: Place) -> Iterator[tuple[str, Any]]:
        self._check_keys(node)
        self._loader.flatten_mapping(node)
        for key, item in node.value:
            where = (*place, str(key.value))
            self.lines[where] = key.start_mark.line + 1
            yield str(key.value), self.value(item, where)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ArgumentError(f"{self._path}:{line}: a key must be a word")
            if key.value in seen:
                raise ArgumentError(
                    f"{self._path}:{line}: {key.value!r} stands here again, after line "
                    f"{seen[key.value]}; keep one"
                )
            if key.tag != "tag:yaml.org,2002:merge":
                seen[key.value] = line


def with_variables(document: Document, environment: Mapping[str, str]) -> Document:
    """`document` with `${NAME}` in its texts put in: of its `variables`, else of `environment`,
    else what stands behind `:-`. `$$` is a dollar sign. `ArgumentError` for an unknown name."""
    if not isinstance(document.value, dict):
        return document
    given = document.value.get("variables")
    known = dict(environment)
    if isinstance(given, dict):
        own = {
            name: str(_put_in(value, known, document, ("variables", name)))
            for name, value in given.items()
            if isinstance(value, str | int | float)
        }
        known |= own
        document = replace(document, value={**document.value, "variables": {**given, **own}})
    rest = {
        key: value if key == "variables" else _put_in(value, known, document, (key,))
        for key, value in document.value.items()
    }
    return replace(document, value=rest)


def _put_in(value: Any, known: Mapping[str, str], document: Document, place: Place) -> Any:
    if isinstance(value, dict):
        return {k: _put_in(v, known, document, (*place, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_put_in(v, known, document, (*place, i)) for i, v in enumerate(value)]
    if not isinstance(value, str) or "$" not in value:
        return value

    def found(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if match["bad"]:
            raise document.fault(place, f"{value!r}: ${{NAME}} or ${{NAME:-DEFAULT}} is needed")
        if name is None:
            return "$"
        if name not in known and default is None:
            raise document.fault(
                place,
                f"${{{name}}} is neither one of `variables` nor in the environment"
                f"{did_you_mean(name, known)}",
            )
        return known.get(name) or (default if default is not None else "")

    return _VARIABLE.sub(found, value)
