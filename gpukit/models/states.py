"""What recurrent layers keep of all positions before: it cannot be cut, only be gone back to where
it was noted."""

from torch import Tensor

# Notes that are kept; the oldest goes for a new one.
NOTES = 3

State = tuple[Tensor, ...]


class States:
    """The states of recurrent layers behind some positions, by layer; none behind none.

    A state is a few tensors that nobody changes: what a layer puts in counts from `commit` on, so
    that a pass that is broken off leaves all of them where they were.
    """

    def __init__(self) -> None:
        self._now: dict[int, State] = {}
        self._next: dict[int, State] = {}
        self._noted: dict[int, dict[int, State]] = {}

    def of(self, layer: int) -> State | None:
        """The state of `layer`, None before the first position."""
        return self._now.get(layer)

    def put(self, layer: int, state: State) -> None:
        """What the state of `layer` is from `commit` on."""
        self._next[layer] = state

    def commit(self) -> None:
        """Count what was put in."""
        self._now, self._next = {**self._now, **self._next}, {}

    def note(self, length: int) -> None:
        """Note the states behind `length` positions, which they are at."""
        if not self._now:
            return
        self._noted.pop(length, None)
        self._noted[length] = self._now
        while len(self._noted) > NOTES:
            self._noted.pop(min(self._noted))

    def back(self, to: int) -> int:
        """Go back to `to` positions, or as few as it takes to where something was noted: how many
        there are then. States of no layer are everywhere."""
        self._next = {}
        if not self._now:
            return to
        self._noted = {at: states for at, states in self._noted.items() if at <= to}
        found = max(self._noted, default=0)
        self._now = self._noted.get(found, {})
        return found
