"""The compiled CPU path: when it is used, how it is trusted, and what to do when it cannot work.

The floor: a Q4_K weight goes through 22 candidates of some 28 operations (level 7, weight 2, three
sums 6, the level again 7, error 6), 616 in all, or 39 instructions on 16 lanes, 77 on 8. Every
thread works on tiles of its own and waits for nobody.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from gpukit_kernels import merge
from gpukit_kernels.cpu import cache as code_cache, products, tiles
from gpukit_kernels.cpu.build import build, compiler, has_tiles
from gpukit_kernels.cpu.merge import Steps, by_program
from gpukit_kernels.cpu.merger import Merger
from gpukit_kernels.cpu.program import (
    MERGE,
    POOL,
    Decoder,
    Library,
    Pool,
    Program,
    decoder_name,
    is_kept,
    keep,
    kept,
    kept_library,
    program_name,
)
from gpukit_kernels.cpu.recording import HERE, Form, record, record_decoder
from gpukit_kernels.factors import Factors
from gpukit_kernels.table import QuantType
from gpukit_kernels.turns import alone

# Weights from which on a program is built, which takes about half a second; what is there already
# is always used.
WORTH = 1 << 19

# Blocks that every type encodes both ways before its compiled code is trusted.
CHECKED = ((torch.float32, 256), (torch.bfloat16, 32), (torch.float16, 32))

# Rows of 256 values that are decoded both ways.
DECODED_BLOCKS = 100

# Rows and columns of a weight that deltas are added to both ways: of every kind of tile some.
MERGED = (7, 257)
# Numbers of any bits that are rounded both ways, not divided by vectors.
CONVERTED = (1 << 16) + 5

# Weights in a tile of a program: 16 KiB as float32, which twenty search steps pass over.
TILE = 1 << 12

L = TypeVar("L", bound=Library)

_log = logging.getLogger(__name__)
# Programs of several types are built at the same time, each once.
_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
# What has been asked for in this process; products are many.
_decoders: dict[str, Decoder | None] = {}
# Of a program that cannot be had, why.
_failures: dict[str, str] = {}


def repays(row: QuantType, weights: int, importance: bool = False) -> bool:
    """Whether a program is worth having for `weights` weights in total."""
    return row.block > 1 and row.encodable and _is_worth(_name(row, importance), weights)


def decodes(row: QuantType, weights: int) -> bool:
    """Whether `weights` weights of `row` are worth a decoder, which floats never are."""
    return row.block > 1 and _is_worth(decoder_name(row.name), weights)


def _is_worth(name: str, weights: int) -> bool:
    if name in _failures or compiler() is None:
        return False
    return weights >= WORTH or is_kept(name)


def encode(
    values: Tensor, row: QuantType, out: Tensor, importance: tiles.Importance | None = None
) -> None:
    """`tiles.encode_program`; eager torch where there is no program, and for floats, of which
    torch's own conversions are as good."""
    program = _program(row, importance is not None) if row.block > 1 else None
    if program is not None:
        tiles.encode_program(values, row, out, program, importance)
    else:
        tiles.encode_eager(values, row, out, importance)


def status() -> str:
    """One line for people: whether CPU kernels can be compiled, and with what."""
    path = compiler()
    if path is None:
        return "eager torch: no C compiler"
    if _failures:
        name, reason = next(iter(_failures.items()))
        return f"eager torch for {', '.join(_failures)}: compiling {name} failed ({reason})"
    return f"compiled with {path}, code kept in {code_cache.folder()}"


def _name(row: QuantType, weighted: bool) -> str:
    return program_name(row.name, weighted and row.weighted is not None)


def decoder(row: QuantType) -> Decoder | None:
    """The program that decodes `row` and multiplies with it; None where it cannot be had."""
    if row.name not in _decoders:
        name = decoder_name(row.name)
        _decoders[row.name] = _had(
            name, lambda: kept_library(name, Decoder) or _compiled_decoder(row, name)
        )
    return _decoders[row.name]


