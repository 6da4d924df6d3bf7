"""Quantise, dequantise and multiply in GGUF's blocks: the bytes of llama.cpp on every device.

Names are imported when they are first used: what takes seconds, torch and Triton, only where
something asks for them.
"""

from typing import TYPE_CHECKING

from gpukit_kernels.errors import QuantError
from gpukit_kernels.lazy import lazily

if TYPE_CHECKING:
    from gpukit_kernels.counting import operations
    from gpukit_kernels.factors import Factors
    from gpukit_kernels.facts import TypeFacts, type_facts
    from gpukit_kernels.forward_ops import attention, gated, likelihood, rms_norm, rotate
    from gpukit_kernels.hardware import device, device_list, devices, free_bytes, issue_rate, timed
    from gpukit_kernels.memory import keep_memory
    from gpukit_kernels.merge_op import merge_lora
    from gpukit_kernels.ops import dequantize, matmul, plan_backend, quantize
    from gpukit_kernels.rows import Activation
    from gpukit_kernels.side import side_of
    from gpukit_kernels.table import QUANTS, QuantType, by_id, by_name
    from gpukit_kernels.turns import (
        Lane,
        Turn,
        alone,
        copied_from,
        in_large_pages,
        lanes,
        sharing,
        turn_on,
        zeros_by_page,
    )

# The module of each name. None is called as one of its names: importing it would hide that.
_MODULES = {
    "counting": ["operations"],
    "factors": ["Factors"],
    "facts": ["TypeFacts", "type_facts"],
    "forward_ops": ["attention", "gated", "likelihood", "rms_norm", "rotate"],
    "memory": ["keep_memory"],
    "hardware": ["device", "device_list", "devices", "free_bytes", "issue_rate", "timed"],
    "merge_op": ["merge_lora"],
    "ops": ["dequantize", "matmul", "plan_backend", "quantize"],
    "rows": ["Activation"],
    "side": ["side_of"],
    "table": ["QUANTS", "QuantType", "by_id", "by_name"],
    "turns": [
        "Lane",
        "Turn",
        "alone",
        "copied_from",
        "in_large_pages",
        "lanes",
        "sharing",
        "turn_on",
        "zeros_by_page",
    ],
}

__all__ = [
    "QUANTS",
    "Activation",
    "Factors",
    "Lane",
    "QuantError",
    "QuantType",
    "Turn",
    "TypeFacts",
    "alone",
    "attention",
    "by_id",
    "by_name",
    "copied_from",
    "dequantize",
    "device",
    "device_list",
    "devices",
    "free_bytes",
    "gated",
    "in_large_pages",
    "issue_rate",
    "keep_memory",
    "lanes",
    "likelihood",
    "matmul",
    "merge_lora",
    "operations",
    "plan_backend",
    "quantize",
    "rms_norm",
    "rotate",
    "sharing",
    "side_of",
    "timed",
    "turn_on",
    "type_facts",
    "zeros_by_page",
]

__getattr__, __dir__ = lazily(globals(), _MODULES)
