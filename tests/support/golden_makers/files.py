"""Digests of whole files that llama.cpp makes of the checkpoints in tests/support/checkpoints.py.

Needs llama.cpp's converter (GPUKIT_LLAMA_CPP: a folder with convert_hf_to_gguf.py) and a Python
that has llama-cpp-python (GPUKIT_PEER_PYTHON); scripts/bench makes both in .venv-peers.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from support.checkpoints import VARIANTS, build

from gpukit.formats.file_types import FILE_TYPES

CONVERTED = ("f32", "f16", "bf16", "q8_0")
QUANTIZED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K")

QUANTIZE = """
import ctypes, sys, llama_cpp
p = llama_cpp.llama_model_quantize_default_params()
p.ftype = int(sys.argv[3])
p.allow_requantize = True
source, out = sys.argv[1].encode(), sys.argv[2].encode()
sys.exit(llama_cpp.llama_model_quantize(source, out, ctypes.byref(p)))
"""


def make(folder: Path) -> list[Path]:
    """Write files.json into `folder`: variant -> type -> sha256 of the file."""
    tree = Path(os.environ["GPUKIT_LLAMA_CPP"])
    peer = os.environ["GPUKIT_PEER_PYTHON"]
    digests: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, variant in VARIANTS.items():
            checkpoint = build(name, Path(scratch))
            digests[name] = {}
            for kind in CONVERTED:
                out = Path(scratch) / f"{name}-{kind}.gguf"
                subprocess.run(
                    [sys.executable, tree / "convert_hf_to_gguf.py", checkpoint, "--outfile", out,
                     "--outtype", kind],
                    env={**os.environ, "PYTHONPATH": str(tree / "gguf-py")},
                    check=True, capture_output=True,
                )  # fmt: skip
                digests[name][kind.upper()] = digest(out)
            # From F32 checkpoints the two steps of llama.cpp lose bits that one pass keeps.
            start = "f32" if variant.dtype == "F32" else variant.dtype.lower()
            for kind in QUANTIZED:
                out = Path(scratch) / "quantized.gguf"
                source = Path(scratch) / f"{name}-{start}.gguf"
                subprocess.run(
                    [peer, "-c", QUANTIZE, source, out, str(FILE_TYPES[kind].number)],
                    check=True, capture_output=True,
                )  # fmt: skip
                digests[name][kind] = digest(out)
    path = folder / "files.json"
    path.write_text(json.dumps(digests, indent=1) + "\n")
    return [path]


def digest(path: Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
