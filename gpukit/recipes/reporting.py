"""The page of a measurement: where its models come from, what their tensors lost, and the file."""

import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.evaluation.report import Measured, document
from gpukit.evaluation.report_page import page
from gpukit.evaluation.scoring import Scores
from gpukit.evaluation.subjects import Heed, Subject
from gpukit.evaluation.tensor_errors import TensorError, errors_beside, errors_in_memory
from gpukit.evaluation.worst_tokens import worst_tokens
from gpukit.events import Report, Status
from gpukit.formats.atomic import atomic_write, disk_errors
from gpukit.formats.logits import LogitsFile
from gpukit.planning.plan import QuantizePlan
from gpukit.recipes.measured import Asked, Ready
from gpukit.sources.base import Source
from gpukit.sources.opening import open_source

LIBRARIES = ("torch", "triton", "numpy", "tokenizers", "sentencepiece")
COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"sha256-([0-9a-f]{64})")


class ReportWriter:
    """Gathers what a page needs while models are measured, and writes it to `asked.save_report`."""

    def __init__(self, asked: Asked, ready: Ready, report: Report) -> None:
        self._asked, self._ready, self._report = asked, ready, report
        self._place = kernels.device_list(asked.device)[0]
        self._errors: dict[int, tuple[TensorError, ...]] = {}

    def heed(self, number: int) -> Heed:
        """What subject `number` is to be loaded with."""

        def heed(source: Source, plan: QuantizePlan, blocks: Sequence[Tensor]) -> None:
            self._errors[number] = errors_in_memory(source, plan, blocks, self._place)

        return heed

    def write(self, numbers: Sequence[Mapping[str, Any]], scores: Sequence[Scores]) -> None:
        """Write the page of models with these numbers and scores, whole or not at all; `DiskError`
        where the disk refuses."""
        path = Path(str(self._asked.save_report))
        self._report(Status(f"writing {path}"))
        models = [
            self._measured(n, row, found)
            for n, (row, found) in enumerate(zip(numbers, scores, strict=True))
        ]
        text = page(document(models, self._facts(numbers)))
        atomic_write(path, text.encode("utf-8", "backslashreplace"))

    def _measured(self, number: int, row: Mapping[str, Any], scores: Scores) -> Measured:
        subject = self._ready.subjects[number]
        return Measured(
            numbers=row,
            revision=revision(subject.path),
            recipe=_recipe(subject),
            errors=self._errors_of(number, subject),
            worst=worst_tokens(scores, self._ready.windows[number], subject.tokenizer),
        )

    def _errors_of(self, number: int, subject: Subject) -> tuple[TensorError, ...]:
        if number in self._errors:
            return self._errors[number]
        if subject.as_type is not None:  # a journal knew its scores
            with subject.quantised(self._asked.device, self._report) as (source, plan, blocks):
                return errors_in_memory(source, plan, blocks, self._place)
        base = self._ready.base
        if not isinstance(base, Subject) or base is subject or base.as_type is not None:
            return ()
        with ExitStack() as stack:
            theirs = stack.enter_context(open_source(base.path, base.pre))
            return errors_beside(
                theirs, stack.enter_context(open_source(subject.path, subject.pre)), self._place
            )

    def _facts(self, numbers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        ready, asked, first = self._ready, self._asked, numbers[0]
        stride = f", a window every {asked.stride}" if asked.stride else ""
        windows = ready.windows[0]
        text = str(asked.text) if isinstance(asked.text, Path) else "given as text"
        digest = f", sha256 {ready.text_sha256}" if ready.text_sha256 else ""
        subject = ready.subjects[0]
        return {
            "Model": f"{subject.name} ({subject.type}; {_files(subject)})",
            "Source revision": revision(subject.path) or "none known: files of this machine",
            "Reference": _reference(ready),
            "Text": ("that of the logits file" if asked.text is None else text) + digest,
            "Importance": _importance(ready),
            "Context": f"{windows.num_ctx} tokens{stride}, {windows.scored} of each scored",
            "Chunks": f"{first['chunks']}, {first['tokens']:,} tokens scored",
            "Seed": "none: nothing is random",
            "Device": _device(self._place),
            "Versions": _versions(),
        }


def revision(path: Path) -> str | None:
    """The commit of the hub that a file or folder in its cache is of, or the digest in the name of
    a blob of the store; None where the path does not tell."""
    parts = path.parts
    for folder, name in pairwise(parts):
        if folder == "snapshots" and COMMIT.fullmatch(name):
            return f"commit {name}"
    found = DIGEST.fullmatch(path.name)
    return f"sha256 {found[1]}" if found else None


def _recipe(subject: Subject) -> str:
    chosen = subject.adapters.adapters if subject.adapters is not None else ()
    how = "merged" if subject.as_type is not None else "beside"
    beside = [f"adapter {each.path.name} at {each.weight:g} {how}" for each in chosen]
    words = [subject.name if subject.as_type is None else "quantised in memory", *beside]
    if subject.imatrix is not None:
        words.append("with importance")
    elif subject.as_type is None and (made := _made_with(subject)):
        words.append(f"made with importance of {made}")
    return ", ".join(words)


def _made_with(subject: Subject) -> str | None:
    """The importance matrix that a GGUF says it was made with."""
    with open_source(subject.path, subject.pre) as source:
        found = source.get("quantize.imatrix.file")
    return found if isinstance(found, str) else None


def _files(subject: Subject) -> str:
    files = [
        each
        for path in subject.files
        for each in (sorted(path.iterdir()) if path.is_dir() else [path])
        if each.suffix in (".gguf", ".safetensors", ".bin", ".pth") or not path.is_dir()
    ]
    size = sum(each.stat().st_size for each in files)
    return f"{files[0].name}, {size:,} bytes" if len(files) == 1 else f"{size:,} bytes"


def _reference(ready: Ready) -> str:
    match ready.base:
        case Subject() as base:
            return f"{base.name} ({base.type}; {_files(base)})"
        case LogitsFile() as file:
            return f"{file.path}, a logits file with 16-bit codes"
    return "none: perplexity alone"


def _importance(ready: Ready) -> str:
    found = next((each.imatrix for each in ready.subjects if each.imatrix is not None), None)
    if found is None:
        return "none given"
    with disk_errors(found.path), found.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    of = f", of {found.dataset} in {found.chunks} chunks" if found.dataset else ""
    return f"{found.path}{of}, sha256 {digest}"


def _device(place: torch.device) -> str:
    if place.type == "cuda":
        return f"{place}, {torch.cuda.get_device_name(place)}"
    return f"{place}, {platform.machine()}, {os.cpu_count()} cores"


def _versions() -> str:
    from gpukit.version import VERSION

    found = [f"gpukit {VERSION}", f"Python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
