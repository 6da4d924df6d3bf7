"""Quantise, dequantise and multiply in GGUF's blocks: the bytes of llama.cpp on every device."""

from gpukit_kernels.counting import operations
from gpukit_kernels.errors import QuantError
from gpukit_kernels.lanes import Lane, Turn, lanes, sharing
from gpukit_kernels.matmul import matmul
from gpukit_kernels.ops import (
    dequantize,
    device,
    device_list,
    devices,
    issue_rate,
    keep_memory,
    plan_backend,
    quantize,
    timed,
)
from gpukit_kernels.table import QUANTS, QuantType, by_id, by_name

__all__ = [
    "QUANTS",
    "Lane",
    "QuantError",
    "QuantType",
    "Turn",
    "by_id",
    "by_name",
    "dequantize",
    "device",
    "device_list",
    "devices",
    "issue_rate",
    "keep_memory",
    "lanes",
    "matmul",
    "operations",
    "plan_backend",
    "quantize",
    "sharing",
    "timed",
]
