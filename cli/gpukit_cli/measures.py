"""How perplexity and divergence are printed: as llama-perplexity prints them, and as a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpukit_cli.output import print_table

if TYPE_CHECKING:
    from gpukit.evaluation.divergence import Distribution, Divergence
    from gpukit.evaluation.measuring import Standing
    from gpukit.evaluation.perplexity import Mean
    from gpukit.events import Event, Report
    from gpukit.recipes.perplexity import Perplexity

HEAD = (
    "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence           "
    "   Δp RMS            Same top p"
)
# Percentiles as they are printed, and their names.
ENDS = (
    ("99.9%", "999"), ("99.0%", "99"), ("95.0%", "95"), ("90.0%", "90"), ("75.0%", "75"),
    ("Median", "median"), ("25.0%", "25"), ("10.0%", "10"), ("5.0%", "05"), ("1.0%", "01"),
    ("0.1%", "001"),
)  # fmt: skip


class ChunkPrinter:
    """A report that prints what each window gives on stdout as it comes, `[1]4.1234,[2]...`, or a
    row of a table beside a reference; all else goes to `others`."""

    def __init__(self, others: "Report") -> None:
        self._others = others
        self._open = False

    def __call__(self, event: "Event") -> None:
        from gpukit.evaluation.measuring import Scored

        if not isinstance(event, Scored) or event.standing is None:
            self.end()
            self._others(event)
        elif event.standing.kld is None:
            self._open = True
            print(f"[{event.done}]{event.standing.perplexity.value:.4f},", end="", flush=True)
        else:
            if event.done == 1:
                print(HEAD)
            print(_standing(event.done, event.standing), flush=True)

    def end(self) -> None:
        """End the line, if there is one."""
        if self._open:
            print(flush=True)
        self._open = False


def _standing(number: int, found: "Standing") -> str:
    assert found.log_ratio is not None
    assert found.kld is not None
    assert found.dp_rms is not None
    assert found.same_top is not None
    return (
        f"{number:4}    {found.perplexity.value:9.4f} ± {found.perplexity.error:9.4f}"
        f"    {found.log_ratio.value:10.5f} ± {found.log_ratio.error:10.5f}"
        f"    {found.kld.value:10.5f} ± {found.kld.error:10.5f}"
        f"    {_percent(found.dp_rms)}    {_percent(found.same_top)}"
    )


def _percent(found: "Mean") -> str:
    return f"{100 * found.value:6.3f} ± {100 * found.error:6.3f} %"


def print_estimate(found: "Perplexity") -> None:
    """The last line of llama-perplexity."""
    print(f"Final estimate: PPL = {found.perplexity:.4f} +/- {found.error:.5f}")
    _print_amount(found)


def _print_amount(found: "Perplexity") -> None:
    speed = found.tokens_per_second
    rate = f", {speed:.0f} tokens/s on {found.device}" if speed is not None else ""
    print(f"{found.chunks} chunks of {found.num_ctx} tokens, {found.tokens:,} scored{rate}")


def print_divergence(found: "Perplexity", beside: "Divergence") -> None:
    """The statistics of llama-perplexity --kl-divergence."""
    rows: list[tuple[str, float, float]] = [
        ("Mean PPL(Q)", found.perplexity, found.error),
        ("Mean PPL(base)", beside.base.value, beside.base.error),
        ("Mean ln(PPL(Q)/PPL(base))", beside.log_ratio.value, beside.log_ratio.error),
        ("Mean PPL(Q)/PPL(base)", beside.ratio.value, beside.ratio.error),
        ("Mean PPL(Q)-PPL(base)", beside.difference.value, beside.difference.error),
    ]
    print("\n====== Perplexity statistics ======")
    for number, (name, value, error) in enumerate(rows):
        print(f"{name:<30}: {value:10.6f} ± {error:10.6f}")
        if number == 1:
            print(f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * beside.correlation:6.2f}%")
    print("\n====== KL divergence statistics ======")
    _print_distribution("KLD", beside.kld)
    print("\n====== Token probability statistics ======")
    _print_distribution("Δp", beside.dp, percent=True)
    print(f"RMS Δp    : {_percent(beside.dp_rms)}")
    print(f"Same top p: {_percent(beside.same_top)}\n")
    print(f"against {found.against}")
    print_estimate(found)


def _print_distribution(name: str, found: "Distribution", *, percent: bool = False) -> None:
    def shown(value: float) -> str:
        return f"{100 * value:7.3f} %" if percent else f"{value:10.6f}"

    mean = _percent(found.mean) if percent else f"{found.mean.value:10.6f} ± {found.mean.error:.6f}"
    print(f"Mean    {name}: {mean}")
    rows = [("Maximum", found.max), *((title, found.at[end]) for title, end in ENDS)]
    for title, value in [*rows, ("Minimum", found.min)]:
        print(f"{title:<7} {name}: {shown(value)}")


def print_rows(found: "Sequence[Perplexity]") -> None:
    """A row a model."""
    from gpukit_cli.progress import human_bytes

    head = ("model", "type", "size", "bits", "PPL", "ΔPPL", "KLD", "99.9 %", "same top", "tokens/s")
    rows: list[tuple[str, ...]] = [head]
    for each in found:
        speed = each.tokens_per_second
        rows.append((
            each.model, each.type, human_bytes(each.nbytes), f"{each.bits_per_weight:.2f}",
            f"{each.perplexity:.4f} ± {each.error:.4f}", *_beside(each.divergence),
            "-" if speed is None else f"{speed:.0f}",
        ))  # fmt: skip
    print_table(rows)
    against = next((each.against for each in found if each.against is not None), None)
    one = found[0]
    print(f"\n{one.chunks} chunks of {one.num_ctx} tokens, {one.tokens:,} scored, on {one.device}"
          + (f"; ΔPPL, KLD and same top against {against}" if against else ""))  # fmt: skip


def _beside(found: "Divergence | None") -> tuple[str, ...]:
    if found is None:
        return ("-",) * 4
    change, kld = found.difference, found.kld
    return (
        f"{change.value:+.4f} ± {change.error:.4f}",
        f"{kld.mean.value:.6f} ± {kld.mean.error:.6f}",
        f"{kld.at['999']:.4f}",
        f"{100 * found.same_top.value:.2f} %",
    )
