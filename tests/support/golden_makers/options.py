"""Digests of what llama-quantize makes of the cases in tests/support/quantize_options.py.

options.json: case -> sha256 of the names, types and bytes of each file's tensors.
Needs a Python that has llama-cpp-python (GPUKIT_PEER_PYTHON), which scripts/bench makes.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from support import gguf_models
from support.quantize_options import CASES, TENSORS_IN_PART, Case, parse

from gpukit.formats.file_types import FILE_TYPES

# A line on stdin is a case: source, out, and numbers of types where the C takes numbers.
QUANTIZE = """
import ctypes, json, sys, numpy as np, llama_cpp
class Data(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)),
                ("size", ctypes.c_size_t)]
class Override(ctypes.Structure):
    _fields_ = [("pattern", ctypes.c_char_p), ("type", ctypes.c_int)]
for line in sys.stdin:
    case = json.loads(line)
    p = llama_cpp.llama_model_quantize_default_params()
    p.ftype, p.pure, p.keep_split = case["ftype"], case["pure"], case["keep_split"]
    p.quantize_output_tensor = not case["leave_output"]
    for name in ("output_tensor_type", "token_embedding_type"):
        if case[name] is not None:
            setattr(p, name, case[name])
    patterns = (Override * (len(case["patterns"]) + 1))()
    for row, (pattern, kind) in zip(patterns, case["patterns"]):
        row.pattern, row.type = pattern.encode(), kind
    if case["patterns"]:
        p.tt_overrides = ctypes.cast(patterns, type(p.tt_overrides))
    arrays = dict(np.load(case["weights"])) if case["weights"] else {}
    rows = (Data * (len(arrays) + 1))()
    for row, (name, values) in zip(rows, arrays.items()):
        row.name, row.size = name.encode(), values.size
        row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if arrays:
        p.imatrix = ctypes.cast(rows, type(p.imatrix))
    source, out = case["source"].encode(), case["out"].encode()
    if llama_cpp.llama_model_quantize(source, out, ctypes.byref(p)):
        sys.exit(line)
"""


def make(folder: Path) -> list[Path]:
    """Write options.json into `folder`; its path."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        lines = [
            json.dumps(_arguments(parse(text), place, place / f"{number}.gguf"))
            for number, text in enumerate(CASES)
        ]
        subprocess.run(
            [os.environ["GPUKIT_PEER_PYTHON"], "-c", QUANTIZE],
            input="\n".join(lines),
            text=True,
            check=True,
            stderr=subprocess.PIPE,
        )
        digests = {
            text: [
                gguf_models.tensors_digest(path)
                for path in sorted([*place.glob(f"{n}.gguf"), *place.glob(f"{n}-*.gguf")])
            ]
            for n, text in enumerate(CASES)
        }
    path = folder / "options.json"
    path.write_text(json.dumps(digests, indent=1) + "\n")
    return [path]


def _arguments(case: Case, place: Path, out: Path) -> dict[str, Any]:
    """What QUANTIZE reads for `case`; the model and its importance are made in `place`."""
    parts = TENSORS_IN_PART if case.keep_split else 0
    home = place / f"{case.model}-{parts}"
    home.mkdir(exist_ok=True)
    source = gguf_models.build(case.model, home, parts)
    weights = home / "importance.npz"
    if case.imatrix:
        np.savez(weights, **gguf_models.importance(case.model))
    return {
        "source": str(source),
        "out": str(out.with_suffix("") if parts else out),
        "ftype": FILE_TYPES[case.type].number,
        "pure": case.pure,
        "keep_split": case.keep_split,
        "leave_output": case.leave_output,
        "output_tensor_type": _number(case.output_type),
        "token_embedding_type": _number(case.embedding_type),
        "patterns": [
            [pattern, _number(kind)]
            for pattern, _, kind in (text.rpartition("=") for text in case.patterns)
        ],
        "weights": str(weights) if case.imatrix else None,
    }


def _number(kind: str | None) -> int | None:
    return None if kind is None else gguf.GGMLQuantizationType[kind.upper()].value
