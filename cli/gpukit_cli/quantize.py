"""`gpukit quantize`: one file, or several of one reading, from a GGUF or a model folder."""

from pathlib import Path
from typing import Annotated

import typer

from gpukit_cli.convert import Out, carries, options_of
from gpukit_cli.converter import (
    ConverterArguments,
    ConverterPython,
    ConverterTree,
    Trust,
    converter_of,
)
from gpukit_cli.options import (
    FILE_TYPE_NAMES,
    AllowRequantize,
    Calibrate,
    Devices,
    DryRun,
    Hub,
    ImatrixFile,
    Input,
    Json,
    Like,
    Mtp,
    Pre,
    Provenance,
    Quiet,
    Resume,
    SplitMaxSize,
    TargetBpw,
    TargetSize,
    TensorTypes,
    file_types,
    tensor_types,
)
from gpukit_cli.progress import reporter
from gpukit_cli.results import print_plan, print_result
from gpukit_cli.several import OutPattern, Types, asked, many


def quantize(
    source: Input,
    out: Out = None,
    type: Annotated[
        str | None,
        typer.Argument(
            metavar="[TYPE]",
            help=f"File type: {FILE_TYPE_NAMES}.",
            show_default="what --target-bpw, --target-size or --like choose",
            autocompletion=file_types,
        ),
    ] = None,
    types: Types = None,
    pattern: OutPattern = None,
    imatrix: ImatrixFile = None,
    calibrate: Calibrate = None,
    target_bpw: TargetBpw = None,
    target_size: TargetSize = None,
    like: Like = None,
    pure: Annotated[bool, typer.Option("--pure", help="One type for all, no mix.")] = False,
    tensor_type: TensorTypes = None,
    tensor_type_file: Annotated[
        Path | None,
        typer.Option(
            "--tensor-type-file",
            metavar="FILE",
            help="REGEX=TYPE of tensors, as many as there are, with white space between; after "
            "those of --tensor-type.",
            show_default="none",
        ),
    ] = None,
    leave_output_tensor: Annotated[
        bool, typer.Option("--leave-output-tensor", help="Do not quantise output.weight.")
    ] = False,
    output_tensor_type: Annotated[
        str | None,
        typer.Option(
            "--output-tensor-type",
            metavar="TYPE",
            help="Type of output.weight.",
            show_default="the mix's",
            autocompletion=tensor_types,
        ),
    ] = None,
    token_embedding_type: Annotated[
        str | None,
        typer.Option(
            "--token-embedding-type",
            metavar="TYPE",
            help="Type of token_embd.weight.",
            show_default="the mix's",
            autocompletion=tensor_types,
        ),
    ] = None,
    allow_requantize: AllowRequantize = False,
    keep_split: Annotated[
        bool, typer.Option("--keep-split", help="Write as many files as the split GGUF has.")
    ] = False,
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
    """Quantise a GGUF or a model folder; --dry-run shows every tensor's type and size."""
    import gpukit
    from gpukit.planning.overrides import read_patterns

    kinds, place = asked(
        "quantize", types, out, pattern, TYPE=type, target_bpw=target_bpw, target_size=target_size,
        like=like,
    )  # fmt: skip
    how = converter_of(converter, converter_arg, converter_python, trust_remote_code)
    options = options_of(
        imatrix=imatrix,
        split_max_size=split_max_size,
        allow_requantize=allow_requantize,
        keep_split=keep_split,
        target_bpw=target_bpw,
        target_size=target_size,
        like=like,
        mtp=mtp,
        carry=carries(place),
        overrides=gpukit.make_overrides(
            [*(tensor_type or []), *(read_patterns(tensor_type_file) if tensor_type_file else [])],
            pure=pure,
            leave_output=leave_output_tensor,
            output_type=output_tensor_type,
            embedding_type=token_embedding_type,
        ),
    )
    if kinds:
        many(
            lambda report: gpukit.plan_many(
                source, kinds, options=options, calibrate=calibrate, pre=pre,
                converter=how, provenance=provenance, hub=hub, device=device, report=report,
            ),
            lambda report: gpukit.quantize_many(
                source, place, kinds, options=options, calibrate=calibrate, pre=pre,
                converter=how, provenance=provenance, hub=hub, device=device,
                resume=resume, report=report,
            ),
            dry_run=dry_run, quiet=quiet, json=json,
        )  # fmt: skip
        return
    if dry_run:
        with reporter(quiet) as report:
            plan = gpukit.plan(
                source, type, options=options, calibrate=calibrate, pre=pre,
                converter=how, provenance=provenance, hub=hub, device=device, report=report,
            )  # fmt: skip
        print_plan(plan, json=json, quiet=quiet)
        return
    with reporter(quiet) as report:
        result = gpukit.quantize(
            source, place, type, options=options, calibrate=calibrate, pre=pre, converter=how,
            provenance=provenance, hub=hub, device=device, resume=resume, report=report,
        )  # fmt: skip
    print_result(result, json=json, quiet=quiet)
