"""What architectures do each in its own way; `assemble` makes a decoder of it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Style:
    """How an architecture does what all of them do.

    rotate      the pairs of a head that RoPE turns: its halves, or neighbours
    qk_norms    a norm over each head of queries and keys, before RoPE; or where a file has one
    wide_norms  those norms go over all heads at once
    output_gate  what each head gives is multiplied by a gate, which lies behind its queries
    sinks       of each head's attention a share goes to nothing, that of a learnt score
    activation  of the gate
    scaled      embeddings times the root of their width
    pre_norms   a norm before attention and before feed forward, which is called `second_norm`
    post_norms  a norm behind attention and behind feed forward, too
    unrotated_every  the last of so many layers has no RoPE (0: all have)
    fused       attn_qkv holds queries, keys and values, ffn_up gate and up
    decoded     endings of the names of matrices that are decoded when a decoder is put together, as
                vectors and biases are
    """

    rotate: Literal["halves", "pairs"] = "halves"
    qk_norms: bool | Literal["optional"] = False
    wide_norms: bool = False
    output_gate: bool = False
    sinks: bool = False
    activation: Literal["silu", "gelu_tanh", "swiglu_oai"] = "silu"
    scaled: bool = False
    pre_norms: bool = True
    second_norm: str = "ffn_norm"
    post_norms: bool = False
    unrotated_every: int = 0
    fused: bool = False
    decoded: tuple[str, ...] = ()
