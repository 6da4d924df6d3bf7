"""Reads what stands inside the actions of a Go template: declarations, then commands with `|`
between them, each of operands with blanks between them."""

from collections.abc import Iterator
from typing import Any, NoReturn

from gpukit.store.gotemplate_nodes import Operand, Pipeline
from gpukit.store.gotemplate_tokens import TemplateError, Token, number_value, unquote

BUILT_IN = ("and", "call", "eq", "ge", "gt", "html", "index", "js", "le", "len", "lt", "ne", "not",
            "or", "print", "printf", "println", "slice", "urlquery")  # fmt: skip
OLLAMAS = ("currentDate", "json", "toTypeScriptType", "yesterdayDate")
FUNCTIONS = frozenset((*BUILT_IN, *OLLAMAS))
_LITERALS = frozenset((".", "nil", "bool", "number", "string"))
_OPERANDS = _LITERALS | {"field", "variable", "word", "("}


class Reader:
    """Tokens one by one, and pipelines. `variables` are those that may be used, to which
    declarations add; `fields` are all that were met."""

    def __init__(self, source: Iterator[Token], variables: list[str]) -> None:
        self._source = source
        self._tokens: list[Token] = []
        self._at = 0
        self.variables = variables
        self.fields: set[str] = set()

    def next(self) -> Token:
        """The next token."""
        if self._at == len(self._tokens):
            self._tokens.append(next(self._source))
        self._at += 1
        return self._tokens[self._at - 1]

    def word(self) -> Token:
        """The next token that is no space."""
        while (token := self.next()).kind == "space":
            pass
        return token

    def peek(self) -> Token:
        """The same, still to come."""
        token = self.word()
        self.back()
        return token

    def back(self) -> None:
        """Let the last token come again."""
        self._at -= 1

    def unexpected(self, token: Token, where: str) -> NoReturn:
        raise TemplateError(token.line, f"{token.text or token.kind} cannot stand in {where}")

    def expect(self, kind: str, where: str) -> Token:
        token = self.word()
        if token.kind != kind:
            self.unexpected(token, where)
        return token

    def pipeline(self, where: str, end: str) -> Pipeline:
        """Declarations and commands up to `end`, which is taken."""
        line = self.peek().line
        names, declares = self._declarations(where)
        commands: list[tuple[Operand, ...]] = []
        while (token := self.word()).kind != end:
            if token.kind not in _OPERANDS:
                self.unexpected(token, where)
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
            variable = self.word()
            if variable.kind != "variable":
                self._at = start
                break
            following = self.word()
            if following.kind in (":=", "="):
                self.variables.append(variable.text)
                return [*names, variable.text], following.kind == ":="
            if following.kind != ",":
                self._at = start
                break
            self.variables.append(variable.text)
            names.append(variable.text)
            if where != "range" or number == 2:
                raise TemplateError(following.line, f"too many declarations in {where}")
            if self.peek().kind not in ("variable", "}}", ")"):
                raise TemplateError(following.line, "range can only declare variables")
        return names, True

    def _command(self) -> tuple[Operand, ...]:
        """Operands with blanks between them, and the `|` behind them, which is taken."""
        found: list[Operand] = []
        while True:
            if operand := self._operand():
                found.append(operand)
            token = self.next()
            if token.kind == "space":
                continue
            if token.kind in ("}}", ")"):
                self._at -= 1
            elif token.kind != "|":
                self.unexpected(token, "a command")
            if not found:
                raise TemplateError(token.line, f"nothing stands before {token.text}")
            return tuple(found)

    def _operand(self) -> Operand | None:
        """A value and the fields of it that follow at once; None where there is none."""
        token, pipeline = self.word(), None
        if token.kind not in _OPERANDS:
            self._at -= 1
            return None
        if token.kind == "(":
            pipeline = self.pipeline("parentheses", ")")
        elif token.kind == "word" and token.text not in FUNCTIONS:
            known = ", ".join(sorted(FUNCTIONS))
            raise TemplateError(token.line, f"no function {token.text[:40]}; known: {known}")
        elif token.kind == "variable" and token.text not in self.variables:
            raise TemplateError(token.line, f"the variable {token.text[:40]} is not declared")
        fields = [token.text[1:]] if token.kind == "field" else []
        while (following := self.next()).kind == "field":
            if token.kind in _LITERALS:
                raise TemplateError(token.line, f"{token.text[:40]} has no fields")
            fields.append(following.text[1:])
        self._at -= 1
        self.fields.update(fields)
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
