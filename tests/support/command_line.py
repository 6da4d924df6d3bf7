"""gpukit as a user calls it."""

import os
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
