"""Breaks an answer into lines between words, as wide as the terminal is at the moment."""

import os
import re
import sys
import unicodedata

# A word with the blanks before it, or a line's end.
_PARTS = re.compile(r"\n|[^\S\n]*[^\s]+|[^\S\n]+")


def terminal_width() -> int:
    """Columns of the terminal that stdout is; 0 where it is none or does not know."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return 0


def columns(text: str) -> int:
    """How many columns `text` takes."""
    return sum(map(_columns, text))


def _columns(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


class Wrapper:
    """Text in pieces in, text with line ends between words out. The last word is held back until
    its end has come, or until it is as wide as the terminal."""

    def __init__(self) -> None:
        self._held = ""
        self._column = 0

    def push(self, piece: str) -> str:
        """What can be shown of the text so far."""
        parts = _PARTS.findall(self._held + piece)
        self._held = ""
        if parts and parts[-1] != "\n" and not self._too_wide(parts[-1]):
            self._held = parts.pop()
        return "".join(map(self._placed, parts))

    def flush(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return self._placed(held)

    def _too_wide(self, part: str) -> bool:
        # Scripts without blanks would else be held back to their end.
        width = terminal_width()
        return 0 < width <= columns(part)

    def _placed(self, part: str) -> str:
        if part == "\n":
            self._column = 0
            return part
        word, width = part.lstrip(), terminal_width()
        # What goes on with a word that is wider than a line has no blank before it.
        breaks = 0 < width < self._column + columns(part) and word != part and word and self._column
        shown, before = ("\n" + word, 0) if breaks else (part, self._column)
        self._column = before + columns(shown.lstrip("\n"))
        if 0 < width < self._column:  # the terminal has broken it; in its last column it waits
            self._column = (self._column - 1) % width + 1
        return shown
