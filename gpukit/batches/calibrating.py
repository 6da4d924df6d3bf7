"""Importance that a batch collects itself: once for a source with its adapters, and kept.

    PLAN.yaml.gpukit/imatrix/SOURCE-ADAPTER-DIGEST.gguf   an importance matrix as `gpukit imatrix`
                                                          saves them; DIGEST tells what it is of

A file with fewer chunks than are wanted is what a killed run has saved, and is gone on with.
"""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.batches.fingerprint import fingerprint
from gpukit.batches.matrix import Job
from gpukit.batches.opening import Inputs, merge_of
from gpukit.errors import FormatError
from gpukit.events import Report, ignore
from gpukit.formats.atomic import disk_errors
from gpukit.formats.imatrix import Collection, Imatrix, as_imatrix, read_collection

if TYPE_CHECKING:
    from gpukit.evaluation.collecting import Reading

# As often as `gpukit imatrix` saves.
SAVE_EVERY = 10
# What of a fingerprint's recipe changes what a model hears.
HEARD = ("calibrate", "pre", "moe_layout", "strict")


def kept_path(job: Job, inputs: Inputs) -> Path:
    """Where the importance of a job is kept; `DiskError` for inputs that cannot be read."""
    of = fingerprint(job, inputs.source(job), inputs.adapters(job))
    recipe = {name: of["recipe"].get(name) for name in HEARD}
    digest = sha256(json.dumps([of["source"], of["adapters"], recipe]).encode()).hexdigest()
    name = f"{job.source.name}-{job.adapter.name}-{digest[:12]}.gguf"
    return job.kept / "imatrix" / name


def foreseen(job: Job, inputs: Inputs) -> Imatrix | None:
    """The importance of a job as far as it is kept, else 1 for all that would be heard; None where
    none is asked for. The errors of `prepare`."""
    if job.calibrate is None:
        return None
    from gpukit.recipes.calibration import foreseen as all_of

    reading, path = _reading(job, inputs, ignore), kept_path(job, inputs)
    found = _kept(path, reading)
    return all_of(reading, _text(job)) if found is None else _importance(job, found)


def collected(job: Job, inputs: Inputs, report: Report) -> Imatrix | None:
    """The importance of a job, collected if it is not kept; None where none is asked for. Errors of
    `gpukit.imatrix`."""
    path = collected_file(job, inputs, report)
    return _importance(job, read_collection(path)) if path is not None else None


def collected_file(job: Job, inputs: Inputs, report: Report) -> Path | None:
    """The file with the importance of a job, as `collected`."""
    if job.calibrate is None:
        return None
    from gpukit.evaluation.collecting import collect
    from gpukit.formats.imatrix_writer import write_gguf

    path = kept_path(job, inputs)
    reading = _reading(job, inputs, report)
    if _kept(path, reading) is not None:
        return path
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # Texts are read on one device.
    device = job.options.device.partition(",")[0]
    found = collect(reading, device, state=path, save_every=SAVE_EVERY, report=report)
    write_gguf(path, found, more=reading.fields())
    return path


def _reading(job: Job, inputs: Inputs, report: Report) -> "Reading":
    from gpukit.evaluation.collecting import prepare
    from gpukit.evaluation.windows import NUM_CTX

    wish = job.calibrate
    assert wish is not None
    return prepare(
        inputs.source(job), [_text(job)], wish.context or NUM_CTX, chunks=wish.chunks,
        pre=job.options.pre, adapters=merge_of(job, inputs, ignore), option="context",
        report=report,
    )  # fmt: skip


def _text(job: Job) -> Path:
    assert job.calibrate is not None
    return Path(str(job.calibrate.text))


def _kept(path: Path, reading: "Reading") -> Collection | None:
    """What is kept, if that is all of it; a file that is none is collected anew."""
    from gpukit.evaluation.collecting import saved

    try:
        found = saved(path, reading)
    except FormatError:
        path.unlink()
        return None
    return found if found is not None and found.chunks == reading.chunks else None


def _importance(job: Job, found: Collection) -> Imatrix:
    return replace(as_imatrix(found, _text(job)), is_file=False)
