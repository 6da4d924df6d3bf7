"""A traced stage as a C function.

The function is a row of nests, loops over one shape of results, lanes outermost and a vector of
them at a time. What a nest stores are its roots: results of the stage, sums, and what other nests
need. All else is computed where it is used, in the outermost loop that knows its indices, so a sum
over the elements of a block, all that goes into it included, is one loop with its totals in
registers.

An index is a number plus loop variables times numbers. Where a view, a `cat` or the bytes of a word
need an index to be taken apart, the loop is split in two, or written out; what cannot be taken
apart is stored and read again. Each such need ends the attempt, and the stage is written anew.
"""

import itertools
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from gpukit_kernels.cpu.trace import COMPARISONS, Access, Graph, Node

# An argument lies as it is; one of "bytes" `[nbytes, lanes]` as words of four `[nbytes / 4, lanes]`.
ARGUMENTS = ("argument", "bytes")
# Attempts at a stage: each learns one thing.
MOST_ATTEMPTS = 400
# Loops over elements are written out so many times by the C compiler.
UNROLLED = 32
# Of a division, in other operations.
DIVISION = 8


@dataclass(frozen=True)
class Variable:
    """A loop's counter from 0 to `size`: part `place` of dimension `dim` of the loops of `owner`."""

    owner: str
    dim: int
    place: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.owner}_{self.dim}_{self.place}" if self.owner else "l"


@dataclass(frozen=True)
class Index:
    """`start` plus each variable times its factor."""

    start: int
    terms: tuple[tuple[Variable, int], ...] = ()

    @staticmethod
    def of(start: int, terms: dict[Variable, int]) -> "Index":
        kept = [(variable, factor) for variable, factor in terms.items() if factor]
        return Index(start, tuple(sorted(kept, key=lambda term: term[0].name)))

    def plus(self, other: "Index", times: int = 1) -> "Index":
        terms = dict(self.terms)
        for variable, factor in other.terms:
            terms[variable] = terms.get(variable, 0) + factor * times
        return Index.of(self.start + other.start * times, terms)

    @property
    def most(self) -> int:
        return self.start + sum((v.size - 1) * factor for v, factor in self.terms)

    def text(self) -> str:
        parts = [str(self.start)] if self.start or not self.terms else []
        parts += [v.name if f == 1 else f"{f} * {v.name}" for v, f in self.terms]
        return " + ".join(parts)


class Again(Exception):
    """The attempt has shown something that the next one must know."""


@dataclass(frozen=True)
class Value:
    """A C expression: a vector of floats "f", whole numbers "i" or truths "m", as known in the
    `depth`-th loop. Of bits of a word, `text` is the word: ((word >> shift) & mask) << up."""

    text: str
    kind: str
    depth: int
    shift: int = 0
    mask: int = 0
    up: int = 0


