"""What bitsandbytes makes of weights in NF4, on the CPU: tests/data/golden/nf4.npz. For each case

CASE/values     the weights: float32, or uint16 with the bits of bfloat16
CASE/decoded    the same decoded again, in their type
CASE/twice      float32 [blocks]: the largest of each block as double quantisation decodes it

Cases are flat: the CPU kernel of 0.50 numbers blocks by rows where 64 does not divide these.
"""

from pathlib import Path

import numpy as np
import torch

# Rows, columns, type.
CASES = {
    "bf16": (64, 320, torch.bfloat16),
    "f16": (20, 96, torch.float16),
    "f32": (30, 50, torch.float32),
}


def values(case: str) -> torch.Tensor:
    rows, columns, dtype = CASES[case]
    found = torch.from_numpy(np.random.default_rng(rows).standard_t(4, (rows, columns)) / 40)
    found[0] = 0
    found[1, 3] = -1.5
    found[2] = found[2, 0]
    return found.to(dtype)


def raw(found: torch.Tensor) -> np.ndarray:
    array: np.ndarray = found.view(torch.int16) if found.dtype is torch.bfloat16 else found
    return torch.as_tensor(array).numpy()


def make(folder: Path) -> list[Path]:
    """Write the file into `folder`; without bitsandbytes, which no other maker needs, nothing."""
    try:
        from bitsandbytes import functional
    except ImportError:
        return []
    arrays: dict[str, np.ndarray] = {}
    for case in CASES:
        flat = values(case).view(1, -1)
        packed, state = functional.quantize_4bit(flat, blocksize=64, quant_type="nf4")
        arrays[f"{case}/values"] = raw(values(case))
        decoded = functional.dequantize_4bit(packed, state)
        arrays[f"{case}/decoded"] = raw(decoded.view(values(case).shape))
        _, state = functional.quantize_4bit(
            flat, blocksize=64, quant_type="nf4", compress_statistics=True
        )
        twice = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
        arrays[f"{case}/twice"] = twice.numpy()
    path = folder / "nf4.npz"
    np.savez_compressed(path, **arrays)
    return [path]
