"""What an adapter adds to a weight, as tensors of torch or as arrays of NumPy."""

from typing import Generic, NamedTuple, TypeVar

A = TypeVar("A")


class Factors(NamedTuple, Generic[A]):
    """What one adapter adds to a weight `[..., rows, width]`: scale * b·a, float32 `b`
    `[..., rows, rank]` and `a` `[..., rank, width]`; where there is a `magnitude` (DoRA), float32
    `[..., rows]`, each row is then brought to it."""

    b: A
    a: A
    scale: float = 1.0
    magnitude: A | None = None

    def part(self, first: int, count: int) -> "Factors[A]":
        """The same for some rows of a weight of two dimensions."""
        lengths = self.magnitude
        if lengths is not None:
            lengths = lengths[first : first + count]  # type: ignore[index]
        return self._replace(b=self.b[first : first + count], magnitude=lengths)  # type: ignore[index]

    def of(self, matrix: int) -> "Factors[A]":
        """The same for one weight of several."""
        lengths = None if self.magnitude is None else self.magnitude[matrix]  # type: ignore[index]
        return self._replace(b=self.b[matrix], a=self.a[matrix], magnitude=lengths)  # type: ignore[index]
