"""Recordings: an encoder's stages as C, one after the other on a tile that stays in the cache.

An encoder is recorded once: each stage is traced and written as a C function, and its calls are
taken down with the places of their arguments in one block of memory, the arena. What comes of it is
a C source whose function makes these calls on a tile of blocks, whose values it copies into the
arena as they reach them, copies the result out and goes on to the next tile. So tiles fit into the
first-level cache, Python is left once for many of them, and a process that finds a program needs
neither torch nor the encoder.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpukit_kernels.cpu import emit
from gpukit_kernels.cpu.arena import Arena
from gpukit_kernels.cpu.trace import Graph, Operations, tensors_in, traced
from gpukit_kernels.stages import recorded, stage

HERE = Path(__file__).parent
# Rows of a tile's values that are filled at a time, at least: 16-bit values of the widest vector.
FILLED = 32


@dataclass(frozen=True)
class Form:
    """What a program is made for: tiles of `lanes` blocks of `block` values that become `nbytes`
    bytes each, with importance or without."""

    lanes: int
    block: int
    nbytes: int
    weighted: bool


def record(encode: Callable[..., Tensor], form: Form) -> str:
    """C of `encode(x)` of float32 `[block, lanes]`, or `encode(x, importance, mean_square)`.

    RuntimeError for an encoder that computes outside of stages; NotImplementedError for an
    operation that there is no C for.
    """
    arena = Arena()
    recorder = _Recorder(arena, form.lanes)

    def tile() -> Tensor:
        return arena.empty((form.block, form.lanes), (form.lanes, 1), torch.float32)

    def run() -> tuple[list[Tensor], Tensor]:
        given = [tile()]
        recorder.values = given[0]
        if form.weighted:
            given += [tile(), arena.empty((form.lanes,), (1,), torch.float32)]
        return given, _words(encode(*given))

    with torch.inference_mode(False), torch.no_grad(), _Between(recorder):
        given, words = recorded(recorder, run)
    functions = recorder.functions.values()
    places = {"X": given[0], "WORDS": words}
    if form.weighted:
        places |= {"IMPORTANCE": given[1], "MEANS": given[2]}
    facts = {
        "LANES": form.lanes,
        "BLOCK": form.block,
        "NBYTES": form.nbytes,
        "ARENA": arena.size + 4 * recorder.scratch,
        "SCRATCH": arena.size,
        **{name: arena.place(tensor) for name, tensor in places.items()},
    }
    return "\n".join([
        *defines(facts),
        (HERE / "vectors.h").read_text(),
        f"static const int32_t constants[] __attribute__((aligned(64))) = "
        f"{{{', '.join(map(str, recorder.constants)) or 0}}};",
        (HERE / "near.h").read_text(),
        *{name: text for found, _ in functions for name, text in found.tables.items()}.values(),
        (HERE / "fill.h").read_text(),
        *[found.text for found, _ in functions],
        "static void tile(char *a, const char *from, int64_t kind, int64_t lanes) {",
        *recorder.lines,
        "}",
        (HERE / "encode.h").read_text(),
    ])  # fmt: skip


def defines(facts: Mapping[str, int]) -> list[str]:
    return [f"#define {name} {number}" for name, number in facts.items()]


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


class _Between(Operations, TorchDispatchMode):
    """What an encoder does on the tile outside of stages: views, and `torch.cat`, which is taken
    down. Anything else is refused, since a program would not do it."""

    def __init__(self, recorder: "_Recorder") -> None:
        super().__init__()
        self._recorder = recorder

    def called(self, function: Any, args: Any, kwargs: Any) -> Any:
        holds = self._recorder.arena.holds
        if not any(map(holds, tensors_in((args, *kwargs.values())))):
            return function(*args, **kwargs)
        if function is torch.ops.aten.cat.default and args[1:] in ((), (0,)):
            return self._recorder.join(args[0])
        result = function(*args, **kwargs)
        if function._schema.is_mutable or not all(map(holds, tensors_in(result))):
            raise RuntimeError(f"{function} outside of a stage")
        return result


class _Recorder:
    """Writes C for what an encoder does; see `stages.Recorder`."""

    def __init__(self, arena: Arena, lanes: int) -> None:
        self.arena = arena
        self.lanes = lanes
        self.functions: dict[Hashable, tuple[emit.Function, Graph]] = {}
        self.lines: list[str] = []
        self.constants: list[int] = []
        self.scratch = 0
        # The tile of values, and how many of its rows are there by now.
        self.values = torch.empty(0)
        self._rows = 0
        self._places: dict[int, int] = {}
        self._kept: list[Tensor] = []

    def stage(self, function: Callable[..., Any], args: Sequence[Any]) -> Any:
        """What `function(*args)` gives, a call of its C; of its kind it is written once."""
        given = [self._given(tensor) for tensor in tensors_in(args)]
        key = (function, _kind(args))
        if key not in self.functions:
            stand = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).zero_() for t in given]
            graph = traced(function, replaced(args, iter(stand)), stand)
            name = f"{function.__name__.strip('_')}_{len(self.functions)}"
            self.functions[key] = (emit.function(name, graph, self.lanes), graph)
        found, graph = self.functions[key]
        self.scratch = max(self.scratch, found.scratch)
        self._read(given)
        results = {
            node.number: self.arena.empty(node.shape, node.strides, node.dtype)
            for node in found.results
        }
        places = [self._place(tensor) for tensor in (*given, *results.values())]
        self.lines.append(f"{found.name}({', '.join(places)}, (float *)(a + SCRATCH));")
        results |= {
            node.number: tensor for node, tensor in zip(graph.arguments, given, strict=True)
        }
        leaves = []
        for access in graph.results:
            base = results[access.node.number]
            at = base.storage_offset() + access.offset
            leaves.append(base.as_strided(access.shape, access.strides, at).view(access.dtype))
        return replaced(graph.result, iter(leaves))

    def _given(self, tensor: Tensor) -> Tensor:
        if self.arena.holds(tensor):
            return tensor
        # A constant of the encoder. It is kept so that its address stays its own.
        kept = tensor.clone(memory_format=torch.contiguous_format)
        if kept.element_size() != 4:
            raise NotImplementedError(f"a constant of {kept.dtype}")
        self._kept.append(kept)
        self._places[kept.data_ptr()] = len(self.constants)
        self.constants += kept.reshape(-1).view(torch.int32).tolist()
        self.constants += [0] * (-len(self.constants) % 16)
        return kept

    def _place(self, tensor: Tensor) -> str:
        constant = self._places.get(tensor.data_ptr())
        if constant is not None:
            return f"(float *)(constants + {constant})"
        return f"(float *)(a + {self.arena.place(tensor)})"

    def _read(self, tensors: Sequence[Tensor]) -> None:
        """Fill what rows of the values `tensors` are the first to reach: a few at a time, while the
        stage before is still at work on those that were filled for it."""
        begin, row = self.arena.place(self.values), self.values.stride(0) * 4
        for tensor in filter(self.arena.holds, tensors):
            last = sum((n - 1) * k for n, k in zip(tensor.shape, tensor.stride(), strict=True))
            place = self.arena.place(tensor) - begin
            if not 0 <= place < self.values.nbytes:
                continue
            rows = (place + last * 4) // row // FILLED * FILLED + FILLED
            rows = min(rows, self.values.shape[0])
            if rows > self._rows:
                self.lines.append(
                    f"fill((float *)(a + X), from, kind, lanes, {self._rows}, {rows});"
                )
                self._rows = rows

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        joined = self.arena.empty(shape, parts[0].stride(), parts[0].dtype)
        at = 0
        for part in parts:
            self._copy(part, joined[at : at + part.shape[0]])
            at += part.shape[0]
        return joined

    def _copy(self, source: Tensor, target: Tensor) -> None:
        if not (source.is_contiguous() and target.is_contiguous()):
            raise RuntimeError("only contiguous tensors can be copied")
        self._read([source])
        to, of = self._place(target), self._place(source)
        self.lines.append(f"memcpy({to}, {of}, {source.nbytes});")

    def settle(self, step: Callable[[Any], Any], state: Any, watched: int, most: int) -> Any:
        self._read([self.values])
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


def replaced(value: Any, tensors: Any) -> Any:
    """`value` with its tensors taken from `tensors`, an iterator."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, tuple | list):
        items = [replaced(item, tensors) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def _kind(args: Any) -> tuple[Hashable, ...]:
    """What C is written for: shapes, strides, dtypes, and numbers such as levels."""
    return tuple(
        (arg.shape, arg.stride(), arg.dtype)
        if isinstance(arg, Tensor)
        else _kind(arg)
        if isinstance(arg, tuple | list)
        else arg
        for arg in args
    )
