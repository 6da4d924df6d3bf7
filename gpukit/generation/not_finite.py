"""What is said of a model that computes with numbers that are not finite."""

from collections.abc import Sequence

from gpukit.errors import CheckpointError


def cause(adapters: Sequence[str] = ()) -> str:
    """The end of the message: why that is, and what helps; `adapters` are those at work, each with
    its weight."""
    if adapters:
        names = f"adapter{'s' if len(adapters) > 1 else ''} {', '.join(adapters)}"
        return f" with the {names}: use a smaller weight"
    return ": the weights are damaged, or overflow on this device; gpukit inspect shows their types"


def no_number(logit: float, where: str, adapters: Sequence[str] = ()) -> CheckpointError:
    """The error of a model whose largest logit is not finite; `where` begins with its name."""
    return CheckpointError(f"{where}: a logit is {logit}{cause(adapters)}")
