"""`gpukit bench`: how fast each type is quantised and decoded on this machine."""

from typing import Annotated

import typer

from gpukit_cli.options import Device, Json, tensor_types
from gpukit_cli.output import print_json

WHATS = ("quantize", "dequantize")


def _whats(incomplete: str) -> list[str]:
    return [what for what in WHATS if what.startswith(incomplete)]


def bench(
    what: Annotated[
        str,
        typer.Argument(metavar="WHAT", help="quantize or dequantize.", autocompletion=_whats),
    ],
    type: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Type of tensors, such as Q4_K; may be repeated.",
            show_default="all",
            autocompletion=tensor_types,
        ),
    ] = None,
    device: Device = "auto",
    weights: Annotated[
        int | None,
        typer.Option(
            "--weights",
            metavar="N",
            min=1,
            help="Weights of a timed call, in BF16.",
            show_default="16 million on a CPU, 268 million on a GPU",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Time every type: weights and bytes a second, beside a copy in the same run."""
    from gpukit.recipes.bench import plan_bench

    plan = plan_bench(what, type or [], device, weights)
    if json:
        print_json(plan.as_json())
        return
    print(f"{what} on {plan.device}, {plan.weights:,} weights a call; a copy of them moves "
          f"{plan.copy / 1e9:.1f} GB/s, read and written")  # fmt: skip
    print(f"{'type':<8} {'backend':<8} {'M weights/s':>11} {'GB/s':>7} {'of a copy':>9} "
          f"{'of fp32 issue':>13}")  # fmt: skip
    for rate in plan.rates():
        issue = f"{100 * rate.issue_share:.0f} %" if rate.issue_share is not None else "-"
        print(f"{rate.type:<8} {rate.backend:<8} {rate.weights_per_second / 1e6:>11.1f} "
              f"{rate.bytes_per_second / 1e9:>7.2f} {100 * rate.copy_share:>7.1f} % {issue:>13}",
              flush=True)  # fmt: skip
