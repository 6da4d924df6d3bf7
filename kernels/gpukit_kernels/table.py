"""The table of quant types: one row a type, collected from `quants/`, found by name or by id."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gpukit_kernels.errors import QuantError, did_you_mean
from gpukit_kernels.facts import TypeFacts


@dataclass(frozen=True)
class Pieces:
    """How `pieces_triton.py` decodes a type: pieces(blocks, at, part, mask), a tuple of `count`
    float32 `[P, 8]`, which are `span` values apart; with a table of constants on a device, int32,
    pieces(blocks, table, at, part, mask)."""

    pieces: Any
    span: int
    count: int
    table: Callable[[torch.device], Tensor] | None = None


@dataclass(frozen=True)
class VectorParts:
    """How the kernels of `vectors_triton` read a type: blocks are cut into parts, a thread has one.

    read     read(blocks, first, block, part, count, mask): what is loaded of part `part` of block
             `block`, int32 `[Q]` each, counted from block `first`; `count` is how many there are
    unpack   unpack(found, part): of what `read` found three tuples: words of four levels, a byte
             each, piece after piece; the step of each piece; what is taken off each level's value
             (`minima`), else nothing
    place    place(part): the first four values of the part, in fours from its block's first on
    parts    parts of a block
    pieces   runs of values of a part, `stride` fours apart, each in one group of 32 values, with
             minima in one of 16
    words    words of four values of a piece, `word_stride` fours apart
    center   what is taken off each level, which is unsigned then
    signed   whether levels are signed bytes
    top      the largest magnitude of a level, less the center
    align    what the address of blocks must be a multiple of
    together rows of x that share one reading of W, as far as registers go
    """

    read: Any
    unpack: Any
    place: Any
    parts: int
    pieces: int
    stride: int
    words: int
    top: int
    word_stride: int = 1
    center: int = 0
    minima: bool = False
    signed: bool = False
    align: int = 2
    together: int = 4

    def constants(self, block: int) -> dict[str, Any]:
        """What the kernels take of it, with the type's block."""
        return {
            "READ": self.read,
            "UNPACK": self.unpack,
            "PLACE": self.place,
            "BLOCK": block,
            "PARTS": self.parts,
            "PIECES": self.pieces,
            "STRIDE": self.stride,
            "WORDS": self.words,
            "WORD_STRIDE": self.word_stride,
            "CENTER": self.center,
            "MINIMA": self.minima,
            "SIGNED": self.signed,
        }


@dataclass(frozen=True)
class Nearest:
    """How `nearest_triton.py` encodes a type whose blocks name rows of a codebook.

    encode   encode(x, importance, book, out, at, mask): stores float32 `[TILE, block]` as blocks at
             byte offsets `at`, int32 `[TILE]`, of the uint8 pointer `out`; `importance` is as `x`,
             or None where there is none
    book     what it looks up, int32, on a device
    plain    whether it encodes without importance
    """

    encode: Any
    book: Callable[[torch.device], Tensor]
    plain: bool


@dataclass(frozen=True)
class TritonPair:
    """The Triton side of a type: jit functions that `launch.py` and `products_triton.py` build
    kernels from.

    encode   encode(x, out, at, mask): stores float32 `[TILE, block]` as blocks at byte
             offsets `at`, int32 `[TILE]`, of the uint8 pointer `out`, which is aligned; None
             for a type that is only read, or has `nearest`
    weighted weighted(x, importance, mean_square, out, at, mask): `encode` with importance
             float32 `[TILE, block]` and the rows' mean squares `[TILE]`
    decode   decode(blocks, at, mask): float32 `[TILE, block]` of the blocks at `at`; with a
             table decode(blocks, at, mask, table)
    tile     blocks that a program of four warps encodes, or with `nearest` one of one warp
    lanes    whether `encode` takes a tuple of 32 float32 `[TILE]` instead of a tile
    weighted_tile   the same with importance, `tile` where it is 0
    table    the constants that `decode` reads, as a tensor on a device; None where it reads none
    aligned  a kernel of `launch.decode_triton` for blocks that begin at a multiple of four:
             aligned(blocks, out, count, magic, TILE)
    few      a kernel of `products_triton.matmul_triton` for a few rows of x, of blocks that begin
             at a multiple of four: few(x, blocks, out, rows, width, magic, ROWS, QUADS)
    vectors  how `vectors_triton` reads the blocks; None where it does not
    nearest  how a type is encoded that looks up a codebook
    row_warps   warps of a program that decodes a row to float16: more where four spill registers
    """

    encode: Any
    decode: Any
    weighted: Any = None
    tile: int = 0
    lanes: bool = False
    weighted_tile: int = 0
    table: Callable[[torch.device], Tensor] | None = None
    aligned: Any = None
    pieces: Pieces | None = None
    few: Any = None
    vectors: VectorParts | None = None
    nearest: Nearest | None = None
    row_warps: int = 4


