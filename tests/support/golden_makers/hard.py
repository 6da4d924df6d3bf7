"""Digests of the blocks that llama.cpp makes of support/hard_values.py: golden/hard.json.

TYPE -> `KIND` of values, `all, IMPORTANCE`, `scarce`, `WIDTH` and `WIDTH, cubes` -> digest.
"""

import json
from pathlib import Path

import gguf
from support import hard_values as hard, quant_kinds
from support.golden_makers.kernels import TYPES, WEIGHTED

BLOCKS = gguf.constants.GGML_QUANT_SIZES


def make(folder: Path) -> list[Path]:
    """Write hard.json into `folder`; the peer must be installed."""
    library = quant_kinds.find_peer()
    if library is None:
        raise SystemExit("Error: xllamacpp is not installed: pip install xllamacpp")
    peer = quant_kinds.Peer(library)
    digests: dict[str, dict[str, str]] = {}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        found = digests[name] = {}
        for values in hard.KINDS:
            found[values] = hard.digest(peer.quantize(hard.values(values), kind.value))
        for how in hard.IMPORTANCE if name in WEIGHTED else ():
            blocks = peer.quantize(hard.everything(), kind.value, hard.importance(how))
            found[f"all, {how}"] = hard.digest(blocks)
        if name in WEIGHTED:
            weights = hard.importance("mostly zero")
            found["scarce"] = hard.digest(peer.quantize(hard.scarce(), kind.value, weights))
        for width in hard.WIDTHS:
            if width % BLOCKS[kind][0]:
                continue
            found[str(width)] = hard.digest(peer.quantize(hard.wide(width), kind.value))
            if name in WEIGHTED:
                cubes = hard.importance("cubes", width)
                blocks = peer.quantize(hard.wide(width), kind.value, cubes)
                found[f"{width}, cubes"] = hard.digest(blocks)
    path = folder / "hard.json"
    path.write_text(json.dumps(digests, indent=1) + "\n")
    return [path]
