"""How several adapters become one, as a user says it."""

from dataclasses import dataclass

from gpukit.adapters.mixing import METHODS, SIGNS, Sign
from gpukit.errors import ArgumentError, did_you_mean


@dataclass(frozen=True)
class Combining:
    """The method, one of PEFT's `add_weighted_adapter`, and its settings; see `combine.combine`."""

    method: str
    density: float | None = None
    rank: int | None = None
    seed: int | None = None
    majority_sign: Sign = "total"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            hint = did_you_mean(self.method, METHODS)
            raise ArgumentError(f"no method {self.method!r}; known: {', '.join(METHODS)}{hint}")
        if self.majority_sign not in SIGNS:
            raise ArgumentError(f"majority_sign {self.majority_sign!r}; known: {', '.join(SIGNS)}")
        check_settings(
            self.method, density=self.density, rank=self.rank, seed=self.seed, clamp=None
        )


def check_settings(
    method: str,
    *,
    density: float | None,
    rank: int | None,
    seed: int | None,
    clamp: float | None,
) -> None:
    kind = METHODS[method]
    if kind.prunes is not None and density is None:
        raise ArgumentError(f"{method} prunes: give the density, the part of the values to keep")
    if kind.prunes is None and density is not None:
        raise ArgumentError(f"{method} prunes nothing; leave the density {density} out")
    if density is not None and not 0 < density <= 1:
        raise ArgumentError(f"a density of {density}; it must be over 0 and at most 1")
    for what, value in (("rank", rank), ("clamp", clamp)):
        if value is not None and not kind.whole:
            raise ArgumentError(f"{method} makes no SVD; leave the {what} {value} out")
    if rank is not None and rank < 1:
        raise ArgumentError(f"a rank of {rank}; it must be 1 or more")
    if clamp is not None and not 0 <= clamp <= 1:
        raise ArgumentError(f"a clamp at the quantile {clamp}; it must be within 0 and 1")
    if seed is not None and kind.prunes != "chance":
        raise ArgumentError(f"{method} leaves nothing to chance; leave the seed {seed} out")
