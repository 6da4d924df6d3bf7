"""The torch op of merging low-rank deltas, as `ops.py` has the others.

gpukit::merge(weight, qtype, b, a, scales, magnitudes, out, backend)   blocks to blocks
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from gpukit_kernels import merge, proven
from gpukit_kernels.cpu import compiled, merge as cpu_merge, tiles
from gpukit_kernels.errors import QuantError
from gpukit_kernels.factors import Factors
from gpukit_kernels.merge_triton import merge_triton
from gpukit_kernels.ops import checked_backend, usual_backend
from gpukit_kernels.table import FLOATS, QuantType, by_name


def merge_lora(
    weight: Tensor,
    factors: Sequence[Factors],
    qtype: str | QuantType | None = None,
    out: str | QuantType | torch.dtype = torch.float32,
    *,
    backend: str | None = None,
) -> Tensor:
    """`weight` `[..., rows, width]` with the deltas of all `factors`, summed as `merge.py` says.

    `weight` is float32, float16 or bfloat16, or uint8 `[..., rows, row_bytes]` of `qtype`; of the
    factors `b` is float32 `[..., rows, rank]`, `a` `[..., rank, width]`. `out` is the dtype of the
    result, or a type in whose blocks, uint8 `[..., rows, row_bytes]`, it comes. The bytes are the
    same with every `backend`, "eager", "compiled" or "triton". `QuantError` for what does not fit.
    """
    row = by_name(qtype) if qtype is not None else _float_type(weight.dtype)
    kind = _float_type(out) if isinstance(out, torch.dtype) else by_name(out)
    kind.encoder()
    if qtype is not None and weight.dtype is not torch.uint8:
        raise QuantError(f"weight is {weight.dtype}; uint8 blocks of {row.name} are needed")
    if weight.ndim < 2:
        raise QuantError(f"weight is {list(weight.shape)}; merge_lora takes [..., rows, width]")
    matrices = weight.shape[:-2].numel()
    stored = weight.contiguous().view(torch.uint8).view(matrices, *_rows_of(weight, row))
    width = stored.shape[2] // row.nbytes * row.block
    row.row_bytes(width), kind.row_bytes(width)
    shape = (*weight.shape[:-1], width)
    fitted = [_fitted(f, shape, weight.device) for f in factors]
    found = torch.ops.gpukit.merge(
        stored,
        row.name,
        [f.b for f in fitted],
        [f.a for f in fitted],
        [f.scale for f in fitted],
        [f.magnitude for f in fitted],
        kind.name,
        checked_backend(backend or usual_backend(weight.device), weight.device),
    ).view(*weight.shape[:-1], kind.row_bytes(width))
    return found.view(out) if isinstance(out, torch.dtype) else found


def _float_type(dtype: torch.dtype) -> QuantType:
    for name, known in FLOATS.items():
        if known is dtype:
            return by_name(name)
    raise QuantError(f"{dtype} is no type of a weight; float32, float16 and bfloat16 are")


def _rows_of(weight: Tensor, row: QuantType) -> tuple[int, int]:
    """Rows of a matrix, and bytes of each; `QuantError` where they are no blocks of `row`."""
    nbytes = weight.shape[-1] * weight.element_size()
    if nbytes % row.nbytes:
        raise QuantError(f"rows of {nbytes} bytes are no multiple of {row.nbytes} ({row.name})")
    return weight.shape[-2], nbytes


def _fitted(f: Factors, shape: Sequence[int], device: torch.device) -> Factors:
    """`f` with one dimension for all matrices; `QuantError` where it does not fit a weight of
    `shape`."""
    *stack, rows, width = shape
    rank = f.b.shape[-1] if f.b.ndim else 0
    wanted = {"b": (*stack, rows, rank), "a": (*stack, rank, width), "magnitude": (*stack, rows)}
    for name, values in (("b", f.b), ("a", f.a), ("magnitude", f.magnitude)):
        if values is None:
            continue
        if tuple(values.shape) != wanted[name]:
            raise QuantError(
                f"{name} is {list(values.shape)}, a weight {list(shape)} with rank {rank} takes "
                f"{list(wanted[name])}"
            )
        if values.dtype is not torch.float32 or values.device != device:
            raise QuantError(
                f"{name} is {values.dtype} on {values.device}; float32 on {device} is needed"
            )
    count = prod(stack)
    b, a = f.b.reshape(count, rows, rank), f.a.reshape(count, rank, width)
    magnitude = None if f.magnitude is None else f.magnitude.reshape(count, rows)
    return Factors(b, a, f.scale, magnitude)


torch.library.define(
    "gpukit::merge",
    "(Tensor weight, str qtype, Tensor[] b, Tensor[] a, float[] scales, Tensor?[] magnitudes, "
    "str out, str backend) -> Tensor",
)


@torch.library.impl("gpukit::merge", "default")
def _merge(
    weight: Tensor,
    qtype: str,
    b: list[Tensor],
    a: list[Tensor],
    scales: list[float],
    magnitudes: list[Tensor | None],
    out: str,
    backend: str,
) -> Tensor:
    row, kind = by_name(qtype), by_name(out)
    factors = list(map(Factors, b, a, scales, magnitudes))
    width = weight.shape[2] // row.nbytes * row.block
    if backend == "triton":
        if not weight.numel() or proven.merges(row, kind, width, factors, weight.device):
            return merge_triton(weight, row, factors, kind)
        b, a = [t.cpu() for t in b], [t.cpu() for t in a]
        lengths = [None if m is None else m.cpu() for m in magnitudes]
        there = (weight.cpu(), qtype, b, a, scales, lengths, out, "compiled")
        return torch.ops.gpukit.merge(*there).to(weight.device)
    found = weight.new_empty((*weight.shape[:2], kind.row_bytes(width)))
    steps = cpu_merge.Steps(tiles.decode_eager, merge.merge, tiles.encode_eager)
    if backend == "compiled" and found.numel():
        steps = compiled.merging(row)
    for n, (matrix, into) in enumerate(zip(weight, found, strict=True)):
        cpu_merge.merge_rows(matrix, row, [f.of(n) for f in factors], into, kind, steps)
    return found


@torch.library.register_fake("gpukit::merge")
def _(
    weight: Tensor,
    qtype: str,
    b: list[Tensor],  # noqa: ARG001
    a: list[Tensor],  # noqa: ARG001
    scales: list[float],  # noqa: ARG001
    magnitudes: list[Tensor | None],  # noqa: ARG001
    out: str,
    backend: str,  # noqa: ARG001
) -> Tensor:
    row = by_name(qtype)
    width = weight.shape[2] // row.nbytes * row.block
    return weight.new_empty((*weight.shape[:2], by_name(out).row_bytes(width)))
