"""Lines of a shell that call gpukit."""

import os
import subprocess
import sys
from pathlib import Path

from support.checkpoints import DATA

ROOT = Path(__file__).resolve().parents[2]
TINY = DATA / "tiny-shakespeare"
COMMAND = [sys.executable, "-m", "gpukit_cli"]


def environment(folder: Path, **others: str) -> dict[str, str]:
    # Compiling in this process says for good where what is compiled lies: here it must not.
    own = {key: value for key, value in os.environ.items() if key != "GPUKIT_CACHE"}
    return {
        **own,
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "cli")),
        "GPUKIT_MODELS": str(folder / "models"),
        "OMP_NUM_THREADS": "1",
        **others,
    }


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
