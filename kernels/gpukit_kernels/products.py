"""x @ W^T with W in blocks: the op and its torch reference, which is the path of the CPU.

Weights stay in blocks; a chunk of rows is decoded, used and forgotten, so that a product needs a
few MiB beside its operands whatever the size of W. A GPU's kernels are in products_triton.py.
"""

import torch
from torch import Tensor

from gpukit_kernels.errors import QuantError
from gpukit_kernels.products_triton import matmul_triton
from gpukit_kernels.table import QuantType, by_name

# Weights decoded at a time: 1 MiB of float32, which the product reads back from the cache (measured
# on a CPU with 1 MiB second level: half and twice as many are slower for a row of x).
CHUNK_WEIGHTS = 1 << 18

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def matmul(x: Tensor, blocks: Tensor, qtype: str | QuantType) -> Tensor:
    """float32 `[..., rows]`: `x` `[..., n]` (float32) times the transpose of W `[rows, n]`.

    `blocks` is uint8 `[rows, row_bytes]`, the rows of W in blocks of `qtype`. On the CPU products
    of the exact decoded values are summed in float32; on a GPU as `matmul_triton` says.
    `QuantError` where the widths do not agree.
    """
    row = by_name(qtype)
    if x.dtype is not torch.float32:
        raise QuantError(f"x is {x.dtype}; matmul takes float32")
    if blocks.ndim != 2 or blocks.dtype is not torch.uint8:
        raise QuantError(f"blocks are {blocks.dtype} {list(blocks.shape)}; uint8 [rows, bytes] fit")
    if x.ndim == 0:
        raise QuantError("x is a scalar; matmul takes rows [..., n]")
    wanted = row.row_bytes(x.shape[-1])
    if blocks.shape[1] != wanted:
        raise QuantError(
            f"rows of {blocks.shape[1]} bytes, x of {x.shape[-1]} needs {wanted} ({row.name})"
        )
    return torch.ops.gpukit.matmul(x, blocks, row.name)


# Registered by schema: `torch.library.custom_op` would import torch's compiler at the first call.
torch.library.define("gpukit::matmul", "(Tensor x, Tensor blocks, str qtype) -> Tensor")


@torch.library.impl("gpukit::matmul", "cpu")
def _reference(x: Tensor, blocks: Tensor, qtype: str) -> Tensor:
    row = by_name(qtype)
    flat = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    out = flat.new_zeros((flat.shape[0], blocks.shape[0]))
    if flat.numel() and blocks.numel():
        chunks = blocks.split(max(CHUNK_WEIGHTS // flat.shape[1], 1))
        if row.name in FLOATS:
            _add_floats(flat, chunks, FLOATS[row.name], out)
        else:
            _add_blocks(flat, chunks, row, out)
    return out.view(*x.shape[:-1], blocks.shape[0])


@torch.library.impl("gpukit::matmul", "cuda")
def _on_gpu(x: Tensor, blocks: Tensor, qtype: str) -> Tensor:
    flat = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return matmul_triton(flat, blocks, by_name(qtype)).view(*x.shape[:-1], blocks.shape[0])


@torch.library.register_fake("gpukit::matmul")
def _(x: Tensor, blocks: Tensor, qtype: str) -> Tensor:  # noqa: ARG001  (the op's signature)
    return x.new_empty((*x.shape[:-1], blocks.shape[0]))


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
