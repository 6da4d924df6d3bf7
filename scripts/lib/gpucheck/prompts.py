"""Prompts and passes of windows by a large model: whether logits are right, and how fast they come.

The model is a Llama 3.1 8B in Q4_K_M of random weights, made on the device.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpucheck.base import Plan
from gpucheck.synthetic import Shape, llama
from gpukit.evaluation import scoring
from gpukit.evaluation.ahead import Ahead
from gpukit.evaluation.windows import Windows
from gpukit.generation.loading import LoadedModel
from gpukit.models import decoder as decoders
from gpukit.models.cache import KVCache
from gpukit.models.decoder import Decoder

# Activations are rounded to float16 before each of some two hundred products in a row, each off by
# 2^-11; logits in another order of sums, or of other keys and values, differ by a few times that.
NEAR = 2.0**-6


@dataclass(frozen=True)
class Size:
    """The model; tokens of the prompt, of what is compared, and of a window; windows of a pass."""

    shape: Shape
    prompt: int = 4096
    compared: int = 1024
    window: int = 512
    windows: int = 64


def _size(plan: Plan) -> Size:
    if plan.cuda:
        return Size(Shape())
    return Size(Shape(2, 256, 512, 4, 2, 512, 512), 96, 64, 32, 4)


def time_prompts(plan: Plan) -> dict[str, Any]:
    """Whether logits are near, and the seconds of a prompt and of a pass."""
    size = _size(plan)
    decoder = llama(size.shape, plan.device)
    wrong = _compared(decoder, size)
    models = [*_prompts(plan, size, decoder), *_passes(plan, size, decoder)]
    return {"models": models, "wrong": [entry for entry in wrong if entry["share"] > 1]}


def _prompts(plan: Plan, size: Size, decoder: Decoder) -> Iterator[dict[str, Any]]:
    """A prompt in one chunk, and in smaller ones."""
    ids, work = _ids(size, size.prompt), _work(size.shape, size.prompt)
    for parts in (1, 2, 4):
        with _set(decoders, "LARGE_PREFILL", size.prompt // parts):
            taken = _seconds(plan, lambda: decoder.forward(ids, decoder.cache(size.prompt)))
        yield _told(f"prompt of {size.prompt} in {parts}", taken, size.prompt, work)


def _passes(plan: Plan, size: Size, decoder: Decoder) -> Iterator[dict[str, Any]]:
    """Windows in two passes, and in four."""
    count = size.windows * size.window
    tokens = np.array(_ids(size, count), np.int32).reshape(size.windows, size.window)
    windows = Windows(tokens, size.window // 2, None)
    head = size.shape.vocab * size.shape.embd * count
    work = size.windows * _work(size.shape, size.window) + head
    for parts in (2, 4):
        with _set(scoring, "LARGE_PASS", count // parts):
            taken = _seconds(plan, lambda: _scored(decoder, windows))
        yield _told(f"windows of {size.window}, {count // parts} together,", taken, count, work)


@contextmanager
def _set(module: Any, name: str, value: int) -> Iterator[None]:
    """Within it a module's constant is another."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _told(what: str, seconds: float, tokens: int, work: int) -> dict[str, Any]:
    return {
        "what": what, "seconds": seconds, "tokens_per_s": tokens / seconds,
        "tflops": work / seconds / 1e12,
    }  # fmt: skip


def _work(shape: Shape, tokens: int) -> int:
    """Floating-point operations of a sequence, without its logits; of attention what is seen."""
    products = shape.weights - shape.vocab * shape.embd
    return 2 * tokens * products + 2 * tokens * tokens * shape.embd * shape.layers


def _ids(size: Size, count: int) -> list[int]:
    random = torch.Generator().manual_seed(count)
    found: list[int] = torch.randint(size.shape.vocab, (count,), generator=random).tolist()
    return found


def _scored(decoder: Decoder, windows: Windows) -> None:
    # A tokenizer is not asked for.
    ahead = Ahead(LoadedModel(decoder, None, 0.0), windows, "model")  # type: ignore[arg-type]
    for number in range(len(windows)):
        ahead.scores(number)


def _compared(decoder: Decoder, size: Size) -> list[dict[str, Any]]:
    """Logits of a prompt in pieces, and with keys and values in float32, beside the whole."""
    ids, count = _ids(size, size.compared), size.compared
    whole = decoder.forward(ids, decoder.cache(count), every=True)
    cache, pieces = decoder.cache(count), []
    for part in torch.split(torch.tensor(ids), count // 3):
        pieces.append(decoder.forward(part.tolist(), cache, every=True))
    full = KVCache(decoder.config, count, decoder.device, torch.float32)
    exact = decoder.forward(ids, full, every=True)
    return [_share("in pieces", torch.cat(pieces), whole), _share("in float32", whole, exact)]


def _share(kind: str, found: Tensor, wanted: Tensor) -> dict[str, Any]:
    """The largest difference as a share of what is allowed; NaN counts as infinite."""
    error = (found - wanted).abs().amax() / wanted.abs().amax() / NEAR
    return {"kind": kind, "share": float(error.nan_to_num(nan=float("inf")))}


def _seconds(plan: Plan, call: Callable[[], object]) -> float:
    """Median seconds of `call` behind one that is not counted."""
    times = []
    for _ in range(1 + min(plan.repeats, 5)):
        _wait(plan)
        begin = time.perf_counter()
        call()
        _wait(plan)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def _wait(plan: Plan) -> None:
    if plan.cuda:
        torch.cuda.synchronize()
