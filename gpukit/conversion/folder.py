"""A Hugging Face folder from a Hugging Face folder, its weights changed on the way."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gpukit.conversion.checks import check_device
from gpukit.conversion.engine import Wish
from gpukit.conversion.pipeline import run_pipeline
from gpukit.conversion.resumed_files import ResumedFiles
from gpukit.conversion.resuming import Resume, Resuming
from gpukit.errors import ArgumentError
from gpukit.events import Report, Status, Warned, ignore
from gpukit.formats.atomic import target_of
from gpukit.formats.carried import CARD, CONFIG, carried_files, changed_config
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.folder import model_name, read_text
from gpukit.formats.folder_writer import FolderWriter, check_written, has_its_name
from gpukit.formats.ledger import abandon
from gpukit.formats.model_card import Origin, merged_card
from gpukit.formats.new_folder import check_folder, new_folder, small_size, write_small
from gpukit.formats.safetensors_shards import MAX_SHARD_SIZE, Shard, ShardsWriter, plan_shards
from gpukit.planning.changes import ChangeTotal, change_totals, faint
from gpukit.planning.plan import PlannedOutput
from gpukit.sources.merged import Merge, MergedCheckpoint
from gpukit.sources.steps import Step
from gpukit.sources.stored import UNCHANGED, Changes, StoredSource
from gpukit_kernels.devices import Device

# The types of a folder's floats, and what config.json calls them.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class FolderOptions:
    """What a folder's writer may be asked for.

    dtype           of all floats: F32, F16 or BF16; their own without it
    max_shard_size  bytes of weights in a file
    vocabulary      how many tokens config.json says, None for as many as before
    untied          whether head and embedding are two now
    tokenizer       a folder whose tokenizer takes the place of the model's
    origin          what the model card says that the model was made of; without it, it stays
    """

    dtype: str | None = None
    max_shard_size: int = MAX_SHARD_SIZE
    vocabulary: int | None = None
    untied: bool = False
    tokenizer: Path | None = None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ArgumentError(
                f"a folder's weights are {', '.join(DTYPES)}, not {self.dtype}; for other types "
                "write a GGUF"
            )
        if self.max_shard_size < 1:
            raise ArgumentError(f"shards of {self.max_shard_size} bytes; a positive size is needed")


PLAIN = FolderOptions()


@dataclass(frozen=True)
class FolderResult:
    """A folder that was written: its files, their size in bytes, the bytes read, the seconds, and
    by class what adapters did."""

    path: Path
    paths: tuple[Path, ...]
    size: int
    seconds: float
    read_bytes: int
    changes: tuple[ChangeTotal, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything as one JSON-ready document; sizes in bytes, times in seconds."""
        return {
            "path": str(self.path),
            "paths": [str(path) for path in self.paths],
            "size": self.size,
            "seconds": round(self.seconds, 3),
            "read_bytes": self.read_bytes,
            "changes": {total.name: total.as_json() for total in self.changes},
        }


