"""A fitted adapter as a GGUF LoRA adapter: its pairs, their scale, and what cannot be one.

llama.cpp has one number for a whole file, adapter.lora.alpha, and adds alpha / rank * B·A, the rank
being that of each pair. What an adapter says otherwise (rsLoRA, patterns, several deltas of one
tensor) becomes that form: deltas of one tensor stand side by side in A and B, and a scale that is
not alpha / rank is multiplied into B.
"""

import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod

import torch
from torch import Tensor

from gpukit.adapters.adapter import Adapter
from gpukit.adapters.delta import Added, Delta, LowRank, Replaced, ReplacedRows
from gpukit.adapters.gguf import EMBEDDING, HEAD
from gpukit.adapters.moved import Made, moved
from gpukit.adapters.values import Values
from gpukit.errors import AdapterError, one_line

# Whose products and rows llama.cpp takes as they are, silently.
ALONE = frozenset({"per_layer_model_proj.weight", "per_layer_token_embd.weight"})
MERGE = "merge it into the model instead (gpukit merge)"
# A scale that is this near to alpha / rank is that one: alpha is stored in float32.
ALIKE = 2.0**-23


@dataclass(frozen=True)
class Block:
    """Deltas of one matrix that have A in common: B and the scale of each, from some row on."""

    a: Values
    parts: tuple[tuple[int, Values, float], ...]


