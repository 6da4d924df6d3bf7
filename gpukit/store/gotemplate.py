"""Whether a TEMPLATE is one that Ollama takes: the grammar of Go's text/template, with Ollama's
functions (https://pkg.go.dev/text/template, ollama/template/template.go). Nothing is executed here:
`parse` gives the tree, and `check` looks no further.

An action is a control (`if`, `range`, `with`, `else`, `end`, `define`, `block`, `template`,
`break`, `continue`) or a pipeline: declarations, then commands with `|` between them, each of
operands with blanks between them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NoReturn

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
from gpukit.store.gotemplate_tokens import TemplateError, Token, number_value, tokens, unquote

__all__ = ["FUNCTIONS", "TemplateError", "check", "parse"]

BUILT_IN = ("and", "call", "eq", "ge", "gt", "html", "index", "js", "le", "len", "lt", "ne", "not",
            "or", "print", "printf", "println", "slice", "urlquery")  # fmt: skip
OLLAMAS = ("currentDate", "json", "toTypeScriptType", "yesterdayDate")
FUNCTIONS = frozenset((*BUILT_IN, *OLLAMAS))
END = "end of text"
_LITERALS = frozenset((".", "nil", "bool", "number", "string"))
_OPERANDS = _LITERALS | {"field", "variable", "word", "("}
# What Go's bytes.TrimSpace takes away.
_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def check(text: str) -> None:
    """TemplateError, with the line, where Ollama refuses the template `text`."""
    parse(text)


def parse(text: str) -> Template:
    """The tree of the template `text`; TemplateError, with the line, where Ollama refuses it."""
    end = Token(END, "", text.count("\n") + 1)
    return _Parser(chain(tokens(text), [end])).parse()


@dataclass
class _Scope:
    """What the root, a `define` or a `block` has of its own: the variables that are declared, how
    many `range` are open, whether it holds more than blanks, and its nodes."""

    name: str
    variables: list[str] = field(default_factory=lambda: ["$"])
    ranges: int = 0
    filled: bool = False
    body: list[Node] = field(default_factory=list)


@dataclass
class _Open:
    """An action that waits for its `end`: the word and the line of it, how many variables there
    were before it, its node where it is a control, and whether its last `else` has come."""

    word: str
    line: int
    variables: int
    control: Control | None = None
    is_last: bool = False
    of_else: bool = False


class _Parser:
    def __init__(self, source: Iterator[Token]) -> None:
        self._source = source
        self._tokens: list[Token] = []
        self._at = 0
        self._open: list[_Open] = []
        self._scopes = [_Scope("")]
        self._filled: set[str] = set()
        self._definitions: dict[str, list[Node]] = {}
        self._fields: set[str] = set()
        # Where the next node goes.
        self._bodies = [self._scope.body]

    def parse(self) -> Template:
        while (token := self._next()).kind != END:
            if token.kind == "text":
                self._scope.filled |= bool(token.text.strip(_SPACE))
                self._bodies[-1].append(Text(token.text))
            else:
                self._action()
        if self._open:
            last = self._open[-1]
            raise TemplateError(
                last.line, f"{{{{{last.word}}}}} is never closed: {{{{end}}}} is missing"
            )
        self._close_scope(token.line)
        return Template(self._definitions, frozenset(self._fields))

    @property
    def _scope(self) -> _Scope:
        return self._scopes[-1]

    def _next(self) -> Token:
        if self._at == len(self._tokens):
            self._tokens.append(next(self._source))
        self._at += 1
        return self._tokens[self._at - 1]

    def _word(self) -> Token:
        """The next token that is no space."""
        while (token := self._next()).kind == "space":
            pass
        return token

    def _peek(self) -> Token:
        """The same, still to come."""
        token = self._word()
        self._at -= 1
        return token

    def _unexpected(self, token: Token, where: str) -> NoReturn:
        raise TemplateError(token.line, f"{token.text or token.kind} cannot stand in {where}")

    def _expect(self, kind: str, where: str) -> Token:
        token = self._word()
        if token.kind != kind:
            self._unexpected(token, where)
        return token

    def _action(self) -> None:
        token = self._word()
        match token.kind, token.text:
            case "keyword", "if" | "range" | "with":
                self._begin(token)
            case "keyword", "else":
                self._else(token)
            case "keyword", "end":
                self._end(token)
            case "keyword", "define" | "block":
                self._named(token)
            case "keyword", "template":
                self._template(token)
            case "keyword", _:
                self._expect("}}", f"{{{{{token.text}}}}}")
                if not self._scope.ranges:
                    raise TemplateError(token.line, f"{{{{{token.text}}}}} outside {{{{range}}}}")
                self._bodies[-1].append(Jump(token.text))
            case _:
                self._at -= 1
                self._bodies[-1].append(self._pipeline("an action", "}}"))
                self._scope.filled = True

    def _begin(self, token: Token) -> None:
        begun = _Open(token.text, token.line, len(self._scope.variables))
        body: list[Node] = []
        begun.control = Control(token.text, [(self._pipeline(token.text, "}}"), body)])
        self._bodies[-1].append(begun.control)
        self._bodies.append(body)
        self._scope.filled = True
        self._scope.ranges += token.text == "range"
        self._open.append(begun)

    def _else(self, token: Token) -> None:
        begun = self._open[-1] if self._open else None
        if begun is None or begun.control is None:
            raise TemplateError(token.line, "{{else}} without {{if}}, {{range}} or {{with}}")
        if begun.is_last:
            raise TemplateError(token.line, f"a second {{{{else}}}} of {{{{{begun.word}}}}}")
        self._end_of_body(begun)
        following = self._peek()
        if following.text == begun.word and begun.word in ("if", "with"):
            self._word()
            begun.control.branches.append((self._pipeline(begun.word, "}}"), []))
            self._bodies[-1] = begun.control.branches[-1][1]
        else:
            self._expect("}}", "{{else}}")
            begun.is_last = True
            self._bodies[-1] = begun.control.otherwise

    def _end_of_body(self, begun: _Open) -> None:
        if begun.word == "range" and not begun.is_last:
            self._scope.ranges -= 1

    def _end(self, token: Token) -> None:
        self._expect("}}", "{{end}}")
        if not self._open:
            raise TemplateError(token.line, "{{end}} without anything that it ends")
        begun = self._open.pop()
        self._bodies.pop()
        if begun.word in ("define", "block"):
            self._close_scope(token.line)
        else:
            self._end_of_body(begun)
            del self._scope.variables[begun.variables :]

    def _named(self, token: Token) -> None:
        """`define` or `block`, whose content sees no variables of what is around."""
        where = f"{{{{{token.text}}}}}"
        if token.text == "define" and self._open:
            raise TemplateError(token.line, f"{{{{define}}}} inside {{{{{self._open[-1].word}}}}}")
        name = unquote(self._expect("string", where).text)
        if token.text == "define":
            self._expect("}}", where)
        else:
            self._bodies[-1].append(Invoke(name, self._pipeline(where, "}}")))
            self._scope.filled = True
        self._open.append(_Open(token.text, token.line, 0))
        self._scopes.append(_Scope(name))
        self._bodies.append(self._scope.body)

    def _close_scope(self, line: int) -> None:
        scope = self._scopes.pop()
        if scope.filled and scope.name in self._filled:
            raise TemplateError(line, f'a second definition of "{scope.name[:40]}"')
        if scope.filled:
            self._filled.add(scope.name)
        if scope.filled or scope.name not in self._definitions:
            self._definitions[scope.name] = scope.body

    def _template(self, token: Token) -> None:
        name = self._expect("string", "{{template}}").text
        if self._peek().kind == "}}":
            # Go takes it, Ollama does not.
            shown = name[:40]
            raise TemplateError(token.line, f"write what it is given: {{{{template {shown} .}}}}")
        self._bodies[-1].append(Invoke(unquote(name), self._pipeline("{{template}}", "}}")))
        self._scope.filled = True

    def _pipeline(self, where: str, end: str) -> Pipeline:
        """Declarations and commands up to `end`, which is taken."""
        line = self._peek().line
        names, declares = self._declarations(where)
        commands: list[tuple[Operand, ...]] = []
        while (token := self._word()).kind != end:
            if token.kind not in _OPERANDS:
                self._unexpected(token, where)
            self._at -= 1
            commands.append(self._command())
            if len(commands) > 1 and commands[-1][0].kind in _LITERALS:
                raise TemplateError(token.line, f"{token.text[:40]} behind | is no function")
        if not commands:
            raise TemplateError(token.line, f"a value is missing in {where}")
        return Pipeline(tuple(names), declares, tuple(commands), line)

    def _declarations(self, where: str) -> tuple[list[str], bool]:
        """The variables of `$x :=`, `$x =` or, of `range`, `$i, $x :=`, and whether they are new
        ones."""
        names: list[str] = []
        for number in (1, 2):
            start = self._at
            variable = self._word()
            if variable.kind != "variable":
                self._at = start
                break
            following = self._word()
            if following.kind in (":=", "="):
                self._scope.variables.append(variable.text)
                return [*names, variable.text], following.kind == ":="
            if following.kind != ",":
                self._at = start
                break
            self._scope.variables.append(variable.text)
            names.append(variable.text)
            if where != "range" or number == 2:
                raise TemplateError(following.line, f"too many declarations in {where}")
            if self._peek().kind not in ("variable", "}}", ")"):
                raise TemplateError(following.line, "range can only declare variables")
        return names, True

    def _command(self) -> tuple[Operand, ...]:
        """Operands with blanks between them, and the `|` behind them, which is taken."""
        found: list[Operand] = []
        while True:
            if operand := self._operand():
                found.append(operand)
            token = self._next()
            if token.kind == "space":
                continue
            if token.kind in ("}}", ")"):
                self._at -= 1
            elif token.kind != "|":
                self._unexpected(token, "a command")
            if not found:
                raise TemplateError(token.line, f"nothing stands before {token.text}")
            return tuple(found)

    def _operand(self) -> Operand | None:
        """A value and the fields of it that follow at once; None where there is none."""
        token, pipeline = self._word(), None
        if token.kind not in _OPERANDS:
            self._at -= 1
            return None
        if token.kind == "(":
            pipeline = self._pipeline("parentheses", ")")
        elif token.kind == "word" and token.text not in FUNCTIONS:
            known = ", ".join(sorted(FUNCTIONS))
            raise TemplateError(token.line, f"no function {token.text[:40]}; known: {known}")
        elif token.kind == "variable" and token.text not in self._scope.variables:
            raise TemplateError(token.line, f"the variable {token.text[:40]} is not declared")
        fields = [token.text[1:]] if token.kind == "field" else []
        while (following := self._next()).kind == "field":
            if token.kind in _LITERALS:
                raise TemplateError(token.line, f"{token.text[:40]} has no fields")
            fields.append(following.text[1:])
        self._at -= 1
        self._fields.update(fields)
        return Operand(token.kind, _value(token), token.line, tuple(fields), pipeline)


def _value(token: Token) -> Any:
    """What a literal stands for; of other tokens the text."""
    match token.kind:
        case "string":
            return unquote(token.text)
        case "number":
            return number_value(token.text)
        case "bool":
            return token.text == "true"
    return token.text
