"""`gpukit convert` and `gpukit quantize`: one file from a checkpoint or from another GGUF."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpukit_cli.progress import human_bytes, reporter

if TYPE_CHECKING:
    from gpukit.recipes.mixes import Overrides
    from gpukit.recipes.quantize import QuantizePlan, QuantizeResult

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, write nothing.")]


def convert(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face model folder, or a GGUF.")],
    out: Annotated[Path, typer.Argument(help="The GGUF to write.")],
    type: Annotated[
        str | None,
        typer.Option("--type", help="File type, such as Q4_K_M; by default the checkpoint's own."),
    ] = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Convert a Hugging Face folder to a GGUF, quantised on the way."""
    _run(folder, out, type, None, device, dry_run, json)


def quantize(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A GGUF or a model folder.")],
    out: Annotated[Path, typer.Argument(help="The GGUF to write.")],
    type: Annotated[str, typer.Argument(help="File type, such as Q4_K_M.")],
    pure: Annotated[bool, typer.Option("--pure", help="One type for all, no mix.")] = False,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX=TYPE", help="Type of the tensors that match; the first match wins."
        ),
    ] = None,
    leave_output_tensor: Annotated[
        bool, typer.Option("--leave-output-tensor", help="Do not quantise output.weight.")
    ] = False,
    output_tensor_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of output.weight.")
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of token_embd.weight.")
    ] = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Quantise a GGUF or a model folder; --dry-run shows every tensor's type and size."""
    from gpukit.recipes.mixes import make_overrides

    overrides = make_overrides(
        tensor_type or [],
        pure=pure,
        leave_output=leave_output_tensor,
        output_type=output_tensor_type,
        embedding_type=token_embedding_type,
    )
    _run(source, out, type, overrides, device, dry_run, json)


def _run(
    path: Path,
    out: Path,
    file_type: str | None,
    overrides: "Overrides | None",
    device: str,
    dry_run: bool,
    json: bool,
) -> None:
    from gpukit.recipes.quantize import plan_quantize, run_plan
    from gpukit.recipes.source import open_source

    with open_source(path) as source:
        plan = plan_quantize(source, file_type, overrides)
        if dry_run:
            _print_plan(plan, json)
            return
        with reporter() as report:
            result = run_plan(source, plan, out, device=device, report=report)
    _print_result(result, json)


def _print_plan(plan: "QuantizePlan", json: bool) -> None:
    if json:
        print(jsonlib.dumps(plan.as_json()))
        return
    names = max((len(o.spec.name) for o in plan.outputs), default=0)
    shapes = [" x ".join(map(str, o.spec.ne)) for o in plan.outputs]
    width = max(map(len, shapes), default=0)
    for output, shape in zip(plan.outputs, shapes, strict=True):
        print(f"{output.spec.name:<{names}}  {shape:>{width}}  {output.source_type:>4} -> "
              f"{output.spec.type:<5} {human_bytes(output.spec.nbytes):>8}")  # fmt: skip
    _print_totals(plan.totals())
    print(f"{plan.file_type.name}: a file of {human_bytes(plan.size)}; nothing was written")


def _print_result(result: "QuantizeResult", json: bool) -> None:
    if json:
        print(jsonlib.dumps({
            "path": str(result.path),
            "size": result.size,
            "seconds": round(result.seconds, 3),
            "weights": result.weights,
            "types": {
                t.type: {"tensors": t.tensors, "weights": t.weights, "nbytes": t.nbytes}
                for t in result.totals
            },
        }))  # fmt: skip
        return
    _print_totals(result.totals)
    seconds = max(result.seconds, 1e-9)
    print(f"{result.path}: {human_bytes(result.size)} in {result.seconds:.1f} s "
          f"({result.weights / seconds / 1e6:.1f} M weights/s, "
          f"{human_bytes(int(result.read_bytes / seconds))}/s read)")  # fmt: skip


def _print_totals(rows: Any) -> None:
    print(f"{'type':<6} {'tensors':>7} {'weights':>15} {'size':>8} {'bits per weight':>15}")
    for row in rows:
        print(f"{row.type:<6} {row.tensors:>7} {row.weights:>15,} {human_bytes(row.nbytes):>8} "
              f"{row.bits_per_weight:>15.2f}")  # fmt: skip
    weights, nbytes = sum(r.weights for r in rows), sum(r.nbytes for r in rows)
    tensors = sum(r.tensors for r in rows)
    print(f"{'all':<6} {tensors:>7} {weights:>15,} {human_bytes(nbytes):>8} "
          f"{8 * nbytes / max(weights, 1):>15.2f}")  # fmt: skip
