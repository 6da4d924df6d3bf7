"""Where templates run: jinja2's sandbox with what transformers gives them, each step counted.

Templates are parsed, and their trees changed before they are compiled: into the bodies of loops and
macros, and before what compares, comes a step; what makes a text or a list is looked at. The names
of what does that begin with a digit, so no template can call it or put something in its place.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, NoReturn

from jinja2 import Environment, Template, meta, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from gpukit.chat import guards
from gpukit.chat.bounds import CONTAINERS, CURRENT, MEMBER, Exceeded, admitted, counted, weigh

# The longest that are published have some 30 000 characters.
MOST_OF_A_SOURCE = 1 << 17
# As whole numbers that hash to different values.
MOST_OF_A_RANGE = 1 << 53
# Chat templates have no use for them; some search with patterns, or draw lots.
LEFT_OUT = ("filesizeformat", "forceescape", "pprint", "random", "striptags", "urlencode", "urlize",
            "wordwrap", "xmlattr")  # fmt: skip
STEP, COMPARED, MADE, WRITTEN = "0step", "0compared", "0made", "0written"
# Steps of a comparison, which may be one of long texts.
COMPARING = 100


class Generation(Extension):
    """`{% generation %}` marks for a trainer what the model said: what is inside is a part of the
    text as any other."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Counting(NodeTransformer):
    """Puts steps and looks into the tree of a template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body = [_step(node.body), *node.body]
        if node.else_:
            node.else_ = [_step(node.else_), *node.else_]
        if node.test is not None:
            node.test = _after_a_step(self.visit(node.test))
        return node

    def visit_Macro(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body = [_step(node.body), *node.body]
        return node  # type: ignore[no-any-return]

    visit_CallBlock = visit_Block = visit_Macro

    def visit_Compare(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _after_a_step(node)

    visit_Test = visit_Compare

    def visit_List(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, MADE)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, MADE) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, MADE) if isinstance(node.arg, nodes.Slice) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), WRITTEN)

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.target, nodes.NSRef):
            node.node = _filtered(nodes.List([node.node], lineno=node.lineno), MADE)
            node.node = nodes.Getitem(node.node, nodes.Const(0), "load", lineno=node.lineno)
        return node


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=getattr(node, "lineno", None))


def _after_a_step(node: nodes.Expr) -> nodes.Expr:
    return nodes.And(_filtered(nodes.Const(0), COMPARED), node, lineno=node.lineno)


def _step(body: Sequence[nodes.Node]) -> nodes.Node:
    """A step, which counts the plain text that `body` itself writes."""
    return nodes.ExprStmt(_filtered(nodes.Const(sum(map(_plain, body))), STEP))


def _plain(node: nodes.Node) -> int:
    if isinstance(node, nodes.TemplateData):
        return len(node.data)
    if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block):
        return 0  # these count their own
    return sum(map(_plain, node.iter_child_nodes()))


class _Sandbox(ImmutableSandboxedEnvironment):
    """Counts what templates compute and call."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        guards.operated(operator, left, right)
        return admitted(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        CURRENT.get().charge()
        # Texts' own methods, which jinja2 wraps where they format.
        method = getattr(obj, "__wrapped__", obj)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            if name not in guards.METHODS:
                raise SecurityError(f"the method {name} of a text")
            if name == "join" and len(args) == 1:
                args = (list(counted(args[0])),)
            CURRENT.get().fits(guards.METHODS[name](owner, *args, **_own(kwargs)))
        elif isinstance(owner, bytes | int | float) and name not in guards.NUMBER_METHODS:
            raise SecurityError(f"the method {name} of a number")
        elif obj is Namespace:
            weigh([args, _own(kwargs)])
        return admitted(super().call(context, obj, *args, **kwargs))


def _own(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a template gives a function by name, without what jinja2 adds in loops and blocks."""
    return {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}


@pass_context
def _written(_context: Context, value: Any) -> str:
    """What stands in the prompt for `value`."""
    if isinstance(value, (*CONTAINERS, Namespace)):
        weigh(value)
    text = str(value)
    CURRENT.get().made(len(text))
    return text


@pass_context
def _concat(_context: Context, values: list[Any]) -> str:
    CURRENT.get().fits(weigh(values))
    text = "".join(map(str, values))
    CURRENT.get().made(len(text))
    return text


@pass_context
def _stepped(_context: Context, size: int) -> bool:
    CURRENT.get().made(size)
    return True


@pass_context
def _compared(_context: Context, _value: int) -> bool:
    CURRENT.get().charge(COMPARING)
    return True


def _bounded(plain: Environment, name: str) -> Callable[..., Any]:
    """The filter `name` with its guard."""
    guard = guards.FILTERS.get(name)

    @pass_context
    def bounded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, Iterator):
            value = counted(value) if guard is None else list(counted(value))
        elif isinstance(value, str):
            CURRENT.get().charge(1 + len(value) // 64)
        elif isinstance(value, (*CONTAINERS, Namespace)):
            weigh(value)
        if guard is not None:
            CURRENT.get().fits(guard(value, *args, **kwargs))
        return admitted(plain.call_filter(name, value, args, kwargs, context=context))

    return bounded


@cache
def _environment() -> Environment:
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[loopcontrols, Generation],
        finalize=_written,
    )
    plain = ImmutableSandboxedEnvironment()
    plain.filters["tojson"] = _to_json
    for name in LEFT_OUT:
        del plain.filters[name]
    environment.filters = {name: _bounded(plain, name) for name in plain.filters}
    environment.filters[STEP] = _stepped
    environment.filters[COMPARED] = _compared
    environment.filters[MADE] = pass_context(lambda _, value: admitted(value))
    environment.filters[WRITTEN] = _concat
    del environment.globals["lipsum"]
    environment.globals["range"] = _range
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


@lru_cache(maxsize=8)
def compiled(source: str) -> Template:
    """The template, ready to run within the bounds of `CURRENT`; errors as jinja2's."""
    tree = _parsed(source)
    _Counting().visit(tree)
    return _environment().from_string(tree)


@lru_cache(maxsize=8)
def asked(source: str) -> frozenset[str]:
    """The variables that the template `source` takes from outside; errors as `compiled`."""
    return frozenset(meta.find_undeclared_variables(_parsed(source)))


def _parsed(source: str) -> nodes.Template:
    if len(source) > MOST_OF_A_SOURCE:
        raise Exceeded(f"{len(source)} characters; {MOST_OF_A_SOURCE} at most")
    return _environment().parse(source)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _range(*bounds: int) -> range:
    if any(isinstance(bound, int) and abs(bound) > MOST_OF_A_RANGE for bound in bounds):
        raise Exceeded("it counts beyond 53 bits")
    found = range(*bounds)
    CURRENT.get().fits(MEMBER * len(found))
    return found


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers writes it, piece by piece."""
    CURRENT.get().fits(len(indent) if isinstance(indent, str) else indent or 0)
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    parts = []
    for part in encoder.iterencode(value):
        CURRENT.get().made(len(part))
        parts.append(part)
    return "".join(parts)


def _now(pattern: str) -> str:
    # C's own function gives up only when the text is 256 times as long as the pattern.
    CURRENT.get().fits(256 * len(pattern))
    return datetime.now().strftime(pattern)


def rendered(source: str, variables: Mapping[str, Any]) -> str:
    """The text of the template `source` within the bounds of `CURRENT`."""
    budget, parts, size = CURRENT.get(), [], 0
    for part in compiled(source).generate(variables):
        size += len(part)
        budget.charge()
        budget.fits(size)
        parts.append(part)
    return "".join(parts)
