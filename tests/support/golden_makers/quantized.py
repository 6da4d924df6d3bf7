"""Digests of what llama-quantize makes of the models of gguf_models.py, for every file type.

quantized.json: model -> file type -> [sha256 of the file, sha256 of the tensors with importance].
Needs a Python that has llama-cpp-python (GPUKIT_PEER_PYTHON), which scripts/bench makes.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from support import gguf_models
from support.golden_makers.files import digest

from gpukit.formats.file_types import FILE_TYPES

# All types of a model in one process; importance comes in an .npz, type numbers as arguments.
QUANTIZE = """
import ctypes, sys, numpy as np, llama_cpp
class Data(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)),
                ("size", ctypes.c_size_t)]
source, folder, weights = sys.argv[1:4]
arrays = dict(np.load(weights))
wanting = sys.argv[4].split(",")
tables = []
for some in (list(arrays), [name for name in arrays if "blk.1.attn_k" not in name]):
    rows = (Data * (len(some) + 1))()
    for row, name in zip(rows, some):
        values = arrays[name]
        row.name, row.size = name.encode(), values.size
        row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    tables.append(rows)
for kind in sys.argv[5:]:
    for weighted in (False, True):
        p = llama_cpp.llama_model_quantize_default_params()
        p.ftype = int(kind)
        if weighted:
            p.imatrix = ctypes.cast(tables[kind not in wanting], type(p.imatrix))
        out = f"{folder}/{kind}-{int(weighted)}.gguf"
        done = llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(p))
        # Q2_K_S wants importance for every Q2_K, lower types always.
        if done and kind != "21" and (weighted or kind not in wanting):
            sys.exit(f"{source}: type {kind}: {done}")
        if done:
            open(out, "wb").close()
"""


def make(folder: Path) -> list[Path]:
    """Write quantized.json into `folder`; null where llama-quantize refuses."""
    digests: dict[str, dict[str, list[str | None]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in gguf_models.SHAPES:
            source = gguf_models.build(name, Path(scratch))
            weights = Path(scratch) / "importance.npz"
            np.savez(weights, **gguf_models.importance(name, whole=True))
            wanting = ",".join(str(FILE_TYPES[kind].number) for kind in gguf_models.WANTING)
            numbers = [str(row.number) for row in FILE_TYPES.values()]
            python = os.environ["GPUKIT_PEER_PYTHON"]
            subprocess.run(
                [python, "-c", QUANTIZE, source, scratch, weights, wanting, *numbers],
                check=True,
                capture_output=True,
            )
            digests[name] = {}
            for row in FILE_TYPES.values():
                plain, weighted = (Path(scratch) / f"{row.number}-{i}.gguf" for i in range(2))
                digests[name][row.name] = [
                    digest(plain) if plain.stat().st_size else None,
                    gguf_models.tensors_digest(weighted) if weighted.stat().st_size else None,
                ]
    path = folder / "quantized.json"
    path.write_text(json.dumps(digests, indent=1) + "\n")
    return [path]
