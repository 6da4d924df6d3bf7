"""The tokens of Go's text/template (https://pkg.go.dev/text/template), and which of them are well
formed: strings, characters and numbers follow Go's own literals."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

KEYWORDS = frozenset(
    ("block", "break", "continue", "define", "else", "end", "if", "range", "template", "with")
)
# Go's parser takes more; nobody writes them.
MOST_PARENTHESES = 100

BLANK = " \t\r\n"
_RIGHT = re.compile(r"(?P<trim>[ \t\r\n]-)?\}\}")
_BLANKS = re.compile(r"[ \t\r\n]+")
_COMMENT = re.compile(r"(?:-[ \t\r\n])?/\*")
_QUOTED = re.compile(r'"(?:\\[^\n]|[^"\\\n])*"')
_CHARACTER = re.compile(r"'(?:\\[^\n]|[^'\\\n])*'")
_NUMBER = re.compile(
    r"[+-]?(?:0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?"
    r"|0[oO][0-7_]*(?:\.[0-7_]*)?|0[bB][01_]*(?:\.[01_]*)?"
    r"|[0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]*)?)i?"
)
_INTEGER = re.compile(r"(?P<sign>[+-]?)(?:0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9]\d*)")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_HEXADECIMAL = re.compile(
    r"[+-]?0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)[pP][+-]?[0-9]+"
)
# An underscore stands between digits, or between a prefix and a digit.
_UNDERSCORE = re.compile(r"(?:(?<=[0-9a-fA-F])|(?<=0[xXbBoO]))_(?=[0-9a-fA-F])")
_ESCAPES = dict(zip("abfnrtv\\", "\a\b\f\n\r\t\v\\", strict=True))
_ESCAPE = re.compile(
    r"""\\(?:(?P<letter>[abfnrtv\\'"])|x(?P<byte>[0-9a-fA-F]{2})|(?P<octal>[0-3][0-7]{2})
    |u(?P<four>[0-9a-fA-F]{4})|U(?P<eight>[0-9a-fA-F]{8}))""",
    re.VERBOSE,
)


class TemplateError(ValueError):
    """A template that Go does not take; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True)
class Token:
    """A piece of a template: `text`, `{{`, `}}` or, inside an action, `space`, `keyword`, `word`,
    `field`, `variable`, `.`, `nil`, `bool`, `number`, `string`, or the character itself. `line` is
    where it begins."""

    kind: str
    text: str
    line: int


def tokens(text: str) -> Iterator[Token]:
    """The tokens of a template in their order; TemplateError where Go's scanner stops."""
    at, line = 0, 1
    while (left := text.find("{{", at)) >= 0:
        plain, start = text[at:left], left + 2
        trimmed = text[start : start + 1] == "-" and text[start + 1 : start + 2] in tuple(BLANK)
        if shown := plain.rstrip(BLANK) if trimmed else plain:
            yield Token("text", shown, line)
        line += plain.count("\n")
        if comment := _COMMENT.match(text, start):
            end = _end_of_comment(text, comment.end(), line)
        else:
            yield Token("{{", "{{", line)
            inside = start + 2 * trimmed
            action = _Action(text, inside, line + text.count("\n", start, inside))
            yield from action.tokens()
            end = action.at
        line += text.count("\n", left, end)
        at = end
        if text[end - 3] == "-" and text[end - 4] in BLANK and (rest := _BLANKS.match(text, end)):
            line += rest[0].count("\n")
            at = rest.end()
    if text[at:]:
        yield Token("text", text[at:], line)


def _end_of_comment(text: str, at: int, line: int) -> int:
    closed = text.find("*/", at)
    if closed < 0:
        raise TemplateError(line, "a comment is never closed: */}} is missing")
    right = _RIGHT.match(text, closed + 2)
    if not right:
        line += text.count("\n", at, closed)
        raise TemplateError(line, "a comment ends before its action: write */}} or */ -}}")
    return right.end()


class _Action:
    """The inside of an action, from `at`, behind `{{` and its trim marker, to behind `}}`."""

    def __init__(self, text: str, at: int, line: int) -> None:
        self._text = text
        self._line = line
        self._begun = line
        self.at = at

    def tokens(self) -> Iterator[Token]:
        depth = 0
        while not (right := _RIGHT.match(self._text, self.at)):
            if self.at == len(self._text):
                raise TemplateError(self._begun, "an action is never closed: }} is missing")
            token = self._next()
            depth += (token.kind == "(") - (token.kind == ")")
            if depth < 0:
                self._fail("a ) without its (")
            if depth > MOST_PARENTHESES:
                self._fail(f"over {MOST_PARENTHESES} parentheses in each other")
            yield token
        if depth:
            self._fail("a ( is never closed")
        self.at = right.end()
        yield Token("}}", "}}", self._line)

    def _fail(self, message: str) -> None:
        raise TemplateError(self._line, message)

    def _next(self) -> Token:
        first = self._text[self.at]
        if first in BLANK:
            return self._space()
        if first in "\"`'":
            return self._literal(first)
        if first in ".$":
            following = self._text[self.at + 1 : self.at + 2]
            if first == "$" or not ("0" <= following <= "9"):
                return self._named(first)
        if first in ".+-" or "0" <= first <= "9":
            return self._number()
        if _in_word(first):
            return self._word()
        if self._text.startswith(":=", self.at):
            return self._token(":=", 2)
        if first == ":" or not " " < first < "\x7f":
            self._fail(f"the character {first!r} has no meaning here")
        return self._token(first, 1)

    def _token(self, kind: str, length: int) -> Token:
        text = self._text[self.at : self.at + length]
        token = Token(kind, text, self._line)
        self._line += text.count("\n")
        self.at += length
        return token

    def _space(self) -> Token:
        match = _BLANKS.match(self._text, self.at)
        assert match, "there is one"
        # The last one may belong to the marker of the closing delimiter.
        last = match.end() - 1
        whole = last if last > self.at and _RIGHT.match(self._text, last) else match.end()
        return self._token("space", whole - self.at)

    def _end_of_word(self, at: int) -> int:
        while at < len(self._text) and _in_word(self._text[at]):
            at += 1
        follows = self._text[at : at + 1]
        if follows and follows not in BLANK + ".,|:)(" and not self._text.startswith("}}", at):
            self._fail(f"the character {follows!r} cannot follow {self._text[self.at : at]}")
        return at

    def _word(self) -> Token:
        end = self._end_of_word(self.at)
        word = self._text[self.at : end]
        kind = "keyword" if word in KEYWORDS else "bool" if word in ("true", "false") else "word"
        return self._token("nil" if word == "nil" else kind, end - self.at)

    def _named(self, first: str) -> Token:
        """`.Field` or `$variable`, or `.` or `$` alone."""
        end = self._end_of_word(self.at + 1)
        kind = "variable" if first == "$" else "field" if end > self.at + 1 else "."
        return self._token(kind, end - self.at)

    def _literal(self, quote: str) -> Token:
        pattern = {'"': _QUOTED, "'": _CHARACTER}.get(quote)
        if pattern is None:
            closed = self._text.find("`", self.at + 1)
            end = closed + 1 if closed >= 0 else None
        else:
            match = pattern.match(self._text, self.at)
            end = match.end() if match else None
        if end is None:
            self._fail(f"a text that begins with {quote} is never closed")
            raise AssertionError
        text = self._text[self.at : end]
        if quote != "`" and not _unquotable(text, quote):
            self._fail(f"{text[:40]} is no text of Go: {_why(quote)}")
        return self._token("number" if quote == "'" else "string", end - self.at)

    def _number(self) -> Token:
        match = _NUMBER.match(self._text, self.at)
        assert match, "a part of it may be empty, and the sign, too"
        end, parts = match.end(), [match[0]]
        if self._text[end : end + 1] in ("+", "-"):
            second = _NUMBER.match(self._text, end)
            assert second, "it begins with its sign"
            end, parts = second.end(), [match[0], second[0]]
        follows = self._text[end : end + 1]
        good = is_number(parts[0]) and all(p.endswith("i") and is_number(p) for p in parts[1:])
        if not good or (follows and _in_word(follows)):
            end += bool(follows and _in_word(follows))
            self._fail(f"{self._text[self.at : end][:40]} is no number")
        return self._token("number", end - self.at)


def _in_word(letter: str) -> bool:
    return letter == "_" or letter.isalpha() or letter.isdecimal()


def _why(quote: str) -> str:
    return "one character is needed" if quote == "'" else "an escape is unknown"


def _unquotable(text: str, quote: str) -> bool:
    """Whether Go can unquote a quoted string, or a character, of which there must be one."""
    rest = _ESCAPE.sub(lambda m: "?" if _rune(m, quote) is not None else m[0], text[1:-1])
    return "\\" not in rest and (quote == '"' or len(rest) == 1)


def unquote(text: str) -> str:
    """The text that a string token stands for."""
    if text[0] == "`":
        return text[1:-1].replace("\r", "")
    return _ESCAPE.sub(lambda match: _rune(match, text[0]) or "", text[1:-1])


def _rune(match: re.Match[str], quote: str) -> str | None:
    """What an escape stands for; None for what Go does not know."""
    if letter := match["letter"]:
        return _ESCAPES.get(letter, letter if letter == quote else None)
    if octal := match["octal"]:
        return chr(int(octal, 8))
    number = int(match["byte"] or match["four"] or match["eight"], 16)
    return chr(number) if number <= 0x10FFFF and not 0xD800 <= number < 0xE000 else None


def is_number(text: str) -> bool:
    """Whether Go's parser takes `text` for a number: whole in 64 bits, or a float64, or with an `i`
    an imaginary one."""
    plain = _UNDERSCORE.sub("", text)
    if plain.endswith("i"):
        return _is_float(plain[:-1])
    if not (match := _INTEGER.fullmatch(plain)):
        return any(letter in plain for letter in ".eEpP") and _is_float(plain)
    digits = plain.lstrip("+-")
    octal = len(digits) > 1 and digits[0] == "0" and digits[1] in "01234567"
    number = int(digits, 8 if octal else 0)
    return (
        number < 2**63
        or (match["sign"] == "-" and number == 2**63)
        or (not match["sign"] and number < 2**64)
    )


def _is_float(text: str) -> bool:
    if _DECIMAL.fullmatch(text):
        return math.isfinite(float(text))
    if not _HEXADECIMAL.fullmatch(text):
        return False
    try:
        float.fromhex(text)
    except OverflowError:
        return False
    return True


def number_value(text: str) -> int | float | complex:
    """What a number token that `is_number` stands for, a character its code point."""
    if text.startswith("'"):
        return ord(_ESCAPE.sub(lambda match: _rune(match, "'") or "", text[1:-1]))
    plain = text.replace("_", "")
    if plain.endswith("i"):
        return 0j  # templates cannot compute with them
    if _INTEGER.fullmatch(plain):
        digits = plain.lstrip("+-").lower()
        octal = len(digits) > 1 and digits[0] == "0" and digits[1] in "01234567"
        number = int(digits, 8 if octal else 0)
        return -number if plain.startswith("-") else number
    return float.fromhex(plain) if "x" in plain.lower() else float(plain)
