"""The jobs that are left, by the nodes of a Ray cluster: groups of jobs as tasks.

The driver is the process that was started; it has the plan's lock. A task makes a portion as a
worker on this machine does, and what it tells is yielded to the driver. Where a node or a process
is lost, the journals say what is done; the rest is a task again.
"""

import io
import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any, TextIO

from gpukit.batches import lost
from gpukit.batches.gathering import Gathered
from gpukit.batches.nodes import Resources, Wanted, wanted
from gpukit.batches.places import with_folders
from gpukit.batches.portions import Portion, portions
from gpukit.batches.preparing import Prepared
from gpukit.batches.ray_task import make
from gpukit.batches.result import Watch
from gpukit.batches.states import Standing, State, identity
from gpukit.errors import ArgumentError, GpukitError, one_line
from gpukit.formats.atomic import remove_temporaries

# How often a portion may lose its process or its node.
ATTEMPTS = 3
# A process may outlive its node's agent, and hold its journals, for some seconds; a shared path may
# take as long to show what another node has written.
SECONDS_TO_SETTLE = 60.0
LOOK_SECONDS = 0.5
SECONDS_TO_CANCEL = 5.0
SECONDS_TO_KNOCK = 10.0
# What of this process's environment says where models and caches are.
PASSED_ON = ("GPUKIT_", "OLLAMA_MODELS", "HF_", "GOMP_")


@dataclass
class _Task:
    """A portion, how often it was lost, and since when, if it waits to be a task again."""

    portion: Portion
    losses: int = 0
    lost_at: float = 0.0


def run_on_ray(
    prepared: Prepared, address: str, jobs: int | None, keep_going: bool, watch: Watch
) -> Gathered:
    """Make every result that is left on the Ray cluster at `address`, which is auto or HOST:PORT,
    by `jobs` tasks on each node, else by one for each GPU, or one. Plan, models, adapters and
    outputs lie on a path that all nodes have.

    `ArgumentError` without the extra `gpukit[ray]`, `GpukitError` where the cluster does not
    answer or cannot have what a job needs; all before anything begins.
    """
    gathered = Gathered(prepared, watch)
    if not any(at.state.is_left for at in prepared.standings):
        return gathered
    with ExitStack() as stack:
        left = _with_places(prepared, keep_going, stack)
        portions_on_ray(left, gathered, address, jobs, keep_going)
    _check_here(prepared, gathered)
    return gathered


def _with_places(prepared: Prepared, keep_going: bool, stack: ExitStack) -> Iterator[Portion]:
    """The portions of a batch; folders of results are made when the first is asked for, and known
    until the end of `stack`."""
    yield from portions(stack.enter_context(with_folders(prepared)), keep_going)


def portions_on_ray(
    left: Iterable[Portion], gathered: Gathered, address: str, jobs: int | None, keep_going: bool
) -> Gathered:
    """The same for those portions, which are looked at when the cluster has answered."""
    with _connected(address) as ray:
        driver = _Driver(ray, gathered, keep_going, jobs)
        try:
            driver.all(list(left))
        finally:
            driver.end()
    return gathered


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """The module `ray`, connected; a connection that the caller has made is left as it is."""
    try:
        import ray
    except ImportError:
        raise ArgumentError(
            f"--ray {address}: ray is not installed; pip install 'gpukit[ray]'"
        ) from None
    if ray.is_initialized():
        yield ray
        return
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        told = one_line(str(error)).partition(". ")[0]
        raise GpukitError(
            f"--ray {address}: no cluster answers: {told[:200]}; start one with ray start --head"
        ) from None
    try:
        with redirect_stdout(_WithoutRay(sys.stdout)):
            yield ray
    finally:
        with redirect_stdout(io.StringIO()):  # what its threads have held back comes now
            ray.shutdown()


class _WithoutRay:
    """`stream` but for what Ray's own threads print of lost nodes, pages of it: standard output is
    the result's."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if threading.current_thread().name.startswith("ray_"):
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _knock(address: str) -> None:
    """`OSError` where nobody listens at HOST:PORT: Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), SECONDS_TO_KNOCK).close()


