"""The jobs that are left, by several processes of this machine."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import IO, Any

from gpukit.batches import lost
from gpukit.batches.gathering import Gathered
from gpukit.batches.portions import Portion, portions
from gpukit.batches.preparing import Prepared
from gpukit.batches.result import Told, Watch
from gpukit.batches.shares import Shares
from gpukit.batches.worker import DONE, STOP

# A worker that is told to end has this long for the slabs that it has in hand.
SECONDS_TO_END = 10.0
# It finds the packages where this process has found them.
CODE = "import sys; sys.path[:] = {path!r}; from gpukit.batches.worker import main; main({handle})"
# What a worker has printed last tells why it has ended; so many bytes of it are looked at.
LAST_WORDS = 4096


def run_workers(prepared: Prepared, keep_going: bool, watch: Watch) -> Gathered:
    """Make every result that is left by as many workers as `prepared` has shares for. A worker that
    dies takes the job that it was making with it and no other."""
    gathered = Gathered(prepared, watch)
    run_portions(prepared.shares, portions(prepared, keep_going), gathered, keep_going)
    return gathered


def run_portions(
    shares: Shares, left: Iterable[Portion], gathered: Gathered, keep_going: bool
) -> None:
    """The same for those portions."""
    crew = _Crew(shares, gathered, keep_going)
    try:
        crew.make(left)
    finally:
        crew.end()


class _Crew:
    """Workers by their numbers, and the portions that nobody has yet."""

    def __init__(self, shares: Shares, gathered: Gathered, keep_going: bool) -> None:
        self._shares = shares
        self._gathered = gathered
        self._keep_going = keep_going
        self._workers: dict[int, Worker] = {}
        self._left: deque[Portion] = deque()
        self._stopped = False

    def make(self, left: Iterable[Portion]) -> None:
        """Hand out all portions, and hear of them until the last has ended."""
        self._left.extend(left)
        while True:
            self._hand_out()
            busy = {w.connection: n for n, w in self._workers.items() if w.portion is not None}
            if not busy:
                return
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                self._hear(busy[connection])
            if self._gathered.has_failed and not self._keep_going:
                self._stop()

    def _hand_out(self) -> None:
        for number in range(self._shares.workers):
            if not self._left:
                return
            if number not in self._workers:
                self._workers[number] = Worker(number, self._shares)
            worker = self._workers[number]
            if worker.portion is None:
                worker.take(self._left.popleft())

    def _hear(self, number: int) -> None:
        worker = self._workers[number]
        try:
            heard = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(number)
            return
        if heard == DONE:
            worker.portion = None
        else:
            assert isinstance(heard, Told)
            self._gathered.hear(heard)

    def _bury(self, number: int) -> None:
        """A worker has died: so has what it was making; what it has not begun is for others."""
        worker = self._workers.pop(number)
        why = worker.last_words()
        worker.close()
        assert worker.portion is not None
        rest = lost.fail(worker.portion, self._gathered, why)
        if rest is not None and not self._stopped:
            self._left.appendleft(rest)

    def _stop(self) -> None:
        """Let nothing begin that has not begun."""
        self._left.clear()
        if not self._stopped:
            self._stopped = True
            for worker in self._workers.values():
                with suppress(OSError):
                    worker.connection.send(STOP)

    def end(self) -> None:
        """Let all workers end: those that wait at once, those that work when they have removed what
        is half made."""
        for worker in self._workers.values():
            worker.tell_to_end()
        for worker in self._workers.values():
            worker.close()


class Worker:
    """One process; `portion` is what it has to make at the moment."""

    def __init__(self, number: int, shares: Shares) -> None:
        self.portion: Portion | None = None
        self._device = shares.device(number)
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        ours, theirs = socket.socketpair()
        with theirs:
            code = CODE.format(path=sys.path, handle=theirs.fileno())
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL, stdout=self._printed, stderr=self._printed,
                pass_fds=(theirs.fileno(),), env=shares.environment(),
            )  # fmt: skip
        self.connection: Any = Connection(ours.detach())

    def take(self, portion: Portion) -> None:
        """Begin to make `portion`."""
        self.portion = portion
        with suppress(OSError):  # it has died, which the next thing that is heard tells
            self.connection.send(portion.on(self._device))

    def tell_to_end(self) -> None:
        if self.portion is None:
            self.connection.close()
        elif self.process.poll() is None:
            self.process.terminate()

    def close(self) -> None:
        """Wait for the end of the process, which is on its way."""
        try:
            self.process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.connection.close()
        self._printed.close()

    def last_words(self) -> str:
        """How a process has ended that should not have, as what became of its job."""
        try:
            code = self.process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code == -signal.SIGKILL:
            return (
                "the worker that made it was killed (SIGKILL), as a system without memory does; "
                "give fewer --jobs or less `memory`"
            )
        if code < 0:
            return f"the worker that made it was ended by {signal.Signals(-code).name}"
        self._printed.seek(max(os.fstat(self._printed.fileno()).st_size - LAST_WORDS, 0))
        lines = self._printed.read().decode(errors="replace").split("\n")
        told = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"the worker that made it ended with code {code}{': ' if told else ''}{told}"
