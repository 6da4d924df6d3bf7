"""Perplexity of models over texts, counted as llama-perplexity counts it, on the CPU.

    scripts/lib/perplexity.py MODEL [--adapter DIR[:WEIGHT]]... -f TEXT [-f TEXT] [--chunks N]

Chunks of 512 tokens, each from an empty cache, its first token the beginning of the text where the
vocabulary has one; what is counted is the second half of each chunk.
"""

import argparse
import math
from pathlib import Path

import torch

import gpukit

CONTEXT = 512


def perplexity(model: gpukit.Model, text: str, chunks: int | None) -> tuple[float, float, int]:
    """exp of the mean of -log p, the error of that, and the number of chunks."""
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text.removesuffix("\n"))
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    count = min(len(ids) // CONTEXT, chunks or len(ids))
    first, found = CONTEXT // 2, []
    for number in range(count):
        part = list(ids[number * CONTEXT : (number + 1) * CONTEXT])
        if bos is not None:
            part[0] = bos
        logits = model.logits(part)[first : CONTEXT - 1]
        targets = torch.tensor(part[first + 1 :])
        found.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
    nll = torch.cat(found).double()
    mean = float(nll.mean())
    error = math.sqrt(float(nll.square().mean()) - mean**2) / math.sqrt(len(nll) - 1)
    return math.exp(mean), math.exp(mean) * error, count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--adapter", action="append", default=[])
    parser.add_argument("-f", dest="texts", action="append", required=True, type=Path)
    parser.add_argument("--chunks", type=int)
    args = parser.parse_args()
    model = gpukit.load(args.model, "cpu", adapters=args.adapter)
    for path in args.texts:
        value, error, count = perplexity(model, path.read_text(), args.chunks)
        print(f"{args.model} {' '.join(args.adapter)} {path.name}: "
              f"{value:.4f} +/- {error:.4f}, {count} chunks")  # fmt: skip


if __name__ == "__main__":
    main()
