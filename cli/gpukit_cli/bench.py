"""`gpukit bench`: how fast each type is quantised and decoded on this machine."""

from typing import Annotated

import typer

from gpukit_cli.output import print_json


def bench(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="quantize or dequantize.")],
    type: Annotated[
        list[str] | None, typer.Option("--type", help="A type; may be repeated. By default all.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    weights: Annotated[
        int | None, typer.Option(min=1, help="Weights of a timed call, BF16.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
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
