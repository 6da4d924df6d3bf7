"""One token of a large model: whether recorded steps give the logits of the usual pass, how fast
tokens come, and where the time goes.

The model is a Llama 3.1 8B in Q4_K_M of random weights, made on the device.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpucheck.base import Plan
from gpucheck.rates import seconds
from gpucheck.synthetic import Shape, llama
from gpukit.models.cache import KVCache
from gpukit.models.decoder import Decoder
from gpukit.models.recorded import RecordedStep
from gpukit.models.stepping import Layer, Parts, Step, parts_of
from gpukit.models.weights import Linear
from gpukit_kernels import attend_triton, norm_triton
from gpukit_kernels.prepared_triton import Prepared, prepare
from gpukit_kernels.table import by_name
from gpukit_kernels.vectors_triton import gated, multiply_prepared

# As gpukit.generation.steps allows.
NEAR = 2.0**-5


@dataclass(frozen=True)
class Size:
    """The model, how many positions are filled before a token, how many tokens are timed, and how
    many rows of each weight by itself."""

    shape: Shape
    filled: tuple[int, ...] = (16, 1024, 4096)
    tokens: int = 64
    rows: int | None = None


def _size(plan: Plan) -> Size:
    if plan.cuda:
        return Size(Shape())
    return Size(Shape(1, 256, 256, 4, 1, 32, 64), (3,), 1, 4)


@torch.inference_mode()
def time_engine(plan: Plan) -> dict[str, Any]:
    """Logits compared, tokens a second at each context, and microseconds of each launch."""
    size = _size(plan)
    decoder = llama(size.shape, plan.device)
    parts = parts_of(decoder)
    if parts is None:
        return {"error": "the model has no step"}
    read = _bytes(parts)
    rates: list[dict[str, Any]] = []
    wrong: list[dict[str, Any]] = []
    for filled in size.filled:
        cache = _filled(decoder, size, filled)
        begin = time.perf_counter()
        step = RecordedStep(parts, cache)
        _wait(plan)
        recording = time.perf_counter() - begin
        share, usual = _compared(plan, decoder, cache, step)
        wrong.append({"kind": f"logits at {filled}", "share": share})
        took = _decoded(plan, step, cache, size.tokens)
        rate = _rate(f"token at {filled}", took, read, size.shape.weights)
        rates.append({**rate, "usual_seconds": usual, "recording_seconds": recording})
    rates += _launches(plan, parts, size.rows)
    rates += _attentions(plan, size)
    return {"rates": rates, "wrong": [entry for entry in wrong if not entry["share"] <= 1]}


def _rate(what: str, took: float, read: int, weights: int) -> dict[str, Any]:
    return {
        "what": what, "seconds": took, "gb_per_s": read / took / 1e9,
        "weights_per_s": weights / took,
    }  # fmt: skip


def _bytes(parts: Parts) -> int:
    """Bytes of the weights that a token reads."""
    found = parts.head.output.weight.blocks.numel()
    for layer in parts.layers:
        found += sum(linear.weight.blocks.numel() for linear in _linears(layer))
    return found


def _filled(decoder: Decoder, size: Size, length: int) -> KVCache:
    """A cache with `length` positions of random keys and values, and room for what is timed."""
    cache = decoder.cache(min(decoder.config.n_ctx, 2 * (length + 2 * size.tokens)))
    cache.reserve(length + 2 * size.tokens)
    random = torch.Generator(decoder.device).manual_seed(length)
    for layer in range(decoder.config.n_layer):
        for store in cache.layer(layer):
            store.normal_(generator=random)
    cache.advance(length)
    return cache


def _compared(
    plan: Plan, decoder: Decoder, cache: KVCache, step: RecordedStep
) -> tuple[float, float]:
    """How far the step's logits are off, as a share of what is allowed; seconds of a usual pass."""
    length, took = cache.length, 0.0
    for _ in range(2):
        cache.cut(length)
        begin = time.perf_counter()
        wanted = decoder.forward([7], cache)
        _wait(plan)
        took = time.perf_counter() - begin
    cache.cut(length)
    step.take(7, length)
    error = (step.logits - wanted).abs().amax() / wanted.abs().amax() / NEAR
    return float(error.nan_to_num(nan=float("inf"))), took


def _decoded(plan: Plan, step: RecordedStep, cache: KVCache, count: int) -> float:
    """Seconds a token of the likeliest, the host a token behind, as a generation does it."""
    token = 7
    step.take(token, cache.length)
    begin = time.perf_counter()
    for place in range(cache.length + 1, cache.length + 1 + count):
        _, token = step.likeliest(place)
        step.take(token, place)
    _wait(plan)
    return (time.perf_counter() - begin) / count


