"""Picks the next token: penalties, top-k, typical-p, top-p, min-p, temperature, then one draw.

The order is that of llama.cpp's default chain. The filters take logits `[n]` sorted downwards with
their token ids and give the same, shorter.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gpukit.generation.not_finite import no_number
from gpukit.store import parameters


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are picked; the defaults are Ollama's.

    A temperature of 0 takes the likeliest token. top_k 0, top_p 1, min_p 0 and typical_p 1 keep all
    tokens; penalties of 1 (repeat) and 0 change nothing; repeat_last_n -1 looks at all tokens. A
    seed below 0 is another one each time. `ArgumentError` for values that make no sense.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = -1

    def __post_init__(self) -> None:
        for each in fields(self):
            parameters.check(each.name, getattr(self, each.name))

    @property
    def penalises(self) -> bool:
        """Whether what was said makes logits smaller."""
        return bool(self.repeat_penalty != 1 or self.presence_penalty or self.frequency_penalty)


class Sampler:
    """Draws tokens one after the other; one seed draws the same from the same logits. The model's
    `name` and its `adapters` are for messages."""

    def __init__(
        self,
        options: SamplingOptions,
        name: str = "the model",
        adapters: Sequence[str] = (),
    ) -> None:
        self.options = options
        self._name, self._adapters = name, adapters
        # On the CPU wherever the model is, so that a seed means the same everywhere.
        self._random = torch.Generator()
        if options.seed < 0:
            self._random.seed()
        else:
            self._random.manual_seed(options.seed)

    def pick(self, logits: Tensor, before: Sequence[int]) -> int:
        """The next token, from float32 `logits` `[vocab]` and the tokens `before` it.

        `CheckpointError` where logits are no numbers.
        """
        options = self.options
        logits = logits.to("cpu", torch.float32)
        # NaN is the largest there is for max, so one look finds it as well as infinities.
        self.checked(float(logits.max()), 0)
        logits = penalise(logits, before, options)
        if options.temperature == 0:
            return int(logits.argmax())
        return self._draw(*top_k(logits, options.top_k))

    @property
    def few(self) -> int | None:
        """How many of the largest logits decide; None where all have to be looked at."""
        options = self.options
        if options.penalises:
            return None
        if options.temperature == 0:
            return 1
        return options.top_k if options.top_k > 0 else None

    def pick_of_largest(self, logits: Tensor, ids: Tensor) -> int:
        """As `pick` of the `few` largest logits, largest first, of equals the first, and their
        ids."""
        self.checked(float(logits[0]), 0)
        return self._draw(logits, ids)

    def checked(self, largest: float, token: int) -> int:
        """`token`; `CheckpointError` where the largest logit is no finite number."""
        if not math.isfinite(largest):
            raise no_number(largest, self._name, self._adapters)
        return token

    def _draw(self, logits: Tensor, ids: Tensor) -> int:
        options = self.options
        logits, ids = typical_p(logits, ids, options.typical_p)
        logits, ids = top_p(logits, ids, options.top_p)
        logits, ids = min_p(logits, ids, options.min_p)
        return int(ids[draw(probabilities(logits, options.temperature), self._random)])


def penalise(logits: Tensor, before: Sequence[int], options: SamplingOptions) -> Tensor:
    """Logits of tokens among the last `repeat_last_n` made smaller."""
    last = options.repeat_last_n if options.repeat_last_n >= 0 else len(before)
    if not options.penalises or not last or not before:
        return logits
    seen = Counter(before[-last:])
    ids = torch.tensor(list(seen))
    counts = torch.tensor(list(seen.values()), dtype=torch.float32)
    found = logits[ids]
    found = torch.where(found > 0, found / options.repeat_penalty, found * options.repeat_penalty)
    found = found - counts * options.frequency_penalty - options.presence_penalty
    return logits.index_copy(0, ids, found)


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits (all for k <= 0), largest first, and their ids; of equals the first."""
    if k <= 0 or k >= len(logits):
        found = torch.sort(logits, descending=True, stable=True)
        return found.values, found.indices
    # topk takes any of equal logits; all that equal the smallest kept are looked at again.
    smallest = torch.topk(logits, k).values[-1]
    ids = torch.nonzero(logits >= smallest).squeeze(1)
    order = torch.sort(logits[ids], descending=True, stable=True)
    return order.values[:k], ids[order.indices[:k]]


def top_p(logits: Tensor, ids: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The fewest that have a share of p or more together, at least one."""
    if p >= 1:
        return logits, ids
    keep = int((probabilities(logits).cumsum(-1) < p).sum()) + 1
    return logits[:keep], ids[:keep]


def min_p(logits: Tensor, ids: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Those with at least p times the probability of the first."""
    if p <= 0:
        return logits, ids
    keep = int((logits >= logits[0] + math.log(p)).sum())
    return logits[:keep], ids[:keep]


def typical_p(logits: Tensor, ids: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The fewest with a share over p, those first whose surprise is nearest to the mean surprise.

    Source: locally typical sampling, https://arxiv.org/abs/2202.00666.
    """
    if p >= 1:
        return logits, ids
    shares = probabilities(logits)
    surprise = -shares.clamp_min(torch.finfo(shares.dtype).tiny).log()
    away = (surprise - (shares * surprise).sum()).abs()
    order = torch.sort(away, stable=True).indices
    keep = int((shares[order].cumsum(-1) <= p).sum()) + 1
    kept = order[:keep].sort().values
    return logits[kept], ids[kept]


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """float64 `[n]`: the softmax of logits over the temperature, however small that is."""
    wide = logits.double()
    return torch.softmax((wide - wide.max()) / temperature, dim=-1)


def draw(shares: Tensor, random: torch.Generator) -> int:
    """An index, each as often as its share of the sum says; one with no share never."""
    ends = shares.cumsum(-1)
    at = torch.rand((), dtype=torch.float64, generator=random) * ends[-1]
    # Rounding can put `at` on the very end, behind the last index that has a share.
    last = int(torch.searchsorted(ends, ends[-1]))
    return min(int(torch.searchsorted(ends, at, right=True)), last)
