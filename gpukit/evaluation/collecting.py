"""Importance of a model over texts: what is to be read, known before the weights are loaded, and
the reading, which is saved now and then and goes on where a killed run was.

What is saved is an importance matrix itself, in llama.cpp's form, with metadata that tell what it
is of:

    gpukit.imatrix.model    of every tensor the name, type, dimensions and a sample of its bytes
    gpukit.imatrix.text     the ids of all texts, and what windows begin with; as sha256 both
    gpukit.imatrix.output   whether the head is heard, too
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gpukit.errors import ArgumentError, FormatError
from gpukit.evaluation.importance import Collector
from gpukit.evaluation.importance_merging import check_fits
from gpukit.evaluation.scoring import slice_rows
from gpukit.evaluation.windows import (
    NUM_CTX_OPTION,
    Windows,
    check_window,
    cut_ids,
    lost_bytes,
    read_text,
    text_ids,
)
from gpukit.events import Report, Status, Step, Warned, ignore
from gpukit.formats.gguf_fields import Field, TensorSpec, boolean, string
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.imatrix import Collection, read_collection
from gpukit.formats.imatrix_writer import write_gguf
from gpukit.generation.loading import Description, load_model
from gpukit.models.unused import Unused
from gpukit.sources.base import Source
from gpukit.sources.merged import Merge
from gpukit.sources.opening import open_source
from gpukit_kernels.devices import Device

MODEL, TEXT, OUTPUT = (f"gpukit.imatrix.{name}" for name in ("model", "text", "output"))
# Of every tensor so many rows are looked at to know the model again.
SAMPLES = 16
INSTEAD = "finish that as it was begun, name another output or remove this file"
TITLE = "collecting importance"


@dataclass(frozen=True)
class Reading:
    """What is to be read: windows of texts by a model; nothing of it is loaded yet.

    `files` are those that the model is read from, `name` is what messages call it, `tensors` are
    its own by name, of which no pass has a use for those that are `unused`, `model` and `text` tell
    whether a saved state is of the same work.
    """

    path: Path
    files: tuple[Path, ...]
    name: str
    texts: tuple[str, ...]
    windows: tuple[Windows, ...]
    tensors: Mapping[str, TensorSpec]
    unused: Unused
    model: str
    text: str
    process_output: bool = False
    pre: str | None = None
    adapters: Merge | None = None
    called: tuple[str, ...] = ()

    @property
    def chunks(self) -> int:
        return sum(map(len, self.windows))

    @property
    def num_ctx(self) -> int:
        return self.windows[0].num_ctx

    def inputs(self, first: int) -> Iterator[list[int]]:
        """The ids of every window from number `first` of all on."""
        for windows in self.windows:
            for number in range(min(first, len(windows)), len(windows)):
                yield windows.inputs(number)
            first = max(first - len(windows), 0)

    def fields(self) -> list[Field]:
        """What tells a state of this work from others."""
        return [
            string(MODEL, self.model), string(TEXT, self.text),
            boolean(OUTPUT, self.process_output),
        ]  # fmt: skip


def prepare(
    path: Path,
    texts: Sequence[str | Path],
    num_ctx: int,
    *,
    chunks: int | None = None,
    process_output: bool = False,
    parse_special: bool = False,
    pre: str | None = None,
    adapters: Merge | None = None,
    called: tuple[str, ...] = (),
    name: str | None = None,
    option: str = NUM_CTX_OPTION,
    report: Report = ignore,
) -> Reading:
    """The reading of `texts`, each the text itself or a file of it, cut into windows of its own, at
    most `chunks` of all, by the model at `path` with `adapters` beside it; `called` is what else
    that is called, `name` what it is in messages, `option` what makes windows smaller.

    `ArgumentError` for texts that are too short or no text; the errors of the model's reader.
    """
    check_window(num_ctx, chunks)
    found = [read_text(text) if isinstance(text, Path) else text for text in texts]
    where = [str(text) if isinstance(text, Path) else "" for text in texts]
    name = name or str(path)
    with open_source(path, pre) as source:
        about = Description.of(source)
        ids = [text_ids(text, about.tokenizer, parse_special=parse_special) for text in found]
        bos = about.tokenizer.bos_id if about.tokenizer.add_bos else None
        windows = _windows(ids, where, bos, num_ctx, chunks, option)
        tensors = {tensor.name: tensor for tensor in source.tensors}
        model, files = _model_digest(source, adapters), source.files
    for text in found:
        if lost := lost_bytes(text, about.tokenizer):
            report(Warned(
                f"{name}: {lost} of {len(text.encode())} bytes of the text have no token in its "
                "vocabulary and are not seen"
            ))  # fmt: skip
    if num_ctx > about.config.n_ctx:
        report(Warned(
            f"{name}: windows of {num_ctx} tokens, the model was made for {about.config.n_ctx}: "
            f"what comes in behind says little; num_ctx {about.config.n_ctx} or less"
        ))  # fmt: skip
    return Reading(
        path=path,
        files=files,
        name=name,
        texts=tuple(filter(None, where)),
        windows=windows,
        tensors=tensors,
        unused=about.config.unused,
        model=model,
        text=_text_digest(ids, bos),
        process_output=process_output,
        pre=pre,
        adapters=adapters,
        called=called,
    )


def _windows(
    ids: Sequence[list[int]],
    where: Sequence[str],
    bos: int | None,
    num_ctx: int,
    most: int | None,
    option: str,
) -> tuple[Windows, ...]:
    found: list[Windows] = []
    for name, part in zip(where, ids, strict=True):
        left = None if most is None else most - sum(map(len, found))
        # A text that is too short is told of even where none of it is to be read.
        chunks = None if left is None else max(left, 1)
        windows = cut_ids(part, bos, num_ctx, chunks=chunks, where=name, option=option)
        if left is None or left > 0:
            found.append(windows)
    return tuple(found)


def _text_digest(ids: Sequence[list[int]], bos: int | None) -> str:
    digest = hashlib.sha256(f"{bos}".encode())
    for part in ids:
        digest.update(f"/{len(part)}/".encode())
        digest.update(np.asarray(part, "<i4").tobytes())
    return digest.hexdigest()


def _model_digest(source: Source, adapters: Merge | None) -> str:
    """Reading all of a large model would take minutes: a sample of every tensor shows each that was
    trained or quantised anew."""
    digest = hashlib.sha256(repr(adapters).encode())
    for index, tensor in enumerate(source.tensors):
        kind = source.stored_type(index)
        digest.update(f"{tensor.name} {tensor.ne} {kind}".encode())
        for row in sorted({tensor.rows * part // SAMPLES for part in range(SAMPLES)}):
            data = bytearray(source.stored_bytes(index, 1, row))
            if data:  # of what is computed nothing is stored
                source.read(index, row, memoryview(data))
            digest.update(data)
    return digest.hexdigest()


def saved(path: Path, reading: Reading) -> Collection | None:
    """What a run of this work has saved at `path`, None where nothing is there; `ArgumentError`
    where it is of other work, `FormatError` where it is none."""
    if not path.exists():
        return None
    found = read_collection(path)
    with GGUFFile(path) as file:
        theirs = {key: file.get(key) for key in (MODEL, TEXT, OUTPUT)}
    without = [name for name, sums in found.entries.items() if sums.sums is None]
    if None in theirs.values() or without:
        raise FormatError(f"{path}: no state of gpukit imatrix; {INSTEAD}")
    for what, key, ours in (
        ("model", MODEL, reading.model),
        ("text or tokenizer", TEXT, reading.text),
        ("choice of process_output", OUTPUT, reading.process_output),
    ):
        if theirs[key] != ours:
            raise ArgumentError(f"{path}: an unfinished run of another {what}; {INSTEAD}")
    if found.chunk_size != reading.num_ctx:
        raise ArgumentError(
            f"{path}: an unfinished run with num_ctx {found.chunk_size}, not {reading.num_ctx}; "
            f"{INSTEAD}"
        )
    if found.chunks > reading.chunks:
        raise ArgumentError(
            f"{path}: an unfinished run of {found.chunks} chunks already, {reading.chunks} are "
            f"asked for; {INSTEAD}"
        )
    check_fits((str(path), found), reading.tensors, reading.name)
    return found


def collect(
    reading: Reading,
    device: Device = "auto",
    *,
    state: Path | None = None,
    save_every: int = 0,
    report: Report = ignore,
) -> Collection:
    """What the model hears of the texts. Every `save_every` chunks, if any, it is saved at `state`,
    and what is there already is not read again.

    The errors of `saved` and of `load_model`, before anything is read; `CheckpointError` for a
    model that does not compute with finite numbers, `DiskError` where the disk refuses.
    """
    begun = saved(state, reading) if state is not None else None
    found = begun or Collection({}, reading.texts, 0, reading.num_ctx)
    if begun is not None:
        report(Status(f"going on behind chunk {found.chunks} of {reading.chunks}, from {state}"))
    collector = Collector(
        process_output=reading.process_output,
        name=reading.name,
        adapters=reading.adapters.words if reading.adapters is not None else (),
    )
    collector.begin(found.entries)
    for chunks in _heard(reading, found.chunks, collector, device, report):
        if state is not None and save_every and chunks % save_every == 0:
            now = Collection(collector.entries, reading.texts, chunks, reading.num_ctx)
            write_gguf(state, now, more=reading.fields())
    return Collection(collector.entries, reading.texts, reading.chunks, reading.num_ctx)


def _heard(
    reading: Reading, done: int, collector: Collector, device: Device, report: Report
) -> Iterator[int]:
    """The number of chunks that the collector has heard, after each from number `done` on."""
    if done == reading.chunks:
        return
    model = load_model(
        reading.path, device, reading.pre, collector,
        adapters=reading.adapters, names=reading.called, report=report,
    )  # fmt: skip
    size = reading.num_ctx
    total = (reading.chunks - done) * size
    report(Step(TITLE, 0, total, "tokens"))
    for number, ids in enumerate(reading.inputs(done), 1):
        (states,) = model.decoder.states(torch.tensor([ids]))
        if reading.process_output:
            for part in torch.split(states, slice_rows(model.decoder)):
                model.decoder.head(part)
        collector.end_chunk()
        yield done + number
        report(Step(TITLE, number * size, total, "tokens"))


def silent_lines(found: Collection) -> list[str]:
    """A line about experts that nothing came to, if there are any."""
    silent = [
        (name, expert)
        for name, sums in found.entries.items()
        for expert in np.flatnonzero(sums.counts == 0).tolist()
    ]
    if not silent:
        return []
    name, expert = silent[0]
    what = f"{len(silent)} matrices of experts" if len(silent) > 1 else "1 matrix of an expert"
    return [
        f"nothing came to {what}, such as number {expert} of {name}: its columns count 1 each when "
        "quantising; a longer text may reach it"
    ]
