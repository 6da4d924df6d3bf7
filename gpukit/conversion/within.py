"""A plan, measured where a target of the user asks for it."""

from gpukit.events import Report, ignore
from gpukit.planning.plan import Options, QuantizePlan
from gpukit.planning.planner import plan_quantize
from gpukit.planning.targets import candidates, plan_target
from gpukit.sources.base import Source


def plan_within(
    source: Source,
    file_type: str | None,
    options: Options,
    device: str = "auto",
    report: Report = ignore,
) -> QuantizePlan:
    """What `source` becomes as `file_type`, or within the target of `options`, for which its
    weights are looked at on `device`. Errors as `plan_quantize`, `plan_target` and `measure`."""
    if options.target is None:
        return plan_quantize(source, file_type, options)
    # What measures computes with torch.
    from gpukit.conversion.sensitivity import measure

    free = candidates(source, options)
    return plan_target(source, options, free, measure(source, free, device, report))
