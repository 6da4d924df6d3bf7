"""Programs: an encoder's stages, compiled, one after the other on a tile that stays in the cache.

An encoder is recorded once: each stage is compiled and the calls of its C++ functions are taken
down with the places of their arguments in one block of memory, the arena. What comes of it is a C
function that copies a tile of blocks into the arena, makes these calls, copies the result out and
goes on to the next tile. So tiles can be small enough for the first-level cache, Python is left
once for many of them, and a process that finds a program needs neither torch's compiler nor the
encoder.
"""

import ctypes
import json
import os
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpukit_kernels.stages import recorded, stage

# Places begin where a vector register's worth of any kind may.
ALIGNMENT = 64
# Room for a recording; only what is touched is ever there.
MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class Form:
    """What a program is made for: tiles of `lanes` blocks of `block` values of `dtype`, float32 or
    bfloat16, that become `nbytes` bytes each, with importance or without."""

    lanes: int
    block: int
    nbytes: int
    dtype: torch.dtype
    weighted: bool


@dataclass(frozen=True)
class Recording:
    """A program for files: the C source, the libraries whose functions it calls, blocks in a tile,
    the arena's size, and the constants, float32 and others, in hexadecimal digits."""

    source: str
    libraries: list[str]
    lanes: int
    size: int
    constants: str

    def as_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def record(encode: Callable[..., Tensor], form: Form) -> Recording:
    """`encode(x)` of float32 `[block, lanes]`, or `encode(x, importance, mean_square)`, recorded.

    RuntimeError for an encoder that computes outside of stages; whatever the compiler says.
    """
    arena = _Arena()
    recorder = _Recorder(arena)

    def tile() -> Tensor:
        # Of a single value the bytes can be viewed either way.
        stride = (form.lanes if form.block > 1 else 1, 1)
        return arena.empty((form.block, form.lanes), stride, torch.float32)

    def run() -> tuple[list[Tensor], Tensor]:
        given = [tile()]
        if form.weighted:
            given += [tile(), arena.empty((form.lanes,), (1,), torch.float32)]
        blocks = encode(*given)
        # Bytes that torch calls uint8 are a value's own, and lie as they do in the file.
        return given, blocks if blocks.dtype is torch.uint8 else _words(blocks)

    with torch.inference_mode(False), torch.no_grad(), _Between(recorder):
        given, blocks = recorded(recorder, run)
    return Recording(
        _source(form, recorder.lines, [arena.place(tensor) for tensor in (*given, blocks)]),
        recorder.libraries,
        form.lanes,
        arena.size,
        recorder.constants.hex(),
    )


