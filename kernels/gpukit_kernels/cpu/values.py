"""Elements of a graph's nodes as C: where each is found, or how it is computed."""

import hashlib
import itertools
import math
from collections.abc import Sequence

import torch

from gpukit_kernels.cpu.indices import Again, Index, Learned, Variable, place_of
from gpukit_kernels.cpu.operations import (
    converted,
    extreme,
    folded,
    kind_of,
    literal,
    operand,
    operation,
    seen,
)
from gpukit_kernels.cpu.scopes import Scopes, Value
from gpukit_kernels.cpu.trace import Access, Node

# An argument lies as it is; one of "bytes", `[nbytes, lanes]`, as words `[nbytes / 4, lanes]`.
ARGUMENTS = ("argument", "bytes")
# Of a division, in other operations.
DIVISION = 8
# Numbers of a constant from which on it stands outside of the stage's function.
LARGE = 1 << 10


class Values:
    """What is computed of a stage's nodes so far.

    stored   numbers of the nodes that have `places` in memory
    done     of those whose loops have been written
    nest     of those that the loops that are being written compute
    current  the node for which they do so now
    tables   C of constants, by node; of large ones, `shared` by all stages, by name
    """

    def __init__(self, name: str, lanes: int, scopes: Scopes, learned: Learned) -> None:
        self.name, self.lanes, self.scopes, self.learned = name, lanes, scopes, learned
        self.stored: set[int] = set()
        self.places: dict[int, str] = {}
        self.done: set[int] = set()
        self.nest: set[int] = set()
        self.current = -1
        self.tables: dict[int, str] = {}
        self.shared: dict[str, str] = {}

    def access(self, access: Access, indices: Sequence[Index]) -> Value:
        """The element of `access` at `indices`."""
        place = place_of(access.offset, access.strides, indices)
        return self.value(access.node, place, access.dtype)

    def value(self, node: Node, place: Index, dtype: torch.dtype, own: bool = False) -> Value:
        """The element of `node` at `place`, as `dtype`; its `own`, to be stored, is computed."""
        key = (node.number, place)
        value = self.scopes.find(key)
        if value is None:
            value = self.scopes.know(key, self._found(node, place, own))
        return seen(self.scopes, value, node.dtype, dtype)

    def _found(self, node: Node, offset: Index, own: bool) -> Value:
        number = node.number
        if node.op == "constant":
            return self._constant(node, offset)
        if node.op == "bytes":
            return self._byte(node, offset)
        if node.op == "argument" or (number in self.done and number in self.stored):
            return self._load(node, offset)
        if number in self.done or (node.op in ("sum", "amax") and number not in self.nest):
            if number in self.done:
                raise self.learned.store(number)
            raise AssertionError(f"{self.name}: a sum is needed before it is there")
        if number in self.nest and not own:
            # Here, but elsewhere in the loops: what needs it comes in loops of its own.
            self.learned.breaks.add(self.current)
            raise self.learned.store(number)
        indices = self._taken_apart(node, offset)
        if node.op == "cat":
            return self._part(node, indices)
        if node.op == "index":
            return self._looked_up(node, indices)
        if node.op == "call":
            return self._called(node, indices)
        return self._computed(node, indices)

    def _load(self, node: Node, offset: Index) -> Value:
        kind = kind_of(node.dtype)
        place = self.places[node.number]
        factor = dict(offset.terms).get(self.scopes.lane, 0)
        depth = self.scopes.depth(offset)
        at = f"{place} + {offset.text()}"
        if factor == 1:
            return self.scopes.named(f"load_{kind}({at})", kind, depth)
        if factor:
            raise NotImplementedError(f"{self.name}: lanes {factor} apart")
        text = f"splat_i(word({at}))"
        return self.scopes.named(text if kind == "i" else f"bits_f({text})", kind, depth)

    def _constant(self, node: Node, offset: Index) -> Value:
        values = node.values
        assert values is not None
        flat = values.reshape(-1)
        if not offset.terms:
            return Value(literal(flat[offset.start].item(), node.dtype), kind_of(node.dtype), 0)
        if flat.numel() and bool((flat == flat[0]).all()) and not bool((flat == 0).any()):
            return Value(literal(flat[0].item(), node.dtype), kind_of(node.dtype), 0)
        if not bool((flat != 0).any()) and not bool(torch.signbit(flat.float()).any()):
            return Value(literal(0, node.dtype), kind_of(node.dtype), 0)
        if dict(offset.terms).get(self.scopes.lane):
            raise NotImplementedError(f"{self.name}: a constant differs between lanes")
        name = self._table(node)
        kind = kind_of(node.dtype)
        text = f"splat_i({name}[{offset.text()}])"
        return self.scopes.named(
            text if kind == "i" else f"bits_f({text})", kind, self.scopes.depth(offset)
        )

    def _table(self, node: Node) -> str:
        name = f"c{node.number}"
        if node.number in self.tables:
            return name
        assert node.values is not None
        if node.number not in self.learned.numbers:
            flat = node.values.reshape(-1)
            if node.dtype is torch.float32:
                flat = flat.view(torch.int32)
            self.learned.numbers[node.number] = ", ".join(map(str, flat.int().tolist()))
        numbers = self.learned.numbers[node.number]
        if node.values.numel() > LARGE:
            # Several stages look such a table up.
            name = f"t{hashlib.sha256(numbers.encode()).hexdigest()[:16]}"
            self.shared[name] = f"static const int32_t {name}[] = {{{numbers}}};"
        else:
            self.tables[node.number] = f"static const int32_t {name}[] = {{{numbers}}};"
        return name

    def _byte(self, node: Node, offset: Index) -> Value:
        """Of words `[nbytes / 4, lanes]` the byte at `offset` of `[nbytes, lanes]`."""
        byte = self._taken_apart(node, offset)[0]
        for variable, factor in byte.terms:
            if factor % 4:
                need = 4 // math.gcd(factor, 4)
                if variable.size > need and variable.size % need == 0:
                    raise self.learned.split(variable, need)
                raise self.learned.unroll(variable)
        number = Index(byte.start // 4, tuple((v, factor // 4) for v, factor in byte.terms))
        at = Index(0).plus(number, self.lanes).plus(Index(0, ((self.scopes.lane, 1),)))
        key = ("word", node.number, at)
        depth = self.scopes.depth(at)
        word = self.scopes.find(key)
        if word is None:
            text = f"load_i({self.places[node.number]} + {at.text()})"
            word = self.scopes.know(key, self.scopes.named(text, "i", depth))
        return Value(word.text, "i", word.depth, 8 * (byte.start % 4), 255)

    def _taken_apart(self, node: Node, offset: Index) -> list[Index]:
        """The index along each dimension of `node` of the element at `offset`."""
        found = [Index(0)] * len(node.shape)
        left = offset
        dims = [d for d in range(len(node.shape)) if node.shape[d] > 1]
        for d in sorted(dims, key=lambda d: -node.strides[d]):
            step = node.strides[d]
            whole = {v: f // step for v, f in left.terms if f % step == 0}
            rest = {v: f for v, f in left.terms if f % step}
            after = Index.of(left.start % step, rest)
            if after.most >= step:
                for variable, factor in rest.items():
                    inner = step // factor if step % factor == 0 else 0
                    if inner > 1 and variable.size > inner and variable.size % inner == 0:
                        raise self.learned.split(variable, inner)
                raise self._apart(node, rest)
            found[d] = Index.of(left.start // step, whole)
            left = after
        return found

    def _apart(self, node: Node, rest: dict[Variable, int]) -> Again:
        """Loops that cannot be split are written out, short ones; else `node` is stored."""
        if node.op in ARGUMENTS:
            raise NotImplementedError(f"{self.name}: a view that cannot be taken apart")
        short = [v for v in rest if v.size <= 8 and v is not self.scopes.lane]
        return self.learned.unroll(short[0]) if short else self.learned.store(node.number)

    def _part(self, node: Node, indices: list[Index]) -> Value:
        index = indices[node.dim]
        begin = 0
        for part in node.args:
            end = begin + part.shape[node.dim]
            if begin <= index.start and index.most < end:
                inside = [*indices]
                inside[node.dim] = index.plus(Index(-begin))
                return self.access(part, inside)
            begin = end
        ends = list(itertools.accumulate(part.shape[node.dim] for part in node.args))
        common = math.gcd(*ends)
        variable, factor = max(index.terms, key=lambda term: term[1])
        inner = common // factor if common % factor == 0 else 0
        if inner > 1 and variable.size > inner and variable.size % inner == 0:
            raise self.learned.split(variable, inner)
        raise self.learned.unroll(variable)

    def _looked_up(self, node: Node, indices: list[Index]) -> Value:
        table, where = node.args
        at = self.scopes.plain(self.access(where, indices))
        inner = table.shape[1:]
        offset = Index(0)
        for size, index in zip(inner, indices[len(indices) - len(inner) :], strict=True):
            offset = Index(0).plus(offset, size).plus(index)
        name = self._table(table.node)
        depth = max(at.depth, self.scopes.depth(offset))
        kind = kind_of(table.node.dtype)
        size = math.prod(inner)
        if size == 1 and table.shape[0] <= 16:
            if table.shape[0] < 16:
                self.tables[table.node.number] = self.tables[table.node.number].replace(
                    "[] =", "[16] ="
                )
            text = f"of_16({name}, {at.text})"
        else:
            scaled = at.text if size == 1 else f"{at.text} * {size}"
            text = f"gathered({name} + {offset.text()}, {scaled})"
        return self.scopes.named(text if kind == "i" else f"bits_f({text})", kind, depth)

    def _called(self, node: Node, indices: list[Index]) -> Value:
        template, tables, *args = node.args
        values = [self.scopes.plain(self.access(arg, indices)) for arg in args[tables:]]
        names = [self._table(table.node) for table in args[:tables]]
        text = template.format(*names, *[value.text for value in values])
        return self.scopes.line(text, kind_of(node.dtype), values)

    def _computed(self, node: Node, indices: list[Index]) -> Value:
        found = extreme(node) if node.op == "where" else None
        if found:
            name, *two = found
            values = [self.scopes.plain(self.access(arg, indices)) for arg in two]
            return self.scopes.line(f"{name}({values[0].text}, {values[1].text})", "f", values)
        values = [
            self.access(arg, indices) if isinstance(arg, Access) else arg for arg in node.args
        ]
        types = [arg.dtype if isinstance(arg, Access) else None for arg in node.args]
        if node.op == "clone":
            return converted(self.scopes, values[0], node.compute, node.dtype)
        if node.op == "where":
            values[1:] = [
                operand(self.scopes, v, t, node.dtype)
                for v, t in zip(values[1:], types[1:], strict=True)
            ]
            kind = kind_of(node.dtype)
            text = f"choose_{kind}({', '.join(value.text for value in values)})"
            return self.scopes.line(text, kind_of(node.dtype), values)
        bits = folded(node, values)
        if bits is not None:
            return bits
        if node.compute is torch.float64 and node.op != "sqrt":
            raise NotImplementedError(f"{node.op} in float64")
        operands = [
            None if v is None else operand(self.scopes, v, t, node.compute)
            for v, t in zip(values, types, strict=True)
        ]
        text = operation(node, [None if v is None else v.text for v in operands])
        if node.op == "div":
            self.scopes.cost += DIVISION * self.scopes.inner.trips
        return self.scopes.line(text, kind_of(node.dtype), [v for v in operands if v is not None])