@cache
def pool() -> Pool | None:
    """The threads of products; None where they cannot be had."""
    return _had(POOL, lambda: kept_library(POOL, Pool) or _timed(POOL, _made_pool))


def _made_pool() -> Pool:
    return Pool(_built(POOL, (HERE / "pool.c").read_text()))


@cache
def merger() -> Merger | None:
    """The sums of deltas; None where they cannot be had."""
    return _had(MERGE, lambda: kept_library(MERGE, Merger) or _timed(MERGE, _made_merger))


def merging(row: QuantType) -> Steps:
    """How deltas are added to blocks of `row`, by programs where they can be had."""
    add, by = merger(), decoder(row) if row.block > 1 else None

    def decode(blocks: Tensor, row: QuantType, out: Tensor) -> None:
        if by is None:
            tiles.decode_eager(blocks, row, out)
        else:
            products.decode(blocks, by, None, out)

    return Steps(decode, merge.merge if add is None else by_program(add), encode)


def _made_merger() -> Merger:
    parts = [(HERE / name).read_text() for name in ("vectors.h", "merge.c")]
    found = Merger(_built(MERGE, "\n".join(parts)))
    _compare_merger(found)
    return found


def _compare_merger(found: Merger) -> None:
    """Raise where the sums of `found` are not those of the reference."""
    random = torch.Generator().manual_seed(0)
    rows, width = MERGED
    weight = torch.randn((rows, width), generator=random)
    magnitude = torch.rand(rows, generator=random)
    ranks = ((3, 0.7, None), (16, 1.5, magnitude))
    factors = [
        Factors(
            torch.randn((rows, rank), generator=random),
            torch.randn((rank, width), generator=random),
            *rest,
        )
        for rank, *rest in ranks
    ]
    with alone():
        wanted = merge.merge(weight, factors)
    got = by_program(found)(weight.clone(), factors)
    wrong = (got.view(torch.int32) != wanted.view(torch.int32)).any(dim=1)
    _refuse(MERGE, int(wrong.sum()), f"{rows} rows")
    _compare_conversions(found, random)


def _compare_conversions(found: Merger, random: torch.Generator) -> None:
    """Raise where `found` does not make the numbers of 16 bits, NaN apart, float32 as torch does,
    rounds float32 to others, or finds another largest magnitude."""
    bits = torch.arange(1 << 16).to(torch.int16)
    floats = torch.randint(-(1 << 31), 1 << 31, (CONVERTED,), generator=random).to(torch.int32)
    values = floats.view(torch.float32)
    finite = values[values.isfinite()]
    for some in (values, finite, finite[:3]):
        most = torch.tensor(found.largest(some.numpy())).view(torch.int32)
        wanted = (some.view(torch.int32) & 0x7FFFFFFF).max()
        _refuse(MERGE, int(most != wanted), f"magnitudes of {len(some)} values")
    for dtype in (torch.bfloat16, torch.float16):
        numbers, got = bits.view(dtype), torch.empty(1 << 16)
        wide, narrow = numbers.float(), values.to(dtype)
        rounded = torch.empty(CONVERTED, dtype=torch.int16)
        kind = "uint16" if dtype is torch.bfloat16 else "float16"
        found.widen(bits.numpy().view(kind), got.numpy())
        found.narrow(values.numpy(), rounded.numpy().view(kind))
        wrong = (got.view(torch.int32) != wide.view(torch.int32)) & ~wide.isnan()
        _refuse(MERGE, int(wrong.sum()), f"{1 << 16} values of {dtype}")
        wrong = (rounded != narrow.view(torch.int16)) & ~values.isnan()
        _refuse(MERGE, int(wrong.sum()), f"{CONVERTED} values rounded to {dtype}")


