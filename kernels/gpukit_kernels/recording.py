"""Work on a device that is launched once and replayed."""

from collections.abc import Callable

import torch

from gpukit_kernels.ops import usual_backend

# Runs before the recording: the first compiles and loads kernels, which a recording cannot.
WARM_UPS = 3


def records(where: torch.device) -> bool:
    """Whether `recorded` saves launches on `where`."""
    return usual_backend(where) == "triton"


def recorded(work: Callable[[], None], where: torch.device) -> Callable[[], None]:
    """What does `work` again, on the current stream of `where`: as a CUDA graph, elsewhere itself.

    `work` runs some times for it. It may not wait for the device, and what it reads and writes has
    to live as long as the result is called.
    """
    if not records(where):
        return work
    with torch.cuda.device(where):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on with other models meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
    return graph.replay


def on_host(count: int, dtype: torch.dtype, where: torch.device) -> torch.Tensor:
    """`[count]` on the host, where copies from `where` do not wait for each other."""
    return torch.zeros(count, dtype=dtype, pin_memory=records(where))


class Mark:
    """A place in what is launched on a device; `wait` until everything before `set` is done."""

    def __init__(self, where: torch.device) -> None:
        self._where = where
        self._event = torch.cuda.Event() if records(where) else None

    def set(self) -> None:
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._where))

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()
