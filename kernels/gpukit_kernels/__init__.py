"""Quantise, dequantise and multiply in GGUF's blocks: the bytes of llama.cpp on every device."""

from gpukit_kernels.errors import QuantError
from gpukit_kernels.matmul import matmul
from gpukit_kernels.ops import dequantize, device, devices, plan_backend, quantize
from gpukit_kernels.table import QUANTS, QuantType, by_id, by_name

__all__ = [
    "QUANTS",
    "QuantError",
    "QuantType",
    "by_id",
    "by_name",
    "dequantize",
    "device",
    "devices",
    "matmul",
    "plan_backend",
    "quantize",
]
