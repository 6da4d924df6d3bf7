"""Compares the compiled CPU path with llama.cpp itself on fresh random blocks, block by block.

    .venv/bin/python scripts/lib/live.py [--blocks 1e7] [--types Q4_K,Q6_K] [--importance]

Values are gaussian under scales of every size, a sixteenth of them zero. Prints a line a type:
blocks compared and blocks that differ; 1 where any does. The peer is llama.cpp's library inside
xllamacpp.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.quant_kinds import Peer, find_peer  # noqa: E402

from gpukit_kernels import QUANTS, quantize  # noqa: E402

WIDTH = 4096
VALUES = 1 << 22


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=float, default=1e7)
    parser.add_argument("--types")
    parser.add_argument("--importance", action="store_true")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    args = parser.parse_args()
    library = find_peer()
    if library is None:
        sys.exit("xllamacpp is not there; scripts/test installs it")
    names = args.types.split(",") if args.types else _written(args.importance)
    print(f"seed {args.seed}")
    peer, wrong = Peer(library), 0
    for name in names:
        wrong += _compare(peer, name, int(args.blocks), args.importance, args.seed)
    return int(wrong > 0)


def _written(importance: bool) -> list[str]:
    return [
        name
        for name, row in QUANTS.items()
        if (row.weighted if importance else row.encode) and row.block > 1
    ]


def _compare(peer: Peer, name: str, blocks: int, importance: bool, seed: int) -> int:
    row = QUANTS[name]
    random = torch.Generator().manual_seed(seed)
    done = wrong = 0
    with ThreadPoolExecutor() as threads:
        while done < blocks:
            values = torch.randn(VALUES // WIDTH, WIDTH, generator=random)
            scales = torch.exp2(torch.empty(VALUES // row.block, 1).uniform_(-18, 18))
            values = (values.view(-1, row.block) * scales).view(-1, WIDTH)
            values[::16, ::3] = 0.0
            weights = torch.rand(WIDTH, generator=random) if importance else None
            wanted = np.concatenate(
                list(
                    threads.map(
                        lambda part, weights=weights: peer.quantize(
                            part.numpy(), row.id, None if weights is None else weights.numpy()
                        ),
                        values.chunk(8),
                    )
                )
            )
            got = quantize(values, name, weights, backend="compiled").numpy()
            wrong += int((got != wanted).reshape(-1, row.nbytes).any(axis=1).sum())
            done += VALUES // row.block
    what = " with importance" if importance else ""
    print(f"{name}{what}: {done} blocks, {wrong} differ", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
