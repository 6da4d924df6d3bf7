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
from collections.abc import Iterator
from dataclasses import dataclass

from gpukit_kernels.cpu.indices import Again, Index, Learned, Variable, joined, place_of
from gpukit_kernels.cpu.operations import kind_of
from gpukit_kernels.cpu.scopes import Scopes, Value
from gpukit_kernels.cpu.trace import Access, Graph, Node
from gpukit_kernels.cpu.values import ARGUMENTS, Values

# Attempts at a stage: each learns one thing.
MOST_ATTEMPTS = 400
# Loops over elements are written out so many times by the C compiler.
UNROLLED = 32
SUMS = ("sum", "amax")


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
    stored for the caller, `scratch` floats are used in between; `tables`, by name, stand before."""

    name: str
    text: str
    results: list[Node]
    scratch: int
    tables: dict[str, str]


def function(name: str, graph: Graph, lanes: int, sink: bool = False) -> Function:
    """The C function `name` of a traced stage on tiles of so many `lanes`.

    With `sink` the one result is not stored: for each of its elements stands VALUE(n, k, v), its
    place k and its value v, n going round from 0 to 3; within each loop over lanes VALUES_BEGIN and
    VALUES_END. NotImplementedError where it has an operation that there is no C for.
    """
    state = Learned()
    for _ in range(MOST_ATTEMPTS):
        try:
            return _Writer(name, graph, lanes, state, sink).write()
        except Again:
            continue
    raise NotImplementedError(f"{name}: no order of loops was found")


class _Writer:
    def __init__(self, name: str, graph: Graph, lanes: int, learned: Learned, sink: bool) -> None:
        self.name, self.graph, self.lanes, self.learned = name, graph, lanes, learned
        self.sink = sink
        self.sunk = itertools.cycle(range(4))
        self.lane = Variable("", 0, 0, lanes)
        self.results: list[Node] = []
        for access in graph.results:
            if access.node.op not in ARGUMENTS and access.node not in self.results:
                self.results.append(access.node)
        self.scopes = Scopes(self.lane)
        self.values = Values(name, lanes, self.scopes, learned)
        self.values.stored = {node.number for node in self.results} | learned.stored

    def write(self) -> Function:
        places = self.values.places
        arguments = [f"const float *restrict a{i}" for i in range(len(self.graph.arguments))]
        arguments += [f"float *restrict r{i}" for i in range(len(self.results))]
        for i, node in enumerate(self.graph.arguments):
            places[node.number] = f"a{i}"
        for i, node in enumerate(self.results):
            places[node.number] = f"r{i}"
        scratch = 0
        for number in sorted(self.learned.stored):
            if number not in places:
                places[number] = f"s + {scratch}"
                node = self.graph.nodes[number]
                span = 1 + sum((n - 1) * k for n, k in zip(node.shape, node.strides, strict=True))
                scratch += -(-span // 16) * 16
        lines = [line for roots in self._nests() for line in self._written(roots)]
        head = f"static void {self.name}({', '.join([*arguments, 'float *restrict s'])}) {{"
        body = ["(void)s;", *self.values.tables.values(), *lines]
        text = "\n".join([head, *body, "}"])
        return Function(self.name, text, self.results, scratch, self.values.shared)

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
        roots: list[_Root] = []
        for number in sorted(_behind(self.results)):
            node = self.graph.nodes[number]
            if node.op not in SUMS and number not in self.values.stored:
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

    def _written(self, roots: list[_Root]) -> list[str]:
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
            self.values.nest = set()
            self.scopes.begin()
            if laned:
                self.scopes.open(self.lane)
                self.scopes.inner.lines += ["VALUES_BEGIN"] * self.sink
            for variable in order:
                self.scopes.open(variable)
            for numbers in itertools.product(*[range(v.size) for v in written]):
                fixed = dict(zip(written, numbers, strict=True))
                indices = [joined(dim, fixed) for dim in variables]
                self._write_roots(roots, [*indices, *([Index(0, ((self.lane, 1),))] * laned)])
            while self.scopes.innermost:
                if self.scopes.inner.variable is self.lane:
                    self.scopes.inner.lines += ["VALUES_END"] * self.sink
                self.scopes.close()
            lines, cost = self.scopes.inner.lines, self.scopes.cost
            if best is None or cost < best[0]:
                best = (cost, lines)
        assert best is not None
        self.values.done |= {root.node.number for root in roots}
        return ["{", *best[1], "}"]

    def _variables(self, owner: str, dim: int, size: int) -> list[Variable]:
        sizes = self.learned.sizes.get((owner, dim), [size])
        return [Variable(owner, dim, place, n) for place, n in enumerate(sizes)]

    def _is_unrolled(self, v: Variable) -> bool:
        return v.size == 1 or (v.owner, v.dim, v.place) in self.learned.unrolled

    def _write_roots(self, roots: list[_Root], indices: list[Index]) -> None:
        waiting = list(roots)
        while waiting:
            root = waiting.pop(0)
            self.values.current = root.node.number
            if root.node.op in SUMS:
                together = [root, *self._ready(root, waiting)]
                for other in together[1:]:
                    waiting.remove(other)
                self._write_sums([other.node for other in together], indices)
            else:
                together = [root]
            for other in together:
                value = self._own(other, indices)
                if other.value.node is other.node:
                    self.values.nest.add(other.node.number)
                if other.node.number in self.values.stored:
                    if value.kind == "m":
                        raise NotImplementedError("truths are stored")
                    to = place_of(other.offset, other.strides, indices)
                    self.scopes.inner.lines.append(self._stored(other.node, to, value))

    def _own(self, root: _Root, indices: list[Index]) -> Value:
        """The value of `root` at `indices`."""
        value = root.value
        place = place_of(value.offset, value.strides, indices)
        own = value.node is root.node
        return self.scopes.plain(self.values.value(value.node, place, value.dtype, own))

    def _stored(self, node: Node, to: Index, value: Value) -> str:
        if self.sink and node in self.results:
            terms = {v: factor // self.lanes for v, factor in to.terms if v is not self.lane}
            element = Index.of(to.start // self.lanes, terms).text()
            return f"VALUE({next(self.sunk)}, {element}, {value.text});"
        return f"store_{value.kind}({self.values.places[node.number]} + {to.text()}, {value.text});"

    # Sums.

    def _ready(self, root: _Root, waiting: list[_Root]) -> list[_Root]:
        """Of the sums behind `root` those over as many elements that wait for none of `waiting`."""
        ahead = {root.node.number, *(other.node.number for other in waiting)}
        return [
            other
            for other in waiting
            if other.node.op in SUMS
            and other.node.args[0].shape[0] == root.node.args[0].shape[0]
            and ahead.isdisjoint(_behind(_operands(other.node)))
        ]

    def _write_sums(self, nodes: list[Node], indices: list[Index]) -> None:
        owner = f"e{nodes[0].number}"
        parts = self._variables(owner, 0, nodes[0].args[0].shape[0])
        loops = [v for v in parts if not self._is_unrolled(v)]
        written = [v for v in parts if self._is_unrolled(v)]
        home = self.scopes.inner
        totals = []
        for node in nodes:
            total = self.scopes.name("t")
            kind = kind_of(node.dtype)
            start = "INT32_MIN" if node.op == "amax" else "0"
            if node.op == "amax" and kind != "i":
                raise NotImplementedError("amax of floats")
            home.lines.append(f"v{kind} {total} = splat_{kind}({start});")
            totals.append(total)
        for v in loops:
            self.scopes.open(v)
        for numbers in itertools.product(*[range(v.size) for v in written]):
            element = joined(parts, dict(zip(written, numbers, strict=True)))
            for node, total in zip(nodes, totals, strict=True):
                (arg,) = node.args
                value = self.scopes.plain(self.values.access(arg, [element, *indices]))
                if node.op == "amax":
                    line = f"{total} = max_i({total}, {value.text});"
                else:
                    line = f"{total} = {total} + {value.text};"
                self.scopes.inner.lines.append(line)
        for v in reversed(loops):
            self.scopes.close(min(v.size, UNROLLED) if v is loops[-1] else 1)
        for node, total in zip(nodes, totals, strict=True):
            offset = place_of(0, node.strides, indices)
            value = Value(total, kind_of(node.dtype), self.scopes.innermost)
            self.scopes.know((node.number, offset), value)


def _operands(node: Node) -> list[Node]:
    return [arg.node for arg in node.args if isinstance(arg, Access)]


def _behind(nodes: list[Node]) -> set[int]:
    """The numbers of `nodes` and of all that they are computed from."""
    found: set[int] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node.number not in found:
            found.add(node.number)
            pending += _operands(node)
    return found
