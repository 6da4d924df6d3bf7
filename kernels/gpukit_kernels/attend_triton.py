"""Launches the attention of one new position: its shape, and the memory that it needs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpukit_kernels.attend_kernel_triton import attend_kernel
from gpukit_kernels.jit import triton
from gpukit_kernels.norm_triton import parts_of
from gpukit_kernels.prepared_triton import GROUP, Prepared

# Threads of a program are 32 times that; each loads 16 bytes of keys and of values at once, and
# that ROWS times before it computes.
WARPS = 4
ROWS = 4
# Values that a warp loads at once.
LOADED = 256
# Parts of the keys at most, and the fewest keys worth a program of its own.
SPLITS = 32
FEWEST_KEYS = 64
# Heads of a program at most, if they can be shared out evenly.
HEADS = 4


@dataclass(frozen=True)
class Shape:
    """How a layer's attention is computed: its sizes, and what goes with scores.

    `rotated` values of a head are turned, neighbours (`pairs`) or halves; `window` positions are
    seen, the own included (0: all); scores are capped at `cap` (0: not).
    """

    heads: int
    kv_heads: int
    head_dim: int
    rotated: int
    pairs: bool
    scale: float
    eps: float = 0.0
    window: int = 0
    cap: float = 0.0

    @property
    def heads_together(self) -> int:
        """Heads of one program."""
        sharing = self.heads // self.kv_heads
        return max((n for n in range(1, HEADS + 1) if sharing % n == 0 and n > 1), default=sharing)

    @property
    def rows(self) -> int:
        """Loads of keys that a thread has at once: of many heads the sums take its registers."""
        return ROWS if self.heads_together <= HEADS else max(ROWS // 2, 1)

    @property
    def in_groups(self) -> bool:
        """Whether heads are whole groups of prepared values."""
        return self.head_dim % GROUP == 0

    @property
    def padded(self) -> int:
        return max(triton.next_power_of_2(self.head_dim), 16)

    def splits(self, capacity: int) -> int:
        """Parts that the keys of a full cache come in."""
        most = min(self.window or capacity, capacity)
        return max(1, min(SPLITS, triton.next_power_of_2(triton.cdiv(most, FEWEST_KEYS))))


@dataclass(frozen=True)
class Scratch:
    """What programs of one launch leave for each other; launches of one stream can share it."""

    partial: Tensor
    arrived: Tensor

    @staticmethod
    def of(shape: Shape, device: torch.device) -> "Scratch":
        size = shape.heads * SPLITS * (shape.padded + 2)
        return Scratch(
            torch.empty(size, dtype=torch.float32, device=device),
            torch.zeros(shape.heads, dtype=torch.int32, device=device),
        )


def attend_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    turns: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    shape: Shape,
    scratch: Scratch,
    out: Tensor | None,
    prepared: Prepared | None = None,
    norms: tuple[Tensor, Tensor] | None = None,
) -> None:
    """As `attend.attend_one`, into `out`, and `prepared` for products where 32 divides a head's
    values. Nothing is allocated."""
    capacity = keys.shape[1]
    constants = launch_constants(shape, capacity)
    with torch.cuda.device_of(q):
        attend_kernel[(shape.heads // constants["HEADS"], constants["SPLITS"])](
            q, k, v, *(norms or (None, None)), turns, keys, values, position, scratch.partial,
            scratch.arrived, out, *parts_of(prepared), shape.scale, shape.eps, shape.cap, capacity,
            **constants, num_warps=WARPS,
        )  # fmt: skip


def launch_constants(shape: Shape, capacity: int) -> dict[str, Any]:
    """The constants of `attend_kernel` with a cache of `capacity` places."""
    return {
        "WINDOW": shape.window,
        "HEADS": shape.heads_together,
        "SHARING": shape.heads // shape.kv_heads,
        "DIM": shape.head_dim,
        "PADDED": shape.padded,
        "ROTATED": shape.rotated,
        "PAIRS": shape.pairs,
        "CAPPED": shape.cap > 0,
        "SPLITS": shape.splits(capacity),
        "ROWS": shape.rows,
        "LANES": max(WARPS * LOADED // shape.padded, 1),
    }
