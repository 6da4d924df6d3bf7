"""A decoder's step with one cache, recorded: a token is one replay, and what is asked for of it
crosses to the host without its logits."""

import torch
from torch import Tensor

from gpukit.models.cache import KVCache
from gpukit.models.stepping import Parts, Step
from gpukit_kernels.largest import of_keys
from gpukit_kernels.recording import Mark, on_host, recorded

# Likeliest tokens on their way to the host: of the last step and of one ahead of the host.
SLOTS = 2


class RecordedStep:
    """Steps with `cache`, which has room for one more, as long as its capacity stays.

    A step's results are there until the next one is launched.
    """

    @torch.inference_mode()
    def __init__(self, parts: Parts, cache: KVCache) -> None:
        self.capacity, device = cache.capacity, parts.decoder.device
        self._step = step = Step(parts)
        self._best = [on_host(1, torch.int64, device) for _ in range(SLOTS)]
        self._marks = [Mark(device) for _ in range(SLOTS)]
        self._count = 0
        # Position and token of the step that the host has not asked for yet.
        self._ahead: tuple[int, int] | None = None
        self._turns = turns = step.turns(cache.capacity, cache.n_ctx)
        # What runs for the recording writes where the next token goes.
        step.position.fill_(cache.length)
        self._play = recorded(lambda: step.run(cache, turns), device)

    @torch.inference_mode()
    def take(self, token: int, position: int) -> None:
        """Take `token` up at `position`; nothing waits for it."""
        ahead, self._ahead = self._ahead, None
        if ahead != (position, token):
            self._step.token.fill_(token)
            self._launch(position)

    def _launch(self, position: int) -> None:
        self._step.position.fill_(position)
        self._play()
        slot = self._count % SLOTS
        self._best[slot].copy_(self._step.best, non_blocking=True)
        self._marks[slot].set()
        self._count += 1

    @property
    def logits(self) -> Tensor:
        """float32 `[vocab_size]` on the device."""
        return self._step.logits

    @torch.inference_mode()
    def largest(self, count: int) -> tuple[Tensor, Tensor]:
        """The largest logits and their tokens, on the CPU; largest first, of equals the first."""
        keys = self._step.keys
        return of_keys(torch.topk(keys, min(count, len(keys))).values.cpu())

    @torch.inference_mode()
    def likeliest(self, ahead: int | None = None) -> tuple[float, int]:
        """The largest logit and its token, the first of equals.

        With `ahead` that token is taken up at this position before the host knows it; if it is not
        the next that `take` gets there, this was in vain.
        """
        slot = (self._count - 1) % SLOTS
        if ahead is not None:
            self._launch(ahead)
        self._marks[slot].wait()
        logits, tokens = of_keys(self._best[slot])
        token = int(tokens)
        self._ahead = None if ahead is None else (ahead, token)
        return float(logits), token
