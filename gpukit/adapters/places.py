"""Where in the base the rows of a module's matrix are.

Mostly they are one tensor. What is several matrices for one tool is one for another: queries, keys
and values (`qkv_proj`), gate and up (`gate_up_proj`), and the experts of a layer.
"""

import re
from dataclasses import dataclass
from typing import TypeGuard

from gpukit.adapters.base import Base, canonical
from gpukit.errors import AdapterError, did_you_mean

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
PART_OF = {part: fused for fused, parts in FUSED.items() for part in parts}
EXPERT = re.compile(r"(.*\bexperts)\.(\d{1,6})\.(\w+)", re.DOTALL)
# Of a name that is looked for among those that are nearly the same.
LONGEST = 200


@dataclass(frozen=True)
class Place:
    """`rows` rows of `tensor` from `first` on, stacked matrices counted through, are the rows of
    the module from `begin` on; `width` values each."""

    tensor: str
    first: int
    rows: int
    width: int
    begin: int = 0


def places(base: Base, module: str) -> list[Place]:
    """Where the matrix of `module` is, in the order of its rows; empty where the base has no such
    module. `AdapterError` where it has several."""
    name = base.find(f"{module}.weight")
    if name is not None:
        shape = base.tensors[name]
        return [Place(name, 0, shape[0], shape[1])] if len(shape) == 2 else []
    stem, _, leaf = canonical(module).rpartition(".")
    if leaf in FUSED:
        found = [base.find(f"{stem}.{part}.weight") for part in FUSED[leaf]]
        names = [each for each in found if each is not None]
        return _joined(base, names) if len(names) == len(found) else []
    if match := EXPERT.fullmatch(canonical(module)):
        return _expert(base, match[1], int(match[2]), match[3])
    fused = base.find(f"{stem}.{PART_OF[leaf]}.weight") if leaf in PART_OF else None
    return [] if fused is None else _part(base, fused, leaf)


def _joined(base: Base, names: list[str]) -> list[Place]:
    """Whole tensors, one behind the other."""
    found, begin = [], 0
    for name in names:
        rows, width = base.tensors[name]
        found.append(Place(name, 0, rows, width, begin))
        begin += rows
    return found


def _part(base: Base, fused: str, leaf: str) -> list[Place]:
    """A part of the rows of one matrix."""
    rows, width = base.tensors[fused]
    parts = FUSED[PART_OF[leaf]]
    if len(parts) == 2:
        sizes = [rows // 2] * 2
    else:
        heads, pairs = (base.text.get(f"num_{kind}_heads") for kind in ("attention", "key_value"))
        pairs = heads if pairs is None else pairs
        if not _natural(heads) or not _natural(pairs) or rows % (heads + 2 * pairs):
            raise AdapterError(
                f"{base.path}: {fused} has {rows} rows, which {heads} heads and two times {pairs} "
                "of keys and values do not divide; mend config.json"
            )
        each = rows // (heads + 2 * pairs)
        sizes = [each * heads, each * pairs, each * pairs]
    at = parts.index(leaf)
    return [Place(fused, sum(sizes[:at]), sizes[at], width)]


def _natural(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value < 1 << 31


def _expert(base: Base, experts: str, number: int, leaf: str) -> list[Place]:
    """One expert's matrix in the stack that holds all of them."""
    name = base.find(f"{experts}.{PART_OF.get(leaf, leaf)}")
    if name is None or len(base.tensors[name]) != 3:
        return []
    count, rows, width = base.tensors[name]
    if number >= count:
        raise AdapterError(f"{base.path}: {name} has {count} experts, no number {number}")
    if leaf not in PART_OF:
        return [Place(name, number * rows, rows, width)]
    half = rows // 2
    at = FUSED[PART_OF[leaf]].index(leaf)
    return [Place(name, number * rows + at * half, half, width)]


@dataclass(frozen=True)
class Stack:
    """All experts' matrices of one kind: the shape of one, and where each one's rows are."""

    rows: int
    width: int
    experts: tuple[tuple[Place, ...], ...]


def stack(base: Base, module: str, parameter: str) -> Stack | None:
    """Where the matrices `parameter` of the experts `module` are; None where they are nowhere."""
    name = base.find(f"{module}.{parameter}")
    fused = base.find(f"{module}.{PART_OF[parameter]}") if parameter in PART_OF else None
    found: list[tuple[Place, ...]] = []
    if name is not None and len(shape := base.tensors[name]) == 3:
        count, rows, width = shape
        found = [(Place(name, number * rows, rows, width),) for number in range(count)]
    elif fused is not None and len(shape := base.tensors[fused]) == 3:
        stem = canonical(module)
        found = [tuple(_expert(base, stem, number, parameter)) for number in range(shape[0])]
    else:
        parts = FUSED.get(parameter, (parameter,))
        while each := _parts(base, f"{module}.{len(found)}", parts):
            found.append(each)
    if not found:
        return None
    return Stack(sum(place.rows for place in found[0]), found[0][0].width, tuple(found))


def _parts(base: Base, expert: str, parts: tuple[str, ...]) -> tuple[Place, ...]:
    """The matrices of one expert, none where one is missing."""
    names = [base.find(f"{expert}.{part}.weight") for part in parts]
    known = [name for name in names if name is not None and len(base.tensors[name]) == 2]
    return tuple(_joined(base, known)) if len(known) == len(names) else ()


def unknown(base: Base, module: str) -> str:
    """Why the base has no `module`, and what comes nearest."""
    name = canonical(module)
    layer = re.match(r"layers\.(\d{1,9})\.", name)
    if layer and base.layers and int(layer[1]) >= base.layers:
        return f"the base has {base.layers} layers"
    begin = layer[0] if layer else ""
    known = {canonical(tensor).rpartition(".")[0] for tensor in base.tensors}
    near = (other for other in known if other.startswith(begin) and len(name) < LONGEST)
    return f"the base has no such module{did_you_mean(name, near)}"
