"""Adapters merged into their base: a Hugging Face folder, or a GGUF of any type, in one pass."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.conversion.checks import SAFETENSORS, check_device, check_plan
from gpukit.conversion.resuming import Resume
from gpukit.conversion.run import Result
from gpukit.errors import ArgumentError
from gpukit.events import Report, ignore
from gpukit.formats.file_types import file_type_of
from gpukit.given import path_of
from gpukit.planning.fingerprint import fingerprint_of
from gpukit.planning.provenance import Recipe
from gpukit.recipes.chosen import Word, chosen
from gpukit.recipes.convert import convert
from gpukit.recipes.plan import MEMORY
from gpukit.recipes.references import Reference, locate
from gpukit.remote.hub import HubModel
from gpukit_kernels.devices import Device

if TYPE_CHECKING:
    from gpukit.adapters.mixing import Combining
    from gpukit.conversion.folder import FolderResult

FILES = (".gguf", SAFETENSORS)


def merge(
    base: str | Path,
    adapters: Sequence[Word],
    out: str | Path,
    type: str | None = None,
    *,
    combine: "Combining | None" = None,
    merge_base: str = "full",
    imatrix: str | Path | None = None,
    target_bpw: float | None = None,
    target_size: int | None = None,
    like: str | Path | None = None,
    allow_requantize: bool = False,
    max_shard_size: int | None = None,
    strict: bool = False,
    moe_layout: str | None = None,
    pre: str | None = None,
    provenance: bool = False,
    hub: bool = False,
    device: Device = "auto",
    memory: int = MEMORY,
    resume: bool = False,
    report: Report = ignore,
) -> "Result | FolderResult":
    """Write `base` with `adapters` merged to `out`: paths, size, seconds, and what changed.

    `base` is what the command line takes for a model, `adapters` as `convert` takes them. `out` is
    a .gguf, as `convert` writes it with `type`, `imatrix`, a target, `like`, `allow_requantize` or
    `provenance`, or else a folder that transformers loads, its weights of float type `type` (their
    own without), in files of at most `max_shard_size` bytes; it appears whole or not at all.
    `resume` goes on with a killed run of the same, as `convert`'s. `combine` says how several
    adapters become one; without it the deltas are added up. `merge_base` is what they are added to:
    the weights as they are (full), or what QLoRA's NF4 makes of them, its scales in eight bits
    (nf4) or not (nf4-single). Errors as `convert`.

        gpukit.merge("Llama-3.2-1B", ["my-lora"], "merged.gguf", "Q4_K_M").size
    """
    out = path_of(out, "a path for the output")
    if not adapters:
        raise ArgumentError("no adapter to merge; give one, or convert the model")
    if out.suffix.lower() in FILES or out.name.lower() in FILES:
        if max_shard_size is not None:
            raise ArgumentError(f"{out}: shards are parts of a folder; name a folder")
        return convert(
            base, out, type, adapters=adapters, combine=combine, merge_base=merge_base,
            imatrix=imatrix, target_bpw=target_bpw, target_size=target_size, like=like,
            allow_requantize=allow_requantize, strict=strict, moe_layout=moe_layout, pre=pre,
            provenance=provenance, hub=hub, device=device, memory=memory, resume=resume,
            report=report,
        )  # fmt: skip
    _check_folder(out, type, {
        "imatrix": imatrix, "pre": pre, "target_bpw": target_bpw, "target_size": target_size,
        "like": like, "allow_requantize": allow_requantize or None,
        "provenance": provenance or None,
    })  # fmt: skip
    check_device(device)
    reference = locate(base, hub=hub)
    wanted = chosen(
        adapters, combine=combine, merge_base=merge_base, strict=strict, moe_layout=moe_layout,
        report=report,
    )  # fmt: skip
    assert wanted is not None
    path = reference.fetch(report)
    if not path.is_dir():
        raise ArgumentError(f"{path}: a GGUF becomes a GGUF: name a .gguf file, not {out}")
    # Reading adapters takes time to import.
    from gpukit.conversion.folder import merge_folder

    return merge_folder(
        path, wanted, out, dtype=type and type.upper(), max_shard_size=max_shard_size,
        base=_id(reference), device=device, budget=memory,
        resume=_resume(path, Recipe(type, merge=wanted), max_shard_size) if resume else None,
        report=report,
    )  # fmt: skip


def _resume(folder: Path, recipe: Recipe, max_shard_size: int | None) -> Resume:
    """What says whether a killed run made the same of the model in `folder`."""
    found = fingerprint_of(folder, recipe)
    return Resume({**found, "recipe": {**found["recipe"], "max_shard_size": max_shard_size}})


def _id(reference: Reference) -> str | None:
    """The base's id on the hub; a path of this machine says nothing to others."""
    model = reference.model
    return model.repo if isinstance(model, HubModel) else None


def _check_folder(out: Path, type: str | None, others: Mapping[str, object]) -> None:
    """`ArgumentError` for what only a GGUF can have, by name in `others`."""
    check_plan(type)
    if type is not None and not file_type_of(type).is_float:
        raise ArgumentError(
            f"{out}: a folder's weights are F32, F16, BF16, not {type}; name a .gguf file for it"
        )
    for what, value in others.items():
        if value is not None:
            raise ArgumentError(f"{out}: {what} is for a GGUF; name a .gguf file, or leave it out")
