"""What llama.cpp makes of the checkpoints in support/zoo.py: zoo.json, as converter.json and with

quantized   the same of the files of llama-quantize, from the converter's first

Needs llama.cpp's converter (GPUKIT_LLAMA_CPP: a folder with convert_hf_to_gguf.py) and a Python
that has llama-cpp-python (GPUKIT_PEER_PYTHON).
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support.golden_makers.converter import convert, described
from support.golden_makers.files import QUANTIZE
from support.zoo import ZOO, Animal
from support.zoo_build import build

from gpukit.formats.file_types import FILE_TYPES


def make(folder: Path) -> list[Path]:
    """Write zoo.json into `folder`; its path."""
    path = folder / "zoo.json"
    with tempfile.TemporaryDirectory() as scratch:
        found = collect(Path(scratch), Path(os.environ["GPUKIT_LLAMA_CPP"]), ZOO)
        for name, entry in found.items():
            entry["quantized"] = described(_quantized(name, ZOO[name], Path(scratch)))
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return [path]


def _quantized(name: str, animal: Animal, scratch: Path) -> dict[str, Path]:
    """The files of llama-quantize by type."""
    source, files = scratch / f"{name}-{animal.types[0]}.gguf", {}
    for kind in animal.quantized:
        files[kind] = scratch / f"quantized-{kind}.gguf"
        number = str(FILE_TYPES[kind].number)
        subprocess.run(
            [os.environ["GPUKIT_PEER_PYTHON"], "-c", QUANTIZE, source, files[kind], number],
            check=True, capture_output=True,
        )  # fmt: skip
    return files


def collect(scratch: Path, tree: Path, names: Iterable[str]) -> dict[str, Any]:
    """What the converter in `tree` makes of the checkpoints `names`; its files are left there."""
    folders = {name: build(name, scratch, known=True) for name in names}
    files = {
        name: {kind: scratch / f"{name}-{kind}.gguf" for kind in ZOO[name].types}
        for name in folders
    }
    jobs = [(folders[n], out, kind) for n in folders for kind, out in files[n].items()]
    convert(tree, jobs, {folders[name]: ZOO[name].pre for name in folders})
    return {name: described(files[name]) for name in folders}
