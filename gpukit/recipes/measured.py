"""What is measured, found and looked at: all that can be wrong before a measurement begins."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import gpukit_kernels as kernels
from gpukit.errors import ArgumentError
from gpukit.evaluation.subjects import Subject, check_same_vocabulary, look, marks
from gpukit.evaluation.windows import (
    NUM_CTX,
    Windows,
    cut,
    lost_bytes,
)
from gpukit.events import Report, Warned
from gpukit.formats.imatrix import Imatrix, read_imatrix
from gpukit.formats.logits import LogitsFile
from gpukit.recipes.asked import Asked, check, given_text
from gpukit.recipes.chosen import chosen, located
from gpukit.recipes.references import Reference, locate
from gpukit.sources.merged import Chosen, Merge
from gpukit.sources.opening import PRE_FOR_FOLDERS


@dataclass(frozen=True)
class Ready:
    """What is measured: models with the windows of each, and the reference, if any.

    The windows of all are those of one text; BOS is each model's own. `fingerprint` says as JSON
    what the numbers come from.
    """

    subjects: tuple[Subject, ...]
    windows: tuple[Windows, ...]
    base: Subject | LogitsFile | None
    base_windows: Windows
    text_sha256: str | None
    fingerprint: dict[str, Any]


def opened(asked: Asked, stack: ExitStack, report: Report) -> Ready:
    """What is asked for, found and looked at, no weights loaded; `stack` closes what is open.

    All that can be wrong whatever the models are is told before they are fetched; the errors are
    those of `gpukit.perplexity`.
    """
    file = check(asked, stack)
    text = given_text(asked, file)
    references = [locate(word, hub=asked.hub) for word in asked.models]
    base = None if file or asked.against is None else locate(asked.against)
    located([asked.adapters] if isinstance(asked.adapters, str | Path) else asked.adapters)
    imatrix = read_imatrix(Path(asked.imatrix)) if asked.imatrix is not None else None
    merge = chosen(
        asked.adapters, strict=asked.strict, moe_layout=asked.moe_layout, report=report
    ) or Merge(())
    subjects = [_subject(each, asked, merge, report) for each in references]
    subjects += [
        _subject(references[0], asked, merge, report, kind, imatrix) for kind in asked.types
    ]
    against: Subject | LogitsFile | None = file
    if base is not None:
        merge = asked.against_merge or Merge(())
        against = _subject(base, asked, merge, report, asked.against_type)
    elif file is None and len(subjects) > 1:
        against = subjects[0]
    everyone = [*subjects, *([against] if isinstance(against, Subject) else [])]
    if asked.pre is not None and not any(each.path.is_dir() for each in everyone):
        raise ArgumentError(f"{subjects[0].name}: {PRE_FOR_FOLDERS}")
    windows = _windows(subjects, against, asked, text, report)
    return Ready(
        subjects=tuple(subjects),
        windows=windows[: len(subjects)],
        base=against,
        base_windows=windows[-1],
        text_sha256=None if text is None else hashlib.sha256(text.encode()).hexdigest(),
        fingerprint=_fingerprint(subjects, against, asked, windows[0], text),
    )


def _subject(
    reference: Reference,
    asked: Asked,
    merge: Merge,
    report: Report,
    kind: str | None = None,
    imatrix: Imatrix | None = None,
) -> Subject:
    found = reference.open(report)
    stored = tuple(map(Chosen, found.adapters))
    adapters = replace(merge, adapters=(*stored, *merge.adapters))
    # A GGUF has a pre-tokenizer of its own: one that is named is for the folders among the models.
    return look(
        found.gguf,
        reference.word if kind is None else f"{reference.word} as {kind.upper()}",
        as_type=kind,
        imatrix=imatrix,
        adapters=adapters if adapters.adapters else None,
        called=(found.name.model,) if found.name else (),
        pre=asked.pre if found.gguf.is_dir() else None,
    )


def _windows(
    subjects: Sequence[Subject],
    against: Subject | LogitsFile | None,
    asked: Asked,
    text: str | None,
    report: Report,
) -> tuple[Windows, ...]:
    """The windows of each subject, then those of the reference if it is a model."""
    everyone = [*subjects, *([against] if isinstance(against, Subject) else [])]
    for subject in everyone:
        check_same_vocabulary(against if against is not None else subject, subject)
    found: list[Windows] = []
    for subject in everyone:
        windows = _windows_of(subject, against, asked, text)
        if found:
            _check_ids(windows, found[0], subject.name, everyone[0].name)
        found.append(windows)
    for subject in {id(each): each for each in everyone}.values():
        _warn(subject, found[0].num_ctx, text, report)
    return tuple(found)


def _windows_of(
    subject: Subject, against: Subject | LogitsFile | None, asked: Asked, text: str | None
) -> Windows:
    where = str(asked.text) if isinstance(asked.text, Path) else ""
    if not isinstance(against, LogitsFile):
        assert text is not None
        num_ctx = asked.num_ctx or NUM_CTX
        return cut(
            text, subject.tokenizer, num_ctx, chunks=asked.chunks, stride=asked.stride,
            where=where, option=asked.option,
        )  # fmt: skip
    num_ctx = against.shape.num_ctx
    bos = subject.tokenizer.bos_id if subject.tokenizer.add_bos else None
    theirs = Windows(against.ids[: asked.chunks], num_ctx // 2, bos)
    if text is None:
        return theirs
    ours = cut(text, subject.tokenizer, num_ctx, chunks=len(theirs), where=where, option="")
    theirs = replace(theirs, ids=theirs.ids[: len(ours)])
    _check_ids(ours, theirs, "the text", str(against.path))
    return theirs


def _check_ids(ours: Windows, theirs: Windows, name: str, their_name: str) -> None:
    """`ArgumentError` where windows do not hold the same tokens."""
    if np.array_equal(ours.ids, theirs.ids):
        return
    one, other = ours.ids.ravel(), theirs.ids.ravel()
    size = min(len(one), len(other))
    differ = np.flatnonzero(one[:size] != other[:size])
    at = int(differ[0]) if len(differ) else size
    raise ArgumentError(
        f"{name} and {their_name} have different tokens from number {at} on: a divergence is of "
        "models that see the same text as the same tokens"
    )


def _warn(subject: Subject, num_ctx: int, text: str | None, report: Report) -> None:
    """What is harmless and good to know."""
    if num_ctx > subject.n_ctx:
        report(Warned(
            f"{subject.name}: windows of {num_ctx} tokens, the model was made for {subject.n_ctx}: "
            f"what lies behind is expected badly; num_ctx {subject.n_ctx} or less"
        ))  # fmt: skip
    if subject.tokenizer.add_eos:
        report(Warned(f"{subject.name}: its vocabulary ends a text with EOS; none is put in"))
    if text is not None and (lost := lost_bytes(text, subject.tokenizer)):
        report(Warned(
            f"{subject.name}: {lost} of {len(text.encode())} bytes of the text have no token in "
            "its vocabulary and are not seen"
        ))  # fmt: skip


def _fingerprint(
    subjects: Sequence[Subject],
    against: Subject | LogitsFile | None,
    asked: Asked,
    windows: Windows,
    text: str | None,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "num_ctx": windows.num_ctx,
        "stride": asked.stride,
        "device": kernels.device_list(asked.device)[0].type,
        "text": None if text is None else hashlib.sha256(text.encode()).hexdigest(),
    }
    for number, subject in enumerate(subjects, 1):
        found[f"model {number}"] = subject.identity()
    match against:
        case Subject():
            found["the reference"] = against.identity()
        case LogitsFile():
            found["the logits file"] = marks(against.path)
    return found
