"""gpukit as a user calls it."""

import os
import signal
import subprocess
import sys


def gpukit(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """What the command line says to `words`, on one thread, with `variables` in its environment."""
    return subprocess.run(
        [sys.executable, "-m", "gpukit_cli", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )


def listening() -> None:
    """Nothing ignored, as SIGINT is where the tests run in the background of a shell."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
