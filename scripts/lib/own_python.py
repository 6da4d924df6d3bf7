"""Scripts in Python that work in .venv, whichever Python they are started with."""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def use_venv() -> None:
    """Start over with .venv's Python where this one lacks what gpukit needs; one line and exit
    code 1 where there is no .venv."""
    if importlib.util.find_spec("torch") and importlib.util.find_spec("safetensors"):
        return
    python = ROOT / ".venv/bin/python"
    if not python.exists() or Path(sys.prefix) == ROOT / ".venv":
        sys.exit(f"Error: {python} is not there or lacks packages; scripts/test makes it")
    os.execv(python, [str(python), *sys.argv])
