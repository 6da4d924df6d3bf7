"""x @ W^T with W in blocks: the torch reference, which is the path of the CPU.

Weights stay in blocks; a chunk of rows is decoded, used and forgotten, so that a product needs a
few MiB beside its operands whatever the size of W.
"""

import torch
from torch import Tensor

from gpukit_kernels.errors import QuantError
from gpukit_kernels.table import QuantType, by_name

# Weights decoded at a time: 4 MiB of float32, which the product reads back from the cache.
CHUNK_WEIGHTS = 1 << 20

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def matmul(x: Tensor, blocks: Tensor, qtype: str | QuantType) -> Tensor:
    """float32 `[..., rows]`: `x` `[..., n]` (float32) times the transpose of W `[rows, n]`.

    `blocks` is uint8 `[rows, row_bytes]`, the rows of W in blocks of `qtype`. Products are summed
    in float32 with the exact decoded values. `QuantError` where the widths do not agree.
    """
    row = by_name(qtype)
    if x.dtype is not torch.float32:
        raise QuantError(f"x is {x.dtype}; matmul takes float32")
    if blocks.ndim != 2 or blocks.dtype is not torch.uint8:
        raise QuantError(f"blocks are {blocks.dtype} {list(blocks.shape)}; uint8 [rows, bytes] fit")
    wanted = row.row_bytes(x.shape[-1])
    if blocks.shape[1] != wanted:
        raise QuantError(
            f"rows of {blocks.shape[1]} bytes, x of {x.shape[-1]} needs {wanted} ({row.name})"
        )
    return torch.ops.gpukit.matmul(x, blocks, row.name)


torch.library.define("gpukit::matmul", "(Tensor x, Tensor blocks, str qtype) -> Tensor")


@torch.library.impl("gpukit::matmul", "default")
def _matmul(x: Tensor, blocks: Tensor, qtype: str) -> Tensor:
    row = by_name(qtype)
    flat = x.reshape(-1, x.shape[-1])
    out = flat.new_empty((flat.shape[0], blocks.shape[0]))
    step = max(CHUNK_WEIGHTS // max(x.shape[-1], 1), 1)
    for at in range(0, blocks.shape[0], step):
        weights = _decode(blocks[at : at + step], row)
        torch.matmul(flat, weights.t(), out=out[:, at : at + step])
    return out.view(*x.shape[:-1], blocks.shape[0])


@torch.library.register_fake("gpukit::matmul")
def _(x: Tensor, blocks: Tensor, qtype: str) -> Tensor:  # noqa: ARG001  (the op's signature)
    return x.new_empty((*x.shape[:-1], blocks.shape[0]))


def _decode(blocks: Tensor, row: QuantType) -> Tensor:
    if row.name in FLOATS:
        return blocks.view(FLOATS[row.name]).to(torch.float32)
    from gpukit_kernels.ops import dequantize

    return dequantize(blocks, row)
