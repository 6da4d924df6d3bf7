"""The torch ops: schemas, checks, shape functions, and the one place that chooses a device.

    gpukit::quantize(values, qtype, importance, backend)   values -> blocks
    gpukit::dequantize(blocks, qtype, dtype, backend)      blocks -> float32 values
    gpukit::matmul(x, blocks, qtype)                       x @ W^T with W in blocks

CPU tensors go to the torch reference, eager or compiled; CUDA tensors to Triton. Elsewhere in
gpukit call the op and name no device.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gpukit_kernels import launch
from gpukit_kernels.cpu import compiled, tiles
from gpukit_kernels.errors import QuantError, did_you_mean
from gpukit_kernels.table import QuantType, by_name

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
BACKENDS = ("eager", "compiled", "triton")


def quantize(
    values: Tensor,
    qtype: str | QuantType,
    importance: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """uint8 `[..., row_bytes]`: the rows of `values` as blocks of `qtype`, with llama.cpp's bytes.

    `values` is float32, float16 or bfloat16 `[..., n]` on any device, n a multiple of the block.
    `importance`, float32 `[n]`, or `[experts, n]` for `[experts, rows, n]`, says how much an error
    in each column counts; types that llama.cpp quantises without it take no notice. `backend` is
    "eager", "compiled" or "triton"; by default device and amount of work choose (`plan_backend`).
    `QuantError` for a width, dtype, type or backend that does not fit, and for a type that is only
    read.
    """
    row = by_name(qtype)
    row.encoder()
    if values.dtype not in FLOATS:
        raise QuantError(f"values are {values.dtype}; quantize takes float32, float16 or bfloat16")
    if values.ndim == 0:
        raise QuantError("values are a scalar; quantize takes rows [..., n]")
    row.row_bytes(values.shape[-1])
    if importance is not None:
        _check_importance(importance, values)
        if row.weighted is None:
            importance = None
    weighted = importance is not None
    chosen = _backend(backend, row, values.numel(), values.device, weighted)
    return torch.ops.gpukit.quantize(values, row.name, importance, chosen)


def _check_importance(importance: Tensor, values: Tensor) -> None:
    fitting = [values.shape[-1:], (*values.shape[:-2], values.shape[-1])]
    if importance.shape not in fitting:
        raise QuantError(
            f"importance is {list(importance.shape)}, values are {list(values.shape)}; "
            f"one number for each of {values.shape[-1]} columns is needed"
        )
    if importance.dtype is not torch.float32 or importance.device != values.device:
        raise QuantError(
            f"importance is {importance.dtype} on {importance.device}; "
            f"float32 on {values.device} is needed"
        )


def dequantize(
    blocks: Tensor,
    qtype: str | QuantType,
    dtype: torch.dtype = torch.float32,
    *,
    backend: str | None = None,
) -> Tensor:
    """`dtype` `[..., n]`: the exact float32 values of uint8 `[..., row_bytes]`, cast to `dtype`.

    The CPU decodes eagerly whether "eager" or "compiled" is asked for. Errors as for `quantize`.
    """
    row = by_name(qtype)
    if blocks.dtype is not torch.uint8:
        raise QuantError(f"blocks are {blocks.dtype}; dequantize takes uint8")
    if dtype not in FLOATS:
        raise QuantError(f"cannot decode to {dtype}; float32, float16 and bfloat16 are possible")
    if blocks.ndim == 0 or blocks.shape[-1] % row.nbytes:
        width = blocks.shape[-1] if blocks.ndim else 1
        raise QuantError(f"rows of {width} bytes are no multiple of {row.nbytes} ({row.name})")
    chosen = backend or ("triton" if blocks.is_cuda else "eager")
    _check_backend(chosen)
    return torch.ops.gpukit.dequantize(blocks, row.name, dtype, chosen)


def plan_backend(
    qtype: str | QuantType, weights: int, device: torch.device | str, importance: bool = False
) -> str:
    """The backend for `weights` weights of `qtype` in total: "eager", "compiled" or "triton".

    On the CPU compiling pays from some millions of weights on and needs a C++ compiler.
    """
    row = by_name(qtype)
    if torch.device(device).type == "cuda":
        return "triton"
    return "compiled" if compiled.repays(row, weights, importance) else "eager"


def device(name: str = "auto") -> torch.device:
    """The torch device of `auto`, `cpu`, `cuda` or `cuda:N`; `QuantError` says what there is."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        hint = did_you_mean(name, ("auto", "cpu", "cuda"))
        raise QuantError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N{hint}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        raise QuantError(f"device {name} is not here: {count} CUDA devices found; use cpu or auto")
    return torch.device(name)


def device_list(names: str = "auto") -> list[torch.device]:
    """The torch devices of one or several names with commas between; errors as for `device`."""
    found = [device(name.strip()) for name in names.split(",")]
    if len(set(map(str, found))) < len(found):
        raise QuantError(f"device {names}: one of them is named twice")
    return found


