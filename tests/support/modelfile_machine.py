"""Ollama's way through a Modelfile: one character after the other, in one of six states.

Written from a description of its parser, to be compared with ours, which looks for lines and
quotes. It holds for printable characters, blanks and LF, which Ollama neither drops nor counts
twice. Three faults are ours here: of a word that is no command at the very end, and of a role with
a digit, Ollama says only that the end is unexpected; of a `1` alone in a line it names the next.
"""

from collections.abc import Iterator

from gpukit.store.modelfile import COMMANDS, ROLES

BLANKS = " \t"
LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
KEYS = dict.fromkeys(("parameter", "message"), LETTERS | frozenset("0123456789_"))


class Fault(Exception):
    """What Ollama complains of, and in which line; without one where it names none."""

    def __init__(self, what: str, line: int = 0) -> None:
        super().__init__(what, line)
        self.what, self.line = what, line


def unquoted(text: str) -> str | None:
    """A value without the blanks and quotes around it; None where its quote is still open."""
    text = text.strip()
    for quote in ('"""', '"'):
        if text.startswith(quote):
            closed = len(text) >= 2 * len(quote) and text.endswith(quote)
            return text[len(quote) : -len(quote)] if closed else None
    return text


def commands(text: str) -> Iterator[tuple[str, str, str]]:
    """Name, key and value of each command; `Fault` at the first that is wrong."""
    state, read, name, key, line = "between", "", "", "", 1
    for letter in text:
        line += letter == "\n"
        if state == "comment":
            state = "between" if letter == "\n" else state
        elif state == "between":
            if letter == "#":
                state = "comment"
            elif letter in LETTERS:
                state, read = "name", letter
            elif letter not in BLANKS + "\n":
                raise Fault("command", line)
        elif state == "name":
            if letter in LETTERS:
                read += letter
                continue
            name, key = read.lower(), ""
            if letter not in BLANKS or name not in COMMANDS:
                raise Fault("command", line)
            state, read = name if name in KEYS else "value", ""
        elif state in KEYS:
            if letter in KEYS[state]:
                read += letter
                continue
            if letter not in BLANKS:
                raise Fault("end")
            if state == "message" and read not in ROLES:
                raise Fault("role", line)
            state, key, read = "value", read, ""
        elif letter == "\n" and (value := unquoted(read)) is not None:
            yield name, key, value
            state = "between"
        else:
            read += letter
    if state == "value" and (value := unquoted(read)) is not None:
        yield name, key, value
    elif state == "name" and read.lower() not in COMMANDS:
        raise Fault("command", line)
    elif state not in ("between", "comment"):
        raise Fault("end")
