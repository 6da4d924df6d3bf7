"""Fewer steps than there are: what goes from process to process should be what somebody sees."""

import time

from gpukit.batches.result import Told, Watch
from gpukit.events import Step


def throttled(watch: Watch, seconds: float) -> Watch:
    """`watch` without the steps that follow another of the same job within `seconds`, but for the
    last."""
    last: dict[str, float] = {}

    def told(what: Told) -> None:
        if isinstance(what.event, Step):
            now, output = time.monotonic(), what.row.output
            if now - last.get(output, -seconds) < seconds and what.event.done < what.event.total:
                return
            last[output] = now
        watch(what)

    return told
