"""Weights that a checkpoint has as packed numbers with scales beside them: which belong together.

Understood are NVFP4 of ModelOpt and of compressed-tensors (`nvfp4-pack-quantized`), which a GGUF
has a type for, and whole numbers, which become floats: compressed-tensors' `pack-quantized` and
`int-quantized`, and GPTQ's. The tensors decide, by their names and types.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from gpukit.errors import CheckpointError
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.safetensors import StoredTensor
from gpukit.models.packed_rows import WORD, Bytes, Grouped, Packed, Sixteens, floats_of, rows_of
from gpukit.models.values import of_folder, section
from gpukit.models.views import Fill, View

NVFP4 = "NVFP4"
SCALES = ("F32", "BF16", "F16")
WEIGHT = "weight"
# The bits of whole numbers that a word of 32 holds several of.
BITS = (2, 3, 4, 8)
GPTQ_BITS = (2, 4, 8)


@dataclass(frozen=True)
class Factors:
    """What is beside the blocks of a weight: `scale`, which its numbers are multiplied with, and
    `input_scale` for what meets it; 1 where the checkpoint has none."""

    scale: float = 1.0
    input_scale: float = 1.0


@dataclass(frozen=True)
class PackedWeights:
    """The packed weights of a checkpoint: as `views`, and the `factors` of those in NVFP4 by the
    name of the view."""

    views: tuple[View, ...] = ()
    factors: Mapping[str, Factors] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @cached_property
    def _names(self) -> set[str]:
        return {source.name for view in self.views for source in view.sources}


def find_packed(checkpoint: Checkpoint) -> PackedWeights:
    """The packed weights of `checkpoint`; none for one without any.

    `CheckpointError` for parts that are missing or do not fit together.
    """
    with of_folder(checkpoint.folder):
        finder = _Finder(checkpoint)
        views = [view for tensor in checkpoint for view in finder.views(tensor)]
    return PackedWeights(tuple(views), finder.factors)


class _Finder:
    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._tensors = checkpoint.tensors
        self._settings = section(checkpoint.config, "quantization_config")
        self.factors: dict[str, Factors] = {}

    def views(self, tensor: StoredTensor) -> Iterator[View]:
        """What `tensor`, the numbers of a weight, becomes with all that belongs to it."""
        forms: dict[tuple[str, str], Callable[[StoredTensor, str], View | None]] = {
            (WEIGHT, "U8"): self._nvfp4,
            ("weight_packed", "U8"): self._nvfp4,
            ("weight_packed", "I32"): self._packed,
            (WEIGHT, "I8"): self._bytes,
            ("qweight", "I32"): self._gptq,
        }
        stem, _, end = tensor.name.rpartition(".")
        form = forms.get((end, tensor.dtype))
        view = form(tensor, f"{stem}.") if form else None
        if view is not None:
            yield view

    def _nvfp4(self, codes: StoredTensor, stem: str) -> View | None:
        scales = self._tensors.get(f"{stem}weight_scale")
        if scales is None or scales.dtype != "F8_E4M3" or len(codes.shape) != 2:
            return None
        rows, width = codes.shape[0], 2 * codes.shape[1]
        _check(scales, (rows, width // 16), codes)
        if width % 64:
            raise CheckpointError(
                f"{codes.path}: {codes.name} has rows of {width} numbers; {NVFP4} of a GGUF has "
                "blocks of 64"
            )
        # compressed-tensors has the reciprocals.
        packed = codes.name.endswith("_packed")
        names = ("weight_global_scale", "input_global_scale") if packed else (
            "weight_scale_2", "input_scale"
        )  # fmt: skip
        beside = [self._tensors.get(stem + name) for name in names]
        values = [1.0 if t is None else self._number(t, inverse=packed) for t in beside]
        name = stem + WEIGHT
        self.factors[name] = Factors(*values)
        sources = (scales, *(t for t in beside if t is not None), codes)
        return View.of(name, NVFP4, (rows, width), sources, Sixteens(codes, scales))

    def _number(self, tensor: StoredTensor, *, inverse: bool) -> float:
        """The one number of a scale, as a float32."""
        if tensor.dtype not in SCALES or prod(tensor.shape) != 1:
            raise CheckpointError(
                f"{tensor.path}: {tensor.name} is {tensor.dtype} {list(tensor.shape)}; one number "
                f"is needed, of {', '.join(SCALES)}"
            )
        found = floats_of(self._checkpoint.read_into, _line(tensor), 0, 1)[0, 0]
        with np.errstate(divide="ignore"):
            return float(np.float32(1) / found if inverse else found)

    def _packed(self, words: StoredTensor, stem: str) -> View:
        scales, shaped = self._needed(words, stem, "weight_scale", "weight_shape")
        said = tuple(int(n) for n in self._whole(shaped, 2))
        rows, width = said
        bits = self._bits(words, width)
        a_word = WORD // bits
        groups = self._tensors.get(f"{stem}weight_g_idx")
        zeros = self._tensors.get(f"{stem}weight_zero_point")
        number = scales.shape[-1] if len(scales.shape) == 2 else 0
        _check(words, (rows, -(-width // a_word)), shaped)
        _check(scales, (rows, number), words, SCALES)
        if not 0 < number <= max(width, 1) or (groups is None and width % number):
            raise _unfitting(scales, words)
        if groups is not None:
            _check(groups, (width,), words, ("I32", "I64"))
        if zeros is not None:
            _check(zeros, (-(-rows // a_word), number), words, ("I32",))
        beside = [part for part in (shaped, scales, zeros, groups) if part is not None]
        fill = Packed(words, scales, zeros, groups, bits, width)
        return _floats(stem, (rows, width), (*beside, words), fill, late=True)

    def _bits(self, words: StoredTensor, width: int) -> int:
        """How many bits numbers have, of those that the settings name."""
        groups = section(self._settings, "config_groups").values()
        found = [section(g, "weights").get("num_bits") for g in groups if isinstance(g, dict)]
        fitting = [
            n for n in found if n in BITS and words.shape[-1:] == (-(-width // (WORD // n)),)
        ]
        if not fitting:
            named = ", ".join(str(n)[:20] for n in found) or "none"
            raise CheckpointError(
                f"{words.path}: {words.name} has shape {list(words.shape)} for rows of {width}; of "
                f"the bits that config.json names ({named}) none makes that of "
                f"{', '.join(map(str, BITS))}"
            )
        return int(fitting[0])

    def _bytes(self, numbers: StoredTensor, stem: str) -> View | None:
        scales = self._tensors.get(f"{stem}weight_scale")
        if scales is None or len(numbers.shape) != 2:
            return None
        rows, width = numbers.shape
        shape = scales.shape if len(scales.shape) == 2 else (prod(scales.shape), 1)
        if scales.dtype not in SCALES or not all(shape) or rows % shape[0] or width % shape[1]:
            raise _unfitting(scales, numbers)
        tall, wide = rows // shape[0], width // shape[1]
        zeros = self._tensors.get(f"{stem}weight_zero_point")
        if zeros is not None:
            _check(zeros, scales.shape, numbers, ("I8",))
        beside = [part for part in (scales, zeros) if part is not None]
        fill = Bytes(numbers, _as(scales, shape), zeros and _as(zeros, shape), tall, wide)
        return _floats(stem, (rows, width), (*beside, numbers), fill)

    def _gptq(self, words: StoredTensor, stem: str) -> View | None:
        if self._settings.get("quant_method") != "gptq":
            return None
        bits = self._settings.get("bits")
        if bits not in GPTQ_BITS:
            raise CheckpointError(
                f"{self._checkpoint.folder}{os.sep}config.json: quantization_config: bits is "
                f"{str(bits)[:20]}; GPTQ of {', '.join(map(str, GPTQ_BITS))} bits can be imported"
            )
        zeros, scales, groups = self._needed(words, stem, "qzeros", "scales", "g_idx")
        a_word = WORD // bits
        if len(words.shape) != 2 or len(scales.shape) != 2 or not scales.shape[0]:
            raise _unfitting(scales, words)
        width, rows = words.shape[0] * a_word, words.shape[1]
        _check(scales, (scales.shape[0], rows), words, SCALES)
        _check(zeros, (scales.shape[0], -(-rows // a_word)), words, ("I32",))
        _check(groups, (width,), words, ("I32", "I64"))
        less = int(self._settings.get("checkpoint_format", "gptq") == "gptq")
        fill = Grouped(words, scales, zeros, groups, bits, less)
        return _floats(stem, (rows, width), (zeros, scales, groups, words), fill, late=True)

    def _needed(self, words: StoredTensor, stem: str, *ends: str) -> list[StoredTensor]:
        for end in ends:
            if stem + end not in self._tensors:
                raise CheckpointError(
                    f"{words.path}: {words.name} without {stem}{end}; fetch the folder again"
                )
        return [self._tensors[stem + end] for end in ends]

    def _whole(self, tensor: StoredTensor, count: int) -> Any:
        _check(tensor, (count,), tensor, ("I64", "I32"))
        found = rows_of(self._checkpoint.read_into, _line(tensor), 0, 1)[0]
        if not (found > 0).all() or not (found < 1 << 31).all():
            raise CheckpointError(
                f"{tensor.path}: {tensor.name} is {found.tolist()}; two sizes are needed"
            )
        return found


def _floats(
    stem: str, shape: tuple[int, int], sources: tuple[StoredTensor, ...], fill: Fill, *,
    late: bool = False,
) -> View:  # fmt: skip
    """A view in float32; the converter writes those that it has unpacked behind all others."""
    return View.of(stem + WEIGHT, "F32", shape, sources, fill, late=late)


def _as(tensor: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    """The same numbers in another shape."""
    return StoredTensor(tensor.name, tensor.dtype, shape, tensor.offset, tensor.nbytes, tensor.path)


def _line(tensor: StoredTensor) -> StoredTensor:
    return _as(tensor, (1, prod(tensor.shape)))


def _check(
    tensor: StoredTensor,
    shape: tuple[int, ...],
    beside: StoredTensor,
    dtypes: tuple[str, ...] = (),
) -> None:
    if tensor.shape != shape or (dtypes and tensor.dtype not in dtypes):
        wanted = f" of {' or '.join(dtypes)}" if dtypes else ""
        raise CheckpointError(
            f"{tensor.path}: {tensor.name} is {tensor.dtype} {list(tensor.shape)}; {list(shape)}"
            f"{wanted} fits {beside.name} of {list(beside.shape)}"
        )


def _unfitting(tensor: StoredTensor, beside: StoredTensor) -> CheckpointError:
    return CheckpointError(
        f"{tensor.path}: {tensor.name} is {tensor.dtype} {list(tensor.shape)}, which does not fit "
        f"{beside.name} of {list(beside.shape)}"
    )