@dataclass(frozen=True)
class Pair:
    """lora_a and lora_b of the tensor `name` of `shape` (outermost first): for each of its
    matrices, one or those of a stack, the blocks that stand side by side."""

    name: str
    shape: tuple[int, ...]
    rank: int
    matrices: tuple[tuple[Block, ...], ...]

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of lora_a and lora_b in the file, outermost first."""
        *stack, rows, width = self.shape
        if self.name == EMBEDDING:
            return (rows, self.rank), (width, self.rank)
        return (*stack, self.rank, width), (*stack, rows, self.rank)

    def scales(self) -> Iterator[float]:
        """What each part of B·A is multiplied by."""
        return (scale for blocks in self.matrices for b in blocks for _, _, scale in b.parts)

    def read(self, alpha: float) -> tuple[Tensor, Tensor]:
        """lora_a and lora_b in float32, so that alpha / rank * B·A is the delta.

        `AdapterError` for numbers that are not finite, or no longer in float32.
        """
        *stack, rows, width = self.shape
        a = torch.zeros(len(self.matrices), self.rank, width)
        b = torch.zeros(len(self.matrices), rows, self.rank)
        for number, blocks in enumerate(self.matrices):
            at = 0
            for block in blocks:
                columns = slice(at, at + block.a.shape[0])
                a[number, columns] = _finite(block.a, block.a.read(torch.float64).float())
                for row, values, scale in block.parts:
                    times = _times(scale, alpha, self.rank)
                    scaled = (values.read(torch.float64) * times).float()
                    b[number, row : row + values.shape[0], columns] = _finite(values, scaled)
                at = columns.stop
        a, b = a.view(*stack, self.rank, width), b.view(*stack, rows, self.rank)
        return (b, a.t().contiguous()) if self.name == EMBEDDING else (a, b)


@dataclass(frozen=True)
class PairPlan:
    """Everything that a GGUF adapter holds: `pairs` in the order of the file, `alpha`, and how many
    pairs have a scale multiplied into B."""

    pairs: tuple[Pair, ...]
    alpha: float
    folded: int

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({pair.rank for pair in self.pairs}))


def plan_pairs(
    adapter: Adapter, tensors: Sequence[Made], shapes: Mapping[str, tuple[int, ...]]
) -> PairPlan:
    """What `adapter` becomes for a GGUF that is made of `tensors`, whose shapes (outermost first)
    are `shapes`. `AdapterError` names what no GGUF adapter can hold, and the remedy."""
    where = adapter.file.path
    check_tied(adapter, tensors, shapes)
    for tensor, records in adapter.deltas.items():
        for record in records:
            _check(tensor, record, adapter)
    try:
        found = moved(tensors, adapter.deltas)
    except AdapterError as error:
        raise AdapterError(one_line(f"{where}: {error}; {MERGE}")) from None
    if alone := sorted(found.keys() & ALONE):
        raise AdapterError(
            f"{where}: changes {' and '.join(alone)}, which llama.cpp uses without any adapter: "
            f"{MERGE}"
        )
    order = {tensor: at for at, tensor in enumerate(adapter.deltas)}
    last = {t.name: max(order.get(span.source, -1) for span in t.spans) for t in tensors if t.spans}
    pairs = [_pair(name, shapes[name], found[name]) for name in sorted(found, key=last.__getitem__)]
    if not pairs:
        raise AdapterError(f"{where}: changes nothing of the base")
    alpha = _alpha(pairs, where.name)
    folded = sum(any(_times(s, alpha, p.rank) != 1 for s in p.scales()) for p in pairs)
    return PairPlan(tuple(pairs), alpha, folded)


def check_tied(
    adapter: Adapter, tensors: Sequence[Made], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """`AdapterError` for what llama.cpp does not take: it aborts where an adapter has the embedding
    and the head is that tensor, too, and does not know a head that the model has not."""
    if HEAD in shapes:
        return
    embedding = {span.source for t in tensors if t.name == EMBEDDING for span in t.spans}
    trained = sorted((embedding | adapter.added.keys()) & adapter.deltas.keys())
    if trained:
        raise AdapterError(
            f"{adapter.file.path}: trained {' and '.join(trained)}, and the base's head is its "
            f"embedding, of which llama.cpp takes no adapter: {MERGE}"
        )


def _check(tensor: str, record: Delta, adapter: Adapter) -> None:
    match record:
        case LowRank(magnitude=None):
            return
        case LowRank():
            what = "has DoRA's lengths (lora_magnitude_vector)"
        case Added():
            what = "is a bias that the adapter trained"
        case ReplacedRows(rows):
            what = f"has {len(rows)} tokens that the adapter trained"
        case Replaced(values) if adapter.vocabulary is not None and len(values.shape) > 1:
            what = f"has {values.shape[0]} rows, since the adapter resizes the vocabulary"
        case Replaced():
            what = "is replaced as a whole (modules_to_save)"
    raise AdapterError(
        one_line(f"{adapter.file.path}: {tensor} {what}, and a GGUF adapter holds only B·A: ")
        + MERGE
    )


def _pair(name: str, shape: tuple[int, ...], records: Sequence[Delta]) -> Pair:
    rows = shape[-2]
    matrices: list[list[Block]] = [[] for _ in range(prod(shape[:-2]))]
    for record in records:
        assert isinstance(record, LowRank)
        done = 0
        while done < record.rows:
            number, row = divmod(record.first + done, rows)
            count = min(record.rows - done, rows - row)
            _place(matrices[number], record.a, (row, record.b.rows(done, count), record.scale))
            done += count
    rank = max(sum(block.a.shape[0] for block in blocks) for blocks in matrices)
    return Pair(name, shape, rank, tuple(tuple(blocks) for blocks in matrices))


def _place(blocks: list[Block], a: Values, part: tuple[int, Values, float]) -> None:
    """Add `part` to the block of the same A where its rows are free, else as a block."""
    for at, block in enumerate(blocks):
        if block.a is a and not any(_overlap(part, other) for other in block.parts):
            blocks[at] = Block(a, (*block.parts, part))
            return
    blocks.append(Block(a, (part,)))


def _overlap(one: tuple[int, Values, float], other: tuple[int, Values, float]) -> bool:
    return one[0] < other[0] + other[1].shape[0] and other[0] < one[0] + one[1].shape[0]


def _alpha(pairs: Sequence[Pair], where: str) -> float:
    """The alpha that most scales ask for; never 0, which llama.cpp takes for a scale of 1."""
    asked = Counter(_float32(s * pair.rank, where) for pair in pairs for s in pair.scales() if s)
    return asked.most_common(1)[0][0] if asked else 1.0


def _float32(value: float, where: str) -> float:
    try:
        found: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        found = float("inf")
    if not isfinite(found) or not found:
        raise AdapterError(f"{where}: a scale of {value:g} is no number of float32; mend alpha")
    return found


def _times(scale: float, alpha: float, rank: int) -> float:
    """What B is multiplied by, so that alpha / rank makes `scale` of it."""
    times = scale * rank / alpha
    return 1.0 if abs(times - 1) <= ALIKE else times


def _finite(values: Values, found: Tensor) -> Tensor:
    """`found`, which is made of `values`; `AdapterError` where float32 does not hold it."""
    if not torch.isfinite(found).all():
        raise AdapterError(
            f"{values.path}: {values.name}: with its scale it holds numbers beyond float32; use "
            "another checkpoint of it"
        )
    return found
