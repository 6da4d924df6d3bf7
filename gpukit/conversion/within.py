"""A plan, measured where a target of the user asks for it."""

from collections.abc import Callable, Sequence

from gpukit.events import Report, ignore
from gpukit.planning.plan import Options, QuantizePlan
from gpukit.planning.planner import plan_quantize
from gpukit.planning.targets import Candidate, candidates, check_target, plan_target
from gpukit.sources.base import Source
from gpukit_kernels.devices import Device

# What tensors lose as each of their types, as `sensitivity.measure` has it.
Losses = list[list[float]]
Measured = Callable[[Source, Sequence[Candidate], Device, Report], Losses]


def plan_within(
    source: Source,
    file_type: str | None,
    options: Options,
    device: Device = "auto",
    report: Report = ignore,
    measured: Measured | None = None,
) -> QuantizePlan:
    """What `source` becomes as `file_type`, or within the target of `options`, for which its
    weights are looked at on `device`, or what `measured` knows of them is taken. Errors as
    `plan_quantize`, `plan_target` and `measure`."""
    if options.target is None:
        return plan_quantize(source, file_type, options)
    # What measures computes with torch.
    from gpukit.conversion.sensitivity import measure

    free = candidates(source, options)
    check_target(source, options, free)  # before the look, which takes long
    look = measure if measured is None else measured
    return plan_target(source, options, free, look(source, free, device, report))