def devices() -> list[tuple[str, str, int, int]]:
    """Name, model, total and free memory in bytes of every device that torch can use."""
    import os

    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    found = [("cpu", f"{os.cpu_count()} cores", pages * size, os.sysconf("SC_AVPHYS_PAGES") * size)]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        found.append((f"cuda:{index}", torch.cuda.get_device_name(index), total, free))
    return found


def timed(call: Callable[[], object], where: torch.device, repeats: int = 5) -> float:
    """Least seconds of `repeats` calls, after one that warms up; all work on the device counts."""
    least = float("inf")
    for turn in range(repeats + 1):
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        begin = time.perf_counter()
        call()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        if turn:
            least = min(least, time.perf_counter() - begin)
    return least


# Lanes of float32 arithmetic in a multiprocessor of compute capability 8.6 and later, and of 8.0.
FP32_LANES, FP32_LANES_80 = 128, 64


def issue_rate(where: torch.device) -> float | None:
    """Float32 operations a second that a GPU can begin at its highest clock; None on the CPU and
    where torch does not tell the clock."""
    if where.type != "cuda":
        return None
    facts = torch.cuda.get_device_properties(where)
    lanes = FP32_LANES_80 if (facts.major, facts.minor) == (8, 0) else FP32_LANES
    kilohertz = getattr(facts, "clock_rate", 0)
    return facts.multi_processor_count * lanes * kilohertz * 1e3 or None


def _backend(
    wanted: str | None, row: QuantType, weights: int, where: torch.device, importance: bool
) -> str:
    if wanted is None:
        return plan_backend(row, weights, where, importance)
    _check_backend(wanted)
    if wanted == "compiled" and where.type != "cpu":
        raise QuantError(f"the compiled backend is for the CPU, the values are on {where}")
    return wanted


def _check_backend(name: str) -> None:
    if name not in BACKENDS:
        raise QuantError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}")


def _fill(
    function: Callable[[Tensor, QuantType, Tensor], None],
    source: Tensor,
    row: QuantType,
    unit: int,
    out: Tensor,
    out_unit: int,
) -> None:
    """Run `function` over the blocks of `source`, `unit` long each, into those of `out`."""
    into = out.view(-1, out_unit)
    at = 0
    for slab in tiles.slabs(source, unit):
        function(slab, row, into[at : at + slab.shape[0]])
        at += slab.shape[0]


# Registered by schema: `torch.library.custom_op` would import torch's compiler at the first call,
# 1.5 s of every command.
torch.library.define(
    "gpukit::quantize", "(Tensor values, str qtype, Tensor? importance, str backend) -> Tensor"
)
torch.library.define(
    "gpukit::dequantize", "(Tensor blocks, str qtype, ScalarType dtype, str backend) -> Tensor"
)


@torch.library.impl("gpukit::quantize", "default")
def _quantize(values: Tensor, qtype: str, importance: Tensor | None, backend: str) -> Tensor:
    row = by_name(qtype)
    shape = (*values.shape[:-1], row.row_bytes(values.shape[-1]))
    if backend == "triton":
        return launch.encode_triton(values, row, importance).view(shape)
    out = torch.empty(shape, dtype=torch.uint8, device=values.device)
    encode = compiled.encode if backend == "compiled" else tiles.encode_eager
    if importance is None or not values.numel():
        _fill(encode, values, row, row.block, out, row.nbytes)
        return out
    width = values.shape[-1]
    columns = importance.reshape(-1, width // row.block, row.block).contiguous()
    if len(columns) > 1:
        values = values.contiguous()  # what is copied in pieces would lose its place
    rows = values.numel() // width // len(columns)
    encode_weighted = partial(encode, importance=tiles.Importance(columns, rows))
    _fill(encode_weighted, values, row, row.block, out, row.nbytes)
    return out


@torch.library.register_fake("gpukit::quantize")
def _(values: Tensor, qtype: str, importance: Tensor | None, backend: str) -> Tensor:  # noqa: ARG001
    shape = (*values.shape[:-1], by_name(qtype).row_bytes(values.shape[-1]))
    return values.new_empty(shape, dtype=torch.uint8)


@torch.library.impl("gpukit::dequantize", "default")
def _dequantize(blocks: Tensor, qtype: str, dtype: torch.dtype, backend: str) -> Tensor:
    row = by_name(qtype)
    shape = (*blocks.shape[:-1], blocks.shape[-1] // row.nbytes * row.block)
    if backend == "triton":
        return launch.decode_triton(blocks.reshape(-1, row.nbytes), row, dtype).view(shape)
    out = torch.empty(shape, dtype=dtype, device=blocks.device)
    _fill(tiles.decode_eager, blocks, row, row.nbytes, out, row.block)
    return out


@torch.library.register_fake("gpukit::dequantize")
def _(blocks: Tensor, qtype: str, dtype: torch.dtype, backend: str) -> Tensor:  # noqa: ARG001
    row = by_name(qtype)
    shape = (*blocks.shape[:-1], blocks.shape[-1] // row.nbytes * row.block)
    return blocks.new_empty(shape, dtype=dtype)
