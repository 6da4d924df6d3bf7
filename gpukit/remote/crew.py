"""Threads that move parts of one blob, and the one that looks after them."""

import queue
import threading
import time
from collections.abc import Callable, Iterable

from gpukit.remote.wire import Stopped

# How often the caller hears of progress.
TICK = 0.1
# A thread that waits for a silent server is left behind; it holds nothing that others use.
LEAVE = 0.5


def run(
    tasks: Iterable[Callable[[], None]],
    threads: int,
    stop: threading.Event,
    tick: Callable[[], None],
) -> None:
    """Run `tasks` in order on so many threads; `tick` is called in this one meanwhile.

    The first error ends all, by `stop`, and is raised here.
    """
    waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            while not stop.is_set():
                waiting.get_nowait()()
        except queue.Empty:
            ended.put(None)
        except BaseException as error:
            stop.set()
            ended.put(error)
        else:
            ended.put(Stopped())

    crew = [
        threading.Thread(target=work, daemon=True) for _ in range(min(threads, waiting.qsize()))
    ]
    for thread in crew:
        thread.start()
    try:
        _look_after(crew, ended, tick)
    except BaseException:
        stop.set()
        deadline = time.monotonic() + LEAVE
        for thread in crew:
            thread.join(max(0.0, deadline - time.monotonic()))
        raise


def _look_after(
    crew: list[threading.Thread],
    ended: "queue.SimpleQueue[BaseException | None]",
    tick: Callable[[], None],
) -> None:
    left, first = len(crew), None
    while left:
        try:
            error = ended.get(timeout=TICK)
        except queue.Empty:
            tick()
            continue
        left -= 1
        if error is not None and (first is None or isinstance(first, Stopped)):
            first = error
            if not isinstance(error, Stopped):
                break
    if first is not None:
        raise first
    tick()
