"""`gpukit convert`: one file, or several of one reading, from a checkpoint or another GGUF."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpukit_cli.converter import (
    ConverterArguments,
    ConverterPython,
    ConverterTree,
    Trust,
    converter_of,
)
from gpukit_cli.options import (
    FILE_TYPE_NAMES,
    Adapters,
    AllowRequantize,
    Devices,
    DryRun,
    Hub,
    ImatrixFile,
    Input,
    Json,
    Like,
    MoeLayout,
    Mtp,
    Pre,
    Provenance,
    Quiet,
    Resume,
    SplitMaxSize,
    Strict,
    TargetBpw,
    TargetSize,
    file_types,
)
from gpukit_cli.progress import reporter
from gpukit_cli.results import print_plan, print_result
from gpukit_cli.several import OutPattern, Types, asked, many

if TYPE_CHECKING:
    from gpukit import Options

Out = Annotated[
    Path | None,
    typer.Argument(
        metavar="OUT",
        help="The GGUF to write. A file that is there is replaced, whole and at the end; "
        "IN never is.",
        show_default="what --out says",
    ),
]


def convert(
    source: Input,
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT",
            help="The GGUF to write, or from a GGUF a .safetensors file. A file that is there is "
            "replaced, whole and at the end; IN never is.",
            show_default="what --out says",
        ),
    ] = None,
    type: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help=f"File type: {FILE_TYPE_NAMES}.",
            show_default="a folder's own, or the types of a GGUF",
            autocompletion=file_types,
        ),
    ] = None,
    types: Types = None,
    pattern: OutPattern = None,
    adapter: Adapters = None,
    strict: Strict = False,
    moe_layout: MoeLayout = None,
    imatrix: ImatrixFile = None,
    target_bpw: TargetBpw = None,
    target_size: TargetSize = None,
    like: Like = None,
    allow_requantize: AllowRequantize = False,
    split_max_size: SplitMaxSize = None,
    pre: Pre = None,
    mtp: Mtp = None,
    converter: ConverterTree = None,
    converter_arg: ConverterArguments = None,
    converter_python: ConverterPython = None,
    trust_remote_code: Trust = False,
    provenance: Provenance = False,
    hub: Hub = False,
    device: Devices = "auto",
    resume: Resume = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Convert a Hugging Face folder to a GGUF, with adapters merged and quantised on the way, or a
    GGUF to floats."""
    import gpukit

    adapters = adapter or []
    how = converter_of(converter, converter_arg, converter_python, trust_remote_code)
    kinds, place = asked(
        "convert", types, out, pattern, type=type, target_bpw=target_bpw, target_size=target_size,
        like=like,
    )  # fmt: skip
    carry = carries(place)
    if kinds:
        many(
            lambda report: gpukit.plan_many(
                source, kinds, options=options_of(
                    imatrix=imatrix, allow_requantize=allow_requantize,
                    split_max_size=split_max_size, target_size=None, mtp=mtp, carry=carry,
                ), adapters=adapters, strict=strict, moe_layout=moe_layout, pre=pre,
                converter=how, provenance=provenance, hub=hub, device=device, report=report,
            ),
            lambda report: gpukit.convert_many(
                source, place, kinds, adapters=adapters, strict=strict, moe_layout=moe_layout,
                imatrix=imatrix, allow_requantize=allow_requantize,
                split_max_size=size(split_max_size), pre=pre, mtp=mtp, converter=how,
                provenance=provenance, hub=hub, device=device, resume=resume, report=report,
            ),
            dry_run=dry_run, quiet=quiet, json=json,
        )  # fmt: skip
        return
    if dry_run:
        options = options_of(
            imatrix=imatrix, allow_requantize=allow_requantize, split_max_size=split_max_size,
            target_bpw=target_bpw, target_size=target_size, like=like, mtp=mtp, carry=carry,
        )  # fmt: skip
        with reporter(quiet) as report:
            plan = gpukit.plan(
                source, type, options=options, adapters=adapters, strict=strict,
                moe_layout=moe_layout, pre=pre, converter=how, provenance=provenance, hub=hub,
                device=device, report=report,
            )  # fmt: skip
        print_plan(plan, json=json, quiet=quiet)
        return
    with reporter(quiet) as report:
        result = gpukit.convert(
            source, place, type, adapters=adapters, strict=strict, moe_layout=moe_layout,
            imatrix=imatrix, target_bpw=target_bpw, target_size=size(target_size), like=like,
            allow_requantize=allow_requantize, split_max_size=size(split_max_size), pre=pre,
            mtp=mtp, converter=how, provenance=provenance, hub=hub, device=device, resume=resume,
            report=report,
        )  # fmt: skip
    print_result(result, json=json, quiet=quiet)


def options_of(
    *,
    imatrix: Path | None,
    split_max_size: str | None,
    target_size: str | None,
    **others: Any,
) -> "Options":
    """What the options that go with a type say, imatrix and sizes read."""
    from gpukit.formats.imatrix import read_imatrix
    from gpukit.planning.plan import Options

    return Options(
        imatrix=read_imatrix(imatrix) if imatrix else None,
        split_max_size=size(split_max_size),
        target_size=size(target_size),
        **others,
    )


def carries(place: Path) -> bool:
    """Whether blocks of a folder may stay what they are in a file at `place`."""
    from gpukit.conversion.checks import has_blocks

    return has_blocks(place)


def size(text: str | None) -> int | None:
    """Bytes of what a user writes as 500M or 2G."""
    from gpukit.formats.gguf_split import parse_size

    return parse_size(text) if text is not None else None