def _program(row: QuantType, weighted: bool) -> Program | None:
    """The program that encodes `row`; None where it cannot be had."""
    name = _name(row, weighted)
    return _had(name, lambda: kept(name) or _compiled(row, name))


def _had(name: str, find: Callable[[], L]) -> L | None:
    """What `find` gives: a program that has been found to give the reference's bytes on this
    machine; None where it cannot be had, which is told once."""
    with _locks[name]:
        if name in _failures:
            return None
        try:
            return find()
        except Exception as error:
            _failures[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            _log.warning("%s: going on in eager torch: %s", name, _failures[name])
            return None


def _compiled(row: QuantType, name: str) -> Program:
    """The program of `row`, built now, compared with the reference and left for others."""
    weighted = name != row.name
    encode = row.weighted if weighted and row.weighted is not None else row.encoder()
    form = Form(max(TILE // row.block, 1), row.block, row.nbytes, weighted)

    def made() -> Program:
        program = Program(_built(name, record(encode, form)))
        _compare(program, row, name)
        return program

    return _timed(name, made)


def _compiled_decoder(row: QuantType, name: str) -> Decoder:
    def made() -> Decoder:
        tiles = "#define TILES\n" if has_tiles(compiler() or "") else ""
        source = record_decoder(row.decode, row.block, row.nbytes)
        found = Decoder(_built(name, tiles + source))
        _compare_decoder(found, row, name)
        return found

    return _timed(name, made)


def _built(name: str, source: str) -> Path:
    path = compiler()
    if path is None:
        raise RuntimeError("no C compiler")
    library = code_cache.place(name)
    build(source, library, path)
    return library


def _timed(name: str, make: Callable[[], L]) -> L:
    """What `make` gives, left for others. It runs in a thread of its own: what torch's dispatcher
    does differs within its own operations and in inference mode."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(1) as fresh:
        found = fresh.submit(make).result()
    keep(name, found)
    _log.info("%s: built in %.2f s", name, time.perf_counter() - begin)
    return found


def _compare_decoder(found: Decoder, row: QuantType, name: str) -> None:
    """Raise where the values of `found` are not those of the reference."""
    random = torch.Generator().manual_seed(0)
    count = DECODED_BLOCKS * max(256 // row.block, 1)
    blocks = torch.randint(0, 256, (count, row.nbytes), generator=random, dtype=torch.uint8)
    wanted, got = (torch.empty((count, row.block)) for _ in range(2))
    with alone():
        tiles.decode_eager(blocks, row, wanted)
    products.decode(blocks, found, None, got)
    same = (got.view(torch.int32) == wanted.view(torch.int32)) | (got.isnan() & wanted.isnan())
    _refuse(name, int((~same).any(dim=1).sum()), f"{count} blocks")


def _compare(program: Program, row: QuantType, name: str) -> None:
    """Raise where the bytes of `program` are not those of the reference: compilers differ."""
    random = torch.Generator().manual_seed(0)
    most = max(count for _, count in CHECKED)
    values = torch.randn((most, row.block), generator=random)
    values *= torch.exp2(torch.randint(-20, 20, (most, 1), generator=random))
    values[::16, ::2] = 0.0
    importance = None
    if name != row.name:
        importance = tiles.Importance(torch.rand((2, 2, row.block), generator=random), 7)
    for dtype, count in CHECKED:
        some = values[:count].to(dtype)
        expected, got = (torch.empty((count, row.nbytes), dtype=torch.uint8) for _ in range(2))
        with alone():
            tiles.encode_eager(some, row, expected, importance)
        tiles.encode_program(some, row, got, program, importance)
        _refuse(name, int((got != expected).any(dim=1).sum()), f"{count} blocks of {dtype}")


def _refuse(name: str, wrong: int, tried: str) -> None:
    """Raise where any of what was `tried` is wrong."""
    if wrong:
        raise RuntimeError(
            f"compiled {name} gets {wrong} of {tried} wrong with torch "
            f"{torch.__version__} and {compiler()}"
        )
