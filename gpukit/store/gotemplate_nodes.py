"""The tree of a Go template: what `gotemplate.parse` gives and `gotemplate_run` executes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Text:
    """Text that stands there as it is."""

    text: str


@dataclass(frozen=True)
class Operand:
    """A value: `kind` is that of its token, or `(` with `pipeline`. `value` is the name of a
    function or a variable, or what a literal stands for; `fields` follow it."""

    kind: str
    value: Any
    line: int
    fields: tuple[str, ...] = ()
    pipeline: "Pipeline | None" = None


@dataclass(frozen=True)
class Pipeline:
    """Commands, each given the value of the one before; `variables` take the last value, which
    are new ones with `declares`."""

    variables: tuple[str, ...]
    declares: bool
    commands: tuple[tuple[Operand, ...], ...]
    line: int


@dataclass
class Control:
    """`if`, `with` or `range`: branches with their conditions, of which the first that holds is
    taken, and what is done where none does."""

    word: str
    branches: list[tuple[Pipeline, list["Node"]]]
    otherwise: list["Node"] = field(default_factory=list)


@dataclass(frozen=True)
class Invoke:
    """`template` or `block`: another definition, given a value."""

    name: str
    pipeline: Pipeline


@dataclass(frozen=True)
class Jump:
    """`break` or `continue`."""

    word: str


Node = Text | Pipeline | Control | Invoke | Jump


@dataclass(frozen=True)
class Template:
    """The definitions by name, the template itself by ''; `fields` are all names of fields that
    stand anywhere in it."""

    definitions: Mapping[str, Sequence[Node]]
    fields: frozenset[str]
