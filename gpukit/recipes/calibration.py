"""Importance that is collected on the way to a quantised model, and kept in memory only."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np

from gpukit.conversion.origins import Origin, Wishes
from gpukit.errors import ArgumentError
from gpukit.evaluation.collecting import Reading, collect, prepare
from gpukit.evaluation.windows import NUM_CTX
from gpukit.formats.imatrix import Imatrix, as_imatrix

# What messages call a text that is in no file.
TEXT = Path("the text")


def check_calibration(text: str | Path | None, quantize: str | None, imatrix: Path | None) -> None:
    """`ArgumentError` for a text that is of no use."""
    if text is None:
        return
    if not quantize:
        raise ArgumentError("--calibrate: importance is for quantising; add -q TYPE")
    if imatrix is not None:
        raise ArgumentError(f"--calibrate and --imatrix {imatrix}: both are importance; give one")


def calibrated(
    path: Path, work: Wishes, text: str | Path, opened: Callable[[Wishes], Origin], *, dry: bool
) -> Wishes:
    """`work` with the importance that the model at `path`, adapters and all, has while it reads
    `text`, which is a `Path` where it is in a file.

    What is wrong with the work, which `opened` begins, shows before the text is read; a `dry` run
    does not read it, and has the importance of all that would be heard as 1.
    """
    reading = prepare(
        path, [text], NUM_CTX, pre=work.pre, adapters=work.merge, report=work.report
    )  # fmt: skip
    where = text if isinstance(text, Path) else TEXT
    foreseen = replace(work, imatrix=_foreseen(reading, where))
    if dry:
        return foreseen
    with closing(opened(foreseen)):
        pass
    device = work.device.partition(",")[0]  # texts are read on one
    found = collect(reading, device, report=work.report)
    return replace(work, imatrix=replace(as_imatrix(found, where), is_file=False))


def _foreseen(reading: Reading, where: Path) -> Imatrix:
    entries = {
        name: np.ones(spec.ne[0] * prod(spec.ne[2:3]), np.float32)
        for name, spec in reading.tensors.items()
        if name.startswith("blk.") and len(spec.ne) > 1
    }
    dataset = reading.texts[0] if reading.texts else ""
    return Imatrix(where, entries, dataset, reading.chunks, is_file=False)
