"""Requests of an evaluation: how likely continuations are, and texts that go on until something.

Requests of unequal lengths go through the layers together, longest first, padded behind their ends,
which no position before looks at. Equal inputs go once. Logits are made of scored rows alone, and
in slices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpukit.errors import ArgumentError
from gpukit.evaluation.scoring import LARGE_PASS, PASS, Likelihood, slice_rows
from gpukit.generation.generate import GenerateOptions, stream
from gpukit.generation.loading import LoadedModel

# Any id does behind the end of a sequence.
PADDING = 0


@dataclass(frozen=True)
class Pair:
    """Ids that are there, one at least, and those that are scored behind them."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def inputs(self, num_ctx: int) -> tuple[int, ...]:
        """What goes through the model: all ids but the last, cut from the left to `num_ctx`."""
        return (self.context + self.continuation)[:-1][-num_ctx:]


@dataclass(frozen=True)
class Answer:
    """ln p of a continuation, and whether each of its ids is the likeliest where it stands."""

    log_p: float
    is_greedy: bool


class Scorer:
    """Scores requests by `model`, called `name` in errors.

    num_ctx  the most ids that go through the model at once
    batch    the most sequences that do; None: as many as have `PASS` ids together, which nothing
             but a single longer sequence exceeds
    """

    def __init__(
        self, model: LoadedModel, name: str, num_ctx: int | None = None, batch: int | None = None
    ) -> None:
        most = model.decoder.config.n_ctx
        for what, value in (("num_ctx", num_ctx), ("batch", batch)):
            if value is not None and value < 1:
                raise ArgumentError(f"{what} is {value}; at least 1 is needed")
        if num_ctx is not None and num_ctx > most:
            raise ArgumentError(f"num_ctx is {num_ctx}; {name} was made for {most} tokens")
        self._model, self._name = model, name
        self.num_ctx, self.batch = num_ctx or most, batch

    def scored(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Answer]]:
        """The number of each pair and its answer, as they become known: in another order.

        Contexts that do not fit beside their continuation lose ids at the left. `ArgumentError`,
        before anything is scored, for a pair without context or with a continuation of more than
        `num_ctx` ids; `CheckpointError` for logits that are no numbers.
        """
        for number, pair in enumerate(pairs):
            self._check(number, pair)
        return self._scored(pairs)

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Answer]:
        """The answers of `scored` in the order of `pairs`."""
        found = dict(self.scored(pairs))
        return [found[number] for number in range(len(pairs))]

    def _check(self, number: int, pair: Pair) -> None:
        if not pair.context:
            raise ArgumentError(f"request {number} has no context; give one token at least")
        if len(pair.continuation) > self.num_ctx:
            raise ArgumentError(
                f"request {number}: a continuation of {len(pair.continuation)} tokens does not fit "
                f"into a context of {self.num_ctx}"
            )
        size = self._model.decoder.config.vocab_size
        if outside := [i for i in pair.context + pair.continuation if not 0 <= i < size]:
            raise ArgumentError(f"request {number}: token {outside[0]}: the vocabulary has {size}")

    def _scored(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Answer]]:
        together: dict[tuple[int, ...], list[int]] = {}
        for number, pair in enumerate(pairs):
            if pair.continuation:
                together.setdefault(pair.inputs(self.num_ctx), []).append(number)
            else:
                yield number, Answer(0.0, True)
        inputs = sorted(together, key=lambda ids: (-len(ids), ids))
        at, most = 0, self._model.decoder.together(PASS, LARGE_PASS)
        while at < len(inputs):
            count = max(most // len(inputs[at]), 1)
            taken = inputs[at : at + min(count, self.batch or count)]
            at += len(taken)
            yield from self._batch(pairs, taken, [together[ids] for ids in taken])

    @torch.inference_mode()
    def _batch(
        self, pairs: Sequence[Pair], inputs: list[tuple[int, ...]], asked: list[list[int]]
    ) -> list[tuple[int, Answer]]:
        """The answers of the pairs `asked` of each of `inputs`, the first of which is longest."""
        longest = len(inputs[0])
        padded = [[*ids, *[PADDING] * (longest - len(ids))] for ids in inputs]
        states = self._model.decoder.states(torch.tensor(padded))
        rows: list[Tensor] = []
        targets: list[int] = []
        numbers: list[int] = []
        for line, (ids, wanted) in enumerate(zip(inputs, asked, strict=True)):
            for number in wanted:
                continuation = pairs[number].continuation
                rows.append(states[line, len(ids) - len(continuation) : len(ids)])
                targets.extend(continuation)
                numbers.append(number)
        nll, greedy = self._rows(torch.cat(rows), torch.tensor(targets, device=states.device))
        lengths = [len(part) for part in rows]
        return [
            (number, Answer(-float(one.sum()), bool(top.all())))
            for number, one, top in zip(
                numbers, torch.split(nll, lengths), torch.split(greedy, lengths), strict=True
            )
        ]

    def _rows(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """float64 `[rows]`, -ln p of the targets, and bool `[rows]`, whether they are likeliest."""
        nll, greedy = [], []
        size = slice_rows(self._model.decoder)
        for part, asked in zip(torch.split(states, size), torch.split(targets, size), strict=True):
            logits = self._model.decoder.head(part)
            wanted = asked.to(logits.device)
            nll.append(Likelihood.of(logits, self._name, self._model.adapters).nll(logits, wanted))
            greedy.append(logits.argmax(-1) == wanted)
        return torch.cat(nll).cpu(), torch.cat(greedy).cpu()

    def generate(self, prompt: Sequence[int], options: GenerateOptions) -> str:
        """What goes on behind `prompt`, `options.num_predict` tokens at most. A prompt that does
        not fit beside them loses ids at the left; `ArgumentError` where there is no room at all."""
        room = self.num_ctx - options.num_predict
        if options.num_predict < 1 or room < 1:
            raise ArgumentError(
                f"{options.num_predict} tokens are to be generated; from 1 to {self.num_ctx - 1} "
                f"fit into a context of {self.num_ctx}"
            )
        whole = replace(options, num_ctx=self.num_ctx)
        return stream(self._model, list(prompt)[-room:], whole).result.text
