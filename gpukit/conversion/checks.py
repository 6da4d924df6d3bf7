"""What is wrong with a request whatever its input: looked for before that is opened or fetched."""

from pathlib import Path

import gpukit_kernels as kernels
from gpukit.errors import ArgumentError
from gpukit.formats.file_types import file_type_of
from gpukit.formats.outputs import check_output
from gpukit.planning.plan import Options
from gpukit_kernels.devices import Device, device_name

SAFETENSORS = ".safetensors"


def check_plan(
    file_type: str | None, pre: str | None = None, options: Options | None = None
) -> None:
    """`ArgumentError` for a file type or a pre-tokenizer that nobody knows, and for a file type
    beside an option that takes its place."""
    if file_type is not None:
        file_type_of(file_type)
        if options is not None and options.instead is not None:
            raise ArgumentError(
                f"{options.instead} chooses the types itself; leave {file_type} out"
            )
    if pre is not None:
        # Those that are known take time to import.
        from gpukit.tokenizer.recognition import check_pre

        check_pre(pre)


def has_blocks(out: Path) -> bool:
    """Whether a file called `out` can hold quantised types."""
    return out.suffix != SAFETENSORS


def check_options(options: Options, file_type: str | None) -> None:
    """`ArgumentError` for options that a model of the store cannot have: its weights are one file,
    of a `file_type` where anything else is asked for."""
    given = [*(options.overrides.options() if options.overrides is not None else ())]
    given += ["--pure"] * (options.overrides is not None and options.overrides.pure)
    given += ["--allow-requantize"] * options.allow_requantize
    if given and not file_type:
        raise ArgumentError(f"{given[0]}: it is for quantising; add -q TYPE")
    taken = Options(options.overrides, allow_requantize=options.allow_requantize, mtp=options.mtp)
    if options != taken:
        raise ArgumentError(
            "of options a model of the store takes overrides, allow_requantize and mtp; write a "
            "GGUF with the others, and create the model from that"
        )


def check_run(
    out: Path,
    file_type: str | None,
    options: Options,
    device: Device,
    *,
    provenance: bool = False,
) -> None:
    """`ArgumentError` for a place that no file can be written to, for a file that cannot hold what
    is asked for and for a device that is not here; `DiskError` where this user may not write."""
    if out.suffix == SAFETENSORS:
        if provenance:
            raise ArgumentError(f"{out}: --provenance is metadata of a GGUF; name a .gguf file")
        if options.instead is not None:
            raise ArgumentError(f"{out}: {options.instead} is for a GGUF; name a .gguf file")
        if file_type is not None and not file_type_of(file_type).is_float:
            raise ArgumentError(
                f"{out}: safetensors files cannot hold {file_type.upper()}; choose F32, F16 or BF16"
            )
        if options.keep_split or options.split_max_size:
            raise ArgumentError(f"{out}: only a GGUF is split; name a .gguf file or do not split")
    read = [options.imatrix.path] if options.imatrix else []
    check_output(out, [*read, *([options.like] if options.like else [])])
    check_device(device)


def check_device(names: Device) -> None:
    """QuantError, an `ArgumentError`, for a device, or one of several, that is unknown or not
    here."""
    if device_name(names) not in ("auto", "cpu"):  # always here: nothing need be loaded to know
        kernels.device_list(names)
