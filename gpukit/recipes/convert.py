"""One file from a model: converted, or quantised."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.conversion.checks import check_run, has_blocks
from gpukit.conversion.run import Result
from gpukit.errors import ArgumentError
from gpukit.events import Report, ignore
from gpukit.formats.imatrix import read_imatrix
from gpukit.formats.outputs import check_output
from gpukit.given import path_of, path_or_none
from gpukit.planning.plan import Options
from gpukit.recipes.bridge import Checkout
from gpukit.recipes.chosen import Word
from gpukit.recipes.plan import MEMORY, PLAIN, options_of, plan
from gpukit_kernels.devices import Device

if TYPE_CHECKING:
    from gpukit.adapters.mixing import Combining


def convert(
    model: str | Path,
    out: str | Path,
    type: str | None = None,
    *,
    adapters: Sequence[Word] = (),
    combine: "Combining | None" = None,
    merge_base: str = "full",
    strict: bool = False,
    moe_layout: str | None = None,
    imatrix: str | Path | None = None,
    target_bpw: float | None = None,
    target_size: int | None = None,
    like: str | Path | None = None,
    allow_requantize: bool = False,
    split_max_size: int | None = None,
    pre: str | None = None,
    mtp: bool | None = None,
    converter: Checkout | None = None,
    provenance: bool = False,
    hub: bool = False,
    device: Device = "auto",
    memory: int = MEMORY,
    resume: bool = False,
    report: Report = ignore,
) -> Result:
    """Write `model` to `out` as file type `type`: paths, size, seconds, totals and what was lost.

    `model` is a folder from Hugging Face, a GGUF, a name in the store, or an id of the hub
    (hf.co/org/name, or with `hub` org/name). `out` is a GGUF, or, from a GGUF to floats, a file
    that ends in .safetensors; it appears whole or not at all. No `type` keeps a folder's own (BF16
    or F16) and the types of a GGUF. `adapters` are merged on the way, in order: folders, files or
    ids (hf.co/org/name), each as it is, as "DIR:WEIGHT" or as (DIR, WEIGHT); `combine` and
    `merge_base` are as for `merge`. With `strict` one that names another base is refused, not only
    warned about; `moe_layout` (peft, peft-0.18, unsloth) tells how tensors of experts lie where
    that cannot be seen. `imatrix` is a file with importance weights, .gguf or .dat; `target_bpw`
    (bits per weight), `target_size` (bytes of the file) and `like` (a GGUF whose tensors' types are
    taken) stand in for `type`; `allow_requantize` takes tensors that are quantised already;
    `split_max_size` (bytes) splits the output; `pre` names the pre-tokenizer of a folder where none
    is recognised; `mtp` has of a folder the layers alone that guess further tokens, False all but
    those; `converter` is a checkout of llama.cpp, or a `Converter`, whose own converter reads the
    folder, whatever its class: code of that checkout is run; with `provenance` the metadata says
    what the file was made from (`gpukit.*`); `device` is auto (as None is), cpu, cuda, cuda:N or
    several with commas, or a torch.device; `memory` bounds buffers on the host, in bytes; `resume`
    goes on, tensor by tensor, with a run of the same that was killed and had it, too, and else
    refuses (`ArgumentError`); `report` hears progress and warnings.
    `ArgumentError` for what cannot be asked for, NotFoundError for a model that is not there,
    `CheckpointError`, `FormatError` and `HubError` for one that is wrong or cannot be had,
    `AdapterError` for an adapter that does not fit it or contradicts another,
    `DiskError` where the disk refuses.

        gpukit.convert("Llama-3.2-1B-Instruct", "llama.gguf", "Q4_K_M").size
    """
    out = path_of(out, "a path for the output")
    weights = read_imatrix(path_of(imatrix, "imatrix: a path")) if imatrix is not None else None
    options = Options(
        imatrix=weights, allow_requantize=allow_requantize, split_max_size=split_max_size,
        target_bpw=target_bpw, target_size=target_size,
        like=path_or_none(like, "like: a path"), mtp=mtp, carry=has_blocks(out),
    )  # fmt: skip
    # Whatever the model, this can be wrong: looked at before that is fetched.
    check_run(out, type, options, device, provenance=provenance)
    with plan(
        model, type, options=options, adapters=adapters, combine=combine, merge_base=merge_base,
        strict=strict, moe_layout=moe_layout, pre=pre, converter=converter,
        provenance=provenance, hub=hub, device=device, report=report,
    ) as planned:  # fmt: skip
        return planned.write(out, device=device, memory=memory, resume=resume, report=report)


def quantize(
    model: str | Path,
    out: str | Path,
    type: str | None = None,
    *,
    options: Options | None = PLAIN,
    calibrate: str | Path | None = None,
    pre: str | None = None,
    converter: Checkout | None = None,
    provenance: bool = False,
    hub: bool = False,
    device: Device = "auto",
    memory: int = MEMORY,
    resume: bool = False,
    report: Report = ignore,
) -> Result:
    """Write `model` to the GGUF `out` as file type `type`, as llama-quantize does.

    As `convert`, but with all `options`: types of single tensors, importance weights, a target or
    a template instead of a type, what may be quantised again, how the output is split. `calibrate`
    is a text, or the `Path` of one, that the model reads first; the importance that it has then
    stands in for that of `options`.

        gpukit.quantize("llama-f16.gguf", "llama-q6.gguf", "Q6_K", device="cpu").totals
    """
    out, options = path_of(out, "a path for the output"), options_of(options)
    if type is None and options.instead is None:
        raise ArgumentError(
            "no type; give a file type such as Q4_K_M, or --target-bpw, --target-size or --like"
        )
    check_run(out, type, options, device, provenance=provenance)
    if isinstance(calibrate, Path):
        check_output(out, [calibrate])
    options = replace(options, carry=has_blocks(out))
    with plan(
        model, type, options=options, calibrate=calibrate, pre=pre, converter=converter,
        provenance=provenance, hub=hub, device=device, report=report,
    ) as planned:  # fmt: skip
        return planned.write(out, device=device, memory=memory, resume=resume, report=report)
