"""Copies to a device beside what is computed there, into places that are used by turns."""

import torch
from torch import Tensor

from gpukit_kernels.turns import copied_from
from gpukit_kernels.verified import verified

# What proves that copies wait for kernels and kernels for copies: layers, their bytes, passes.
LAYERS, BYTES, PASSES = 3, 1 << 22, 3


class Side:
    """Copies to `device`, on `stream` beside what the thread launches there, or among it."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        self._device, self._stream = device, stream
        self._copied: dict[int, torch.cuda.Event] = {}
        self._free: dict[int, torch.cuda.Event] = {}

    def copy(self, place: Tensor, host: Tensor, number: int) -> None:
        """Copy `host` to `place`, which has this number, once it is free."""
        if self._stream is None:
            place.copy_(host)
            return
        if number in self._free:
            self._stream.wait_event(self._free[number])
        else:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            place.copy_(host, non_blocking=True)
        self._copied[number] = self._stream.record_event()

    def join(self, number: int) -> None:
        """Let what is launched from now on wait for the copy to place `number`."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copied[number])

    def release(self, number: int) -> None:
        """Place `number` is free when all that is launched so far is done."""
        if self._stream is not None:
            self._free[number] = torch.cuda.current_stream(self._device).record_event()


def side_of(device: torch.device) -> Side:
    """Copies beside what is computed on `device`; among it on the CPU, and where they have brought
    something else than they should."""
    if device.type == "cpu":
        return Side(device, None)
    hosts = [copied_from(BYTES, device).fill_(layer + 1) for layer in range(LAYERS)]
    right = verified(
        "copies",
        "layers that come from the host",
        device,
        lambda: _passed(Side(device, torch.cuda.Stream(device)), hosts, device),
        lambda: _passed(Side(torch.device("cpu"), None), hosts, torch.device("cpu")),
    )
    return Side(device, torch.cuda.Stream(device) if right else None)


def _passed(side: Side, hosts: list[Tensor], device: torch.device) -> Tensor:
    """uint8 `[PASSES * LAYERS, BYTES]`: what is found in the places of `hosts`, two by turns."""
    places = [torch.zeros(BYTES, dtype=torch.uint8, device=device) for _ in range(2)]
    found = []
    for number in range(PASSES * len(hosts)):
        side.copy(places[number % 2], hosts[number % len(hosts)], number % 2)
        side.join(number % 2)
        found.append(places[number % 2].clone())
        side.release(number % 2)
    return torch.stack(found)
