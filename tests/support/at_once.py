"""Things that are done at the same time."""

import threading
from collections.abc import Callable


def at_once(*actions: Callable[[], object]) -> None:
    """Do each in a thread of its own; the first error, if any, when all have ended."""
    failed: list[BaseException] = []

    def attempt(action: Callable[[], object]) -> None:
        try:
            action()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=attempt, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
