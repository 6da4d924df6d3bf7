"""Recordings: an encoder's stages, compiled, one after the other on a tile that stays in the cache.

An encoder is recorded once: each stage is compiled and the calls of its C++ functions are taken
down with the places of their arguments in one block of memory, the arena. What comes of it is a C
function that copies a tile of blocks into the arena, makes these calls, copies the result out and
goes on to the next tile. So tiles can be small enough for the first-level cache, Python is left
once for many of them, and a process that finds a program needs neither torch's compiler nor the
encoder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpukit_kernels.arena import Arena
from gpukit_kernels.program import ALIGNMENT, Recording
from gpukit_kernels.stages import recorded, stage


@dataclass(frozen=True)
class Form:
    """What a program is made for: tiles of `lanes` blocks of `block` values of `dtype`, float32 or
    bfloat16, that become `nbytes` bytes each, with importance or without."""

    lanes: int
    block: int
    nbytes: int
    dtype: torch.dtype
    weighted: bool


def record(encode: Callable[..., Tensor], form: Form) -> Recording:
    """`encode(x)` of float32 `[block, lanes]`, or `encode(x, importance, mean_square)`, recorded.

    RuntimeError for an encoder that computes outside of stages; whatever the compiler says.
    """
    arena = Arena()
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

    def __init__(self, arena: Arena) -> None:
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
