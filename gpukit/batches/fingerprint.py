"""What an output of a plan is made of: a fingerprint as `gpukit.planning.fingerprint` has it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpukit.batches.foreign import converter_of
from gpukit.batches.matrix import Job
from gpukit.planning.fingerprint import converter_facts, difference, file_facts, files_of
from gpukit.version import VERSION

__all__ = ["difference", "files_of", "fingerprint"]

# Options that change no byte.
SAME_BYTES = {"device", "memory"}
PATHS = ("imatrix", "tensor_type_file")


def fingerprint(job: Job, source: Path, adapters: Sequence[Path]) -> dict[str, Any]:
    """The fingerprint of what `job` makes of the model at `source` and `adapters`, which are on
    this machine; `DiskError` for a file that cannot be read."""
    options = job.options.model_dump(
        mode="json", exclude=SAME_BYTES | {*PATHS, "converter"}, exclude_defaults=True
    )
    wanted = job.wanted.model_dump(mode="json", exclude={"name", "like"}, exclude_none=True)
    recipe = {**wanted, **options}
    given = {"like": job.wanted.like, **{name: getattr(job.options, name) for name in PATHS}}
    for name, path in given.items():
        if path is not None:
            files = files_of(Path(path)) if name == "like" else [Path(path)]
            recipe[name] = [*map(file_facts, files)]
    if (how := converter_of(job.options)) is not None:
        recipe["converter"] = converter_facts(how)
    if job.calibrate is not None:
        text = file_facts(Path(str(job.calibrate.text)))
        heard = job.calibrate.model_dump(exclude={"text"}, exclude_none=True)
        recipe["calibrate"] = {**heard, "text": text}
    weights = [weight for _, weight in job.adapter.adapters]
    return {
        "source": [*map(file_facts, files_of(source))],
        "adapters": [
            {"weight": weight, "files": [*map(file_facts, files_of(path))]}
            for path, weight in zip(adapters, weights, strict=True)
        ],
        "recipe": recipe,
        "gpukit": VERSION,
    }
