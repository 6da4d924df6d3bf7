"""The kernels of one token's step beside products as their launchers launch them, for what compiles
them without launching."""

from collections.abc import Iterator
from typing import Any

from gpukit_kernels import (
    attend_kernel_triton,
    attend_triton,
    largest_triton,
    norm_triton,
    prepared_triton,
)
from gpukit_kernels.launched import Kernel

WIDTHS = (2048, 4096, 8192)
HEADS = (64, 128, 256)
CAPACITY, VOCAB = 8192, 128256
PREPARED = {"levels": "*i16", "steps": "*fp32", "sums": "*fp32"}
# What one launcher or the other leaves out.
NORM = dict.fromkeys(("add", "post"), "*fp32")
ATTEND = dict.fromkeys(("q_norm", "k_norm"), "*fp32")


def step_kernels() -> Iterator[Kernel]:
    """All of them, at sizes of models."""
    yield Kernel(
        "step prepare",
        prepared_triton.prepare_kernel,
        {"x": "*fp32", **PREPARED},
        ("count",),
        {"GROUPS": prepared_triton.GROUPS},
        False,
        1,
    )
    for width in WIDTHS:
        yield _norm(f"step norm {width}", width, (), out=False)
    yield _norm(f"step norm {WIDTHS[1]} added", WIDTHS[1], ("add",), out=True)
    yield _norm(f"step norm {WIDTHS[1]} post", WIDTHS[1], ("add", "post"), out=False)
    for head_dim in HEADS:
        yield _attend(head_dim)
    # Queries and keys with norms, a window and a cap: the most that a model has of each.
    yield _attend(128, norms=True, window=1024, cap=50.0)
    yield Kernel(
        "step keys",
        largest_triton.keys_kernel,
        {"logits": "*fp32", "keys": "*i64", "tops": "*i64"},
        ("count",),
        {"TILE": largest_triton.TILE},
        False,
    )
    yield Kernel(
        "step next",
        largest_triton.next_kernel,
        dict.fromkeys(("tops", "best", "token"), "*i64"),
        ("count",),
        {"SIZE": largest_triton.next_size(largest_triton.tops_of(VOCAB))},
        False,
    )


def _norm(name: str, width: int, given: tuple[str, ...], *, out: bool) -> Kernel:
    groups, warps = norm_triton.launch_shape(width)
    some = {key: kind for key, kind in NORM.items() if key in given}
    pointers = {**dict.fromkeys(("x", "weight"), "*fp32"), **some, **PREPARED}
    nothing: dict[str, Any] = dict.fromkeys(NORM.keys() - some.keys())
    if out:
        pointers["out"] = "*fp32"
    else:
        nothing["out"] = None
    constants = {"GROUPS": groups, **nothing}
    return Kernel(
        name,
        norm_triton.norm_kernel,
        pointers,
        ("width",),
        constants,
        False,
        warps,
        floats=("eps",),
    )


def _attend(head_dim: int, *, norms: bool = False, window: int = 0, cap: float = 0.0) -> Kernel:
    """32 heads, four of which share a kv head, with a cache of float16."""
    shape = attend_triton.Shape(
        32, 8, head_dim, head_dim, False, head_dim**-0.5, window=window, cap=cap
    )
    pointers = {**dict.fromkeys(("q", "k", "v", "turns"), "*fp32"), **PREPARED}
    pointers |= {"keys": "*fp16", "values": "*fp16", "position": "*i32", "partial": "*fp32"}
    pointers |= {"arrived": "*i32", **(ATTEND if norms else {})}
    nothing = {"out": None, **({} if norms else dict.fromkeys(ATTEND))}
    more = " norms" * norms + " window" * (window > 0) + " cap" * (cap > 0)
    return Kernel(
        f"step attend {head_dim}{more}",
        attend_kernel_triton.attend_kernel,
        pointers,
        ("capacity",),
        {**attend_triton.launch_constants(shape, CAPACITY), **nothing},
        False,
        attend_triton.WARPS,
        floats=("scale", "eps", "cap"),
        aligned=("capacity",),
    )
