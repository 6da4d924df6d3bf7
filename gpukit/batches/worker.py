"""A worker's own process: makes the portions that come, tells what becomes of them.

It is a fresh Python, no fork: threads and CUDA do not live through one. Whoever started it is at
the other end of a connection: portions and STOP come in, `Told` and DONE go out. When that end is
closed, nobody waits any more, and the process ends, whatever it is doing.
"""

import gc
import os
import signal
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock, Thread
from types import FrameType
from typing import Any

from gpukit.batches.evaluating import Evaluation
from gpukit.batches.portions import Portion
from gpukit.batches.running import Run
from gpukit.batches.throttle import throttled
from gpukit.batches.work import work_of
from gpukit.formats.atomic import remove_own

# Begin no other job; a portion is through.
STOP, DONE = "stop", "done"
# Between two steps that are told: a screen shows no more.
STEP_SECONDS = 0.2


def main(handle: int) -> None:
    """Work for the process at the other end of the connection with the file descriptor `handle`."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal's: the one that started this decides
    signal.signal(signal.SIGTERM, _end)
    # As the command line has it.
    gc.set_threshold(200_000)
    try:
        with Connection(handle) as connection:
            _Worker(connection).work()
    finally:
        remove_own()


def _end(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


class _Worker:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._portions: SimpleQueue[Portion] = SimpleQueue()
        self._run: Run | Evaluation | None = None
        self._stopped = False
        self._sending = Lock()

    def work(self) -> None:
        Thread(target=self._listen, name="gpukit-listen", daemon=True).start()
        watch = throttled(self._send, STEP_SECONDS)
        while True:
            portion = self._portions.get()
            self._run = work_of(portion, watch)
            if self._stopped:
                self._run.stop()
            self._run.all()
            self._send(DONE)

    def _send(self, what: object) -> None:
        with self._sending:
            self._connection.send(what)

    def _listen(self) -> None:
        try:
            while True:
                heard: Any = self._connection.recv()
                if heard != STOP:
                    self._portions.put(heard)
                    continue
                self._stopped = True
                if self._run is not None:
                    self._run.stop()
        except (EOFError, OSError):
            remove_own()
            os._exit(0)
