"""Values of the types that are only read, as llama.cpp decodes them: tests/data/golden/decoded.npz.

blocks/TYPE   uint8 [blocks, nbytes], random bytes
values/TYPE   float32 [blocks, 256]
"""

from pathlib import Path

import numpy as np
from support import quant_kinds

BLOCKS = 6
TYPES = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")


def make(folder: Path) -> list[Path]:
    """Write the file into `folder`; the peer must be installed."""
    library = quant_kinds.find_peer()
    if library is None:
        raise SystemExit("Error: xllamacpp is not installed: pip install xllamacpp")
    peer = quant_kinds.Peer(library)
    arrays: dict[str, np.ndarray] = {}
    for name in TYPES:
        blocks = quant_kinds.random_blocks(name, BLOCKS, seed=1)
        arrays[f"blocks/{name}"] = blocks
        arrays[f"values/{name}"] = peer.dequantize(blocks, name, 256)
    path = folder / "decoded.npz"
    np.savez_compressed(path, **arrays)
    return [path]
