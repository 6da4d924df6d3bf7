"""The float types of files as arrays of NumPy, which has no bfloat16: its bits are uint16."""

from ctypes import c_float
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOATS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
}


def float32(value: float) -> float:
    """`value` as float32 has it: infinite beyond its range, 0 where it is too small for it."""
    return c_float(value).value


def widened(values: NDArray[Any]) -> NDArray[Any]:
    """`values` with numbers in the place of bfloat16's bits: float32, which holds each of them."""
    if values.dtype != np.uint16:
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)
