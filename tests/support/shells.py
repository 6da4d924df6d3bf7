"""Lines of a shell that call gpukit."""

import subprocess
import sys
from pathlib import Path

from support.checkpoints import DATA
from support.command_line import surroundings

TINY = DATA / "tiny-shakespeare"
COMMAND = [sys.executable, "-m", "gpukit_cli"]


def environment(folder: Path, **others: str) -> dict[str, str]:
    # Compiling in this process says for good where what is compiled lies: here it must not.
    own = surroundings()
    own.pop("GPUKIT_CACHE", None)
    return {**own, "GPUKIT_MODELS": str(folder / "models"), **others}


def shell(line: str, folder: Path, **others: str) -> subprocess.CompletedProcess[str]:
    """What `sh` makes of `line`, in which $gpukit is the command."""
    return subprocess.run(
        ["bash", "-c", line],
        env=environment(folder, gpukit=" ".join(COMMAND), **others),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


RUN = "$gpukit run tiny.gguf ROMEO: --num-predict 3 --temperature 0"
