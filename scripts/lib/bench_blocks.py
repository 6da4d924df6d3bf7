"""Times encoding blocks of the IQ1, IQ2, IQ3 and TQ types beside llama.cpp's ggml_quantize_chunk,
on the same values and cores, with importance where a type takes it.

Both have as many threads as this process may use cores (taskset -c 0 for one), which share rows.
The quickest of several rounds counts, by the wall clock and by the time of processors, which other
work on the machine hardly changes. Reports nothing unless all bytes agree. See scripts/bench for
the command.
"""

import argparse
import ctypes
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from bench_tools import cpu_name, vector_width

from gpukit_kernels import QUANTS, quantize
from gpukit_kernels.facts import MATCHED

TYPES = "IQ1_S,IQ1_M,IQ2_XXS,IQ2_XS,IQ2_S,IQ3_XXS,IQ3_S,TQ1_0,TQ2_0"
WIDTH = 4096
# Columns, each with importance of its own, and rows, for the slow types and the quick ones.
ROWS = {"IQ": 512, "TQ": 2048}
# Rounds of either side, one after the other: so many, and more until the seconds are over.
ROUNDS, SECONDS = 3, 3.0


def main() -> None:
    args = _arguments()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    peer = _Peer(args.peers, threads)
    report: dict[str, object] = {
        "command": f"scripts/bench blocks --types {args.types}",
        "machine": f"{cpu_name()}, {threads} of {os.cpu_count()} cores, {vector_width()}",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "gpukit")},
        "peer": f"llama-cpp-python 0.3.36 ({MATCHED})",
        "threads": threads,
    }
    print(f"{report['machine']}; {threads} threads each; peer: {report['peer']}")
    print("M weights/s    peer  gpukit  times as fast  the same of processors' time")
    rows = []
    for name in args.types.split(","):
        rows.append(_compare(peer, name, args.rounds))
        print("{type:11} {peer_mw_s:8} {gpukit_mw_s:7} {times_as_fast:14} {cpu_ratio:14}".format(
            **rows[-1]
        ), flush=True)  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps({**report, "rows": rows}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json")
    return parser.parse_args()


class _Peer:
    """llama.cpp's quantisers, rows shared by threads."""

    def __init__(self, peers: Path, threads: int) -> None:
        (library,) = peers.glob("lib/python3*/site-packages/llama_cpp/lib/libggml-base.so")
        self._ggml = ctypes.CDLL(str(library))
        chunk, pointer, count = self._ggml.ggml_quantize_chunk, ctypes.c_void_p, ctypes.c_int64
        chunk.restype = ctypes.c_size_t
        chunk.argtypes = (ctypes.c_int, pointer, pointer, count, count, count, pointer)
        self._pool = ThreadPoolExecutor(threads)
        self._threads = threads

    def prepare(self, type_id: int) -> None:
        """Make a type's tables."""
        self._ggml.ggml_quantize_init(type_id)

    def quantize(
        self, values: torch.Tensor, importance: torch.Tensor, type_id: int, out: torch.Tensor
    ) -> None:
        """Fill `out`, uint8 `[rows, row_bytes]`, with the blocks of float32 `[rows, WIDTH]`."""
        rows = len(values)
        # As llama-quantize: some rows at a time, so that no thread waits long for another.
        size = max(rows // (8 * self._threads), 1)

        def part(first: int) -> None:
            self._ggml.ggml_quantize_chunk(
                type_id, values.data_ptr(), out.data_ptr(), first * WIDTH,
                min(size, rows - first), WIDTH, importance.data_ptr(),
            )  # fmt: skip

        list(self._pool.map(part, range(0, rows, size)))


def _compare(peer: _Peer, name: str, rounds: int) -> dict[str, object]:
    kind = QUANTS[name]
    random = torch.Generator().manual_seed(1)
    values = torch.randn(ROWS[name[:2]], WIDTH, generator=random) * 0.02
    importance = torch.rand(WIDTH, generator=random) ** 4 + 1e-3
    theirs = torch.zeros(len(values), kind.row_bytes(WIDTH), dtype=torch.uint8)
    peer.prepare(kind.id)
    ours = quantize(values, name, importance)  # what is compiled is compiled now
    peer_times, times, begin = [], [], time.monotonic()
    while len(times) < rounds or time.monotonic() - begin < SECONDS:
        peer_times.append(_timed(lambda: peer.quantize(values, importance, kind.id, theirs)))
        times.append(_timed(lambda: quantize(values, name, importance)))
    if not torch.equal(ours, theirs):
        sys.exit(f"{name}: other bytes than llama.cpp's")
    peer_wall, peer_cpu = map(min, zip(*peer_times, strict=True))
    wall, cpu = map(min, zip(*times, strict=True))
    return {
        "type": name,
        "weights": values.numel(),
        "rounds": len(times),
        "importance": kind.facts.takes_importance,
        "peer_s": round(peer_wall, 3),
        "peer_cpu_s": round(peer_cpu, 3),
        "gpukit_s": round(wall, 3),
        "gpukit_cpu_s": round(cpu, 3),
        "peer_mw_s": round(values.numel() / peer_wall / 1e6, 2),
        "gpukit_mw_s": round(values.numel() / wall / 1e6, 2),
        "times_as_fast": round(peer_wall / wall, 2),
        "cpu_ratio": round(peer_cpu / cpu, 2),
    }


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the wall clock, and of all processors."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
