"""Digests of what llama-quantize makes of quantised and of split models.

requantized.json: `FROM TO` -> sha256 of the file, and `split TYPE` -> sha256 of each part.
Needs a Python that has llama-cpp-python (GPUKIT_PEER_PYTHON), which scripts/bench makes.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from support import gguf_models
from support.golden_makers.files import digest

from gpukit.formats.file_types import FILE_TYPES

MODEL = "width-288"
STEPS = (("Q8_0", "Q4_K_M"), ("Q4_K_M", "Q8_0"), ("Q4_K_M", "F16"), ("Q3_K_M", "F32"),
         ("Q5_1", "IQ4_NL"), ("Q6_K", "BF16"))  # fmt: skip
SPLIT_TYPES = ("Q4_K_M", "Q8_0")
TENSORS_IN_PART = 20

QUANTIZE = """
import ctypes, sys, llama_cpp
p = llama_cpp.llama_model_quantize_default_params()
source, out, kind, keep = sys.argv[1:]
p.ftype, p.allow_requantize, p.keep_split = int(kind), True, keep == "keep"
sys.exit(llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(p)))
"""


def make(folder: Path) -> list[Path]:
    """Write requantized.json into `folder`."""
    digests: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        model = gguf_models.build(MODEL, place)
        for first, second in STEPS:
            middle, last = place / f"{first}.gguf", place / f"{first}-{second}.gguf"
            _quantize(model, middle, first)
            _quantize(middle, last, second)
            digests[f"{first} {second}"] = digest(last)
        parts = gguf_models.build("eight-layers", place, TENSORS_IN_PART)
        for kind in SPLIT_TYPES:
            _quantize(parts, place / f"split-{kind}", kind, "keep")
            digests[f"split {kind}"] = [
                digest(path) for path in sorted(place.glob(f"split-{kind}-*"))
            ]
    path = folder / "requantized.json"
    path.write_text(json.dumps(digests, indent=1) + "\n")
    return [path]


def _quantize(source: Path, out: Path, kind: str, keep: str = "join") -> None:
    python = os.environ["GPUKIT_PEER_PYTHON"]
    number = str(FILE_TYPES[kind].number)
    subprocess.run(
        [python, "-c", QUANTIZE, source, out, number, keep], check=True, capture_output=True
    )
