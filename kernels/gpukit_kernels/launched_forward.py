"""The kernels of a forward pass beside products as their launchers launch them, for what compiles
them without launching: they are of no type of blocks."""

from collections.abc import Iterator

from gpukit_kernels import causal_triton, rows_triton
from gpukit_kernels.launched import Kernel

WIDTHS = (128, 4096, rows_triton.WIDEST)
HEADS = (64, 128, 256)
STRIDES = ("k_batch", "k_stride", "k_head", "v_batch", "v_stride", "v_head")


def forward_kernels() -> Iterator[Kernel]:
    """All of them, at sizes of models."""
    for width in WIDTHS:
        rows = max(rows_triton.VALUES // width, 1)
        yield Kernel(
            f"norm {width}",
            rows_triton.rms_norm_kernel,
            dict.fromkeys(("x", "weight", "out"), "*fp32"),
            ("rows", "width"),
            {"ROWS": rows, "WIDTH": width},
            False,
            rows_triton.NORM_WARPS,
            floats=("eps",),
        )
    for name, gelu in (("silu", False), ("gelu", True)):
        yield Kernel(
            f"gate {name}",
            rows_triton.gated_kernel,
            dict.fromkeys(("gate", "up", "out"), "*fp32"),
            ("count",),
            {"GELU": gelu, "SIZE": rows_triton.VALUES},
            False,
            rows_triton.WARPS,
        )
    for name, neighbours, tail in (("neighbours", True, 0), ("halves", False, 32)):
        yield Kernel(
            f"turn {name}",
            rows_triton.rotate_kernel,
            {"x": "*fp32", "turns": "*fp32", "out": "*fp16"},
            ("heads", "width", "pairs"),
            {"NEIGHBOURS": neighbours, "TAIL": tail, "HEADS": 32, "PAIRS": 64},
            False,
        )
    yield Kernel(
        "likelihood",
        rows_triton.likelihood_kernel,
        {"logits": "*fp32", "targets": "*i64", "top": "*fp32", "total": "*fp64",
         "wanted": "*fp32", "likeliest": "*i32"},
        ("vocab",),
        {"SIZE": rows_triton.LOGITS},
        False,
    )  # fmt: skip
    for head_dim in HEADS:
        for window, cap in ((False, False), (True, False), (False, True), (True, True)):
            yield _attention(head_dim, window, cap)


def _attention(head_dim: int, window: bool, cap: bool) -> Kernel:
    tile = causal_triton.tile_for(head_dim)
    limits = " window" * window + " cap" * cap
    return Kernel(
        f"attention {head_dim}{limits}",
        causal_triton.attention_kernel,
        {**dict.fromkeys("qkv", "*fp16"), "out": "*fp32"},
        ("count", "length", "heads", "head_dim", *STRIDES, "window"),
        {
            "GROUP": 4,
            "HEAD": head_dim,
            "QUERIES": tile.queries,
            "KEYS": tile.keys,
            "WINDOW": window,
            "CAP": cap,
        },
        False,
        tile.warps,
        tile.stages,
        floats=("scale", "cap"),
        aligned=("head_dim", *STRIDES),
    )
