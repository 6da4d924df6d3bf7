"""`gpukit convert` and `gpukit quantize`: one file from a checkpoint or from another GGUF."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpukit_cli.options import (
    FILE_TYPE_NAMES,
    Adapters,
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
from gpukit_cli.output import print_json
from gpukit_cli.progress import human_bytes, reporter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpukit import Options, Plan, Result
    from gpukit.planning.changes import ChangeTotal
    from gpukit.planning.plan import QuantizePlan

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
        _print_plan(plan, json)
        return
    with reporter(quiet) as report:
        result = gpukit.convert(
            source, out, type, adapters=adapters, strict=strict, moe_layout=moe_layout,
            imatrix=imatrix, target_bpw=target_bpw, target_size=size(target_size), like=like,
            split_max_size=size(split_max_size), pre=pre, provenance=provenance, hub=hub,
            device=device, report=report,
        )  # fmt: skip
    print_result(result, json)


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
                source, type, options=options, pre=pre, provenance=provenance, hub=hub,
                device=device, report=report,
            )  # fmt: skip
        _print_plan(plan, json)
        return
    with reporter(quiet) as report:
        result = gpukit.quantize(
            source, out, type, options=options, pre=pre, provenance=provenance, hub=hub,
            device=device, report=report,
        )  # fmt: skip
    print_result(result, json)


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


def _print_plan(plan: "Plan", json: bool) -> None:
    """Print what `plan` would write, and close it."""
    with plan:
        if json:
            print_json(plan.as_json())
            return
        print_tensors(plan.records)
        name = f"{plan.file_type.name}: " if plan.file_type else ""
        files = f"{len(plan.parts)} files" if len(plan.parts) > 1 else "a file"
        print(f"{name}{files} of {human_bytes(plan.size)}; nothing was written")


def print_tensors(plan: "QuantizePlan") -> None:
    """Print what each tensor becomes, the sums by type, and what there is to warn of."""
    names = max((len(o.spec.name) for o in plan.outputs), default=0)
    shapes = [" x ".join(map(str, o.spec.ne)) for o in plan.outputs]
    width = max(map(len, shapes), default=0)
    for output, shape in zip(plan.outputs, shapes, strict=True):
        print(f"{output.spec.name:<{names}}  {shape:>{width}}  {output.source_type:>4} -> "
              f"{output.spec.type:<5} {human_bytes(output.spec.nbytes):>8}")  # fmt: skip
    _print_totals(plan.totals())
    for line in plan.notes:
        print(line)
    for line in plan.warnings:
        print(f"warning: {line}")


def print_result(result: "Result", json: bool) -> None:
    if json:
        print_json(result.as_json())
        return
    _print_classes(result)
    print_changes(result.changes)
    _print_totals(result.totals)
    files = f" and {len(result.paths) - 1} more" if len(result.paths) > 1 else ""
    print(f"{result.path}{files}: {human_bytes(result.size)} in {result.seconds:.1f} s "
          f"({result.weights_per_second / 1e6:.1f} M weights/s, "
          f"{result.read_bytes_per_second / 1e9:.2f} GB/s read, "
          f"{result.written_bytes_per_second / 1e9:.2f} GB/s written)")  # fmt: skip


def _print_classes(result: "Result") -> None:
    """What each class of tensors became, and the error that this made."""
    rows = [c for c in result.classes if c.relative_rms is not None]
    if not rows:
        return
    names = max(len(row.name) for row in rows)
    types = max(len(" ".join(row.types)) for row in rows)
    print(f"{'tensors':<{names}}  {'number':>6}  {'type':<{types}}  {'size':>8}  error")
    for row in rows:
        print(f"{row.name:<{names}}  {row.tensors:>6}  {' '.join(row.types):<{types}}  "
              f"{human_bytes(row.nbytes):>8}  {_percent(row.relative_rms)}")  # fmt: skip
    compared, weights = sum(row.compared for row in rows), sum(row.weights for row in rows)
    share = "all" if compared == weights else f"{compared:,} of {weights:,}"
    print(f"error: root mean square relative to the weights', from {share} weights\n")


def print_changes(rows: "Sequence[ChangeTotal]") -> None:
    """What adapters did to each class of tensors, and how much of it is in what was written."""
    if not rows:
        return
    names = max(len(row.name) for row in rows)
    types = max(4, *(len(" ".join(row.types)) for row in rows))
    print(f"{'merged':<{names}}  {'number':>6}  {'type':<{types}}  {'change':>8}  {'kept':>8}  "
          "direction")  # fmt: skip
    for row in rows:
        direction = "-" if row.direction is None else f"{row.direction:.3f}"
        print(f"{row.name:<{names}}  {row.tensors:>6}  {' '.join(row.types):<{types}}  "
              f"{_percent(row.relative):>8}  {_percent(row.kept):>8}  {direction:>9}")  # fmt: skip
    print("change: length of the deltas relative to the weights'; kept: of what the stored values "
          "change by relative\nto the deltas'; direction: cosine of the angle between the two; "
          f"from {sum(row.looked_at for row in rows):,} weights\n")  # fmt: skip


def _percent(share: float | None) -> str:
    return f"{100 * share:.3g} %" if share is not None else "-"


def _print_totals(rows: Any) -> None:
    print(f"{'type':<6} {'tensors':>7} {'weights':>15} {'size':>8} {'bits per weight':>15} "
          f"{'error':>8}")  # fmt: skip
    for row in rows:
        print(f"{row.type:<6} {row.tensors:>7} {row.weights:>15,} {human_bytes(row.nbytes):>8} "
              f"{row.bits_per_weight:>15.2f} {_percent(row.relative_rms):>8}")  # fmt: skip
    weights, nbytes = sum(r.weights for r in rows), sum(r.nbytes for r in rows)
    tensors = sum(r.tensors for r in rows)
    print(f"{'all':<6} {tensors:>7} {weights:>15,} {human_bytes(nbytes):>8} "
          f"{8 * nbytes / max(weights, 1):>15.2f}")  # fmt: skip
