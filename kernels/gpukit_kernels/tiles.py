"""Runs the types' functions over whole tensors, tile by tile, so that scratch memory stays small."""

import torch
from torch import Tensor

from gpukit_kernels.stages import compiled_stages, stage
from gpukit_kernels.table import QuantType

# Weights in a tile of the compiled path: 2 MiB as float32, which two cores hold in their second-level
# caches while some twenty search steps pass over it. Every tile has this one shape (the last is
# padded), so nothing is ever compiled twice.
COMPILED_TILE = 1 << 19

# Weights in a tile of the eager path, where each operation is a call of its own: larger tiles spread
# the cost of the calls, and 2 M weights keep the scratch memory under 100 MB.
EAGER_TILE = 1 << 21


def encode_eager(values: Tensor, row: QuantType) -> Tensor:
    """uint8 `[blocks, nbytes]` of `[blocks, block]` float32, float16 or bfloat16, in eager torch."""
    out = torch.empty((values.shape[0], row.nbytes), dtype=torch.uint8, device=values.device)
    tile = EAGER_TILE // row.block
    for at in range(0, values.shape[0], tile):
        out[at : at + tile] = row.encode(_load(values[at : at + tile])).t()
    return out


def decode_eager(blocks: Tensor, row: QuantType, dtype: torch.dtype) -> Tensor:
    """`dtype` `[blocks, block]` of uint8 `[blocks, nbytes]`, in eager torch."""
    out = torch.empty((blocks.shape[0], row.block), dtype=dtype, device=blocks.device)
    tile = EAGER_TILE // row.block
    for at in range(0, blocks.shape[0], tile):
        out[at : at + tile] = row.decode(blocks[at : at + tile].t().contiguous()).t()
    return out


def encode_compiled(values: Tensor, row: QuantType) -> Tensor:
    """As `encode_eager`, through `torch.compile`."""
    out = torch.empty((values.shape[0], row.nbytes), dtype=torch.uint8, device=values.device)
    tile = COMPILED_TILE // row.block
    with compiled_stages():
        for at in range(0, values.shape[0], tile):
            part = values[at : at + tile]
            count = part.shape[0]
            if count < tile:
                part = torch.cat([part, part.new_zeros((tile - count, row.block))])
            out[at : at + tile] = row.encode(_load(part))[:, :count].t()
    return out


@stage
def _load(values: Tensor) -> Tensor:
    """float32 `[block, lanes]`: element i of every block side by side."""
    return values.t().to(torch.float32).contiguous()
