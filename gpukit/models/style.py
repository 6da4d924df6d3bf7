"""What architectures do each in its own way; `assemble` makes a decoder of it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Style:
    """How an architecture does what all of them do.

    rotate      the pairs of a head that RoPE turns: its halves, or neighbours
    qk_norms    a norm over each head of queries and keys, before RoPE
    activation  of the gate
    scaled      embeddings times the root of their width
    post_norms  a norm behind attention and behind feed forward, too
    unrotated_every  the last of so many layers has no RoPE (0: all have)
    fused       attn_qkv holds queries, keys and values, ffn_up gate and up
    """

    rotate: Literal["halves", "pairs"] = "halves"
    qk_norms: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    scaled: bool = False
    post_norms: bool = False
    unrotated_every: int = 0
    fused: bool = False
