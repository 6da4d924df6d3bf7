"""What llama.cpp makes of the adapters in support/adapter_folders.py: adapters.json with the sha256
of the file of each type.

Needs llama.cpp's converter (GPUKIT_LLAMA_CPP: a folder with convert_lora_to_gguf.py).
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from support.adapter_folders import ADAPTED, build


def make(folder: Path) -> list[Path]:
    """Write adapters.json into `folder`; its path."""
    path, tree = folder / "adapters.json", Path(os.environ["GPUKIT_LLAMA_CPP"])
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, adapted in ADAPTED.items():
            root = Path(scratch) / name
            root.mkdir()
            base, adapter = build(name, root)
            found[name] = {kind: _digest(tree, base, adapter, kind) for kind in adapted.types}
    path.write_text(json.dumps(found, indent=1) + "\n")
    return [path]


def _digest(tree: Path, base: Path, adapter: Path, kind: str) -> str:
    out = base.parent / "out.gguf"
    subprocess.run(
        [sys.executable, tree / "convert_lora_to_gguf.py", adapter, "--base", base,
         "--outfile", out, "--outtype", kind.lower()],
        check=True, capture_output=True,
    )  # fmt: skip
    return hashlib.sha256(out.read_bytes()).hexdigest()
