"""How plans are printed, and what was written: tensor by tensor, by class and by type."""

from typing import TYPE_CHECKING, Any

from gpukit_cli.output import print_json
from gpukit_cli.progress import human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpukit import Plan, Plans, Result
    from gpukit.planning.changes import ChangeTotal
    from gpukit.planning.plan import QuantizePlan
    from gpukit.planning.totals import ClassTotal


def print_plan(plan: "Plan", *, json: bool, quiet: bool) -> None:
    """Print what `plan` would write, and close it."""
    with plan:
        if json:
            print_json(plan.as_json())
            return
        print_tensors(plan.records, quiet=quiet)
        name = f"{plan.file_type.name}: " if plan.file_type else ""
        files = f"{len(plan.parts)} files" if len(plan.parts) > 1 else "a file"
        print(f"{name}{files} of {human_bytes(plan.size)}; nothing was written")


def print_plans(plans: "Plans", *, json: bool, quiet: bool) -> None:
    """Print what `plans` would write, one after the other, and close them."""
    with plans:
        if json:
            print_json(plans.as_json())
            return
        for name, plan in zip(plans.types, plans.records, strict=True):
            print_tensors(plan, quiet=quiet)
            files = f"{len(plan.parts)} files" if len(plan.parts) > 1 else "a file"
            print(f"{name}: {files} of {human_bytes(plan.size)}\n")
        print(f"{len(plans.records)} types, {human_bytes(plans.size)}; nothing was written")


def print_tensors(plan: "QuantizePlan", *, quiet: bool) -> None:
    """Print what each tensor becomes, the sums by type, and what there is to warn of unless it is
    to be `quiet`."""
    names = max((len(o.spec.name) for o in plan.outputs), default=0)
    shapes = [" x ".join(map(str, o.spec.ne)) for o in plan.outputs]
    width = max(map(len, shapes), default=0)
    for output, shape in zip(plan.outputs, shapes, strict=True):
        print(f"{output.spec.name:<{names}}  {shape:>{width}}  {output.source_type:>4} -> "
              f"{output.spec.type:<5} {human_bytes(output.spec.nbytes):>8}")  # fmt: skip
    _print_totals(plan.totals())
    if quiet:
        return
    for line in plan.notes:
        print(line)
    for line in plan.warnings:
        print(f"warning: {line}")


def print_result(result: "Result", *, json: bool, quiet: bool) -> None:
    """Print what was written and what it cost; `quiet`, nothing but JSON that is asked for."""
    if json:
        print_json(result.as_json())
    if json or quiet:
        return
    _print_classes(result)
    print_changes(result.changes)
    _print_totals(result.totals)
    files = f" and {len(result.paths) - 1} more" if len(result.paths) > 1 else ""
    print(f"{result.path}{files}: {human_bytes(result.size)} in {result.seconds:.1f} s "
          f"({result.weights_per_second / 1e6:.1f} M weights/s, "
          f"{result.read_bytes_per_second / 1e9:.2f} GB/s read, "
          f"{result.written_bytes_per_second / 1e9:.2f} GB/s written)")  # fmt: skip


def print_results(results: "Sequence[Result]", *, json: bool, quiet: bool) -> None:
    """As `print_result`, for files that came of one reading."""
    if json:
        print_json([result.as_json() for result in results])
    if json or quiet:
        return
    for result in results:
        print_result(result, json=False, quiet=False)
        print()
    last = results[-1]
    print(f"{len(results)} types, {human_bytes(sum(result.size for result in results))} in "
          f"{last.seconds:.1f} s; {human_bytes(last.read_bytes)} were read, once")  # fmt: skip


def _print_classes(result: "Result") -> None:
    """What each class of tensors became, and the error that this made, or that it is as it was."""
    rows = [c for c in result.classes if c.relative_rms is not None or c.carried]
    if not rows:
        return
    names = max(len(row.name) for row in rows)
    types = max(len(" ".join(row.types)) for row in rows)
    print(f"{'tensors':<{names}}  {'number':>6}  {'type':<{types}}  {'size':>8}  error")
    for row in rows:
        print(f"{row.name:<{names}}  {row.tensors:>6}  {' '.join(row.types):<{types}}  "
              f"{human_bytes(row.nbytes):>8}  {_lost(row)}")  # fmt: skip
    found = [row for row in rows if row.relative_rms is not None]
    if found:
        compared, weights = sum(row.compared for row in found), sum(row.weights for row in found)
        share = "all" if compared == weights else f"{compared:,} of {weights:,}"
        print(f"error: root mean square relative to the weights', from {share} weights")
    if any(row.carried for row in rows):
        print("carried: the blocks of the source, bit for bit")
    print()


def _lost(row: "ClassTotal") -> str:
    """The error of a class; of how many of its tensors the blocks were carried over."""
    if not row.carried:
        return _percent(row.relative_rms)
    if row.carried == row.tensors:
        return "carried"
    return f"{_percent(row.relative_rms)}, {row.carried} carried"


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
