"""Blocks of every quant type as llama.cpp makes them: tests/data/golden/kernels.npz.

values/KIND          float32 [rows, 256]
importance           float32 [256]
blocks/TYPE/KIND     uint8 [rows, row_bytes]
weighted/TYPE/KIND   the same with importance

Rows that llama.cpp ends the process for are `quant_kinds.ENDED`.
"""

from pathlib import Path

import gguf
import numpy as np
from support import quant_kinds

from gpukit_kernels.facts import FACTS

ROWS = 6
TYPES = (
    *(
        "F16",
        "BF16",
        "Q8_0",
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
    ),
    *("IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0"),
    *("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M"),
)
# Those whose bytes importance changes, and those that have none without.
WEIGHTED = [name for name in TYPES if FACTS[name].takes_importance]
NEEDING = [name for name in TYPES if FACTS[name].needs_importance]


def make(folder: Path) -> list[Path]:
    """Write the file into `folder`; the peer must be installed."""
    library = quant_kinds.find_peer()
    if library is None:
        raise SystemExit("Error: xllamacpp is not installed: pip install xllamacpp")
    peer = quant_kinds.Peer(library)
    importance = quant_kinds.importance(quant_kinds.WIDTH)
    arrays: dict[str, np.ndarray] = {"importance": importance}
    for kind in quant_kinds.FINITE:
        values = quant_kinds.make(kind, ROWS, seed=1)
        arrays[f"values/{kind}"] = values
        for name in TYPES:
            id = gguf.GGMLQuantizationType[name].value
            if name not in NEEDING:
                arrays[f"blocks/{name}/{kind}"] = peer.quantize(values, id)
            if name in WEIGHTED:
                arrays[f"weighted/{name}/{kind}"] = peer.quantize(values, id, importance)
    path = folder / "kernels.npz"
    np.savez_compressed(path, **arrays)
    return [path]
