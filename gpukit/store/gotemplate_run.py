"""Executes the tree of a Go template as Go's text/template does, within bounds."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from gpukit.store.gotemplate_functions import (
    CALLS,
    FunctionError,
    Record,
    is_true,
    kind_of,
    printed,
)
from gpukit.store.gotemplate_nodes import (
    Control,
    Invoke,
    Jump,
    Node,
    Operand,
    Pipeline,
    Template,
    Text,
)
from gpukit.store.gotemplate_tokens import TemplateError

# Values that are looked at: a template of some pages and thousands of messages stay far below.
MOST_STEPS = 2_000_000
# What `template` may call in each other.
MOST_DEPTH = 100
_NOTHING = object()


def execute(template: Template, data: Mapping[str, Any], most: int) -> str:
    """What `template` writes of `data`, at most `most` characters.

    `TemplateError`, with the line, where Go's execution stops, or where it would take too long.
    """
    run = _Run(template, most)
    try:
        run.body(template.definitions[""], data)
    except RecursionError:
        raise TemplateError(1, "it is nested too deeply") from None
    return "".join(run.parts)


class _Jumped(Exception):
    """`break` or `continue` on its way to its range."""

    def __init__(self, word: str) -> None:
        self.word = word


class _Run:
    """One execution: what was written, the variables that are visible, the last one first seen."""

    def __init__(self, template: Template, most: int) -> None:
        self._template = template
        self._most = most
        self._size = 0
        self._steps = 0
        self._depth = 0
        self._variables: list[tuple[str, Any]] = []
        self.parts: list[str] = []

    def body(self, nodes: Sequence[Node], data: Any) -> None:
        """A definition, which sees `data` alone."""
        outside, self._variables = self._variables, [("$", data)]
        self._nodes(nodes, data)
        self._variables = outside

    def _nodes(self, nodes: Sequence[Node], dot: Any) -> None:
        for node in nodes:
            match node:
                case Text(text):
                    self._write(text, 1)
                case Pipeline():
                    value = self._pipeline(node, dot)
                    if not node.variables:
                        self._write(printed(value, "<no value>"), node.line)
                case Control():
                    with self._scope():
                        self._control(node, dot)
                case Invoke():
                    self._invoke(node, dot)
                case Jump(word):
                    raise _Jumped(word)

    def _write(self, text: str, line: int) -> None:
        self._size += len(text)
        if self._size > self._most:
            raise TemplateError(line, f"it makes a text of more than {self._most} characters")
        self.parts.append(text)

    def _step(self, line: int, count: int = 1) -> None:
        self._steps += count
        if self._steps > MOST_STEPS:
            raise TemplateError(line, f"it takes more than {MOST_STEPS} steps")

    @contextmanager
    def _scope(self) -> Iterator[None]:
        """Variables that are declared inside are gone behind it."""
        count = len(self._variables)
        try:
            yield
        finally:
            del self._variables[count:]

    def _control(self, node: Control, dot: Any) -> None:
        if node.word == "range":
            self._range(node, dot)
            return
        for pipeline, body in node.branches:
            value = self._pipeline(pipeline, dot)
            if is_true(value):
                self._nodes(body, value if node.word == "with" else dot)
                return
        self._nodes(node.otherwise, dot)

    def _range(self, node: Control, dot: Any) -> None:
        ((pipeline, body),) = node.branches
        value = self._pipeline(pipeline, dot, assign=False)
        items = self._items(value, pipeline.line)
        for key, item in items:
            self._step(pipeline.line)
            with self._scope():
                self._put_pair(pipeline, key, item)
                try:
                    self._nodes(body, item)
                except _Jumped as jump:
                    if jump.word == "break":
                        break
        if not items:
            self._nodes(node.otherwise, dot)

    def _items(self, value: Any, line: int) -> list[tuple[Any, Any]]:
        if value is None:
            return []
        if isinstance(value, list):
            return list(enumerate(value))
        if isinstance(value, dict) and not isinstance(value, Record):
            return [(key, value[key]) for key in sorted(value)]
        if isinstance(value, int) and not isinstance(value, bool):
            self._step(line, value)
            return [(number, number) for number in range(value)]
        raise TemplateError(line, f"range can't iterate over a {kind_of(value)}")

    def _put_pair(self, pipeline: Pipeline, key: Any, item: Any) -> None:
        values = [item] if len(pipeline.variables) == 1 else [key, item]
        for name, value in zip(pipeline.variables, values, strict=False):
            self._put(name, value, declares=pipeline.declares, line=pipeline.line)

    def _put(self, name: str, value: Any, *, declares: bool, line: int) -> None:
        if declares:
            self._variables.append((name, value))
            return
        for at in reversed(range(len(self._variables))):
            if self._variables[at][0] == name:
                self._variables[at] = (name, value)
                return
        raise TemplateError(line, f"undefined variable: {name}")

    def _invoke(self, node: Invoke, dot: Any) -> None:
        line = node.pipeline.line
        nodes = self._template.definitions.get(node.name)
        if nodes is None:
            raise TemplateError(line, f'template "{node.name[:40]}" is not defined')
        value = self._pipeline(node.pipeline, dot)
        self._step(line)
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise TemplateError(line, f"over {MOST_DEPTH} templates call each other")
        self.body(nodes, value)
        self._depth -= 1

    def _pipeline(self, pipeline: Pipeline, dot: Any, *, assign: bool = True) -> Any:
        value: Any = _NOTHING
        for command in pipeline.commands:
            value = self._command(command, dot, value)
        if assign:
            for name in pipeline.variables:
                self._put(name, value, declares=pipeline.declares, line=pipeline.line)
        return value

    def _command(self, command: tuple[Operand, ...], dot: Any, piped: Any) -> Any:
        """The value of one command, given that of the one before it, if there is one."""
        first, *rest = command
        self._step(first.line)
        if first.kind == "word" and not first.fields:
            return self._call(first, rest, dot, piped)
        if first.kind == "nil":
            raise TemplateError(first.line, "nil is not a command")
        if rest or piped is not _NOTHING:
            raise TemplateError(first.line, f"can't give argument to non-function {_shown(first)}")
        return self._operand(first, dot)

    def _call(self, function: Operand, rest: list[Operand], dot: Any, piped: Any) -> Any:
        name, line = str(function.value), function.line
        last = [] if piped is _NOTHING else [piped]
        if name in ("and", "or"):
            return self._until(name, rest, dot, last, line)
        if name not in CALLS:
            raise TemplateError(line, f"the function {name} is not supported by this version")
        values = [*(self._operand(operand, dot) for operand in rest), *last]
        for value in values:
            if isinstance(value, str | list):
                self._step(line, len(value) // 64)
        try:
            return CALLS[name](*values)
        except FunctionError as error:
            raise TemplateError(line, f"error calling {name}: {error}") from None
        except TypeError:
            raise TemplateError(line, f"wrong number of args for {name}: {len(values)}") from None

    def _until(self, name: str, rest: list[Operand], dot: Any, last: list[Any], line: int) -> Any:
        """`and` and `or`, which look no further than they have to."""
        if not rest and not last:
            raise TemplateError(line, f"wrong number of args for {name}: want at least 1 got 0")
        value: Any = None
        for operand in rest:
            value = self._operand(operand, dot)
            if is_true(value) == (name == "or"):
                return value
        return last[0] if last else value

    def _operand(self, operand: Operand, dot: Any) -> Any:
        match operand.kind:
            case "field" | ".":
                value = dot
            case "variable":
                names = reversed(self._variables)
                value = next(value for name, value in names if name == operand.value)
            case "(":
                assert operand.pipeline is not None
                value = self._pipeline(operand.pipeline, dot)
            case "word":
                value = self._call(operand, [], dot, _NOTHING)
            case "nil":
                value = None
            case _:
                value = operand.value
                if isinstance(value, complex):
                    self._refuse(operand, "imaginary numbers are not supported")
        for name in operand.fields:
            value = self._field(value, name, operand)
        return value

    def _field(self, value: Any, name: str, operand: Operand) -> Any:
        if value is None:
            self._refuse(operand, f"nil pointer evaluating {_shown(operand)}")
        if not isinstance(value, Mapping) or (isinstance(value, Record) and name not in value):
            self._refuse(operand, f"can't evaluate field {name} in type {kind_of(value)}")
        return value.get(name)

    def _refuse(self, operand: Operand, message: str) -> NoReturn:
        raise TemplateError(operand.line, message)


def _shown(operand: Operand) -> str:
    return "".join(f".{name}" for name in operand.fields)[:40] or str(operand.value)[:40]
