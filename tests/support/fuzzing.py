"""What the fuzzers share: how a mutant is watched, how much memory they took, how they are run by
hand."""

import faulthandler
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


def resident() -> int:
    """The most memory that the process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextmanager
def watched(seconds: float, mutant: Callable[[], str]) -> Iterator[None]:
    """Within it one mutant is judged: what is raised has `mutant()` in a note, and what takes six
    times `seconds` ends the process with a traceback."""
    faulthandler.dump_traceback_later(6 * seconds, exit=True)
    try:
        yield
    except BaseException as error:
        error.add_note(mutant())
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()


def run(fuzz: Callable[[int, int], Mapping[str, int]]) -> None:
    """COUNT [SEED] of the command line: `fuzz` of them, and what came out."""
    arguments = [int(argument) for argument in sys.argv[1:]]
    begun = time.perf_counter()
    found = fuzz(arguments[0], arguments[1] if len(arguments) > 1 else 1)
    line = ", ".join(f"{what}: {n}" for what, n in sorted(found.items()))
    sys.stdout.write(f"{line}; {time.perf_counter() - begun:.0f} s\n")
