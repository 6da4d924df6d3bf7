"""A command in a terminal of its own: what is typed goes in, what the screen shows comes out."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

# Colours, cursor movements and modes.
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]|\x07")
# A machine that is busy with other things takes long to load torch.
SECONDS = 120.0


class Terminal:
    """`python -c code arguments` behind a pseudo-terminal of so many columns."""

    def __init__(
        self, code: str, *arguments: str, folder: Path, environment: Mapping[str, str],
        columns: int = 100,
    ) -> None:  # fmt: skip
        self.screen = ""
        self._at = 0
        self.process, self._handle = pty.fork()
        if not self.process:
            os.chdir(folder)
            os.execve(sys.executable, [sys.executable, "-c", code, *arguments], environment)
        self.resize(columns)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        if self.process:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        os.close(self._handle)

    def resize(self, columns: int) -> None:
        """What dragging the window's corner does."""
        fcntl.ioctl(self._handle, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._handle, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C by a hand: a signal that comes within microseconds of the last echo would find
        Python's readline about to wait, and be heard at the next key only."""
        time.sleep(0.3)
        self.type("\x03")

    def until(self, text: str) -> str:
        """What the screen shows up to and with `text`, from where the last call ended."""
        ends = time.monotonic() + SECONDS
        while (found := self.screen.find(text, self._at)) < 0:
            if not self._read(ends - time.monotonic()):
                raise AssertionError(f"no {text!r} in {self.screen[self._at :]!r}")
        begun, self._at = self._at, found + len(text)
        return self.screen[begun : self._at]

    def say(self, text: str, prompt: str = ">>> ") -> str:
        """What the screen shows behind `text` and a return, up to the next prompt."""
        self.type(text + "\r")
        self.until("\n")  # what was typed
        return self.until(prompt).removesuffix(prompt)

    def end(self) -> int:
        """The exit code of the command, once it has ended by itself."""
        ends = time.monotonic() + SECONDS
        while self._read(ends - time.monotonic()):
            pass
        _, status = os.waitpid(self.process, 0)
        self.process = 0
        return os.waitstatus_to_exitcode(status)

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._handle], [], [], max(seconds, 0))
        try:
            data = os.read(self._handle, 65536) if ready else b""
        except OSError:  # the other end is closed
            data = b""
        self.screen = ESCAPES.sub("", self.screen + data.decode("utf-8", "replace"))
        # All of it at once: what is replaced in two steps would move what was found between them.
        self.screen = re.sub("\r+\n", "\n", self.screen)
        return bool(data)
