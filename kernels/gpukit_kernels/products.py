"""x @ W^T with W in blocks in torch: the reference.

Weights stay in blocks; a chunk of rows is decoded, used and forgotten, so that a product needs a
few MiB beside its operands whatever the size of W. The CPU's compiled path is in cpu/products.py, a
GPU's kernels are in products_triton.py.
"""

import torch
from torch import Tensor

from gpukit_kernels.table import FLOATS, QuantType

# Weights decoded at a time: 1 MiB of float32, which the product reads back from the cache.
CHUNK_WEIGHTS = 1 << 18


def multiply(x: Tensor, blocks: Tensor, row: QuantType) -> Tensor:
    """float32 `[count, rows]`: float32 x `[count, n]` times the transpose of W, uint8
    `[rows, row_bytes]`; products of the exact decoded values are summed in float32."""
    out = x.new_zeros((x.shape[0], blocks.shape[0]))
    if x.numel() and blocks.numel():
        chunks = blocks.split(max(CHUNK_WEIGHTS // x.shape[1], 1))
        if row.name in FLOATS:
            _add_floats(x, chunks, FLOATS[row.name], out)
        else:
            _add_blocks(x, chunks, row, out)
    return out


def _add_floats(x: Tensor, chunks: tuple[Tensor, ...], dtype: torch.dtype, out: Tensor) -> None:
    at = 0
    for chunk in chunks:
        weights = chunk.view(dtype).to(torch.float32)
        out[:, at : at + len(chunk)] = x @ weights.t()
        at += len(chunk)


def _add_blocks(x: Tensor, chunks: tuple[Tensor, ...], row: QuantType, out: Tensor) -> None:
    """Decoders give element i of every block side by side, so x is put in that order, not W."""
    per_row = x.shape[1] // row.block
    x = x.view(-1, per_row, row.block).transpose(1, 2).reshape(x.shape)
    at = 0
    for chunk in chunks:
        count = len(chunk)
        lanes = chunk.reshape(count, per_row, row.nbytes).permute(2, 1, 0).reshape(row.nbytes, -1)
        weights = row.decode(lanes).reshape(-1, count)  # [block * per_row, count]
        out[:, at : at + count] = x @ weights
        at += count
