"""What a process does with a portion of a batch."""

from gpukit.batches.evaluating import Evaluation
from gpukit.batches.portions import Portion
from gpukit.batches.preparing import Prepared
from gpukit.batches.result import Watch
from gpukit.batches.running import Run


def work_of(portion: Portion, watch: Watch, prepared: Prepared | None = None) -> Run | Evaluation:
    """Something that makes or measures the results of a portion by `all`, until `stop`; with
    `prepared` of that instead of what came with it."""
    of = prepared or portion.prepared
    if portion.measures:
        return Evaluation(of, portion.keep_going, watch)
    return Run(of, portion.keep_going, watch)
