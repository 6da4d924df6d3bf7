"""What a forward pass does beside products: right by the reference, then how fast; of what has
several ways each of them, for whoever has to choose.
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpucheck.base import Plan
from gpucheck.rates import note_copy, seconds
from gpukit_kernels import causal, rows, rows_triton, trusted
from gpukit_kernels.causal_triton import Tile, attention_triton

TILES = (
    Tile(128, 64, 8, 2), Tile(128, 64, 8, 3), Tile(128, 128, 8, 2), Tile(64, 64, 4, 2),
    Tile(64, 64, 4, 3), Tile(64, 128, 4, 2),
)  # fmt: skip
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
# Sequences and their length; the last of a chunk is behind as many positions as these.
ATTENDED = ((1, 4096, 0), (32, 512, 0), (1, 1024, 3072))
HEADS, KV_HEADS, HEAD = 32, 8, 128


def check_forward(plan: Plan) -> dict[str, Any]:
    """Kernels beside their references, at sizes of models; then the rates of those of rows."""
    device = torch.device(plan.device)
    checks: dict[str, Callable[[], bool]] = {
        "norm": lambda: trusted.norms(4096 if plan.cuda else 96, device),
        "silu": lambda: trusted.gates("silu", device),
        "gelu_tanh": lambda: trusted.gates("gelu_tanh", device),
        "likelihood": lambda: trusted.likelihoods(device),
    }
    for neighbours in (True, False):
        checks[f"turns {neighbours}"] = lambda n=neighbours: trusted.turns(  # type: ignore[misc]
            (8, HEAD), HEAD // 2, n, torch.float16, device
        )
    for own, window, cap in ((False, 0, 0), (True, 0, 0), (True, 1, 0), (True, 0, 1), (True, 1, 1)):
        for head in (64, 128, 256) if plan.cuda else (32,):
            checks[f"attention {head} {own=} {window=} {cap=}"] = (
                lambda own=own, window=window, cap=cap, head=head: trusted.attention(  # type: ignore[misc]
                    head, 4, bool(window), bool(cap), device, own=own
                )
            )
    wrong = [{"kind": name} for name, check in checks.items() if not check()]
    found = {"checked": len(checks), "wrong": wrong, "rates": list(_rows(plan))}
    note_copy(plan)
    return found


def _rows(plan: Plan) -> Iterator[dict[str, Any]]:
    count, wide, width, vocab = (8192, 14336, 4096, 128256) if plan.cuda else (4, 512, 256, 512)
    gate, up = (torch.randn(count, wide, device=plan.device) for _ in range(2))
    x, weight = gate[:, :width].contiguous(), gate[0, :width].clone()
    turns = torch.polar(torch.ones_like(x[:, None, : HEAD // 2]), x[:, None, : HEAD // 2])
    heads = x.view(count, -1, HEAD)
    logits = torch.randn(count // 4, vocab, device=plan.device)
    targets = torch.zeros(len(logits), dtype=torch.int64, device=plan.device)
    half = torch.float16
    calls: dict[str, tuple[Callable[[], object], int, int]] = {
        "gate": (lambda: rows_triton.gated_triton(gate, up, "silu"), gate.numel(), 12),
        "norm": (lambda: rows_triton.rms_norm_triton(x, weight, 1e-5), x.numel(), 8),
        "turn": (
            lambda: rows_triton.rotate_triton(heads, turns, neighbours=True, dtype=half),
            x.numel(),
            6,
        ),
        "likelihood": (
            lambda: rows_triton.likelihood_triton(logits, targets), logits.numel(), 4,
        ),
        "torch's norm": (lambda: rows.rms_norm_reference(x, weight, 1e-5), x.numel(), 8),
        "torch's likelihood": (
            lambda: rows.likelihood_reference(logits, targets), logits.numel(), 4,
        ),
    }  # fmt: skip
    for what, (call, values, nbytes) in calls.items():
        took = seconds(plan, lambda _, call=call: call())  # type: ignore[misc]
        yield {
            "what": what, "seconds": took, "weights_per_s": values / took,
            "gb_per_s": values * nbytes / took / 1e9,
        }  # fmt: skip


def time_attention(plan: Plan) -> dict[str, Any]:
    """Causal attention by every tile of our kernel and every kernel of torch."""
    models, left = [], []
    for batch, count, before in ATTENDED if plan.cuda else ((1, 20, 10),):
        q, k, v = _attended(plan, batch, count, before)
        flop = 4 * batch * count * (before + count / 2) * HEADS * HEAD
        for name, call in _ways(plan, q, k, v):
            try:
                took = seconds(plan, lambda _, call=call: call())  # type: ignore[misc]
            except RuntimeError as error:
                left.append(f"{name}: {str(error)[:100]}")
                continue
            models.append(
                {"what": f"{batch} x {count} behind {before}, {name},", "seconds": took,
                 "tokens_per_s": batch * count / took, "tflops": flop / took / 1e12}
            )  # fmt: skip
    return {"models": models, "refused": left}


def _attended(plan: Plan, batch: int, count: int, before: int) -> list[Tensor]:
    heads, kv_heads = (HEADS, KV_HEADS) if plan.cuda else (2, 1)
    shapes = ((count, heads), (before + count, kv_heads), (before + count, kv_heads))
    return [
        torch.randn(batch, length, heads, HEAD, device=plan.device).half()
        for length, heads in shapes
    ]


def _ways(
    plan: Plan, q: Tensor, k: Tensor, v: Tensor
) -> Iterator[tuple[str, Callable[[], object]]]:
    for tile in TILES if plan.cuda else TILES[:1]:
        name = f"{tile.queries} x {tile.keys}, {tile.warps} warps, {tile.stages} stages"
        yield name, lambda tile=tile: attention_triton(q, k, v, 0.088, tile=tile)  # type: ignore[misc]
    yield "torch", lambda: causal.attention_torch(q, k, v, 0.088)
    for name in BACKENDS if plan.cuda else ():

        def by_one(name: str = name) -> object:
            with sdpa_kernel([getattr(SDPBackend, name)]):
                return causal.attention_torch(q, k, v, 0.088)

        yield name.lower(), by_one


def time_copies(plan: Plan) -> dict[str, Any]:
    """Weights from the page cache to the device by several numbers of readers and sizes of pieces,
    and layers that come from the host."""
    from gpukit.generation import filling
    from gpukit.models.streamed import Stream

    tensors, size, width = (64, 32 << 20, 8192) if plan.cuda else (3, 4096, 256)
    path = plan.at / "weights"
    one = torch.randint(256, (size,), dtype=torch.uint8)
    with path.open("wb") as file:
        for _ in range(tensors):
            file.write(one.numpy().data)
    places = [
        torch.empty(size // width, width, dtype=torch.uint8, device=plan.device)
        for _ in range(tensors)
    ]
    wants = [filling.Want(index, place) for index, place in enumerate(places)]
    told = []
    with path.open("rb") as file:
        source: Any = _Weights(file.fileno(), size, width)
        for readers, piece in ((6, 16), (3, 16), (12, 16), (6, 4), (1, 16)):
            filling.READERS, filling.PIECE = readers, piece << 20
            begin = time.perf_counter()
            filling.fill(source, wants)
            took = time.perf_counter() - begin
            told.append(_moved(f"{readers} readers, {piece} MiB", took, tensors * size))
    path.unlink()
    wrong = (
        [{"kind": "weights"}] if any(not torch.equal(p.view(-1).cpu(), one) for p in places) else []
    )
    device = torch.device(plan.device)
    hosts = [torch.full((8 * size,), n + 1, dtype=torch.uint8) for n in range(5)]
    stream = Stream([host.pin_memory() if plan.cuda else host for host in hosts], device)
    begin, found = time.perf_counter(), []
    for number in [*range(len(hosts))] * 3:
        stream.begin(number)
        found.append(torch.stack(stream.place(number).aminmax()))
        stream.end(number)
    seen = torch.stack(found).tolist()
    told.append(_moved("layers from the host", time.perf_counter() - begin, 15 * 8 * size))
    if seen != [[n + 1, n + 1] for n in range(len(hosts))] * 3:
        wrong.append({"kind": "layers"})
    return {"rates": told, "wrong": wrong}


def _moved(what: str, took: float, nbytes: int) -> dict[str, Any]:
    return {
        "what": what, "seconds": took, "weights_per_s": nbytes / took,
        "gb_per_s": nbytes / took / 1e9,
    }  # fmt: skip


class _Weights:
    """Tensors of one size, one behind the other in a file."""

    def __init__(self, fd: int, size: int, width: int) -> None:
        self._fd, self._size, self._width = fd, size, width

    def read(self, index: int, row: int, buffer: memoryview) -> None:
        at, done = index * self._size + row * self._width, 0
        while done < len(buffer):
            done += os.preadv(self._fd, [buffer[done:]], at + done)
