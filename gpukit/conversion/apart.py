"""Work of several threads, away from the thread that signals come to.

What a signal raises in a thread may come between a condition's lock being taken and the block that
gives it back: it stays taken, and every other thread of the work waits for ever. So the thread that
signals come to only waits, for a lock that the interpreter itself takes and gives back.
"""

from _thread import start_new_thread
from collections.abc import Callable
from threading import Lock


def apart(work: Callable[[], None], stop: Callable[[], None]) -> None:
    """Run `work` on a thread of its own until it ends, and raise what it raises.

    What is raised here meanwhile, by a signal, calls `stop`, which is to let the work end soon, and
    is raised again when it has ended.
    """
    failures: list[BaseException] = []
    over: list[bool] = []
    ended = Lock()
    ended.acquire()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # raised again below
            failures.append(error)
        finally:
            over.append(True)
            ended.release()

    try:
        start_new_thread(run, ())
        ended.acquire()
    except RuntimeError:  # there can be no other thread
        raise
    except BaseException:
        stop()
        # What a signal raises may come when the lock is taken already, the work being over.
        if not over:
            ended.acquire()
        raise
    if failures:
        raise failures[0]
