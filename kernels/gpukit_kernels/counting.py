"""How many operations a type's encoder takes a weight: the floor of its time on a GPU.

Counted on the torch reference, which does the same arithmetic in the same order as the kernels:
each operation on n elements is n, a sum of n elements too; moving and viewing is nothing.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpukit_kernels.table import QuantType, by_name

BLOCKS = 64
# Results of these are views, copies or constants: a kernel has them in registers.
MOVES = frozenset({
    "arange", "as_strided", "cat", "clone", "copy_", "detach", "empty", "empty_like", "expand",
    "full", "full_like", "gather", "index", "index_select", "lift_fresh", "ones", "ones_like",
    "permute", "repeat", "repeat_interleave", "reshape", "scalar_tensor", "select", "slice",
    "split", "split_with_sizes", "squeeze", "stack", "t", "transpose", "unbind", "unsqueeze",
    "view", "zeros", "zeros_like", "alias", "contiguous", "_to_copy", "fill_", "zero_", "unfold",
    "_local_scalar_dense", "new_empty", "new_zeros", "new_full", "constant_pad_nd", "_unsafe_view",
})  # fmt: skip


class _Counter(TorchDispatchMode):
    """Adds up the elements that operations work on."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ not in MOVES:
            tensors = [x for x in (*args, result) if isinstance(x, Tensor)]
            self.operations += max((x.numel() for x in tensors), default=0)
        return result


@cache
def operations(qtype: str | QuantType, importance: bool = False) -> float:
    """Operations a weight of encoding `qtype` from float32, with importance or without.

    `QuantError` for a type that is only read, and for one that needs importance without it.
    """
    row = by_name(qtype)
    weighted = row.weighted if importance else None
    encode = row.encoder() if weighted is None else None
    random = torch.Generator().manual_seed(0)
    x = torch.randn(BLOCKS, row.block, generator=random).t().contiguous()
    with _Counter() as counter:
        if encode is not None:
            encode(x)
        elif weighted is not None:
            weighted(x, torch.ones_like(x), torch.ones(BLOCKS))
    return counter.operations / x.numel()
