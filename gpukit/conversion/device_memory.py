"""What a pass takes of a GPU at most, known before one is touched."""

from gpukit.conversion.pipeline import (
    BYTES_PER_WEIGHT,
    BYTES_WRITTEN,
    gpu_pace,
    weights_of_a_slab,
)
from gpukit.planning.plan import QuantizePlan

# Turns that a GPU has under way, as `gpukit_kernels.turns.DEEP`, whose module imports torch; each
# is on a stream of its own, and what torch keeps for one stream no other can have.
TURNS = 3
# Bytes that a weight of a slab takes there: as it is stored, as a value, as a value beside others
# of its type, and as its result.
STORED, VALUE, JOINED, WRITTEN = 4, 4, 4, 4
# With adapters: what the base has, and the sum.
MERGED = 4 + 4
# What CUDA and the kernels' code take, before any tensor.
CONTEXT = 640 << 20


def device_bytes(plan: QuantizePlan, budget: int, *, merged: bool = False, outputs: int = 1) -> int:
    """Bytes of GPU memory for a pass by `plan` with `budget` bytes of buffers on the host, `merged`
    with adapters, to so many outputs: three slabs under way, the importance of columns, and what
    CUDA takes."""
    rows = max((spec.ne[0] for spec in plan.specs if spec.ne), default=0)
    on_host = BYTES_PER_WEIGHT + BYTES_WRITTEN * (outputs - 1)
    slab = max(weights_of_a_slab(gpu_pace(), TURNS, budget, on_host), rows)
    weights = min(TURNS * slab, sum(spec.n_elements for spec in plan.specs))
    each = STORED + VALUE + JOINED + WRITTEN * outputs + (MERGED if merged else 0)
    columns = sum(o.importance.nbytes for o in plan.outputs if o.importance is not None)
    return weights * each + columns * outputs + CONTEXT
