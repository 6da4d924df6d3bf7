"""The compiled CPU path: when it pays, where its code is kept, and what to do when it cannot work.

Figures: 2 cores of an AMD EPYC (Zen 3, AVX2), torch 2.13, bf16 in, M weights a second:

             Q4_0  Q4_1  Q5_0  Q5_1  Q8_0  MXFP4  Q2_K  Q3_K  Q4_K  Q5_K  Q6_K  IQ4_NL  IQ4_XS
    compiled  970   900  1050  1010   900    780   120   230   100   130   280      90      85
    eager      63    62    32    42    95     18     6     4     3     4    11       6       7

The floor: a Q4_K weight goes through 22 candidates of some 28 operations (level 7, weight 2, three
sums 6, the level again 7, error 6), 616 in all or 77 instructions on 8 lanes. At three a cycle and
3.4 GHz that is 7.5 ns a weight and core. Measured are 13 to 16 ns in the candidates: a group's
second pass cannot begin before its first has been divided out, and the 32 steps of a pass hang on
each other by their sums, so that some two instructions a cycle go through. Loading, packing and
storing take 1 to 2 ns. Q6_K has 19 candidates of one pass at 0.26 ns each. Every thread works on
tiles of its own and waits for nobody.
"""

import logging
import os
import shutil
import threading

import torch
from torch import Tensor

from gpukit_kernels import cache, tiles
from gpukit_kernels.facts import type_facts
from gpukit_kernels.program import LIBRARY, Program, build, is_kept, keep, kept, program_name
from gpukit_kernels.recording import Form, record
from gpukit_kernels.table import QuantType

# Seconds that compiling has to save to be worth it. With nothing in the cache it takes some 10 s,
# of a search 15 s; with the code there almost nothing. Users convert more than once, so it is done
# somewhat before its first use repays it.
SAVED, SAVED_CACHED = 3.0, 0.02
# Nanoseconds a weight that it saves with importance, whatever the type.
WEIGHTED_GAIN = 60

# Blocks that every type encodes both ways before its compiled code is trusted.
CHECKED_BLOCKS = 256

# Weights in a tile of a program: 16 KiB as float32, which twenty search steps pass over; the whole
# arena of some 70 KiB lies in the second-level cache. Half and twice as many are hardly slower.
TILE = 1 << 12
DTYPES = (torch.float32, torch.bfloat16)

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_failure: str | None = None


def compiler() -> str | None:
    """The C++ compiler that inductor will find, as a path."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    return None


def repays(row: QuantType, weights: int, importance: bool = False) -> bool:
    """Whether compiling `row` is worth it for `weights` weights in total."""
    weighted = importance and row.weighted is not None
    gain = WEIGHTED_GAIN if weighted else row.compiled_gain
    if not gain or _failure is not None or compiler() is None:
        return False
    names = [_name(row, dtype, weighted) for dtype in DTYPES]
    ready = any(map(is_kept, names))
    return weights * gain * 1e-9 >= (SAVED_CACHED if ready else SAVED)


def encode(
    values: Tensor, row: QuantType, out: Tensor, importance: tiles.Importance | None = None
) -> None:
    """`tiles.encode_program`; eager torch for good once compiling has failed."""
    dtype = torch.bfloat16 if values.dtype is torch.bfloat16 else torch.float32
    program = _program(row, dtype, importance is not None and row.weighted is not None)
    if program is not None:
        tiles.encode_program(values, row, out, program, importance)
    else:
        tiles.encode_eager(values, row, out, importance)


def status() -> str:
    """One line for people: whether CPU kernels can be compiled, and with what."""
    if _failure is not None:
        return f"eager torch: compiling failed ({_failure})"
    path = compiler()
    if path is None:
        return "eager torch: no C++ compiler"
    return f"compiled with {path} where the work repays it, code kept in {cache.folder()}"


def _program(row: QuantType, dtype: torch.dtype, weighted: bool) -> Program | None:
    """The compiled program of `row`, which has been found to give the reference's bytes on this
    machine; None where compiling has failed."""
    global _failure
    name = _name(row, dtype, weighted)
    with _lock:
        if _failure is not None:
            return None
        try:
            return kept(name) or _compiled(row, dtype, weighted)
        except Exception as error:
            _failure = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            _log.info("%s: going on in eager torch: %s", name, _failure)
            return None


def _name(row: QuantType, dtype: torch.dtype, weighted: bool) -> str:
    return program_name(row.name, str(dtype).removeprefix("torch."), weighted)


def _compiled(row: QuantType, dtype: torch.dtype, weighted: bool) -> Program:
    """The program of `row`, compiled now, compared with the reference and left for others."""
    os.environ[cache.VARIABLE] = str(cache.folder())
    path = compiler()
    if path is None:
        raise RuntimeError("no C++ compiler")
    encode = row.weighted if weighted and row.weighted is not None else row.encoder()
    form = Form(max(TILE // row.block, 1), row.block, row.nbytes, dtype, weighted)
    recording = record(encode, form)
    name = _name(row, dtype, weighted)
    library = cache.place(name).with_suffix(LIBRARY)
    build(recording, path, library)
    program = Program(recording, library)
    _compare(program, row, dtype, weighted)
    keep(name, recording, program)
    type_facts()  # are left, too: who finds the program shall not need torch for them
    return program


def _compare(program: Program, row: QuantType, dtype: torch.dtype, weighted: bool) -> None:
    """Raise where the bytes of `program` are not those of the reference.

    The order of additions and the rounding of divisions are up to inductor and the C++ compiler,
    which differ between machines and releases.
    """
    random = torch.Generator().manual_seed(0)
    values = torch.randn((CHECKED_BLOCKS, row.block), generator=random)
    values *= torch.exp2(torch.randint(-20, 20, (CHECKED_BLOCKS, 1), generator=random))
    values[::16, ::2] = 0.0
    values = values.to(dtype)
    importance = None
    if weighted:
        importance = tiles.Importance(torch.rand((2, 2, row.block), generator=random), 7)
    expected, got = (torch.empty((CHECKED_BLOCKS, row.nbytes), dtype=torch.uint8) for _ in range(2))
    tiles.encode_eager(values, row, expected, importance)
    tiles.encode_program(values, row, got, program, importance)
    wrong = int((got != expected).any(dim=1).sum())
    if wrong:
        raise RuntimeError(
            f"compiled {_name(row, dtype, weighted)} gets {wrong} of {CHECKED_BLOCKS} blocks wrong "
            f"with torch {torch.__version__} and {compiler()}"
        )
