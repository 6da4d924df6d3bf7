"""Which experts take part for each position, and with what share.

Facts: transformers' routers of Qwen 3, GLM 4.5, GPT-OSS and Gemma 4; llama.cpp's graph
(build_moe_ffn).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpukit.models.experts import GATINGS


@dataclass(frozen=True)
class Routing:
    """From a router's logits to the `used` experts with the highest scores and their shares.

    gating  the scores: a softmax over all, a sigmoid of each, or the logits themselves, of which
            the shares are the softmax over the chosen
    normed  shares are brought to a sum of 1
    scale   multiplies shares
    bias    float32 `[experts]`, added to scores where experts are chosen, and not in their shares
    groups, groups_used  experts are chosen in these neighbouring groups with the highest sums of
            two scores only (0 or 1 group: in all)
    factors  float32 `[experts]`, which multiply the shares of each
    """

    used: int
    gating: str = "softmax"
    normed: bool = True
    scale: float = 1.0
    bias: Tensor | None = None
    groups: int = 0
    groups_used: int = 0
    factors: Tensor | None = None

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Shares, float32, and numbers, int64, `[count, used]` each, of float32 `[count, experts]`;
        the highest score first."""
        scores = self._scores(logits)
        ranked = scores if self.bias is None else scores + self.bias
        if self.groups > 1:
            ranked = self._in_groups(ranked)
        chosen = ranked.topk(self.used).indices
        shares = scores.gather(-1, chosen)
        if self.gating == "softmax_of_chosen":
            return torch.softmax(shares, -1) * self.scale, chosen
        if self.normed:
            # Sigmoids may all be zero.
            shares = shares / (shares.sum(-1, keepdim=True) + 1e-20)
        if self.factors is not None:
            shares = shares * self.factors[chosen]
        return shares * self.scale, chosen

    def _scores(self, logits: Tensor) -> Tensor:
        match self.gating:
            case "softmax":
                return torch.softmax(logits, -1)
            case "sigmoid":
                return torch.sigmoid(logits)
            case "softmax_of_chosen":
                return logits
        raise ValueError(f"gating {self.gating!r}; known: {', '.join(GATINGS)}")

    def _in_groups(self, ranked: Tensor) -> Tensor:
        """`ranked` with what is in other groups at minus infinity."""
        parts = ranked.view(len(ranked), self.groups, -1)
        sums = parts.topk(2).values.sum(-1)
        there = torch.zeros_like(sums, dtype=torch.bool)
        there.scatter_(1, sums.topk(self.groups_used).indices, True)
        return parts.masked_fill(~there[..., None], -torch.inf).flatten(1)
