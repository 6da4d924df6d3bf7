"""Lines that are typed or pasted: edited, remembered in Ollama's file, cut off by Ctrl-C."""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

from gpukit_cli.external_editor import edited

try:
    import readline
except ImportError:  # as on Windows
    readline = None  # type: ignore[assignment]

# Lines that are remembered.
REMEMBERED = 100
# Stands before a line that is to go on in the user's editor; no key types it into one.
TO_EDITOR = "\x07"
# Several lines that are pasted stay in one. Ctrl-G puts the mark before the line and ends it.
SETTINGS = ("set enable-bracketed-paste on", r'"\C-g": "\C-a\C-v\C-g\C-m"')


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; `line` is what stood in the line."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.line = line


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises `Interrupted` in the block, each time."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted(readline.get_line_buffer() if readline else "")

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def history_file() -> Path | None:
    """Where Ollama keeps the history; None where there is no home or OLLAMA_NOHISTORY is set."""
    if os.environ.get("OLLAMA_NOHISTORY", "").strip().lower() not in ("", "0", "f", "false"):
        return None
    try:
        return Path.home() / ".ollama" / "history"
    except RuntimeError:
        return None


class LineEditor:
    """Reads lines from the terminal; with `path` they are remembered there."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.remembers = path is not None
        self._lines = _read(path) if path else []
        if readline:
            if "libedit" not in (readline.__doc__ or ""):  # which has other settings
                for setting in SETTINGS:
                    readline.parse_and_bind(setting)
            readline.set_auto_history(False)
            readline.clear_history()
            for line in self._lines:
                readline.add_history(line)

    def line(self, prompt: str) -> str:
        """The next line, which holds several where they were pasted together or come of the user's
        editor. `EOFError` for Ctrl-D, `Interrupted` for Ctrl-C, `UnicodeError` for what the
        terminal sends in another encoding, and the errors of `edited`."""
        line = input(prompt)
        while readline and line.startswith(TO_EDITOR):
            text = edited(line.removeprefix(TO_EDITOR))
            readline.set_startup_hook(partial(readline.insert_text, text))
            try:
                line = input(prompt)
            finally:
                readline.set_startup_hook()
        if self.remembers and line.strip():
            self._remember(line)
        return line

    def _remember(self, line: str) -> None:
        if readline:
            readline.add_history(line)
        self._lines = [*self._lines, *filter(None, line.splitlines())][-REMEMBERED:]
        if self._path:
            with suppress(OSError):  # a home that cannot be written to has no history
                _write(self._path, self._lines)


def _read(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line][-REMEMBERED:]


def _write(path: Path, lines: list[str]) -> None:
    """The file as a whole, for its owner only: a session that ends in between loses nothing."""
    path.parent.mkdir(0o755, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".history-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(line + "\n" for line in lines)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