def _launches(plan: Plan, parts: Parts, rows: int | None) -> list[dict[str, Any]]:
    """Each kind of launch, layer by layer, so that weights come from memory."""
    config, device = parts.decoder.config, parts.decoder.device
    x, wide = (torch.randn((1, n), device=device) for n in (config.n_embd, config.n_ff))
    p, q = prepare(x), prepare(wide)
    found = []

    def told(what: str, calls: list[Callable[[], object]], read: int = 0) -> None:
        took = seconds(plan, lambda i: calls[i](), len(calls))
        found.append(_rate(what, took, read, 0))

    norm = parts.last_norm
    told("norm", [lambda: norm_triton.norm_triton(x, norm.weight, norm.eps, prepared=p)])
    told("prepare", [lambda: prepare(wide, q)])
    linears = [_linears(layer) for layer in parts.layers]
    for number, name in enumerate(("q", "k", "v", "o", "gate", "up", "down")):
        for kind in ("Q4_K", "Q6_K"):
            mine = [each[number] for each in linears if each[number].weight.type == kind]
            if mine:
                given = q if name == "down" else p
                told(f"{name} {kind}", [_product(given, n, rows) for n in mine], _read(mine))
    told(
        "gated", [_gated(p, each[4], each[5], rows) for each in linears], 2 * _read([linears[0][4]])
    )
    told("head", [_product(p, parts.head.output, rows)] * 2, _read([parts.head.output]))
    step = Step(parts)
    told("embed", [lambda: parts.embed(step.token)])
    told("top 40", [lambda: torch.topk(step.keys, min(40, len(step.keys)))])
    return found


def _linears(layer: Layer) -> list[Linear]:
    a, f = layer.attention, layer.feed_forward
    return [a.q, a.k, a.v, a.o, f.gate, f.up, f.down]


def _read(linears: list[Linear]) -> int:
    return int(linears[0].weight.blocks.numel())


def _product(p: Prepared, linear: Linear, rows: int | None) -> Callable[[], object]:
    blocks, row = linear.weight.blocks[:rows], by_name(linear.weight.type)
    out = torch.zeros((1, len(blocks)), device=blocks.device)
    return lambda: multiply_prepared(p, blocks, row, out=out)


def _gated(p: Prepared, gate: Linear, up: Linear, rows: int | None) -> Callable[[], object]:
    first, second, row = (
        gate.weight.blocks[:rows],
        up.weight.blocks[:rows],
        by_name(gate.weight.type),
    )
    out = torch.zeros((1, len(first)), device=first.device)
    return lambda: gated(p, first, second, row, "silu", out)


def _attentions(plan: Plan, size: Size) -> list[dict[str, Any]]:
    """Attention of a layer at each context, with as many rows a step and warps as are set here:
    which of them a later version takes has to be measured."""
    config = size.shape.config
    shape = attend_triton.Shape(
        config.n_head, config.n_head_kv, config.head_dim, config.head_dim, True, 0.1
    )
    found = []
    usual = attend_triton.ROWS, attend_triton.WARPS
    try:
        for filled, setting in itertools.product(size.filled, ((4, 4), (2, 4), (8, 8))):
            attend_triton.ROWS, attend_triton.WARPS = setting
            capacity = max(256, 1 << filled.bit_length())
            calls = [_attention(plan, shape, filled, capacity, seed) for seed in range(4)]
            took = seconds(plan, lambda i, calls=calls: calls[i](), len(calls))
            read = 4 * config.n_head_kv * config.head_dim * filled
            what = f"attend {filled}" + ("" if setting == usual else f" {setting}")
            found.append(_rate(what, took, read, 0))
    finally:
        attend_triton.ROWS, attend_triton.WARPS = usual
    return found


def _attention(
    plan: Plan, shape: attend_triton.Shape, filled: int, capacity: int, seed: int
) -> Callable[[], object]:
    random = torch.Generator(plan.device).manual_seed(seed)

    def drawn(*sizes: int) -> Tensor:
        return torch.randn(sizes, device=plan.device, generator=random)

    dim = shape.head_dim
    q, k, v = (drawn(n * dim) for n in (shape.heads, shape.kv_heads, shape.kv_heads))
    keys, values = (drawn(shape.kv_heads, capacity, dim).half() for _ in range(2))
    turns, place = drawn(capacity, dim // 2, 2), torch.tensor([filled], dtype=torch.int32)
    place = place.to(plan.device)
    scratch = attend_triton.Scratch.of(shape, place.device)
    out = Prepared.from_shape(1, shape.heads * dim, plan.device)
    return lambda: attend_triton.attend_triton(
        q, k, v, turns, keys, values, place, shape, scratch, None, out
    )


def _wait(plan: Plan) -> None:
    if plan.cuda:
        torch.cuda.synchronize()