class _Driver:
    """The tasks of a batch under way, by what Ray calls them."""

    def __init__(self, ray: Any, gathered: Gathered, keep_going: bool, jobs: int | None) -> None:
        self._ray = ray
        self._gathered = gathered
        self._keep_going = keep_going
        self._jobs = jobs
        self._tasks: dict[Any, _Task] = {}
        self._lost: deque[_Task] = deque()
        variables = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
        self._make = ray.remote(make)
        # An attempt is ours to count: only the journals know what of it is done.
        self._options = {
            "num_returns": "streaming", "max_retries": 0, "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": variables} if variables else None,
        }  # fmt: skip

    def all(self, left: list[Portion]) -> None:
        """Make all portions, and hear of them until the last has ended."""
        nodes = self._nodes()
        asked = [wanted(portion, nodes, self._jobs) for portion in left]
        for portion, want in zip(left, asked, strict=True):
            self._begin(_Task(portion), want)
        while self._tasks or self._lost:
            self._again()
            if self._tasks:
                ready, _ = self._ray.wait(list(self._tasks), timeout=LOOK_SECONDS)
                for stream in ready:
                    self._hear(stream)
            else:
                time.sleep(LOOK_SECONDS)
            if self._gathered.has_failed and not self._keep_going:
                self._stop()

    def _begin(self, task: _Task, want: Wanted) -> None:
        stream = self._make.options(**self._options, **want.options()).remote(task.portion)
        self._tasks[stream] = task

    def _nodes(self) -> list[Resources]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _hear(self, stream: Any) -> None:
        """Take up what a task has told, or how it has ended."""
        task, errors = self._tasks[stream], self._ray.exceptions
        try:
            self._gathered.hear(self._ray.get(next(stream)))
        except StopIteration:
            del self._tasks[stream]
        except errors.TaskCancelledError:
            del self._tasks[stream]
        except errors.RayTaskError as error:
            del self._tasks[stream]
            self._failed(task, _cause(error))
        except errors.RayError as error:
            del self._tasks[stream]
            task.losses += 1
            task.lost_at = time.monotonic()
            if task.losses >= ATTEMPTS:
                self._failed(task, f"lost {task.losses} times: {one_line(str(error))[:300]}")
            else:
                self._lost.append(task)

    def _failed(self, task: _Task, why: str) -> None:
        rest = lost.fail(task.portion, self._gathered, why)
        if rest is not None:
            task.portion, task.losses, task.lost_at = rest, 0, time.monotonic()
            self._lost.append(task)

    def _again(self) -> None:
        """Make tasks again of what was lost, once no process holds any of it."""
        for _ in range(len(self._lost)):
            task = self._lost.popleft()
            rest = lost.take_up(task.portion, self._gathered)
            if rest is None:
                continue
            held = _held(rest)
            if held and time.monotonic() - task.lost_at < SECONDS_TO_SETTLE:
                self._lost.append(task)
                continue
            for at in rest.standings:
                if at not in held and at.job.output is not None:
                    remove_temporaries(at.job.output)
            task.portion = rest
            try:
                want = wanted(rest, self._nodes(), self._jobs)
            except GpukitError as error:  # the node that was lost was the only one that could
                self._failed(task, str(error))
                continue
            self._begin(task, want)

    def _stop(self) -> None:
        """Let no task begin that has not begun; the others come to their ends."""
        self._lost.clear()
        for stream, task in list(self._tasks.items()):
            outputs = {at.job.target for at in task.portion.standings}
            if not self._gathered.begun(task.portion) and not outputs & self._gathered.ended:
                self._ray.cancel(stream)

    def end(self) -> None:
        """Let all tasks end that have not; what they have half made they remove."""
        for stream in self._tasks:
            with suppress(Exception):
                self._ray.cancel(stream)
        ends = time.monotonic() + SECONDS_TO_CANCEL
        for task in self._tasks.values():
            while time.monotonic() < ends and _held(task.portion):
                time.sleep(0.1)


def _held(portion: Portion) -> list[Standing]:
    """The jobs of a portion that a process is making."""
    return [at for at in portion.standings if lost.now_standing(portion, at).state is State.RUNNING]


def _cause(error: Any) -> str:
    """What a task has raised, as one line: of ours the message."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, GpukitError):
        return str(cause)
    return f"the task that made it ended: {one_line(repr(cause or error))[:300]}"


def _check_here(prepared: Prepared, gathered: Gathered) -> None:
    """Let results fail that a node says to have made and that are not here."""
    ends = time.monotonic() + SECONDS_TO_SETTLE
    for at in prepared.standings:
        row = gathered.row(at.job.target)
        if not row.made:
            continue
        while identity(at.job) is None and time.monotonic() < ends:
            time.sleep(LOOK_SECONDS)
        if identity(at.job) is None:
            gathered.set(
                row.output, state=State.FAILED, made=False,
                why=f"{row.output}: made by a node, and not here: outputs must lie on a path that "
                "all nodes share",
            )  # fmt: skip
