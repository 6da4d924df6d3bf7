"""Products of a token's one row of values: which are by integers, what they read, and which go
together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.models.weights import Linear
from gpukit_kernels.prepared_triton import GROUP, Prepared
from gpukit_kernels.vectors_triton import has_prepared, multiply_prepared


@dataclass(frozen=True)
class Row:
    """A row of values `[1, n]` between launches: as float32, prepared for products, or both."""

    values: Tensor | None
    prepared: Prepared | None

    @staticmethod
    def read_by(readers: Sequence[Linear], device: torch.device, *, both: bool = False) -> "Row":
        """What `readers` read, still without values; with `both` as float32 in any case."""
        width = readers[0].weight.width
        fast = [prepares(linear) for linear in readers]
        return Row(
            None if all(fast) and not both else torch.empty((1, width), device=device),
            Prepared.from_shape(1, width, device) if any(fast) else None,
        )


def prepares(linear: Linear) -> bool:
    """Whether `linear` is multiplied with prepared rows."""
    weight = linear.weight
    if linear.pairs or weight.scale is not None or weight.width % GROUP:
        return False
    row, blocks = kernels.by_name(weight.type), weight.blocks
    return has_prepared(row, blocks.device, 1, weight.width, len(blocks))


def multiply(linear: Linear, row: Row, out: Tensor, add: Tensor | None = None) -> None:
    """`linear` of `row` into `out` `[1, rows]`, plus `add`, which may be `out`."""
    if prepares(linear) and row.prepared is not None:
        kind = kernels.by_name(linear.weight.type)
        bias = None if linear.bias is None else linear.bias[None]
        more = bias if add is None else add
        multiply_prepared(row.prepared, linear.weight.blocks, kind, add=more, out=out)
        if bias is not None and add is not None:
            out += bias
        return
    assert row.values is not None
    found = linear(row.values)
    if add is None:
        out.copy_(found)
    else:
        torch.add(found, add, out=out)


def joined(linears: Sequence[Linear]) -> list[Linear]:
    """`linears` of one input in few products, rows behind each other: neighbours that can be one
    are. Their weights then lie so in memory, which is all that changes of them."""
    runs: list[list[Linear]] = []
    for linear in linears:
        if runs and _go_together(runs[-1][0], linear):
            runs[-1].append(linear)
        else:
            runs.append([linear])
    return [product for run in runs for product in _joined(run)]


def _go_together(first: Linear, other: Linear) -> bool:
    same = first.weight.type == other.weight.type and first.weight.width == other.weight.width
    bare = first.bias is None and other.bias is None
    return same and bare and prepares(first) and prepares(other)


def _joined(run: Sequence[Linear]) -> list[Linear]:
    """The linear maps of `run` as one, in memory that they share with it; each for itself where
    products of so many rows are not to be trusted."""
    if len(run) == 1:
        return list(run)
    weights = [linear.weight for linear in run]
    joint = replace(weights[0], blocks=_behind_each_other([w.blocks for w in weights]))
    whole = replace(run[0], weight=joint)
    if not prepares(whole):
        return list(run)
    counts = [weight.blocks.shape[0] for weight in weights]
    for weight, part in zip(weights, torch.split(joint.blocks, counts), strict=True):
        weight.blocks.data = part
    return [whole]


def _behind_each_other(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all `parts`: the memory that they lie in if it is one piece, else a copy."""
    first, at = parts[0], parts[0].data_ptr()
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or not part.is_contiguous() or part.data_ptr() != at:
            return torch.cat(list(parts))
        at += part.numel()
    return first.as_strided((sum(map(len, parts)), first.shape[1]), first.stride())