@dataclass
class _Scope:
    variable: Variable | None
    trips: int
    lines: list[str] = field(default_factory=list)
    known: dict[Any, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class _Root:
    """What a nest stores: `value`, over its shape, at these places of the memory of `node`."""

    node: Node
    value: Access
    offset: int
    strides: tuple[int, ...]


@dataclass
class Function:
    """C: `text` defines `name(arguments…, results…, scratch)`; `results` are the nodes that are
    stored for the caller, `scratch` floats are used in between."""

    text: str
    results: list[Node]
    scratch: int


def function(name: str, graph: Graph, lanes: int, sink: bool = False) -> Function:
    """The C function `name` of a traced stage on tiles of so many `lanes`.

    With `sink` the one result is not stored: for each of its elements stands VALUE(n, k, v), its
    place k and its value v, n going round from 0 to 3; within each loop over lanes VALUES_BEGIN and
    VALUES_END. NotImplementedError where it has an operation that there is no C for.
    """
    state = _Learned()
    for _ in range(MOST_ATTEMPTS):
        try:
            return _Writer(name, graph, lanes, state, sink).write()
        except Again:
            continue
    raise NotImplementedError(f"{name}: no order of loops was found")


@dataclass
class _Learned:
    stored: set[int] = field(default_factory=set)
    breaks: set[int] = field(default_factory=set)
    # Of (owner, dim) the sizes that a loop is split into, and which of them are written out.
    sizes: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    unrolled: set[tuple[str, int, int]] = field(default_factory=set)

    def split(self, variable: Variable, inner: int) -> Again:
        """Make of the loop two, the inner one of size `inner`."""
        key = (variable.owner, variable.dim)
        sizes = self.sizes.setdefault(key, [variable.size])
        at = variable.place
        sizes[at : at + 1] = [variable.size // inner, inner]
        self.unrolled = {
            (*key, place + (place > at)) if (owner, dim) == key else (owner, dim, place)
            for owner, dim, place in self.unrolled
        }
        return Again()

    def unroll(self, variable: Variable) -> Again:
        self.sizes.setdefault((variable.owner, variable.dim), [variable.size])
        self.unrolled.add((variable.owner, variable.dim, variable.place))
        return Again()

    def store(self, node: Node) -> Again:
        self.stored.add(node.number)
        return Again()


def _kind(dtype: torch.dtype) -> str:
    if dtype is torch.bool:
        return "m"
    return "f" if dtype in (torch.float32, torch.float64) else "i"


class _Writer:
    def __init__(self, name: str, graph: Graph, lanes: int, learned: _Learned, sink: bool) -> None:
        self.name, self.graph, self.lanes, self.learned = name, graph, lanes, learned
        self.sink = sink
        self.sunk = itertools.cycle(range(4))
        self.lane = Variable("", 0, 0, lanes)
        self.results: list[Node] = []
        for access in graph.results:
            if access.node.op not in ARGUMENTS and access.node not in self.results:
                self.results.append(access.node)
        self.stored = {node.number for node in self.results} | learned.stored
        self.places: dict[int, str] = {}
        self.done: set[int] = set()
        self.nest: set[int] = set()
        self.scopes: list[_Scope] = []
        self.tables: dict[int, str] = {}
        self.lines: list[str] = []
        self.cost = 0
        self.names = itertools.count()
        self.current: _Root

    def write(self) -> Function:
        arguments = [f"const float *restrict a{i}" for i in range(len(self.graph.arguments))]
        arguments += [f"float *restrict r{i}" for i in range(len(self.results))]
        for i, node in enumerate(self.graph.arguments):
            self.places[node.number] = f"a{i}"
        for i, node in enumerate(self.results):
            self.places[node.number] = f"r{i}"
        scratch = 0
        for number in sorted(self.learned.stored):
            if number not in self.places:
                self.places[number] = f"s + {scratch}"
                node = self.graph.nodes[number]
                span = 1 + sum((n - 1) * k for n, k in zip(node.shape, node.strides, strict=True))
                scratch += -(-span // 16) * 16
        top = self.scopes = [_Scope(None, 1)]
        for roots in self._nests():
            self._write_nest(roots)
        head = f"static void {self.name}({', '.join([*arguments, 'float *restrict s'])}) {{"
        body = ["(void)s;", *self.tables.values(), *top[0].lines]
        text = "\n".join([head, *body, "}"])
        return Function(text, self.results, scratch)

    # What is stored, and in which loops.

    def _nests(self) -> Iterator[list[_Root]]:
        waiting = self._roots()
        while waiting:
            first = waiting.pop(0)
            nest = [first]
            while (
                waiting
                and waiting[0].value.shape == first.value.shape
                and waiting[0].node.number not in self.learned.breaks
            ):
                nest.append(waiting.pop(0))
            yield nest

    def _roots(self) -> list[_Root]:
        needed: set[int] = set()
        pending = [node for node in self.results]
        while pending:
            node = pending.pop()
            if node.number not in needed:
                needed.add(node.number)
                pending += [arg.node for arg in node.args if isinstance(arg, Access)]
        roots: list[_Root] = []
        for number in sorted(needed):
            node = self.graph.nodes[number]
            if node.op not in ("sum", "amax") and number not in self.stored:
                continue
            if node.op in ARGUMENTS:
                continue
            if node.op != "cat":
                whole = Access(node, 0, node.shape, node.strides, node.dtype)
                roots.append(_Root(node, whole, 0, node.strides))
                continue
            at = 0
            for part in node.args:
                roots.append(_Root(node, part, at * node.strides[node.dim], node.strides))
                at += part.shape[node.dim]
        return roots

    def _write_nest(self, roots: list[_Root]) -> None:
        """The loops over the shape of `roots`, in the cheapest order."""
        shape = roots[0].value.shape
        owner = f"n{roots[0].node.number}_{roots[0].offset}"
        inner = shape[:-1] if shape and shape[-1] == self.lanes else shape
        laned = len(inner) < len(shape)
        variables = [self._variables(owner, dim, size) for dim, size in enumerate(inner)]
        loops = [v for dim in variables for v in dim if not self._is_unrolled(v)]
        written = [v for dim in variables for v in dim if self._is_unrolled(v)]
        best: tuple[int, list[str]] | None = None
        orders = list(itertools.permutations(loops)) if len(loops) <= 3 else [tuple(loops)]
        for order in orders:
            self.nest = set()
            self.cost = 0
            outer = self.scopes
            self.scopes = [_Scope(None, 1)]
            if laned:
                self._open(self.lane)
                self.scopes[-1].lines += ["VALUES_BEGIN"] * self.sink
            for variable in order:
                self._open(variable)
            for numbers in itertools.product(*[range(v.size) for v in written]):
                fixed = dict(zip(written, numbers, strict=True))
                indices = [self._index(dim, fixed) for dim in variables]
                self._write_roots(roots, [*indices, *([self._lane_index()] * laned)])
            while len(self.scopes) > 1:
                if self.scopes[-1].variable is self.lane:
                    self.scopes[-1].lines += ["VALUES_END"] * self.sink
                self._close()
            lines, cost = self.scopes[0].lines, self.cost
            self.scopes = outer
            if best is None or cost < best[0]:
                best = (cost, lines)
        assert best is not None
        self.scopes[0].lines += ["{", *best[1], "}"]
        self.done |= {root.node.number for root in roots}

    def _variables(self, owner: str, dim: int, size: int) -> list[Variable]:
        sizes = self.learned.sizes.get((owner, dim), [size])
        return [Variable(owner, dim, place, n) for place, n in enumerate(sizes)]

    def _is_unrolled(self, v: Variable) -> bool:
        return v.size == 1 or (v.owner, v.dim, v.place) in self.learned.unrolled

    def _lane_index(self) -> Index:
        return Index(0, ((self.lane, 1),))

    @staticmethod
    def _index(parts: Sequence[Variable], fixed: dict[Variable, int]) -> Index:
        """A dimension's index, of the loops that it is split into."""
        found, step = Index(0), math.prod(part.size for part in parts)
        for part in parts:
            step //= part.size
            if part in fixed:
                found = found.plus(Index(fixed[part] * step))
            else:
                found = found.plus(Index(0, ((part, step),)))
        return found

    def _open(self, variable: Variable) -> None:
        trips = -(-variable.size // 16) if variable is self.lane else variable.size
        self.scopes.append(_Scope(variable, self.scopes[-1].trips * trips))

    def _close(self, unrolled: int = 1) -> None:
        scope = self.scopes.pop()
        v = scope.variable
        assert v is not None
        step = "WIDTH" if v is self.lane else "1"
        pragma = [f"#pragma GCC unroll {unrolled}"] if unrolled > 1 else []
        head = f"for (int {v.name} = 0; {v.name} < {v.size}; {v.name} += {step}) {{"
        self.scopes[-1].lines += [*pragma, head, *scope.lines, "}"]

    def _write_roots(self, roots: list[_Root], indices: list[Index]) -> None:
        waiting = list(roots)
        while waiting:
            root = self.current = waiting.pop(0)
            if root.node.op in ("sum", "amax"):
                together = [root, *self._ready(root, waiting)]
                for other in together[1:]:
                    waiting.remove(other)
                self._write_sums([other.node for other in together], indices)
            else:
                together = [root]
            for other in together:
                offset = _offset(other.value.offset, other.value.strides, indices)
                value = self._plain(self._value(other.value.node, offset, other.value.dtype, other))
                if other.value.node is other.node:
                    self.nest.add(other.node.number)
                if other.node.number in self.stored:
                    if value.kind == "m":
                        raise NotImplementedError("truths are stored")
                    to = _offset(other.offset, other.strides, indices)
                    self.scopes[-1].lines.append(self._stored(other.node, to, value))

    def _stored(self, node: Node, to: Index, value: Value) -> str:
        if self.sink and node in self.results:
            terms = {v: factor // self.lanes for v, factor in to.terms if v is not self.lane}
            element = Index.of(to.start // self.lanes, terms).text()
            return f"VALUE({next(self.sunk)}, {element}, {value.text});"
        return f"store_{value.kind}({self.places[node.number]} + {to.text()}, {value.text});"

    # Sums.

    def _ready(self, root: _Root, waiting: list[_Root]) -> list[_Root]:
        """Of the sums behind `root` those over as many elements that wait for none of `waiting`."""
        ahead = {root.node.number, *(other.node.number for other in waiting)}
        return [
            other
            for other in waiting
            if other.node.op in ("sum", "amax")
            and other.node.args[0].shape[0] == root.node.args[0].shape[0]
            and not self._needs(other.node, ahead)
        ]

    def _needs(self, node: Node, ahead: set[int]) -> bool:
        pending = [arg.node for arg in node.args if isinstance(arg, Access)]
        seen: set[int] = set()
        while pending:
            found = pending.pop()
            if found.number in ahead:
                return True
            if found.number not in seen:
                seen.add(found.number)
                pending += [arg.node for arg in found.args if isinstance(arg, Access)]
        return False

    def _write_sums(self, nodes: list[Node], indices: list[Index]) -> None:
        owner = f"e{nodes[0].number}"
        parts = self._variables(owner, 0, nodes[0].args[0].shape[0])
        loops = [v for v in parts if not self._is_unrolled(v)]
        written = [v for v in parts if self._is_unrolled(v)]
        home = self.scopes[-1]
        totals = []
        for node in nodes:
            total = f"t{next(self.names)}"
            kind = _kind(node.dtype)
            start = "INT32_MIN" if node.op == "amax" else "0"
            if node.op == "amax" and kind != "i":
                raise NotImplementedError("amax of floats")
            home.lines.append(f"v{kind} {total} = splat_{kind}({start});")
            totals.append(total)
        for v in loops:
            self._open(v)
        for numbers in itertools.product(*[range(v.size) for v in written]):
            element = self._index(parts, dict(zip(written, numbers, strict=True)))
            for node, total in zip(nodes, totals, strict=True):
                (arg,) = node.args
                value = self._plain(self._access(arg, [element, *indices]))
                if node.op == "amax":
                    line = f"{total} = max_i({total}, {value.text});"
                else:
                    line = f"{total} = {total} + {value.text};"
                self.scopes[-1].lines.append(line)
        for v in reversed(loops):
            self._close(min(v.size, UNROLLED) if v is loops[-1] else 1)
        for node, total in zip(nodes, totals, strict=True):
            offset = _offset(0, node.strides, indices)
            home.known[node.number, offset] = Value(total, _kind(node.dtype), len(self.scopes) - 1)

    # Values.

    def _access(self, access: Access, indices: Sequence[Index]) -> Value:
        return self._value(
            access.node, _offset(access.offset, access.strides, indices), access.dtype
        )

    def _value(
        self, node: Node, offset: Index, dtype: torch.dtype, root: _Root | None = None
    ) -> Value:
        """The element of `node` at `offset`, as `dtype`."""
        key = (node.number, offset)
        for scope in self.scopes:
            if key in scope.known:
                return self._as(scope.known[key], node.dtype, dtype)
        value = self._found(node, offset, root)
        if value.text:
            self.scopes[value.depth].known[key] = value
        return self._as(value, node.dtype, dtype)

    def _as(self, value: Value, have: torch.dtype, dtype: torch.dtype) -> Value:
        """The same bits as another type."""
        if have == dtype or {have, dtype} == {torch.int16, torch.float16}:
            return value
        if {have, dtype} == {torch.float32, torch.int32}:
            return self._line(f"bits_{_kind(dtype)}({self._plain(value).text})", dtype, [value])
        if (have, dtype) == (torch.uint8, torch.int8):
            if value.mask == 255 and not value.up:
                shift = f"{value.text} << {24 - value.shift}" if value.shift < 24 else value.text
                return self._line(f"({shift}) >> 24", dtype, [value])
            return self._line(f"({self._plain(value).text} << 24) >> 24", dtype, [value])
        raise NotImplementedError(f"{have} seen as {dtype}")

    def _found(self, node: Node, offset: Index, root: _Root | None) -> Value:
        number = node.number
        own = root is not None and root.node is node
        if node.op == "constant":
            return self._constant(node, offset)
        if node.op == "bytes":
            return self._byte(node, offset)
        if node.op == "argument" or (number in self.done and number in self.stored):
            return self._load(node, offset)
        if number in self.done or (node.op in ("sum", "amax") and number not in self.nest):
            if number in self.done:
                raise self.learned.store(node)
            raise AssertionError(f"{self.name}: a sum is needed before it is there")
        if number in self.nest and not own:
            # Here, but elsewhere in the loops: what needs it comes in loops of its own.
            self.learned.breaks.add(self.current.node.number)
            raise self.learned.store(node)
        indices = self._taken_apart(node, offset)
        if node.op == "cat":
            return self._part(node, indices)
        if node.op == "index":
            return self._looked_up(node, indices)
        return self._computed(node, indices)

    def _load(self, node: Node, offset: Index) -> Value:
        kind = _kind(node.dtype)
        place = self.places[node.number]
        factor = dict(offset.terms).get(self.lane, 0)
        depth = self._depth(offset)
        at = f"{place} + {offset.text()}"
        if factor == 1:
            return self._named(f"load_{kind}({at})", kind, depth)
        if factor:
            raise NotImplementedError(f"{self.name}: lanes {factor} apart")
        text = f"splat_i(word({at}))"
        return self._named(text if kind == "i" else f"bits_f({text})", kind, depth)

    def _depth(self, offset: Index) -> int:
        used = {variable for variable, _ in offset.terms}
        return max((i for i, scope in enumerate(self.scopes) if scope.variable in used), default=0)

    def _named(self, text: str, kind: str, depth: int) -> Value:
        name = f"v{next(self.names)}"
        self.cost += self.scopes[depth].trips
        self.scopes[depth].lines.append(f"v{kind} {name} = {text};")
        return Value(name, kind, depth)

    def _line(self, text: str, dtype: torch.dtype, values: Sequence[Value]) -> Value:
        depth = max((value.depth for value in values), default=0)
        return self._named(text, _kind(dtype), depth)

    def _plain(self, value: Value) -> Value:
        """`value` with its byte taken out of the word."""
        if not value.mask:
            return value
        text, mask = value.text, value.mask << value.up
        shift = value.shift - value.up
        if shift > 0:
            text = f"({text} >> {shift})"
        elif shift < 0:
            text = f"({text} << {-shift})"
        if mask == 2**32 - 1 and not shift:
            return Value(text, "i", value.depth)
        return self._named(f"{text} & {_signed(mask)}", "i", value.depth)

    def _constant(self, node: Node, offset: Index) -> Value:
        values = node.values
        assert values is not None
        flat = values.reshape(-1)
        if not offset.terms:
            return Value(_literal(flat[offset.start].item(), node.dtype), _kind(node.dtype), 0)
        if flat.numel() and bool((flat == flat[0]).all()) and not bool((flat == 0).any()):
            return Value(_literal(flat[0].item(), node.dtype), _kind(node.dtype), 0)
        if not bool((flat != 0).any()) and not bool(torch.signbit(flat.float()).any()):
            return Value(_literal(0, node.dtype), _kind(node.dtype), 0)
        if dict(offset.terms).get(self.lane):
            raise NotImplementedError(f"{self.name}: a constant differs between lanes")
        name = self._table(node)
        kind = _kind(node.dtype)
        text = f"splat_i({name}[{offset.text()}])"
        return self._named(text if kind == "i" else f"bits_f({text})", kind, self._depth(offset))

    def _table(self, node: Node) -> str:
        name = f"c{node.number}"
        if node.number not in self.tables:
            assert node.values is not None
            flat = node.values.reshape(-1)
            if node.dtype is torch.float32:
                flat = flat.view(torch.int32)
            numbers = ", ".join(str(_signed(int(n))) for n in flat.tolist())
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
        at = Index(0).plus(number, self.lanes).plus(self._lane_index())
        key = ("word", node.number, at)
        depth = self._depth(at)
        for scope in self.scopes:
            if key in scope.known:
                word = scope.known[key]
                break
        else:
            word = self._named(f"load_i({self.places[node.number]} + {at.text()})", "i", depth)
            self.scopes[depth].known[key] = word
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
        short = [v for v in rest if v.size <= 8 and v is not self.lane]
        return self.learned.unroll(short[0]) if short else self.learned.store(node)

    def _part(self, node: Node, indices: list[Index]) -> Value:
        index = indices[node.dim]
        begin = 0
        for part in node.args:
            end = begin + part.shape[node.dim]
            if begin <= index.start and index.most < end:
                inside = [*indices]
                inside[node.dim] = index.plus(Index(-begin))
                return self._access(part, inside)
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
        at = self._plain(self._access(where, indices))
        inner = table.shape[1:]
        offset = Index(0)
        for size, index in zip(inner, indices[len(indices) - len(inner) :], strict=True):
            offset = Index(0).plus(offset, size).plus(index)
        name = self._table(table.node)
        depth = max(at.depth, self._depth(offset))
        if table.node.dtype is torch.uint8 or table.node.dtype is torch.int8:
            kind = "i"
        else:
            kind = _kind(table.node.dtype)
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
        return self._named(text if kind == "i" else f"bits_f({text})", kind, depth)

    # Operations.

    def _computed(self, node: Node, indices: list[Index]) -> Value:
        values = [
            self._access(arg, indices) if isinstance(arg, Access) else arg for arg in node.args
        ]
        types = [arg.dtype if isinstance(arg, Access) else None for arg in node.args]
        if node.op == "clone":
            return self._converted(values[0], node.compute, node.dtype)
        if node.op == "where":
            values[1:] = [
                self._operand(v, t, node.dtype) for v, t in zip(values[1:], types[1:], strict=True)
            ]
            kind = _kind(node.dtype)
            text = f"choose_{kind}({', '.join(value.text for value in values)})"
            return self._line(text, node.dtype, values)
        folded = self._folded(node, values)
        if folded is not None:
            return folded
        if node.compute is torch.float64 and node.op != "sqrt":
            raise NotImplementedError(f"{node.op} in float64")
        operands = [
            None if v is None else self._operand(v, t, node.compute)
            for v, t in zip(values, types, strict=True)
        ]
        text = _operation(node, [None if v is None else v.text for v in operands])
        if node.op == "div":
            self.cost += DIVISION * self.scopes[-1].trips
        return self._line(text, node.dtype, [v for v in operands if v is not None])

    def _folded(self, node: Node, values: list[Any]) -> Value | None:
        """Bits of a byte that are still in their word."""
        first, *more = values
        if not (isinstance(first, Value) and first.mask and len(more) == 1):
            return None
        (second,) = more
        number = _whole_literal(second)
        if number is None:
            # Bits of one word that lie as they do in the word.
            if (
                node.op == "bitwise_or"
                and isinstance(second, Value)
                and second.mask
                and second.text == first.text
                and first.shift - first.up == second.shift - second.up
                and first.up == 0
            ):
                return replace(first, mask=first.mask | (second.mask << second.up))
            return None
        if node.op == "bitwise_left_shift" and node.dtype is torch.int32:
            return replace(first, up=first.up + number)
        if first.up:
            return None
        if node.op == "bitwise_and" and first.mask & number:
            return replace(first, mask=first.mask & number)
        if node.op == "bitwise_right_shift" and first.mask >> number:
            return replace(first, shift=first.shift + number, mask=first.mask >> number)
        return None

    def _operand(self, value: Any, have: torch.dtype | None, wanted: torch.dtype) -> Value:
        if have is None:
            return Value(_literal(value, wanted), _kind(wanted), 0)
        if isinstance(value, Value) and have != wanted:
            return self._converted(value, have, wanted)
        return self._plain(value)

    def _converted(self, value: Value, have: torch.dtype, wanted: torch.dtype) -> Value:
        if have == wanted:
            return value
        whole = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        literal = _whole_literal(value)
        if have in whole and wanted in whole:
            if wanted is torch.uint8 and not value.mask:
                return self._line(f"{value.text} & 255", wanted, [value])
            return value  # int16 is only made to be seen as float16
        value = self._plain(value)
        if have in whole and wanted is torch.float32 and literal is not None:
            return Value(_literal(literal, wanted), "f", 0)
        text = {
            (torch.float32, torch.int32): "whole({})",
            (torch.float32, torch.float16): "half_of({})",
            (torch.float16, torch.float32): "of_half({})",
            (torch.bool, torch.int32): "choose_i({}, splat_i(1), splat_i(0))",
            (torch.bool, torch.float32): "choose_f({}, splat_f(1), splat_f(0))",
            # Only for roots, which `root_f` rounds as float64 and then float32 would.
            (torch.float32, torch.float64): "{}",
            (torch.float64, torch.float32): "{}",
        }.get((have, wanted))
        if text is None and have in whole and wanted is torch.float32:
            text = "to_f({})"
        if text is None:
            raise NotImplementedError(f"{have} to {wanted}")
        return self._line(text.format(value.text), wanted, [value])


def _offset(start: int, strides: Sequence[int], indices: Sequence[Index]) -> Index:
    found = Index(start)
    for step, index in zip(strides, indices, strict=True):
        found = found.plus(index, step)
    return found


def _signed(number: int) -> int:
    return (number + 2**31) % 2**32 - 2**31


def _literal(number: Any, dtype: torch.dtype) -> str:
    if _kind(dtype) == "f":
        (bits,) = struct.unpack("<i", struct.pack("<f", _single(float(number))))
        return f"bits_f(splat_i({bits & 0xFFFFFFFF:#x}))"
    if dtype is torch.bool:
        raise NotImplementedError("a truth that is a constant")
    return f"splat_i({_signed(int(number))})"


def _single(number: float) -> float:
    return float(torch.tensor(number, dtype=torch.float32))


def _whole_literal(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, Value) and value.text.startswith("splat_i("):
        return int(value.text[8:-1])
    return None


def _operation(node: Node, texts: list[Any]) -> str:
    kind = _kind(node.compute)
    op = node.op
    a = texts[0]
    b = texts[1] if len(texts) > 1 else None
    if op in COMPARISONS:
        if kind == "m":
            raise NotImplementedError(f"{op} of truths")
        swapped = {"gt": "lt", "ge": "le"}.get(op)
        return f"{swapped}_{kind}({b}, {a})" if swapped else f"{op}_{kind}({a}, {b})"
    if op == "clamp":
        return _clamp(kind, *texts)
    masked = " & 255" if node.dtype is torch.uint8 else ""
    signs = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
    if op in signs and kind != "m" and not (op == "div" and kind == "i"):
        return f"({a} {signs[op]} {b}){masked}" if masked else f"{a} {signs[op]} {b}"
    if op in ("bitwise_and", "bitwise_or", "bitwise_xor") and kind != "f":
        sign = {"and": "&", "or": "|", "xor": "^"}[op.removeprefix("bitwise_")]
        return f"{a} {sign} {b}"
    if op == "bitwise_left_shift" and kind == "i":
        return f"left({a}, {b}){masked}"
    if op == "bitwise_right_shift" and kind == "i":
        return f"{a} >> {b}"
    if op == "bitwise_not" and kind == "m":
        return f"not_m({a})"
    if op == "abs" and kind == "f":
        return f"abs_f({a})"
    if op == "neg" and kind != "m" and not masked:
        return f"-{a}"
    if op == "sqrt" and node.compute is torch.float64:
        return f"root_f({a})"
    raise NotImplementedError(f"{op} of {node.compute}")


def _clamp(kind: str, value: str, low: str | None, high: str | None) -> str:
    """Of float a NaN stays, as in torch."""
    if kind == "m":
        raise NotImplementedError("clamp of truths")
    if kind == "i":
        value = f"max_i({value}, {low})" if low is not None else value
        return f"min_i({value}, {high})" if high is not None else value
    if low is not None:
        value = f"choose_f(lt_f({value}, {low}), {low}, {value})"
    if high is not None:
        value = f"choose_f(lt_f({high}, {value}), {high}, {value})"
    return value