@stage
def _words(blocks: Tensor) -> Tensor:
    """int32 `[ceil(nbytes / 4), lanes]`: four bytes in a word, the last perhaps not full."""
    nbytes = blocks.shape[0]
    blocks = blocks.to(torch.int32)
    words = blocks[0 : nbytes - 3 : 4]
    for i in range(1, 4):
        words = words | (blocks[i::4][: nbytes // 4] << (8 * i))
    if nbytes % 4 == 0:
        return words
    rest = blocks[nbytes // 4 * 4]
    for i in range(1, nbytes % 4):
        rest = rest | (blocks[nbytes // 4 * 4 + i] << (8 * i))
    return torch.cat([words, rest[None]])


class _Arena:
    """Memory whose pieces are free again when no tensor refers to them."""

    def __init__(self) -> None:
        self._memory = numpy.zeros(MOST_BYTES, dtype=numpy.uint8)
        self._begin = self._memory.ctypes.data
        self._free = [(0, MOST_BYTES)]
        self.size = 0

    def empty(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        values = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        nbytes = values * dtype.itemsize
        piece = self._take(-(-nbytes // ALIGNMENT) * ALIGNMENT)
        return torch.from_numpy(piece)[:nbytes].view(dtype).as_strided(shape, stride)

    def _take(self, nbytes: int) -> Any:
        for i, (at, room) in enumerate(self._free):
            if room >= nbytes:
                self._free[i : i + 1] = [(at + nbytes, room - nbytes)] if room > nbytes else []
                self.size = max(self.size, at + nbytes)
                piece = self._memory[at : at + nbytes]
                # The tensor's storage holds this array, and nothing else does.
                weakref.finalize(piece, self._give_back, at, nbytes).atexit = False
                return piece
        raise RuntimeError(f"a tile takes more than {MOST_BYTES} bytes")

    def _give_back(self, at: int, nbytes: int) -> None:
        merged: list[tuple[int, int]] = []
        for begin, room in sorted([*self._free, (at, nbytes)]):
            if merged and sum(merged[-1]) == begin:
                merged[-1] = (merged[-1][0], merged[-1][1] + room)
            else:
                merged.append((begin, room))
        self._free = merged

    def holds(self, value: object) -> bool:
        """Whether `value` is a tensor that lies here."""
        return isinstance(value, Tensor) and 0 <= value.data_ptr() - self._begin < MOST_BYTES

    def place(self, tensor: Tensor) -> int:
        """Where `tensor` begins; RuntimeError for one that is elsewhere."""
        if not self.holds(tensor):
            raise RuntimeError("a tensor of a stage is not in the arena")
        return tensor.data_ptr() - self._begin


class _Between(TorchDispatchMode):
    """What an encoder does on the tile outside of stages: views, and `torch.cat`, which is taken
    down. Anything else is refused, since a program would not do it."""

    def __init__(self, recorder: "_Recorder") -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        holds = self._recorder.arena.holds
        if not any(map(holds, tree_leaves((args, kwargs)))):
            return function(*args, **(kwargs or {}))
        if function is torch.ops.aten.cat.default and args[1:] in ((), (0,)):
            return self._recorder.join(args[0])
        result = function(*args, **(kwargs or {}))
        if function._schema.is_mutable or not all(map(holds, tree_leaves(result))):
            raise RuntimeError(f"{function} outside of a stage")
        return result


class _Recorder:
    """Writes C for what an encoder does; see `stages.Recorder`."""

    def __init__(self, arena: _Arena) -> None:
        self.arena = arena
        self._places: dict[int, int] = {}
        self._kept: list[Tensor] = []
        self.lines: list[str] = []
        self.libraries: list[str] = []
        self.constants = b""

    def empty(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.arena.empty(shape, stride, dtype)

    def call(self, library: str, tensors: Sequence[Tensor]) -> None:
        if library not in self.libraries:
            self.libraries.append(library)
        types = ", ".join(["void *"] * len(tensors))
        places = ", ".join(map(self._place, tensors))
        number = self.libraries.index(library)
        self.lines.append(f"((void (*)({types}))f[{number}])({places});")

    def given(self, tensor: Tensor) -> Tensor:
        if self.arena.holds(tensor):
            return tensor
        # A constant of the encoder. It is kept so that its address stays its own.
        kept = tensor.clone(memory_format=torch.contiguous_format)
        self._kept.append(kept)
        self._places[kept.data_ptr()] = len(self.constants)
        self.constants += kept.reshape(-1).view(torch.uint8).numpy().tobytes()
        self.constants += bytes(-len(self.constants) % ALIGNMENT)
        return kept

    def _place(self, tensor: Tensor) -> str:
        constant = self._places.get(tensor.data_ptr())
        return f"a + {self.arena.place(tensor)}" if constant is None else f"c + {constant}"

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        step = parts[0].stride()
        joined = self.arena.empty(shape, step, parts[0].dtype)
        at = 0
        for part in parts:
            self._copy(part, joined[at : at + part.shape[0]])
            at += part.shape[0]
        return joined

    def _copy(self, source: Tensor, target: Tensor) -> None:
        if not (source.is_contiguous() and target.is_contiguous()):
            raise RuntimeError("only contiguous tensors can be copied")
        to, of = self._place(target), self._place(source)
        self.lines.append(f"memcpy({to}, {of}, {source.nbytes});")

    def settle(self, step: Callable[[Any], Any], state: Any, watched: int, most: int) -> Any:
        self.lines.append(f"for (int turn = 0; turn < {most}; turn++) {{")
        after = step(state)
        same = [
            f"!memcmp({self._place(x)}, {self._place(y)}, {x.nbytes})"
            for x, y in zip(state[-watched:], after[-watched:], strict=True)
        ]
        self.lines.append(f"if ({' && '.join(same)}) break;")
        for source, target in zip(after, state, strict=True):
            self._copy(source, target)
        self.lines.append("}")
        return state


_SOURCE = """\
#include <stdint.h>
#include <string.h>

static void tile(void *const *f, char *a, char *c) {
%(calls)s
}

void encode(void *const *f, char *a, char *c, const %(stored)s *values, char *out, int64_t count,
            int64_t first, const float *columns, int64_t experts, int64_t of_row, int64_t rows,
            const float *means) {
    uint32_t *x = (uint32_t *)(a + %(x)d), *words = (uint32_t *)(a + %(words)d);
    for (int64_t begin = 0; begin < count; begin += %(lanes)d) {
        int64_t lanes = count - begin < %(lanes)d ? count - begin : %(lanes)d;
        for (int64_t i = 0; i < lanes; i++)
            for (int64_t k = 0; k < %(block)d; k++)
                x[k * %(lanes)d + i] = (uint32_t)values[(begin + i) * %(block)d + k] << %(shift)d;
%(importance)s        tile(f, a, c);
        char *block = out + begin * %(nbytes)d;
%(store)s    }
}
"""

# Of each kind of expert and block of a row the importance of its own columns.
_IMPORTANCE = """\
        float *importance = (float *)(a + %(importance)d);
        for (int64_t i = 0; i < lanes; i++) {
            int64_t at = first + begin + i, expert = at / (of_row * rows) %% experts;
            const float *column = columns + (expert * of_row + at %% of_row) * %(block)d;
            for (int64_t k = 0; k < %(block)d; k++)
                importance[k * %(lanes)d + i] = column[k];
        }
        memcpy(a + %(means)d, means + begin, lanes * sizeof(float));
"""

_STORE_WORDS = """\
        for (int64_t i = 0; i < lanes; i++, block += %(nbytes)d) {
            for (int64_t k = 0; k < %(full)d; k++)
                memcpy(block + 4 * k, &words[k * %(lanes)d + i], 4);
            memcpy(block + 4 * %(full)d, &words[%(full)d * %(lanes)d + i], %(rest)d);
        }
"""

_STORE_VALUES = """\
        memcpy(block, words, lanes * %(nbytes)d);
"""


def _source(form: Form, lines: Sequence[str], places: Sequence[int]) -> str:
    facts: dict[str, Any] = {
        "calls": "\n".join(f"    {line}" for line in lines),
        "stored": "uint16_t" if form.dtype is torch.bfloat16 else "uint32_t",
        "shift": 16 if form.dtype is torch.bfloat16 else 0,
        "lanes": form.lanes,
        "block": form.block,
        "nbytes": form.nbytes,
        "full": form.nbytes // 4,
        "rest": form.nbytes % 4,
        "x": places[0],
        "words": places[-1],
    }
    if form.weighted:
        facts |= {"importance": places[1], "means": places[2]}
    store = _STORE_VALUES if form.block == 1 else _STORE_WORDS
    facts["importance"] = _IMPORTANCE % facts if form.weighted else ""
    return _SOURCE % {**facts, "store": store % facts}


def build(recording: Recording, compiler: str, library: Path) -> None:
    """Compile the C of `recording` to `library`."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        code, made = Path(folder) / "program.c", Path(folder) / "program.so"
        code.write_text(recording.source)
        command = [compiler, "-x", "c", "-O2", "-shared", "-fPIC", "-o", str(made), str(code)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler}: {done.stderr.strip() or done.returncode}")
        os.replace(made, library)


class Program:
    """A recording that can run; every thread has an arena of its own."""

    def __init__(self, recording: Recording, library: Path) -> None:
        functions = [ctypes.CDLL(path).kernel for path in recording.libraries]
        addresses = [ctypes.cast(function, ctypes.c_void_p) for function in functions]
        self._functions = (ctypes.c_void_p * max(len(addresses), 1))(
            *[address.value for address in addresses]
        )
        self._recording = recording
        self.lanes = recording.lanes
        self._encode = ctypes.CDLL(str(library)).encode
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._encode.argtypes = [
            *[pointer] * 5, number, number, pointer, number, number, number, pointer
        ]  # fmt: skip
        self._encode.restype = None
        self._constants = bytes.fromhex(recording.constants)
        self._own = threading.local()

    def _arena(self) -> int:
        """The address of this thread's."""
        if not hasattr(self._own, "arena"):
            memory = numpy.zeros(self._recording.size + ALIGNMENT, dtype=numpy.uint8)
            begin = -memory.ctypes.data % ALIGNMENT
            self._own.arena = memory[begin:]
        return int(self._own.arena.ctypes.data)

    def run(
        self,
        values: Tensor,
        out: Tensor,
        first: int = 0,
        columns: Tensor | None = None,
        rows: int = 1,
        means: Tensor | None = None,
    ) -> None:
        """Fill uint8 `out [blocks, nbytes]` from contiguous `values [blocks, block]`.

        With importance `columns`, float32 `[experts, blocks of a row, block]`, block 0 of `values`
        is block `first` of experts of `rows` rows each; `means` float32 `[blocks]`.
        """
        experts, of_row = columns.shape[:2] if columns is not None else (1, 1)
        self._encode(
            self._functions, self._arena(), self._constants, values.data_ptr(), out.data_ptr(),
            len(values), first,
            columns.data_ptr() if columns is not None else None, experts, of_row, max(rows, 1),
            means.data_ptr() if means is not None else None,
        )  # fmt: skip
