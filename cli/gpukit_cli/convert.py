"""`gpukit convert` and `gpukit quantize`: one file from a checkpoint or from another GGUF."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpukit_cli.options import (
    FILE_TYPE_NAMES,
    Adapters,
    Calibrate,
    Devices,
    DryRun,
    Hub,
    ImatrixFile,
    Input,
    Json,
    Like,
    MoeLayout,
    Pre,
    Provenance,
    Quiet,
    SplitMaxSize,
    Strict,
    TargetBpw,
    TargetSize,
    file_types,
    tensor_types,
)
from gpukit_cli.progress import reporter
from gpukit_cli.results import print_plan, print_result

if TYPE_CHECKING:
    from gpukit import Options

Out = Annotated[
    Path,
    typer.Argument(
        metavar="OUT",
        help="The GGUF to write. A file that is there is replaced, whole and at the end; "
        "IN never is.",
    ),
]


def convert(
    source: Input,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="The GGUF to write, or from a GGUF a .safetensors file. A file that is there is "
            "replaced, whole and at the end; IN never is.",
        ),
    ],
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
    adapter: Adapters = None,
    strict: Strict = False,
    moe_layout: MoeLayout = None,
    imatrix: ImatrixFile = None,
    target_bpw: TargetBpw = None,
    target_size: TargetSize = None,
    like: Like = None,
    split_max_size: SplitMaxSize = None,
    pre: Pre = None,
    provenance: Provenance = False,
    hub: Hub = False,
    device: Devices = "auto",
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Convert a Hugging Face folder to a GGUF, with adapters merged and quantised on the way, or a
    GGUF to floats."""
    import gpukit

    adapters = adapter or []
    if dry_run:
        options = _options(
            imatrix=imatrix, split_max_size=split_max_size, target_bpw=target_bpw,
            target_size=target_size, like=like,
        )  # fmt: skip
        with reporter(quiet) as report:
            plan = gpukit.plan(
                source, type, options=options, adapters=adapters, strict=strict,
                moe_layout=moe_layout, pre=pre, provenance=provenance, hub=hub, device=device,
                report=report,
            )  # fmt: skip
        print_plan(plan, json=json, quiet=quiet)
        return
    with reporter(quiet) as report:
        result = gpukit.convert(
            source, out, type, adapters=adapters, strict=strict, moe_layout=moe_layout,
            imatrix=imatrix, target_bpw=target_bpw, target_size=size(target_size), like=like,
            split_max_size=size(split_max_size), pre=pre, provenance=provenance, hub=hub,
            device=device, report=report,
        )  # fmt: skip
    print_result(result, json=json, quiet=quiet)


def quantize(
    source: Input,
    out: Out,
    type: Annotated[
        str | None,
        typer.Argument(
            metavar="[TYPE]",
            help=f"File type: {FILE_TYPE_NAMES}.",
            show_default="what --target-bpw, --target-size or --like choose",
            autocompletion=file_types,
        ),
    ] = None,
    imatrix: ImatrixFile = None,
    calibrate: Calibrate = None,
    target_bpw: TargetBpw = None,
    target_size: TargetSize = None,
    like: Like = None,
    pure: Annotated[bool, typer.Option("--pure", help="One type for all, no mix.")] = False,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor-type",
            metavar="REGEX=TYPE",
            help="Type of the tensors that match; may be repeated, and the first match wins.",
            show_default="the mix's",
        ),
    ] = None,
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
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Take quantised tensors, which loses more.")
    ] = False,
    keep_split: Annotated[
        bool, typer.Option("--keep-split", help="Write as many files as the split GGUF has.")
    ] = False,
    split_max_size: SplitMaxSize = None,
    pre: Pre = None,
    provenance: Provenance = False,
    hub: Hub = False,
    device: Devices = "auto",
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Quantise a GGUF or a model folder; --dry-run shows every tensor's type and size."""
    import gpukit
    from gpukit.planning.overrides import read_patterns

    options = _options(
        imatrix=imatrix,
        split_max_size=split_max_size,
        allow_requantize=allow_requantize,
        keep_split=keep_split,
        target_bpw=target_bpw,
        target_size=target_size,
        like=like,
        overrides=gpukit.make_overrides(
            [*(tensor_type or []), *(read_patterns(tensor_type_file) if tensor_type_file else [])],
            pure=pure,
            leave_output=leave_output_tensor,
            output_type=output_tensor_type,
            embedding_type=token_embedding_type,
        ),
    )
    if dry_run:
        with reporter(quiet) as report:
            plan = gpukit.plan(
                source, type, options=options, calibrate=calibrate, pre=pre,
                provenance=provenance, hub=hub, device=device, report=report,
            )  # fmt: skip
        print_plan(plan, json=json, quiet=quiet)
        return
    with reporter(quiet) as report:
        result = gpukit.quantize(
            source, out, type, options=options, calibrate=calibrate, pre=pre,
            provenance=provenance, hub=hub, device=device, report=report,
        )  # fmt: skip
    print_result(result, json=json, quiet=quiet)


def _options(
    *,
    imatrix: Path | None,
    split_max_size: str | None,
    target_size: str | None,
    **others: Any,
) -> "Options":
    from gpukit.formats.imatrix import read_imatrix
    from gpukit.planning.plan import Options

    return Options(
        imatrix=read_imatrix(imatrix) if imatrix else None,
        split_max_size=size(split_max_size),
        target_size=size(target_size),
        **others,
    )


def size(text: str | None) -> int | None:
    """Bytes of what a user writes as 500M or 2G."""
    from gpukit.formats.gguf_split import parse_size

    return parse_size(text) if text is not None else None
