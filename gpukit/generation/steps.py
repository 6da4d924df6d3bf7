"""Recorded steps of a model, one a cache, where they save launches; compared with the usual pass
before anybody uses them."""

import logging
from threading import Lock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gpukit.models.cache import KVCache
from gpukit.models.decoder import Decoder
from gpukit.models.recorded import RecordedStep
from gpukit.models.stepping import Parts, parts_of
from gpukit_kernels.recording import records

_log = logging.getLogger(__name__)

# Single tokens that a cache takes up the usual way before a step is recorded for it: recording
# takes as long as some tokens.
PATIENCE = 2
# Both ways round queries, keys, values or activations to ten bits or more before products, in every
# layer, and sum in orders of their own: each is off by some 2^-11 of the largest. A wrong kernel
# gives other logits altogether.
NEAR = 2.0**-5


class Steps:
    """The steps of `decoder`, where its device records (`anywhere`: also where not).

    One that fails, or whose logits are not those of the usual pass, is one line of warning; there
    is none from then on.
    """

    def __init__(self, decoder: Decoder, *, anywhere: bool = False) -> None:
        self._decoder = decoder
        self._lock = Lock()
        self._steps: WeakKeyDictionary[KVCache, RecordedStep] = WeakKeyDictionary()
        self._single: WeakKeyDictionary[KVCache, int] = WeakKeyDictionary()
        self._verified = False
        found = records(decoder.device) or anywhere
        self._parts: Parts | None = parts_of(decoder) if found else None

    def take(self, token: int, cache: KVCache) -> RecordedStep | None:
        """The step that has taken `token` up behind what `cache` has; None where the usual pass has
        to. `ArgumentError` where it does not fit."""
        if self._parts is None:
            return None
        cache.need(1)
        step = self._step_of(self._parts, token, cache)
        if step is not None:
            step.take(token, cache.length)
            cache.advance(1)
        return step

    def _step_of(self, parts: Parts, token: int, cache: KVCache) -> RecordedStep | None:
        step = self._steps.get(cache)
        if step is not None and step.capacity == cache.capacity and cache.length < step.capacity:
            return step
        if step is None:
            self._single[cache] = seen = self._single.get(cache, 0) + 1
            if seen <= PATIENCE:
                return None
        with self._lock:
            return self._recorded(parts, token, cache)

    def _recorded(self, parts: Parts, token: int, cache: KVCache) -> RecordedStep | None:
        # The old one's memory is free before the new one is recorded.
        self._steps.pop(cache, None)
        length = cache.length
        try:
            cache.reserve(1)
            step = RecordedStep(parts, cache)
            if not self._verified:
                self._verify(step, token, cache)
        except Exception as error:
            cache.cut(length)
            self._parts = None
            _log.warning(
                "recorded steps on %s: %s; tokens go the slower way from here; please report this",
                self._decoder.device, " ".join(str(error).split())[:300] or type(error).__name__,
            )  # fmt: skip
            return None
        self._steps[cache] = step
        return step

    def _verify(self, step: RecordedStep, token: int, cache: KVCache) -> None:
        """Raise where the step's logits behind `token` are not those of the usual pass."""
        length = cache.length
        wanted = self._decoder.forward([token], cache)
        cache.cut(length)
        step.take(token, length)
        off = _off(step.logits, wanted)
        if not off <= NEAR:
            raise ArithmeticError(f"logits are off by {off:.1g} of the largest, {NEAR} is allowed")
        self._verified = True


def _off(found: Tensor, wanted: Tensor) -> float:
    """The largest difference as a share of the largest logit; NaN where one is."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(torch.finfo().tiny))
