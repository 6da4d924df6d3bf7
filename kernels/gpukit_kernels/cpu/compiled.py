"""The compiled CPU path: when it is used, and what to do when it cannot work; `trust` says when it
is believed.

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

from torch import Tensor

from gpukit_kernels import merge
from gpukit_kernels.cpu import cache as code_cache, products, tiles, trust
from gpukit_kernels.cpu.build import build, compiler, has_tiles
from gpukit_kernels.cpu.decoding import record_decoder
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
    is_loaded,
    keep,
    kept,
    kept_library,
    program_name,
)
from gpukit_kernels.cpu.recording import HERE, Form, record
from gpukit_kernels.table import QuantType

# Weights from which on a program is built, which takes about half a second; what is there already
# is always used.
WORTH = 1 << 19

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
    if name in _failures:
        return False
    if is_loaded(name):
        return True
    return compiler() is not None and (weights >= WORTH or is_kept(name))


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
    trust.check_merger(found)
    return found


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
        trust.check_program(program, row, name)
        return program

    return _timed(name, made)


def _compiled_decoder(row: QuantType, name: str) -> Decoder:
    def made() -> Decoder:
        tiles = "#define TILES\n" if has_tiles(compiler() or "") else ""
        source = record_decoder(row.decode, row.block, row.nbytes)
        found = Decoder(_built(name, tiles + source))
        trust.check_decoder(found, row, name)
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
