"""Where the blocks of each type keep their scales, and which of them are not finite.

A block whose scale is NaN or infinite decodes to nothing that a model can compute with. Checked is
what llama.cpp's --check-tensors looks at: of float types every value, of blocks the scales that are
floats. Scales of whole numbers, and NVFP4's, whose every byte is a number there, cannot be wrong.

Source: ggml_validate_row_data in ggml-quants.c; the layouts: ggml-common.h.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpukit.formats.gguf_fields import type_sizes

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Form:
    """A number by its bits: those of the exponent are all set where it is not finite, and then
    those of the fraction where it is NaN; without `fraction` it is NaN."""

    code: str
    exponent: int
    fraction: int = 0

    @property
    def nbytes(self) -> int:
        return np.dtype(self.code).itemsize


F64 = Form("<u8", 0x7FF << 52, (1 << 52) - 1)
F32 = Form("<u4", 0x7F80_0000, 0x7F_FFFF)
F16 = Form("<u2", 0x7C00, 0x03FF)
BF16 = Form("<u2", 0x7F80, 0x007F)
E8M0 = Form("u1", 0xFF)


@dataclass(frozen=True)
class Scale:
    """A scale of a block: its name in ggml-common.h, where it begins, what it is."""

    name: str
    at: int
    form: Form = F16


D0 = (Scale("d", 0),)
D_M = (Scale("d", 0), Scale("m", 2))
D_MIN = (Scale("d", 0), Scale("dmin", 2))
VALUE = "value"
# IQ1_M has its half in the upper four bits of four 16-bit words.
SPREAD, SPREAD_AT = "IQ1_M", 48

SCALES: Mapping[str, tuple[Scale, ...]] = MappingProxyType(
    {
        "F64": (Scale(VALUE, 0, F64),),
        "F32": (Scale(VALUE, 0, F32),),
        "F16": (Scale(VALUE, 0, F16),),
        "BF16": (Scale(VALUE, 0, BF16),),
        "I8": (),
        "I16": (),
        "I32": (),
        "I64": (),
        "Q1_0": D0,
        "Q2_0": D0,
        "Q4_0": D0,
        "Q4_1": D_M,
        "Q5_0": D0,
        "Q5_1": D_M,
        "Q8_0": D0,
        "Q8_1": (Scale("d", 0), Scale("s", 2)),
        "Q2_K": (Scale("d", 80), Scale("dmin", 82)),
        "Q3_K": (Scale("d", 108),),
        "Q4_K": D_MIN,
        "Q5_K": D_MIN,
        "Q6_K": (Scale("d", 208),),
        "Q8_K": (Scale("d", 0, F32),),
        "IQ1_S": D0,
        "IQ1_M": (Scale("scales", SPREAD_AT),),
        "IQ2_XXS": D0,
        "IQ2_XS": D0,
        "IQ2_S": D0,
        "IQ3_XXS": D0,
        "IQ3_S": D0,
        "IQ4_NL": D0,
        "IQ4_XS": D0,
        "TQ1_0": (Scale("d", 52),),
        "TQ2_0": (Scale("d", 64),),
        "MXFP4": (Scale("e", 0, E8M0),),
        "NVFP4": (),
    }
)


@dataclass(frozen=True)
class NotFinite:
    """The first scale, or value of a float type, that is not finite: in which block, its name, and
    whether it is "nan" or "inf"."""

    block: int
    name: str
    value: str


def not_finite(kind: str, data: Bytes) -> NotFinite | None:
    """The first of `data`, uint8 `[blocks * nbytes]` of type `kind`; None where all are finite."""
    blocks = data.reshape(-1, type_sizes()[kind].nbytes)
    found: NotFinite | None = None
    for scale in SCALES[kind]:
        bits = _bits(kind, scale, blocks)
        wrong = (bits & scale.form.exponent) == scale.form.exponent
        if not wrong.any():
            continue
        block = int(wrong.argmax())
        if found is None or block < found.block:
            is_nan = not scale.form.fraction or int(bits[block]) & scale.form.fraction
            found = NotFinite(block, scale.name, "nan" if is_nan else "inf")
    return found


def _bits(kind: str, scale: Scale, blocks: Bytes) -> NDArray[Any]:
    """Of each block the scale as an unsigned integer."""
    if kind == SPREAD:
        words = np.ascontiguousarray(blocks[:, scale.at : scale.at + 8]).view("<u2")
        parts = (words[:, i] & 0xF000 for i in range(4))
        found = np.zeros(len(words), dtype=np.uint16)
        for shift, part in zip((12, 8, 4, 0), parts, strict=True):
            found |= part >> np.uint16(shift)
        return found
    own = np.ascontiguousarray(blocks[:, scale.at : scale.at + scale.form.nbytes])
    return own.view(scale.form.code)[:, 0]
