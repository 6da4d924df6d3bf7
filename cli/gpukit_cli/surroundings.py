"""What a process is given and how it is told to end: standard streams and signals.

A service manager, a container or a cluster's scheduler starts commands with streams closed, and
ends them with SIGTERM or SIGHUP.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from gpukit.formats.atomic import remove_own

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# `timeout` sends its signal to the process and to its group, and a terminal that closes sends two.
ONE_SECOND = 1.0


class Ended(BaseException):
    """The process was told to end by signal `number`; not an `Exception`, so that nothing that
    answers errors answers this."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        return "interrupted" if self.number == signal.SIGINT else f"ended by {name}"


class _Handler:
    """Raises `Ended` at the first signal; one that comes more than a second later finds something
    that hangs, and ends the process as it is."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._first: float | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A fork, as compilers make for their workers: it has nothing to clean up.
            os._exit(128 + number)
        now = time.monotonic()
        if self._first is None:
            self._first = now
            raise Ended(number)
        if now - self._first > ONE_SECOND:
            remove_own()
            os._exit(128 + number)


@contextmanager
def endings() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise `Ended` in the block. One that is ignored, as by nohup,
    stays so."""
    handler = _Handler()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, old in before.items():
        if old is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    except BaseException as error:
        ended = _told(error)
        if ended is None:
            raise
        # What was made between two steps, before anybody was answerable for it.
        remove_own()
        raise ended from (None if error is ended else error)
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _told(error: BaseException | None) -> Ended | None:
    """The `Ended` that `error` is or came of: Python 3.11 wraps what is raised while a class is
    made (`__set_name__`) in a RuntimeError, and cleaning up may fail with an error of its own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, Ended):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def open_streams() -> None:
    """Give the null device to standard streams that are closed.

    Else the next file that is opened takes the number of the closed one, and what some library
    prints goes into a model.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def flush() -> None:
    """Bring out what is printed, while an error can still be told."""
    sys.stdout.flush()
    sys.stderr.flush()


def silence() -> None:
    """Let nothing more be written to streams whose reader has gone."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError, ValueError):
                os.dup2(null, stream.fileno())
    os.close(null)
