"""An importance matrix from a model and texts, or from several of them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpukit.conversion.checks import check_device, check_plan
from gpukit.errors import ArgumentError
from gpukit.evaluation.collecting import Reading, collect, prepare, saved, silent_lines
from gpukit.evaluation.importance_merging import check_fits, differing_sizes, merged
from gpukit.evaluation.importance_statistics import TensorStatistics, statistics
from gpukit.evaluation.windows import NUM_CTX, check_window
from gpukit.events import Report, Status, Warned, ignore
from gpukit.formats.imatrix import Collection, read_collection
from gpukit.formats.imatrix_writer import SCHEMA, write_dat, write_gguf
from gpukit.formats.outputs import check_output
from gpukit.given import path_of
from gpukit.recipes.references import locate
from gpukit.sources.merged import Chosen, Merge
from gpukit_kernels.devices import Device

FORMATS = ("gguf", "dat")
# As often as llama-imatrix saves.
SAVE_EVERY = 10
# What a state is called, behind the name of the output.
UNFINISHED = ".unfinished"

# The statistics of a tensor that nothing came to, as llama-imatrix writes them.
SILENT = np.zeros(len(SCHEMA), np.float32)


@dataclass(frozen=True)
class ImatrixResult:
    """What was written: the file, its form and bytes, what it was collected from, the chunks that
    it stands for, of `chunk_size` tokens; the tokens that were read now and how long it took.

    `statistics` are those of every tensor with data, layer by layer; `warnings` what there was to
    warn of.
    """

    path: Path
    format: str
    size: int
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int
    tokens: int
    seconds: float
    statistics: tuple[TensorStatistics, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything as one JSON-ready document; the size in bytes."""
        return {
            "path": str(self.path),
            "format": self.format,
            "size": self.size,
            "datasets": list(self.datasets),
            "chunks": self.chunks,
            "chunk_size": self.chunk_size,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "statistics": [tensor.as_json() for tensor in self.statistics],
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class ImatrixStatistics:
    """What an importance matrix that is there is like."""

    path: Path
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int
    statistics: tuple[TensorStatistics, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything as one JSON-ready document."""
        return {
            "path": str(self.path),
            "datasets": list(self.datasets),
            "chunks": self.chunks,
            "chunk_size": self.chunk_size,
            "statistics": [tensor.as_json() for tensor in self.statistics],
        }


def imatrix(
    model: str | Path | None,
    text: str | Path | Sequence[str | Path] | None,
    out: str | Path,
    *,
    num_ctx: int = NUM_CTX,
    chunks: int | None = None,
    process_output: bool = False,
    parse_special: bool = False,
    in_files: str | Path | Sequence[str | Path] = (),
    save_every: int = SAVE_EVERY,
    output_format: str | None = None,
    device: Device = "auto",
    pre: str | None = None,
    hub: bool = False,
    report: Report = ignore,
) -> ImatrixResult:
    """Write to `out` how important the columns of the weights of `model` are, as llama-imatrix
    does: sums of the squares of what comes in while it reads `text`.

    `model` is what `gpukit.load` takes; `text` is the text itself or, as a `Path`, a file of it,
    or several. Each is cut into windows of `num_ctx` tokens, at most
    `chunks` of all; with `parse_special` control tokens in it are such. With `process_output` the
    head is collected, too. `in_files`, importance matrices of the same model, are added; without
    `model` and `text` only they are. `output_format` is gguf or dat, llama.cpp's older form, by
    default what the ending of `out` says. Every `save_every` chunks, unless that is 0, what there
    is is saved as `out`.unfinished, an importance matrix itself; a run that was killed goes on from
    there when it is asked for again.
    `ArgumentError` for what does not go together and for texts that are too short, `FormatError`
    for a file that is no importance matrix, DiskError, and the errors of `gpukit.load`.

        gpukit.imatrix("llama-f16.gguf", Path("calibration.txt"), "imatrix.gguf").chunks
    """
    started, out = time.monotonic(), path_of(out, "a path for the output")
    texts, matrix = _each(text), "the path of an importance matrix"
    files = [path_of(file, matrix) for file in _each(in_files)]
    kind = _check(model, texts, files, out, output_format, save_every)
    check_window(num_ctx, chunks)
    check_plan(None, pre)
    check_device(device)
    parts = [(str(file), read_collection(file)) for file in files]
    warnings = differing_sizes(parts)
    if parts:
        merged(parts, num_ctx)  # shows what does not go together
    tokens = 0
    if model is not None:
        there = locate(model, hub=hub).open(report)
        stored = tuple(map(Chosen, there.adapters))
        reading = prepare(
            there.gguf, texts, num_ctx,
            chunks=chunks, process_output=process_output, parse_special=parse_special, pre=pre,
            adapters=Merge(stored) if stored else None,
            called=(there.name.model,) if there.name else (),
            name=str(model), report=report,
        )  # fmt: skip
        check_output(out, reading.files)
        for part in parts:
            check_fits(part, reading.tensors, reading.name)
        found, tokens = _collected(reading, device, out, save_every, report)
        parts.append((reading.name, found))
    whole = merged(parts, num_ctx)
    warnings += silent_lines(whole)
    for line in warnings:
        report(Warned(line))
    described = _write(whole, out, kind, report)
    if model is not None:
        _state(out).unlink(missing_ok=True)
    return ImatrixResult(
        path=out,
        format=kind,
        size=out.stat().st_size,
        datasets=whole.datasets,
        chunks=whole.chunks,
        chunk_size=whole.chunk_size,
        tokens=tokens,
        seconds=time.monotonic() - started,
        statistics=described,
        warnings=tuple(warnings),
    )


def describe(file: str | Path) -> ImatrixStatistics:
    """What the importance matrix `file` is like; `FormatError` where it is none."""
    path = path_of(file, "the path of an importance matrix")
    found = read_collection(path)
    described = tuple(statistics(merged([(str(path), found)], 1).entries).values())
    return ImatrixStatistics(path, found.datasets, found.chunks, found.chunk_size, described)


def _each(words: str | Path | Sequence[str | Path] | None) -> list[str | Path]:
    return [words] if isinstance(words, str | Path) else list(words or ())


def _check(
    model: str | Path | None,
    texts: Sequence[str | Path],
    files: Sequence[Path],
    out: Path,
    kind: str | None,
    save_every: int,
) -> str:
    """The form of the output. `ArgumentError` for what is wrong whatever the model is, `DiskError`
    where this user may not write."""
    if model is not None and not texts:
        raise ArgumentError("no text for the model to read; give one with --file")
    if model is None and texts:
        raise ArgumentError("no model to read the text; name one")
    if model is None and not files:
        raise ArgumentError("neither a model and a text nor files to add up (--in-file)")
    if save_every < 0:
        raise ArgumentError(f"save_every is {save_every}; chunks, or 0 for never")
    if kind is not None and kind not in FORMATS:
        raise ArgumentError(f"unknown output_format {kind[:40]!r}; known: {', '.join(FORMATS)}")
    inputs = [*(text for text in texts if isinstance(text, Path)), *files]
    check_output(out, inputs)
    if model is not None:
        check_output(_state(out), inputs)
    return kind or ("dat" if out.suffix.lower() == ".dat" else "gguf")


def _state(out: Path) -> Path:
    return out.with_name(out.name + UNFINISHED)


def _collected(
    reading: Reading, device: Device, out: Path, save_every: int, report: Report
) -> tuple[Collection, int]:
    """What was collected, and the tokens that were read for it now."""
    state = _state(out)
    before = saved(state, reading)
    found = collect(reading, device, state=state, save_every=save_every, report=report)
    return found, (found.chunks - (before.chunks if before else 0)) * reading.num_ctx


def _write(found: Collection, out: Path, kind: str, report: Report) -> tuple[TensorStatistics, ...]:
    described = statistics(found.entries)
    report(Status(f"writing {out}"))
    if kind == "dat":
        write_dat(out, found)
    else:
        nothing = [name for name in found.entries if name not in described]
        values = {name: tensor.values() for name, tensor in described.items()}
        write_gguf(out, found, {**values, **dict.fromkeys(nothing, SILENT)})
    return tuple(described.values())