@dataclass(frozen=True)
class QuantType:
    """One type of GGUF data: its facts, its torch functions (the reference), its Triton functions.

    facts    its line in `facts.py`
    encode   float32 `[block, lanes]` -> `[nbytes, lanes]`, exact bytes, as uint8 or as float32 in
             0..255; None for a type that is only read, or needs importance
    decode   uint8 `[nbytes, lanes]` -> float32 `[block, lanes]`, exact values
    weighted as `encode`, with the importance of each value, float32 `[block, lanes]`, and the
             mean of x * x over each block's row, float32 `[lanes]`; None for a type that takes
             no notice of importance
    triton   the same as jit functions
    """

    facts: TypeFacts
    encode: Callable[[Tensor], Tensor] | None
    decode: Callable[[Tensor], Tensor]
    triton: TritonPair | None = None
    weighted: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    @property
    def name(self) -> str:
        """As GGUF spells it."""
        return self.facts.name

    @property
    def id(self) -> int:
        """ggml's number."""
        return self.facts.id

    @property
    def block(self) -> int:
        """Values of a block."""
        return self.facts.block

    @property
    def nbytes(self) -> int:
        """Bytes of a block."""
        return self.facts.nbytes

    @property
    def row_mean(self) -> bool:
        """Whether `weighted` looks at the rows' mean squares; zeros will do where it does not."""
        return self.facts.row_mean

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of `n` values; `QuantError` when blocks do not divide it."""
        return self.facts.row_bytes(n)

    @property
    def encodable(self) -> bool:
        """Whether values can be written in this type; if not, they can only be read."""
        return self.encode is not None or self.weighted is not None

    def encoder(self) -> Callable[[Tensor], Tensor]:
        """`encode`; `QuantError` for a type that needs importance, or that is only read, naming
        those that are not."""
        if self.encode is None and self.facts.needs_importance:
            raise QuantError(
                f"{self.name} needs importance, one number for each column: without it too few "
                "levels are left to choose well"
            )
        if self.encode is None:
            known = ", ".join(name for name, row in QUANTS.items() if row.encodable)
            raise QuantError(f"{self.name} can only be read; types that can be written: {known}")
        return self.encode

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.block


def _collect() -> Iterable[QuantType]:
    from gpukit_kernels import quants

    for module in pkgutil.iter_modules(quants.__path__, quants.__name__ + "."):
        yield from importlib.import_module(module.name).ROWS


FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types that are torch's own."""

QUANTS = MappingProxyType({row.name: row for row in sorted(_collect(), key=lambda row: row.id)})
"""Name as GGUF spells it -> row, in the order of ids."""


def by_name(name: str | QuantType) -> QuantType:
    """The row of `name` in any case; `QuantError` lists the known ones."""
    if isinstance(name, QuantType):
        return name
    row = QUANTS.get(name.upper())
    if row is None:
        hint = did_you_mean(name, QUANTS)
        raise QuantError(f"unknown quant type {name!r}; known: {', '.join(QUANTS)}{hint}")
    return row


def by_id(id: int) -> QuantType:
    """The row of ggml's type number `id`."""
    for row in QUANTS.values():
        if row.id == id:
            return row
    raise QuantError(f"no quant type with id {id}; known: {', '.join(QUANTS)}")
