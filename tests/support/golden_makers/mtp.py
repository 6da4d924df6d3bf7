"""What llama.cpp's converter makes of checkpoints with layers that guess further tokens when it is
told to leave them out, or to take them alone: mtp.json, name -> its option -> as in converter.json.

Needs llama.cpp's converter (GPUKIT_LLAMA_CPP: a folder with convert_hf_to_gguf.py).
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from support.golden_makers.converter import convert, described
from support.zoo import ZOO
from support.zoo_build import build

NAMES = ("qwen3.5", "qwen3.5-moe", "glm4-moe")
OPTIONS = ("--no-mtp", "--mtp")


def make(folder: Path) -> list[Path]:
    """Write mtp.json into `folder`; its path."""
    path = folder / "mtp.json"
    found: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: build(name, Path(scratch)) for name in NAMES}
        pre = {folders[name]: ZOO[name].pre for name in NAMES}
        for option in OPTIONS:
            files = {name: Path(scratch) / f"{name}{option}.gguf" for name in NAMES}
            jobs = [(folders[name], files[name], "auto") for name in NAMES]
            convert(Path(os.environ["GPUKIT_LLAMA_CPP"]), jobs, pre, [option])
            for name in NAMES:
                found[name][option] = described({"auto": files[name]})
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return [path]
