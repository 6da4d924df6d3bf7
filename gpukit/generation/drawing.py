"""The next token of a generation: from the logits of the usual pass, or of a recorded step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gpukit.generation.form import Form
from gpukit.generation.sampling import Sampler
from gpukit.generation.steps import Steps
from gpukit.models.cache import KVCache
from gpukit.models.decoder import Decoder
from gpukit.models.recorded import RecordedStep

# What a chat template may put behind the last message of a prompt, and behind no message that an
# answer follows: where recurrent layers note their states, so that the next prompt can go on there.
TEMPLATE_END = 32


class Drawing:
    """Takes tokens up into `cache` and picks what follows them; with a `form` only what fits it,
    and `never` one of those tokens."""

    def __init__(
        self,
        decoder: Decoder,
        steps: Steps,
        cache: KVCache,
        sampler: Sampler,
        form: Form | None = None,
        never: Sequence[int] = (),
    ) -> None:
        self._decoder, self._steps, self._cache = decoder, steps, cache
        self._sampler, self._form = sampler, form
        self._never = torch.tensor(never, dtype=torch.int64)
        self._found: Tensor | RecordedStep | None = None

    def begin(self, ids: Sequence[int]) -> None:
        """Take up the tokens of a prompt."""
        rest = ids
        if self._decoder.config.recurrent and len(ids) > TEMPLATE_END:
            self._decoder.forward(ids[:-TEMPLATE_END], self._cache)
            self._cache.note()
            rest = ids[-TEMPLATE_END:]
        self._found = self._decoder.forward(rest, self._cache)
        self._cache.note()

    def take(self, token: int) -> None:
        """Take up one token."""
        step = self._steps.take(token, self._cache)
        self._found = self._decoder.forward([token], self._cache) if step is None else step

    def pick(self, before: Sequence[int]) -> int:
        """The token behind what was taken up, which `before` ends with.

        `CheckpointError` where logits are no numbers.
        """
        found, few = self._found, self._sampler.few
        assert found is not None
        if self._form or len(self._never):
            few = None
        if isinstance(found, RecordedStep) and few is not None:
            return self._of_few(found, few)
        logits = found.logits if isinstance(found, RecordedStep) else found
        if len(self._never):
            logits = logits.index_fill(0, self._never.to(logits.device), -torch.inf)
        return self._sampler.pick(self._form.masked(logits) if self._form else logits, before)

    def _of_few(self, step: RecordedStep, few: int) -> int:
        if few > 1:
            return self._sampler.pick_of_largest(*step.largest(few))
        # The device goes on with the token while the host still looks at it.
        length = self._cache.length
        room = length < min(self._cache.capacity, self._cache.n_ctx)
        return self._sampler.checked(*step.likeliest(length if room else None))