def write_folder(
    checkpoint: Checkpoint,
    out: Path,
    steps: Sequence[Step] = (),
    *,
    changes: Changes = UNCHANGED,
    options: FolderOptions = PLAIN,
    inputs: Iterable[Path] = (),
    device: Device = "auto",
    budget: int = 4 << 30,
    engine: Wish = "auto",
    resume: Resume | None = None,
    report: Report = ignore,
) -> FolderResult:
    """Write the model of the open `checkpoint` with `steps` applied to folder `out`, whole or not
    at all: safetensors under the names that they had, and what else a model folder has.

    Weights go through `steps` row by row and are rounded to nearest even into their type, as
    `StoredSource` says it. `inputs` are other folders that are read, which `out` must not lie in;
    `device`, `budget`, `engine` and `resume` are those of `run_plan`. `ArgumentError` where `out`
    is no place for a folder, `CheckpointError` for values that are not finite and for what of the
    checkpoint cannot be used, `DiskError` where the disk refuses.
    """
    started = time.monotonic()
    check_device(device)
    place = out if out.name not in ("", "..") else Path(os.path.realpath(out))
    if resume is None or not has_its_name(place):
        check_folder(out, filter(None, (checkpoint.folder, *inputs, options.tokenizer)))
    source = StoredSource(checkpoint, steps, changes, options.dtype)
    texts, files = _beside(checkpoint, out, options)
    shards = plan_shards(source.entries, options.max_shard_size)
    for line in source.warnings:
        report(Warned(line))
    outputs = _outputs(source, shards)
    through = partial(
        run_pipeline, source, outputs, title="merging" if steps else "copying", device=device,
        budget=budget, report=report, wish=engine,
    )  # fmt: skip
    if resume is None:
        abandon(place)
        size = sum(tensor.nbytes for tensor in source.entries)
        with new_folder(out, size + small_size(texts, files)) as folder:
            write_small(folder, texts, files)
            with ShardsWriter(folder, shards) as writer:
                passed = through(writer)
            report(Status("verifying"))
            check_written(folder, shards)
    else:
        beside = FolderWriter(place, shards, texts, files)
        going_on = Resuming(place, beside, outputs, resume, report, places=beside.places)
        with ResumedFiles([going_on]) as kept:
            passed = through(kept, kept=kept)
    totals = change_totals([output.spec for output in outputs], passed.changes)
    for line in faint(totals):
        report(Warned(line))
    paths = tuple(sorted(path for path in place.rglob("*") if path.is_file()))
    written = sum(path.stat().st_size for path in paths)
    seconds = time.monotonic() - started
    return FolderResult(out, paths, written, seconds, passed.read_bytes, tuple(totals))


def merge_folder(
    folder: Path,
    merge: Merge,
    out: Path,
    *,
    dtype: str | None = None,
    max_shard_size: int | None = None,
    base: str | None = None,
    device: Device = "auto",
    budget: int = 4 << 30,
    engine: Wish = "auto",
    resume: Resume | None = None,
    report: Report = ignore,
) -> FolderResult:
    """Write the model in `folder` with the adapters of `merge` to folder `out`, as `write_folder`;
    the model card calls the model `base`, or what its folder is called."""
    with MergedCheckpoint(folder, merge) as checkpoint:
        for line in checkpoint.warnings:
            report(Warned(line))
        weights = [chosen.weight for chosen in merge.adapters]
        names = [adapter.name for adapter in checkpoint.adapters]
        tokenizer = checkpoint.vocabulary_folder
        options = FolderOptions(
            dtype=dtype,
            max_shard_size=MAX_SHARD_SIZE if max_shard_size is None else max_shard_size,
            tokenizer=tokenizer if tokenizer != folder else None,
            origin=Origin(base or model_name(folder), list(zip(names, weights, strict=True))),
        )
        inputs = {chosen.path for chosen in merge.adapters if chosen.path.is_dir()}
        return write_folder(
            checkpoint, out, [*checkpoint.base_steps, checkpoint.step],
            changes=Changes(changed=checkpoint.changed, merged=checkpoint.step.records),
            options=options, inputs=inputs, device=device, budget=budget, engine=engine,
            resume=resume, report=report,
        )  # fmt: skip


def _beside(
    checkpoint: Checkpoint, out: Path, options: FolderOptions
) -> tuple[dict[str, str], dict[str, Path]]:
    """What is written beside the weights: texts, and files to be copied, by name."""
    folder = checkpoint.folder
    texts = {
        CONFIG: changed_config(
            checkpoint.config,
            vocabulary=options.vocabulary,
            untied=options.untied,
            dtype=options.dtype and DTYPES[options.dtype],
        )
    }
    files = carried_files(folder, options.tokenizer)
    card = folder / CARD
    if options.origin is not None:
        text = read_text(card) if card.is_file() else None
        texts[CARD] = merged_card(text, target_of(out).name, options.origin)
    elif card.is_file():
        files[CARD] = card
    return texts, files


def _outputs(source: StoredSource, shards: Sequence[Shard]) -> list[PlannedOutput]:
    """The tensors in the order of the files."""
    numbers = {entry.name: number for number, entry in enumerate(source.entries)}
    found = []
    for shard in shards:
        for tensor in shard.tensors:
            index = numbers[tensor.name]
            spec, now = source.tensors[index], source.stored_type(index)
            found.append(PlannedOutput(index, spec, now))
    return found
