"""Tensors of a GGUF whose blocks a checkpoint has already in NVFP4: their rows in order, the scales
beside them, and their place in the file, as llama.cpp's converter has it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpukit.errors import CheckpointError
from gpukit.formats.gguf_fields import Field, ValueType, array
from gpukit.models.packed import NVFP4, Factors
from gpukit.models.packed_rows import Sixteens
from gpukit.models.rules import ColumnOrder, PlannedTensor, Transform
from gpukit.models.values import section
from gpukit.models.views import View

WEIGHT = ".weight"
# What is beside blocks: the name's end, and where `Factors` has it.
BESIDE = {".scale": "scale", ".input_scale": "input_scale"}
# The keys by which the converter counts experts that it stacks as soon as it has all.
COUNTED = ("num_local_experts", "num_experts")
# Weights in NVFP4 for activations in 16 bits.
WIDE_INPUTS = "W4A16_NVFP4"


def order_of(transform: Transform, group: int) -> NDArray[np.intp] | None:
    """For each of `group` rows behind `transform` the one that it was; None where it does more than
    move them."""
    if isinstance(transform, ColumnOrder):
        return None
    numbers = np.arange(group, dtype=np.float32)
    moved = np.asarray(transform(numbers[:, None])).reshape(-1)
    if not np.array_equal(np.sort(moved), numbers):
        return None
    return moved.astype(np.intp)


def carried(
    planned: Sequence[PlannedTensor],
    views: Mapping[str, View],
    factors: Mapping[str, Factors],
    config: Mapping[str, Any],
) -> tuple[list[PlannedTensor], dict[str, View]]:
    """`planned` with what is beside those in NVFP4, which come first, and the `views` that have
    their rows in order. `CheckpointError` for a layout that blocks cannot have."""
    views, found = dict(views), []
    for tensor in planned:
        if tensor.dtype == NVFP4 and _one_factor(tensor, factors):
            tensor = _in_order(tensor, views)
            found.append([tensor, *_beside(tensor, factors)])
        elif tensor.dtype == NVFP4:
            # No blocks have several factors but stacks: they become floats.
            found.append([replace(tensor, dtype="F32")])
        else:
            found.append([tensor])
    counted = any(key in said for said in _settings(config) for key in COUNTED)
    found.sort(key=lambda group: _place(group[0], counted))
    return [tensor for group in found for tensor in group], views


def _settings(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    return config, section(config, "text_config")


def _place(tensor: PlannedTensor, counted: bool) -> int:
    """Blocks are written first, stacks of uncounted experts behind all others of them."""
    if tensor.dtype != NVFP4:
        return 2
    return int(len(tensor.ne) > 2 and not counted)


def _one_factor(tensor: PlannedTensor, factors: Mapping[str, Factors]) -> bool:
    found = {factors[span.source] for span in tensor.spans}
    return len(found) == 1 or _is_stack(tensor)


def _is_stack(tensor: PlannedTensor) -> bool:
    return len(tensor.ne) > 2 and len(tensor.spans) == tensor.ne[2]


def _in_order(tensor: PlannedTensor, views: dict[str, View]) -> PlannedTensor:
    """`tensor` without transforms of its rows, which views make instead."""
    spans = []
    for span in tensor.spans:
        if span.transform is not None:
            order = order_of(span.transform, tensor.row_group)
            view = views[span.source]
            assert isinstance(view.fill, Sixteens)
            if order is None or view.fill.order != (0,):
                raise CheckpointError(
                    f"{view.tensor.path}: {span.source} is {NVFP4}, and a GGUF has its values in "
                    "another form; fetch the checkpoint in BF16"
                )
            fill = replace(view.fill, order=tuple(map(int, order)))
            views[span.source] = replace(view, fill=fill)
        spans.append(span._replace(transform=None))
    return replace(tensor, spans=tuple(spans))


def _beside(tensor: PlannedTensor, factors: Mapping[str, Factors]) -> Iterator[PlannedTensor]:
    """The scales of a tensor that are not 1."""
    stack = _is_stack(tensor)
    spans = tensor.spans if stack else tensor.spans[:1]
    for end, name in BESIDE.items():
        values = np.array([getattr(factors[s.source], name) for s in spans], np.float32)
        # The converter's bounds: of several numpy.allclose's, with its relative one.
        trivial = np.allclose(values, 1, atol=1e-6, rtol=1e-5 if stack else 0)
        if not trivial and tensor.name.endswith(WEIGHT):
            stem = tensor.name.removesuffix(WEIGHT)
            yield PlannedTensor(stem + end, (len(values),), (), "F32", values=values)


def precision_fields(settings: Mapping[str, Any], planned: Sequence[PlannedTensor]) -> list[Field]:
    """The metadata that say which weights in NVFP4 are for activations in 16 bits, of the
    `quantization_config` of a checkpoint."""
    whole, layers = settings.get("quant_algo"), section(settings, "quantized_layers")
    names = []
    for tensor in planned:
        if tensor.dtype != NVFP4:
            continue
        module, algo = _module(tensor), whole
        while module:
            if isinstance(layers.get(module), dict):
                algo = layers[module].get("quant_algo")
                break
            module = module.rpartition(".")[0]
        if algo == WIDE_INPUTS:
            names.append(tensor.name)
    if not names:
        return []
    return [
        array("general.tensor_extra.name", ValueType.STRING, sorted(names)),
        array("general.tensor_extra.prec_a4", ValueType.BOOL, [False] * len(names)),
    ]


def _module(tensor: PlannedTensor) -> str:
    """The name of the module that a tensor is from; of experts without their numbers."""
    name = tensor.spans[0].source.removesuffix(WEIGHT)
    if _is_stack(tensor):
        name = re.sub(r"\.experts\.\d+\.", ".experts.", name)
    return name
