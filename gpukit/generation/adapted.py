"""Adapters of a model that is being loaded: opened, checked against it, ready for its decoder."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch

import gpukit_kernels as kernels
from gpukit.adapters.copies import without_copies
from gpukit.adapters.delta import Delta, Replaced, merged
from gpukit.adapters.gguf import EMBEDDING, HEAD
from gpukit.adapters.together import weighted
from gpukit.adapters.unmerged import beside, with_factors
from gpukit.events import Report, Warned, ignore
from gpukit.formats.dtypes import TORCH_TYPES
from gpukit.models.weights import Pair, Weight
from gpukit.sources.base import ModelSource
from gpukit.sources.merged import Merge, open_adapters

HALVES = ("BF16", "F16")


@dataclass(frozen=True)
class Adapted:
    """What adapters do to a decoder: `pairs` beside its weights, `changes` to single tensors, and
    whether the head becomes a tensor of its own."""

    pairs: Mapping[str, tuple[Pair, ...]] = field(default_factory=dict)
    changes: Mapping[str, tuple[Delta, ...]] = field(default_factory=dict)
    own_head: bool = False

    def changed(self, weights: dict[str, Weight]) -> dict[str, Weight]:
        """`weights` with the changes, which are in float32 then; all others are the same. Weights
        that take no part in a pass are not there, nor are their changes."""
        found = dict(weights)
        if self.own_head and HEAD not in found:
            found[HEAD] = found[EMBEDDING]
        for name, records in self.changes.items():
            if name in found:
                found[name] = _changed(found[name], records)
        return found

    def pairs_of(self, weights: Mapping[str, Weight]) -> dict[str, list[Pair]]:
        """What is added to products with `weights`, which have been changed."""
        return {
            name: [with_factors(pair, name, weights[name]) for pair in pairs]
            for name, pairs in self.pairs.items()
            if name in weights
        }


@contextmanager
def adapted(
    source: ModelSource,
    merge: Merge | None,
    device: torch.device,
    *,
    names: Sequence[str] = (),
    report: Report = ignore,
) -> Iterator[Adapted]:
    """What the adapters of `merge` do beside the model `source`, which is also called `names`;
    their files are open as long as the block runs. `AdapterError` where they do not fit it,
    contradict each other, or have to be merged. Warnings go to `report`."""
    if merge is None or not merge.adapters:
        yield Adapted()
        return
    target = source.target()
    base = replace(target.base, called=tuple(names))
    with ExitStack() as stack:
        opened = open_adapters(merge, base, stack)
        adapters = [
            weighted(without_copies(adapter, base, target.checkpoint), chosen.weight)
            for adapter, chosen in zip(opened, merge.adapters, strict=True)
        ]
        for line in (line for adapter in adapters for line in adapter.warnings):
            report(Warned(line))
        found = beside(base, target.tensors, adapters, device)
        yield Adapted(found.pairs, found.changes, found.own_head)


def _changed(weight: Weight, records: Sequence[Delta]) -> Weight:
    """`weight` behind `records`: in the type of what takes its place, else in float32."""
    place, kind = weight.blocks.device, "F32"
    match records:
        case [Replaced(values)]:
            kind = values.dtype if values.dtype in HALVES else kind
            rows = values.read(TORCH_TYPES[kind]).view(len(weight.blocks), weight.width)
        case _:
            rows = weight.rows(torch.arange(len(weight.blocks), device=place))
            shape = rows.shape if len(rows) > 1 else (weight.width,)
            rows = merged(rows.view(shape), records).view(rows.shape)
    return Weight(kernels.quantize(rows, kind).to(place), kind, weight.width)
