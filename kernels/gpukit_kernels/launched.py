"""Every kernel of a type as its launcher launches it, for what compiles them without launching."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import triton  # noqa: F401 - before the kernels, which are Triton's then (`jit`)

from gpukit_kernels import (
    delta_triton,
    dense_triton,
    launch,
    merge_triton,
    nearest_triton,
    products_triton,
    vector_kernels_triton,
    vectors_triton,
)
from gpukit_kernels.merge import LANES
from gpukit_kernels.pieces_triton import pieces_kernel
from gpukit_kernels.table import FLOATS, Nearest, QuantType, VectorParts, by_name

DTYPES = ("fp32", "fp16", "bf16")
# The same as types of GGUF data.
NAMES = dict(zip(DTYPES, FLOATS, strict=True))


# A width that all blocks divide.
WIDTH = 4096


@dataclass(frozen=True)
class Kernel:
    """A kernel with the types and constants that a launcher gives it; `exact` where bits matter.

    `fuses` says that its own text fuses products and sums, where the bits are the same.
    `floats` are its float32 arguments, `aligned` the integers that 16 divides.
    """

    name: str
    function: Any
    pointers: dict[str, str]
    integers: tuple[str, ...]
    constants: dict[str, Any]
    exact: bool
    warps: int = 4
    stages: int = 3
    fuses: bool = False
    floats: tuple[str, ...] = ()
    aligned: tuple[str, ...] = ("width",)


def kernels(row: QuantType, dtypes: Iterable[str] = DTYPES) -> Iterator[Kernel]:
    """Every kernel of `row`; encode from and decode to each of `dtypes`, in Triton's names."""
    for dtype in dtypes:
        yield from _encoders(row, dtype)
        yield from _decoders(row, dtype)
        yield from _mergers(row, dtype)
    yield from _products(row)


def _decoder(row: QuantType) -> tuple[dict[str, str], dict[str, Any]]:
    """The pointer to the table that blocks are decoded with, if any, and the constants."""
    pair = launch.triton_pair(row)
    # A table is a pointer to int16, or the constant None.
    table = {"table": "*i16"} if pair.table else {}
    constants = {"DECODE": pair.decode, "BLOCK": row.block, "NBYTES": row.nbytes}
    return table, constants if table else {**constants, "table": None}


def _encoders(row: QuantType, dtype: str) -> Iterator[Kernel]:
    pair = launch.triton_pair(row)
    shape = {"BLOCK": row.block, "NBYTES": row.nbytes}
    if pair.encode is not None:
        yield Kernel(
            f"{row.name} encode {dtype}",
            launch.encode_kernel,
            {"values": f"*{dtype}", "out": "*u8"},
            ("count",),
            {"ENCODE": pair.encode, **shape, "TILE": pair.tile, "LANES": pair.lanes},
            True,
        )
    if pair.nearest:
        yield from _nearest(row, pair.nearest, pair.tile, dtype)
    if pair.weighted:
        means = {"means": "*fp32"} if row.row_mean else {}
        yield Kernel(
            f"{row.name} weighted {dtype}",
            launch.weighted_kernel,
            {"values": f"*{dtype}", "importance": "*fp32", **means, "out": "*u8"},
            ("count", "row_blocks", "part_blocks"),
            {
                "ENCODE": pair.weighted,
                **shape,
                "TILE": pair.weighted_tile or pair.tile,
                **({} if means else {"means": None}),
            },
            True,
        )
    if row.row_mean:
        yield Kernel(
            f"{row.name} mean squares {dtype}",
            launch.mean_squares_kernel,
            {"values": f"*{dtype}", "out": "*fp32"},
            ("rows", "width"),
            {"ROWS": launch.MEAN_ROWS},
            True,
            warps=1,
        )


def _nearest(row: QuantType, nearest: Nearest, tile: int, dtype: str) -> Iterator[Kernel]:
    """Encoding with importance, and without where there is that."""
    shape = {"BLOCK": row.block, "NBYTES": row.nbytes, "TILE": tile}
    pointers = {"values": f"*{dtype}", "book": "*i32", "out": "*u8"}
    for weighted in (False, True) if nearest.plain else (True,):
        yield Kernel(
            f"{row.name} {'weighted' if weighted else 'encode'} {dtype}",
            nearest_triton.nearest_kernel,
            {**pointers, "importance": "*fp32"} if weighted else pointers,
            ("count", "row_blocks", "part_blocks"),
            {"ENCODE": nearest.encode, **shape, **({} if weighted else {"importance": None})},
            True,
            warps=nearest_triton.WARPS,
        )


