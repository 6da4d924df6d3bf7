"""Digests of the blocks that llama.cpp makes of support/hard_values.py: golden/hard.json.

TYPE -> `KIND` of values, `all, IMPORTANCE`, `scarce`, `WIDTH` and `WIDTH, cubes` -> digest, and
`WHAT, ended` -> the rows that llama.cpp ends the process for, `quant_kinds.ENDED` in the digest.
"""

import json
from pathlib import Path

import gguf
import numpy as np
from support import hard_values as hard, quant_kinds
from support.golden_makers.kernels import NEEDING, TYPES, WEIGHTED

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

        def note(
            what: str, values: hard.Floats, importance: hard.Floats | None, found=found, kind=kind
        ) -> None:
            blocks = peer.quantize(values, kind.value, importance)
            found[what] = hard.digest(blocks)
            (ended,) = np.nonzero((blocks == quant_kinds.ENDED).all(axis=1))
            if len(ended):
                found[f"{what}, ended"] = " ".join(map(str, ended))

        for values in hard.KINDS if name not in NEEDING else ():
            note(values, hard.values(values), None)
        for how in hard.IMPORTANCE if name in WEIGHTED else ():
            note(f"all, {how}", hard.everything(), hard.importance(how))
        if name in WEIGHTED:
            note("scarce", hard.scarce(), hard.importance("mostly zero"))
        for width in hard.WIDTHS:
            if width % BLOCKS[kind][0]:
                continue
            if name not in NEEDING:
                note(str(width), hard.wide(width), None)
            if name in WEIGHTED:
                note(f"{width}, cubes", hard.wide(width), hard.importance("cubes", width))
    path = folder / "hard.json"
    path.write_text(json.dumps(digests, indent=1) + "\n")
    return [path]
