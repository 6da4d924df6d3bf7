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

from gpukit.store.gotemplate_nodes import (
    Control,
    Invoke,
    Jump,
    Node,
    Template,
    Text,
)
from gpukit.store.gotemplate_pipelines import Reader
from gpukit.store.gotemplate_tokens import TemplateError, Token, tokens, unquote

__all__ = ["TemplateError", "check", "parse"]

END = "end of text"
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
        self._open: list[_Open] = []
        self._scopes = [_Scope("")]
        self._filled: set[str] = set()
        self._definitions: dict[str, list[Node]] = {}
        self._reader = Reader(source, self._scope.variables)
        # Where the next node goes.
        self._bodies = [self._scope.body]

    def parse(self) -> Template:
        while (token := self._reader.next()).kind != END:
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
        return Template(self._definitions, frozenset(self._reader.fields))

    @property
    def _scope(self) -> _Scope:
        return self._scopes[-1]

    def _action(self) -> None:
        token = self._reader.word()
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
                self._reader.expect("}}", f"{{{{{token.text}}}}}")
                if not self._scope.ranges:
                    raise TemplateError(token.line, f"{{{{{token.text}}}}} outside {{{{range}}}}")
                self._bodies[-1].append(Jump(token.text))
            case _:
                self._reader.back()
                self._bodies[-1].append(self._reader.pipeline("an action", "}}"))
                self._scope.filled = True

    def _begin(self, token: Token) -> None:
        begun = _Open(token.text, token.line, len(self._scope.variables))
        body: list[Node] = []
        begun.control = Control(token.text, [(self._reader.pipeline(token.text, "}}"), body)])
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
        following = self._reader.peek()
        if following.text == begun.word and begun.word in ("if", "with"):
            self._reader.word()
            begun.control.branches.append((self._reader.pipeline(begun.word, "}}"), []))
            self._bodies[-1] = begun.control.branches[-1][1]
        else:
            self._reader.expect("}}", "{{else}}")
            begun.is_last = True
            self._bodies[-1] = begun.control.otherwise

    def _end_of_body(self, begun: _Open) -> None:
        if begun.word == "range" and not begun.is_last:
            self._scope.ranges -= 1

    def _end(self, token: Token) -> None:
        self._reader.expect("}}", "{{end}}")
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
        name = unquote(self._reader.expect("string", where).text)
        if token.text == "define":
            self._reader.expect("}}", where)
        else:
            self._bodies[-1].append(Invoke(name, self._reader.pipeline(where, "}}")))
            self._scope.filled = True
        self._open.append(_Open(token.text, token.line, 0))
        self._scopes.append(_Scope(name))
        self._bodies.append(self._scope.body)
        self._reader.variables = self._scope.variables

    def _close_scope(self, line: int) -> None:
        scope = self._scopes.pop()
        if self._scopes:
            self._reader.variables = self._scope.variables
        if scope.filled and scope.name in self._filled:
            raise TemplateError(line, f'a second definition of "{scope.name[:40]}"')
        if scope.filled:
            self._filled.add(scope.name)
        if scope.filled or scope.name not in self._definitions:
            self._definitions[scope.name] = scope.body

    def _template(self, token: Token) -> None:
        name = self._reader.expect("string", "{{template}}").text
        if self._reader.peek().kind == "}}":
            # Go takes it, Ollama does not.
            shown = name[:40]
            raise TemplateError(token.line, f"write what it is given: {{{{template {shown} .}}}}")
        self._bodies[-1].append(Invoke(unquote(name), self._reader.pipeline("{{template}}", "}}")))
        self._scope.filled = True