def _decoders(row: QuantType, dtype: str) -> Iterator[Kernel]:
    pair = launch.triton_pair(row)
    table, decoder = _decoder(row)
    yield Kernel(
        f"{row.name} decode {dtype}",
        launch.decode_kernel,
        {"blocks": "*u8", **table, "out": f"*{dtype}"},
        ("count",),
        {**decoder, "TILE": launch.DECODE_VALUES // row.block},
        True,
    )
    if pair.pieces:
        codebook = {"table": "*i32"} if pair.pieces.table else {}
        yield Kernel(
            f"{row.name} decode pieces {dtype}",
            pieces_kernel,
            {"blocks": "*u8", **codebook, "out": f"*{dtype}"},
            ("count",),
            {**launch.piece_constants(row, pair.pieces), **({} if codebook else {"table": None})},
            True,
        )
    if pair.aligned:
        yield Kernel(
            f"{row.name} decode aligned {dtype}",
            pair.aligned,
            {"blocks": "*u8", "out": f"*{dtype}"},
            ("count", "magic"),
            {"TILE": launch.DECODE_VALUES // row.block},
            True,
        )


def _mergers(row: QuantType, dtype: str) -> Iterator[Kernel]:
    """Deltas merged into blocks of `row` and out of them; of floats with magnitudes, too."""
    plain = by_name(NAMES[dtype])
    if row.name in FLOATS:
        yield _merger(
            f"{row.name} merge {dtype}", plain, row, "*" + dtype, _pointer(row), dora=True
        )
        if row.name == "F32":
            yield Kernel(
                f"{row.name} merge factors {dtype}",
                delta_triton.exact_kernel,
                {"b": "*fp32", "a": "*fp32", "out": "*i32"},
                ("rows", "columns"),
                {"STEP": delta_triton.SHARE},
                True,
            )
        yield Kernel(
            f"{row.name} merge lengths {dtype}",
            merge_triton.factors_kernel,
            {
                "weight": f"*{dtype}",
                **dict.fromkeys(("b", "a", "scale", "magnitude", "out"), "*fp32"),
            },
            ("rows", "width", "begin", "end", "ranks"),
            {"LANES": LANES, "ROWS": merge_triton.LENGTH_ROWS},
            True,
        )
        return
    if launch.triton_pair(row).encode is not None:
        yield _merger(f"{row.name} merge into {dtype}", plain, row, "*" + dtype, "*u8")
    yield _merger(f"{row.name} merge from {dtype}", row, plain, "*u8", "*" + dtype)


def _pointer(row: QuantType) -> str:
    return "*" + next(dtype for dtype, name in NAMES.items() if name == row.name)


def _merger(
    name: str, row: QuantType, kind: QuantType, weight: str, out: str, *, dora: bool = False
) -> Kernel:
    pointers = {"weight": weight, **dict.fromkeys(("b", "a"), "*fp32"), "bounds": "*i32"}
    pointers |= {"scales": "*fp32", "strange": "*i32", "out": out}
    nothing: dict[str, Any] = {}
    if row.name not in FLOATS and launch.triton_pair(row).table:
        pointers["table"] = "*i16"
    else:
        nothing["table"] = None
    if dora:
        pointers["factors"] = "*fp32"
    else:
        nothing["factors"] = None
    integers = ("rows", "width", "ranks")
    constants = {**merge_triton.tile(row, kind, WIDTH), "ADAPTERS": 1, **nothing}
    kernel = merge_triton.merge_kernel
    return Kernel(name, kernel, pointers, integers, constants, True, fuses=constants["FUSE"])


def _products(row: QuantType) -> Iterator[Kernel]:
    pair = launch.triton_pair(row)
    table, decoder = _decoder(row)
    pointers = {"x": "*fp32", "blocks": "*u8", **table, "out": "*fp32"}
    tile = {
        "ROWS": products_triton.VECTOR_ROWS,
        "STEP": products_triton.VECTOR_WIDTH // row.block,
    }
    yield Kernel(
        f"{row.name} matmul few",
        products_triton.matmul_few_kernel,
        pointers,
        ("rows", "width"),
        {**decoder, **tile},
        False,
        products_triton.few_warps(row),
    )
    if pair.few:
        yield Kernel(
            f"{row.name} matmul few aligned",
            pair.few,
            {name: kind for name, kind in pointers.items() if name != "table"},
            ("rows", "width", "magic"),
            {"ROWS": products_triton.VECTOR_ROWS, "QUADS": products_triton.QUADS},
            False,
        )
    yield from _halves(row)
    if pair.vectors:
        yield from _vectors(row, pair.vectors)


def _halves(row: QuantType) -> Iterator[Kernel]:
    """W as float16, for products of many rows of x."""
    pair = launch.triton_pair(row)
    parts = pair.vectors
    out = {"out": "*fp16", "powers": "*fp32"}
    if parts:
        constants = dense_triton.part_constants(parts, row, launched_width(row))
        yield Kernel(
            f"{row.name} halves by parts",
            dense_triton.parts_kernel,
            {"blocks": "*u8", **out},
            ("rows", "width"),
            constants,
            False,
        )
    table, decoder = _decoder(row)
    yield Kernel(
        f"{row.name} halves",
        dense_triton.halves_kernel,
        {"blocks": "*u8", **table, **out},
        ("width",),
        {**decoder, "STEP": dense_triton.STEP_VALUES // row.block},
        False,
        pair.row_warps,
    )


def launched_width(row: QuantType) -> int:
    """A width that threads divide, as those of models are."""
    return 4096 * row.block


def _vectors(row: QuantType, parts: VectorParts) -> Iterator[Kernel]:
    """A few rows of x by integers: one, and as many as share a reading of W."""
    x = {"levels": "*i16", "steps": "*fp32", "sums": "*fp32"}
    for m in sorted({1, parts.together}):
        # The last one has the most rows, and so registers.
        tile = vectors_triton.tiles_of(row, m)[-1]
        shape = vectors_triton.launch_shape(parts, row, launched_width(row), m, tile)
        constants = {name: value for name, value in shape.items() if name != "num_warps"}
        for name, function, weights, more in (
            ("vectors", vector_kernels_triton.multiply_kernel, ("blocks",), {"add": None}),
            ("gated", vector_kernels_triton.gated_kernel, ("gate", "up"), {"SILU": True}),
        ):
            yield Kernel(
                f"{row.name} {name} {m}",
                function,
                {**x, **dict.fromkeys(weights, "*u8"), "out": "*fp32"},
                ("m", "rows", "width"),
                {**constants, **more},
                False,
                shape["num_warps"],
            )
