"""The examples on the pages of the documentation, as they stand there."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS, README = ROOT / "docs", ROOT / "README.md"
PAGES = sorted(path for path in DOCS.glob("*.md") if path.name != "commands.md")  # that is made
NOT_RUN = "<!-- not run: "
_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the file that it is by its title, its text, the line of its
    first line, and why it is not run, if that is said in the line before it."""

    language: str
    title: str
    text: str
    line: int
    not_run: str

    def commands(self) -> Iterator[list[str]]:
        """The words of each command of a `console` block, without its comment."""
        for line in re.sub(r"\\\n\s*", "", self.text).splitlines():
            if line.startswith("$ "):
                yield shlex.split(line[2:], comments=True)


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page in their order."""
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        before = text[: match.start()].rstrip("\n").rpartition("\n")[2]
        reason = before.removeprefix(NOT_RUN).removesuffix(" -->") if NOT_RUN in before else ""
        line = text.count("\n", 0, match.start(3)) + 1
        found.append(Block(match[1], match[2] or "", match[3], line, reason))
    return found
