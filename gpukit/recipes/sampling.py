"""Picks the next token: penalties, top-k, top-p, min-p, temperature, in llama.cpp's order."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpukit.errors import ArgumentError, GpukitError


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are picked; the defaults are Ollama's. `seed` None or negative: another each time.

    A temperature of 0 takes the likeliest token; top_k 0 and top_p 1 and min_p 0 keep all tokens.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, float("inf")),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high or value == float("inf"):
                raise ArgumentError(f"{name} is {value}; a number from {low:g} to {high:g} fits")
        if not 0 < self.repeat_penalty < float("inf"):
            raise ArgumentError(f"repeat_penalty is {self.repeat_penalty}; a number over 0 fits")


class Sampler:
    """Draws tokens one after the other; the same seed gives the same tokens on the same device."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self._random = torch.Generator()
        if options.seed is None or options.seed < 0:
            self._random.seed()
        else:
            self._random.manual_seed(options.seed)

    def pick(self, logits: Tensor, before: Sequence[int]) -> int:
        """The next token, from float32 `logits` `[vocab]` and the tokens `before` it."""
        logits = logits.to("cpu", torch.float32)
        if bool(torch.isnan(logits).any()) or bool((logits == float("inf")).any()):
            raise GpukitError("the model gave logits that are no numbers; its weights are damaged")
        logits = penalise(logits, before, self.options)
        if self.options.temperature == 0:
            return int(logits.argmax())
        logits, ids = top_k(logits, self.options.top_k)
        logits, ids = top_p(logits, ids, self.options.top_p)
        logits, ids = min_p(logits, ids, self.options.min_p)
        probabilities = torch.softmax(logits / self.options.temperature, dim=-1)
        return int(ids[torch.multinomial(probabilities, 1, generator=self._random)])


def penalise(logits: Tensor, before: Sequence[int], options: SamplingOptions) -> Tensor:
    """Logits of tokens among the last `repeat_last_n` (-1: all) made smaller."""
    last = options.repeat_last_n
    seen = Counter(before if last < 0 else before[len(before) - min(last, len(before)) :])
    plain = options.repeat_penalty == 1 and not (
        options.presence_penalty or options.frequency_penalty
    )
    if plain or not seen:
        return logits
    ids = torch.tensor(list(seen))
    counts = torch.tensor(list(seen.values()), dtype=torch.float32)
    found = logits[ids]
    found = torch.where(found > 0, found / options.repeat_penalty, found * options.repeat_penalty)
    found = found - counts * options.frequency_penalty - options.presence_penalty
    return logits.index_copy(0, ids, found)


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits, largest first, and their ids; all of them for k <= 0."""
    count = len(logits) if k <= 0 else min(k, len(logits))
    found = torch.topk(logits, count)
    return found.values, found.indices


def top_p(logits: Tensor, ids: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Of logits sorted downwards the fewest whose probabilities reach p, at least one."""
    if p >= 1:
        return logits, ids
    before = torch.softmax(logits, dim=-1).cumsum(-1)
    keep = int((before < p).sum()) + 1
    return logits[:keep], ids[:keep]


def min_p(logits: Tensor, ids: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Of logits sorted downwards those with at least p times the largest probability."""
    if p <= 0:
        return logits, ids
    keep = int((logits >= logits[0] + torch.log(torch.tensor(p))).sum())
    return logits[:keep], ids[:keep]
