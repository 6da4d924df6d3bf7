"""The torch ops: schemas, checks, shape functions, and the one place that chooses a device.

    gpukit::quantize(values, qtype, importance, backend)   values -> blocks
    gpukit::dequantize(blocks, qtype, dtype, backend)      blocks -> float32 values
    gpukit::matmul(x, blocks, qtype, backend)              x @ W^T with W in blocks

CPU tensors go to the torch reference, eager or compiled; CUDA tensors to Triton. Elsewhere in
gpukit call the op and name no device.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gpukit_kernels import jit, launch, products, proven
from gpukit_kernels.cpu import compiled, products as cpu_products, tiles
from gpukit_kernels.errors import QuantError
from gpukit_kernels.products_triton import matmul_triton
from gpukit_kernels.table import FLOATS, QuantType, by_name

DTYPES = tuple(FLOATS.values())
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
    `QuantError` for a width, dtype, type or backend that does not fit, for a type that is only
    read, and for one that needs importance without it.
    """
    row = by_name(qtype)
    if importance is None or row.weighted is None:
        row.encoder()
    if values.dtype not in DTYPES:
        raise QuantError(f"values are {values.dtype}; quantize takes float32, float16 or bfloat16")
    if values.ndim == 0:
        raise QuantError("values are a scalar; quantize takes rows [..., n]")
    row.row_bytes(values.shape[-1])
    if importance is not None:
        _check_importance(importance, values)
        if row.weighted is None:
            importance = None
    weighted = importance is not None
    backend = backend or plan_backend(row, values.numel(), values.device, weighted)
    chosen = checked_backend(backend, values.device)
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

    `backend` as for `quantize`; by default the CPU uses compiled code where there is some already,
    or where the blocks are many. Errors as for `quantize`.
    """
    row = by_name(qtype)
    if blocks.dtype is not torch.uint8:
        raise QuantError(f"blocks are {blocks.dtype}; dequantize takes uint8")
    if dtype not in DTYPES:
        raise QuantError(f"cannot decode to {dtype}; float32, float16 and bfloat16 are possible")
    if blocks.ndim == 0 or blocks.shape[-1] % row.nbytes:
        width = blocks.shape[-1] if blocks.ndim else 1
        raise QuantError(f"rows of {width} bytes are no multiple of {row.nbytes} ({row.name})")
    if backend is None and blocks.is_cuda:
        backend = "triton"
    elif backend is None:
        weights = blocks.numel() // row.nbytes * row.block
        decodes = blocks.device.type == "cpu" and compiled.decodes(row, weights)
        backend = "compiled" if decodes else "eager"
    chosen = checked_backend(backend, blocks.device)
    return torch.ops.gpukit.dequantize(blocks, row.name, dtype, chosen)


def matmul(
    x: Tensor,
    blocks: Tensor,
    qtype: str | QuantType,
    *,
    backend: str | None = None,
    exact: bool = False,
) -> Tensor:
    """float32 `[..., rows]`: `x` `[..., n]` (float32) times the transpose of W `[rows, n]`.

    `blocks` is uint8 `[rows, row_bytes]`, the rows of W in blocks of `qtype`. On the CPU products
    of the exact decoded values are summed in float32, in an order that `backend`, "eager" or
    "compiled", has of its own; of many rows on a CPU with AMX each product is off by 3 * 2^-16 of
    itself at most, but with W in float32. On a GPU operands are rounded first, as `matmul_triton`
    says, unless `exact`, which costs time there and means nothing elsewhere. `QuantError` where the
    widths do not agree.
    """
    row = by_name(qtype)
    if x.dtype is not torch.float32:
        raise QuantError(f"x is {x.dtype}; matmul takes float32")
    if blocks.ndim != 2 or blocks.dtype is not torch.uint8:
        raise QuantError(f"blocks are {blocks.dtype} {list(blocks.shape)}; uint8 [rows, bytes] fit")
    if x.ndim == 0:
        raise QuantError("x is a scalar; matmul takes rows [..., n]")
    wanted = row.row_bytes(x.shape[-1])
    if blocks.shape[1] != wanted:
        raise QuantError(
            f"rows of {blocks.shape[1]} bytes, x of {x.shape[-1]} needs {wanted} ({row.name})"
        )
    # Sums in another order are other sums: they shall not depend on how many there are.
    chosen = checked_backend(backend or usual_backend(x.device), x.device)
    if chosen == "compiled" and type(x) is Tensor and not torch.compiler.is_compiling():
        # The dispatcher's way takes as long as a small product, hundreds of times a token.
        return _matmul(x, blocks, row, chosen, exact)
    return torch.ops.gpukit.matmul(x, blocks, row.name, chosen, exact)


def plan_backend(
    qtype: str | QuantType, weights: int, device: torch.device | str, importance: bool = False
) -> str:
    """The backend for `weights` weights of `qtype` in total: "eager", "compiled" or "triton".

    On the CPU compiling pays from some hundred thousand weights on and needs a C compiler.
    """
    row = by_name(qtype)
    if torch.device(device).type == "cuda":
        return "triton"
    return "compiled" if compiled.repays(row, weights, importance) else "eager"


def usual_backend(where: torch.device) -> str:
    """The backend of what is done on `where` whatever its size."""
    return {"cuda": "triton", "cpu": "compiled"}.get(where.type, "eager")


def checked_backend(chosen: str, where: torch.device) -> str:
    """`chosen`; `QuantError` where it is unknown or not for what is on `where`."""
    if chosen not in BACKENDS:
        raise QuantError(f"unknown backend {chosen!r}; known: {', '.join(BACKENDS)}")
    if chosen == "compiled" and where.type != "cpu":
        raise QuantError(f"the compiled backend is for the CPU, the values are on {where}")
    if chosen == "triton":
        jit.check()
    return chosen


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
torch.library.define(
    "gpukit::matmul",
    "(Tensor x, Tensor blocks, str qtype, str backend, bool exact=False) -> Tensor",
)


@torch.library.impl("gpukit::quantize", "default")
def _quantize(values: Tensor, qtype: str, importance: Tensor | None, backend: str) -> Tensor:
    row = by_name(qtype)
    shape = (*values.shape[:-1], row.row_bytes(values.shape[-1]))
    if backend == "triton" and values.numel():
        if proven.encodes(row, values.dtype, importance is not None, values.device):
            return launch.encode_triton(values, row, importance).view(shape)
        given = None if importance is None else importance.cpu()
        return quantize(values.cpu(), row, given).to(values.device)
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
    decoder = compiled.decoder(row) if backend == "compiled" and blocks.numel() else None
    if decoder is not None:
        decoded = torch.empty(shape)
        whole = blocks.reshape(-1, row.nbytes).contiguous()
        cpu_products.decode(whole, decoder, compiled.pool(), decoded.view(-1, row.block))
        return decoded.to(dtype)
    out = torch.empty(shape, dtype=dtype, device=blocks.device)
    _fill(tiles.decode_eager, blocks, row, row.nbytes, out, row.block)
    return out


@torch.library.register_fake("gpukit::dequantize")
def _(blocks: Tensor, qtype: str, dtype: torch.dtype, backend: str) -> Tensor:  # noqa: ARG001
    row = by_name(qtype)
    shape = (*blocks.shape[:-1], blocks.shape[-1] // row.nbytes * row.block)
    return blocks.new_empty(shape, dtype=dtype)


@torch.library.impl("gpukit::matmul", "default")
def _(x: Tensor, blocks: Tensor, qtype: str, backend: str, exact: bool = False) -> Tensor:
    return _matmul(x, blocks, by_name(qtype), backend, exact)


def _matmul(x: Tensor, blocks: Tensor, row: QuantType, backend: str, exact: bool) -> Tensor:
    flat = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    decoder = None
    if backend == "compiled" and flat.numel() and blocks.numel():
        decoder = compiled.decoder(row)
    if backend == "triton":
        out = matmul_triton(flat, blocks, row, exact)
    elif decoder is not None:
        out = cpu_products.multiply(flat, blocks, decoder, compiled.pool())
    else:
        out = products.multiply(flat, blocks, row)
    return out.view(*x.shape[:-1], len(blocks))


@torch.library.register_fake("gpukit::matmul")
def _(x: Tensor, blocks: Tensor, qtype: str, backend: str, exact: bool = False) -> Tensor:  # noqa: ARG001
    return x.new_empty((*x.shape[:-1], len(blocks)))
