"""Model folders for the converter in tests/support/converter_tree."""

import json
from pathlib import Path

import numpy as np

TREE = Path(__file__).resolve().parent / "converter_tree"
# Rows that blocks of 256 divide, of 32 only, and not at all; experts; a line.
SHAPES = {
    "token_embd.weight": (300, 256),
    "output_norm.weight": (256,),
    "blk.0.attn_q.weight": (256, 256),
    "blk.0.attn_v.weight": (64, 256),
    "blk.0.ffn_gate_exps.weight": (4, 96, 256),
    "blk.0.ffn_up.weight": (256, 96),
    "blk.0.ffn_down.weight": (256, 512),
    "blk.0.odd.weight": (5, 24),
}


def toy(folder: Path, do: str | None = None) -> Path:
    """Write a model whose conversion goes as `do` says into `folder`; that folder."""
    folder.mkdir(parents=True)
    config = {"architectures": ["ToyModel"], "do": do, "tensors": SHAPES}
    (folder / "config.json").write_text(json.dumps(config))
    source = np.random.default_rng(7)
    for name, shape in SHAPES.items():
        values = source.standard_normal(shape, np.float32).view(np.uint32)
        np.save(folder / f"{name}.npy", (values & 0xFFFF0000).view(np.float32))  # as of bfloat16
    (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    return folder
