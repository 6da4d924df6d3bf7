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
    tick: Callable[[], bool],
    more: Callable[[], bool] | None = None,
) -> None:
    """Run `tasks` in order on so many threads; `tick` is called in this one meanwhile, at once
    again where it is true. With `more` one thread begins, and another whenever that is true.

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

    crew: list[threading.Thread] = []

    def join() -> int:
        """Another thread, where there is something for it to do; how many have begun."""
        if len(crew) < threads and not waiting.empty():
            crew.append(threading.Thread(target=work, daemon=True))
            crew[-1].start()
        return len(crew)

    for _ in range(threads if more is None else 1):
        join()
    try:
        _look_after(lambda: join() if more and more() else len(crew), ended, tick)
    except BaseException:
        stop.set()
        deadline = time.monotonic() + LEAVE
        for thread in crew:
            thread.join(max(0.0, deadline - time.monotonic()))
        raise


def _look_after(
    begun: Callable[[], int],
    ended: "queue.SimpleQueue[BaseException | None]",
    tick: Callable[[], bool],
) -> None:
    """Until all that have `begun` have ended."""
    gone, first, busy = 0, None, False
    while gone < begun():
        try:
            error = ended.get(timeout=0.0 if busy else TICK)
        except queue.Empty:
            busy = tick()
            continue
        gone += 1
        if error is not None and (first is None or isinstance(first, Stopped)):
            first = error
            if not isinstance(error, Stopped):
                break
    if first is not None:
        raise first
    tick()
