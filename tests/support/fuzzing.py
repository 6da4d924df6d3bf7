"""What the fuzzers share: how much memory they took, and how they are run by hand."""

import resource
import sys
import time
from collections.abc import Callable, Mapping


def resident() -> int:
    """The most memory that the process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def run(fuzz: Callable[[int, int], Mapping[str, int]]) -> None:
    """COUNT [SEED] of the command line: `fuzz` of them, and what came out."""
    arguments = [int(argument) for argument in sys.argv[1:]]
    begun = time.perf_counter()
    found = fuzz(arguments[0], arguments[1] if len(arguments) > 1 else 1)
    line = ", ".join(f"{what}: {n}" for what, n in sorted(found.items()))
    sys.stdout.write(f"{line}; {time.perf_counter() - begun:.0f} s\n")
