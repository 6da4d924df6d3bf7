"""The pieces that decoders are built from, on weights that stay in blocks."""

from dataclasses import dataclass

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.models.base import ModelConfig


@dataclass(frozen=True)
class Weight:
    """A matrix in blocks: uint8 `[rows, row_bytes]` of `type`, rows of `width` values."""

    blocks: Tensor
    type: str
    width: int

    def rows(self, ids: Tensor) -> Tensor:
        """float32 `[len(ids), width]`: some rows, decoded."""
        return kernels.dequantize(self.blocks[ids], self.type)


@dataclass(frozen=True)
class Linear:
    """x @ W^T + b with W in blocks."""

    weight: Weight
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """float32 `[..., rows]` of float32 `[..., width]`."""
        out = kernels.matmul(x, self.weight.blocks, self.weight.type)
        return out if self.bias is None else out + self.bias


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x` over the root of its mean square along the last dimension, times `weight`."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


class Rope:
    """Rotary position embedding of neighbouring pairs, the form that GGUF's Llamas are in.

    The angle of pair i at position p is p * theta^(-2 i / d) / divisor_i / factor, in float32.
    """

    def __init__(self, config: ModelConfig, divisors: Tensor | None, device: torch.device) -> None:
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        frequencies = 1.0 / (config.rope_theta**exponents)
        if divisors is not None:
            frequencies = frequencies / divisors.cpu()
        if config.rope_scaling == "linear":
            frequencies = frequencies / config.rope_factor
        self._frequencies = frequencies.to(device)

    def angles(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines for `count` positions from `first` on, `[count, 1, head_dim / 2]`."""
        positions = torch.arange(first, first + count, device=self._frequencies.device)
        angles = positions.to(torch.float32)[:, None, None] * self._frequencies
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """`x` `[count, heads, head_dim]` with each pair (2 i, 2 i + 1) turned by its angle."""
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack((even * cosines - odd * sines, even * sines + odd * cosines), dim=-1)
    return turned.flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor, first: int) -> Tensor:
    """Causal attention: float32 `[count, heads * head_dim]`.

    q is `[count, heads, head_dim]` at positions from `first` on, k and v are `[kv_heads, length,
    head_dim]`; every kv head is shared by heads / kv_heads neighbours.
    """
    count, heads, head_dim = q.shape
    groups = heads // k.shape[0]
    q = q.view(count, k.shape[0], groups, head_dim).permute(1, 2, 0, 3)
    scores = q @ k[:, None].transpose(-1, -2) * head_dim**-0.5
    if count > 1:
        seen = torch.arange(k.shape[1], device=q.device)
        here = torch.arange(first, first + count, device=q.device)
        scores = scores.masked_fill(seen > here[:, None], float("-inf"))
    out = torch.softmax(scores, dim=-1) @ v[:, None]
    return out.permute(2, 0, 1, 3).reshape(count, heads * head_dim)
