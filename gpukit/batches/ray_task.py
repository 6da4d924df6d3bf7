"""What a node of a Ray cluster does: makes a portion, and yields what becomes of it."""

import os
import socket
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from gpukit.batches.places import as_seen_here, folders_of
from gpukit.batches.portions import Portion
from gpukit.batches.result import Told
from gpukit.batches.states import state_folder
from gpukit.batches.throttle import throttled
from gpukit.batches.work import work_of
from gpukit.errors import DiskError, GpukitError
from gpukit.formats.atomic import remove_own
from gpukit.version import VERSION

# Between two steps of a job that are told: they go over the network, to one driver.
STEP_SECONDS = 1.0
# How often a task that waits for its own work looks whether it has been cancelled.
LOOK_SECONDS = 0.5
END = object()


def make(portion: Portion) -> Iterator[Told]:
    """What becomes of the jobs of `portion`, as they are made; `DiskError` where this node does not
    see what the driver sees, `GpukitError` for another version of gpukit.

    A task that is cancelled removes what is half made and ends its process."""
    check_node(portion)
    told: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_run, args=(portion, told), name="gpukit-run", daemon=True).start()
    try:
        while (what := _next(told)) is not END:
            if isinstance(what, BaseException):
                raise what
            yield what
    except (KeyboardInterrupt, GeneratorExit):
        # The thread cannot be told to end in the middle of a slab.
        remove_own()
        os._exit(1)


def _next(told: "SimpleQueue[Any]") -> Any:
    while True:
        try:
            # Without an end to the wait it would not hear that the task is cancelled.
            return told.get(timeout=LOOK_SECONDS)
        except Empty:
            continue


def _run(portion: Portion, told: "SimpleQueue[Any]") -> None:
    try:
        watch = throttled(told.put, STEP_SECONDS)
        work_of(portion, watch, as_seen_here(portion.prepared)).all()
    except BaseException as error:  # raised again where Ray hears it
        told.put(error)
    told.put(END)


def check_node(portion: Portion) -> None:
    """Errors of `make`, before anything is read."""
    host = socket.gethostname()
    if portion.version != VERSION:
        raise GpukitError(
            f"node {host} has gpukit {VERSION}, the driver {portion.version}; install one version "
            "on all nodes"
        )
    prepared, job = portion.prepared, portion.standings[0].job
    inputs = prepared.inputs
    needed = [state_folder(prepared.read) / "lock", inputs.source(job), *inputs.adapters(job)]
    needed += folders_of(prepared)
    for path in needed:
        if not path.exists():
            raise DiskError(
                f"node {host}: {path} is not there; plan, models, adapters and outputs must lie "
                "on a path that all nodes share"
            )
