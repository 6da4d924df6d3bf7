"""What a measurement is asked for, and everything that can be wrong with it before it begins."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import gpukit_kernels as kernels
from gpukit.conversion.checks import check_plan
from gpukit.errors import ArgumentError
from gpukit.evaluation.subjects import Subject, check_same_vocabulary, look, marks
from gpukit.evaluation.windows import (
    NUM_CTX,
    Windows,
    check_window,
    cut,
    lost_bytes,
    read_text,
)
from gpukit.events import Report, Warned
from gpukit.formats.imatrix import Imatrix, read_imatrix
from gpukit.formats.logits import LogitsFile, is_logits
from gpukit.formats.outputs import check_output
from gpukit.recipes.chosen import Word, chosen, located
from gpukit.recipes.references import Reference, locate
from gpukit.sources.merged import Chosen, Merge
from gpukit.sources.opening import PRE_FOR_FOLDERS

# What a file system takes for one name.
LONGEST_NAME = 255


@dataclass(frozen=True)
class Asked:
    """The arguments of `gpukit.perplexity` and `gpukit.perplexities`."""

    models: tuple[str | Path, ...]
    text: str | Path | None
    types: tuple[str, ...]
    num_ctx: int | None
    chunks: int | None
    stride: int | None
    against: str | Path | None
    adapters: Sequence[Word] | str | Path
    strict: bool
    moe_layout: str | None
    journal: str | Path | None
    pre: str | None
    hub: bool
    device: str
    save_logits: str | Path | None = None
    save_report: str | Path | None = None
    imatrix: str | Path | None = None


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
    file = _check(asked, stack)
    text = _text(asked, file)
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
        against = _subject(base, asked, Merge(()), report)
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


def _check(asked: Asked, stack: ExitStack) -> LogitsFile | None:
    """The logits file that the models stand beside, if one is asked for."""
    if not asked.models:
        raise ArgumentError("no model; name one at least")
    if asked.types and len(asked.models) > 1:
        raise ArgumentError(f"types are of one model, and {len(asked.models)} are named")
    if asked.imatrix is not None and not asked.types:
        raise ArgumentError("an importance matrix is for types; name the types, or leave it out")
    for kind in asked.types:
        check_plan(kind)
    check_plan(None, asked.pre)
    if len(kernels.device_list(asked.device)) > 1 and asked.types:
        raise ArgumentError(f"types are made on one device, and {asked.device} are named")
    check_window(asked.num_ctx if asked.num_ctx is not None else NUM_CTX, asked.chunks,
                 asked.stride)  # fmt: skip
    if asked.save_logits is not None:
        _check_save(asked)
    if asked.journal is not None:
        check_output(Path(asked.journal))
    if asked.save_report is not None:
        _check_report(asked, Path(asked.save_report))
    if asked.against is None or not is_logits(Path(asked.against)):
        return None
    file = stack.enter_context(LogitsFile(Path(asked.against)))
    if asked.stride is not None:
        raise ArgumentError(
            f"{file.path}: a logits file has the second half of each window: leave out stride"
        )
    if asked.num_ctx not in (None, file.shape.num_ctx):
        raise ArgumentError(
            f"{file.path}: made with windows of {file.shape.num_ctx} tokens, num_ctx is "
            f"{asked.num_ctx}; leave it out, or make the file again"
        )
    return file


def _inputs(asked: Asked) -> list[Path]:
    inputs = [Path(word) for word in (*asked.models, asked.against) if word is not None]
    return [*inputs, asked.text] if isinstance(asked.text, Path) else inputs


def _check_report(asked: Asked, path: Path) -> None:
    imatrix = [Path(asked.imatrix)] if asked.imatrix is not None else []
    check_output(path, [*_inputs(asked), *imatrix])
    for other in (asked.journal, asked.save_logits):
        if other is not None and path.resolve() == Path(other).resolve():
            raise ArgumentError(f"{path}: two outputs of one name; write the report to another")


def _check_save(asked: Asked) -> None:
    check_output(Path(str(asked.save_logits)), _inputs(asked))
    if asked.stride is not None:
        raise ArgumentError("a logits file has the second half of each window: leave out stride")
    if asked.journal is not None:
        raise ArgumentError(
            "a logits file is written whole or not at all, so nothing goes on from a journal; "
            "leave out one of both"
        )


def _text(asked: Asked, file: LogitsFile | None) -> str | None:
    if asked.text is None:
        if file is None:
            raise ArgumentError("no text; name a file with one, such as wiki.test.raw")
        return None
    if isinstance(asked.text, Path):
        return read_text(asked.text)
    if len(asked.text) <= LONGEST_NAME and "\0" not in asked.text and Path(asked.text).is_file():
        raise ArgumentError(
            f"{asked.text}: the name of a file, not its text; for that give Path({asked.text!r})"
        )
    return asked.text


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
    if not isinstance(against, LogitsFile):
        assert text is not None
        num_ctx = asked.num_ctx or NUM_CTX
        return cut(text, subject.tokenizer, num_ctx, chunks=asked.chunks, stride=asked.stride)
    num_ctx = against.shape.num_ctx
    bos = subject.tokenizer.bos_id if subject.tokenizer.add_bos else None
    theirs = Windows(against.ids[: asked.chunks], num_ctx // 2, bos)
    if text is None:
        return theirs
    ours = cut(text, subject.tokenizer, num_ctx, chunks=len(theirs))
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
