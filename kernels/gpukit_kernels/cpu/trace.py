"""What a torch function does to its tensors, taken down as a graph.

The function runs for real, on tensors of the tile's shape; a dispatch mode sees each operation. A
result with memory of its own becomes a node, one that is a view of another's memory does not: where
a tensor is used, the graph says through which strides. What does not come from the function's
tensors is a constant, and has its values.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_now = threading.local()


def is_tracing() -> bool:
    """Whether this thread's functions are taken down: values do not matter, only operations."""
    return getattr(_now, "tracer", None) is not None


def called(template: str, tables: Sequence[Tensor], operands: Sequence[Tensor]) -> Tensor:
    """While a function is taken down: int32, what the C of `template` is of each element.

    Its fields are the names of `tables`, int32 constants, then `operands`, shaped as the first.
    """
    tracer: _Tracer = _now.tracer
    result = torch.zeros(operands[0].shape, dtype=torch.int32)
    accesses = [tracer.access(tensor) for tensor in (*tables, *operands)]
    tracer.know(result, "call", (template, len(tables), *accesses))
    return result


@dataclass(eq=False)
class Node:
    """A tensor with memory of its own: the result of an operation, an argument, a constant.

    `strides` are elements. Arithmetic of `op` is done in `compute`, which is `dtype` but for
    comparisons and conversions. `values` are a constant's.
    """

    op: str
    args: tuple[Any, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    compute: torch.dtype
    dim: int = 0
    values: Tensor | None = None
    number: int = 0


@dataclass(frozen=True)
class Access:
    """A tensor as it is used: elements of `node` from `offset` on, as `dtype`."""

    node: Node
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def expanded(self, shape: Sequence[int]) -> "Access":
        """Broadcast to `shape`."""
        lead = len(shape) - len(self.shape)
        strides = [0] * lead + [
            0 if have == 1 else step for have, step in zip(self.shape, self.strides, strict=True)
        ]
        return Access(self.node, self.offset, tuple(shape), tuple(strides), self.dtype)


@dataclass
class Graph:
    """A traced function: its arguments in order, what it gives, and the tensors in that, in order,
    as `results`."""

    nodes: list[Node] = field(default_factory=list)
    arguments: list[Node] = field(default_factory=list)
    results: list[Access] = field(default_factory=list)
    result: Any = None


def traced(
    function: Callable[..., Any],
    args: Sequence[Any],
    tensors: Sequence[Tensor],
    kind: str = "argument",
) -> Graph:
    """The graph of `function(*args)`, in which `tensors` stand for the arguments' values: of
    `kind` "argument", or "bytes" that lie four in a word.

    NotImplementedError for an operation that no graph can hold.
    """
    mode = _Tracer()
    mode.graph.arguments = [mode.know(tensor, kind, ()) for tensor in tensors]
    with torch.no_grad(), _tracing(mode), mode:
        mode.graph.result = function(*args)
    mode.graph.results = [mode.access(tensor) for tensor in tensors_in(mode.graph.result)]
    return mode.graph


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in `value`, a tensor or nested tuples and lists, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


@contextmanager
def _tracing(tracer: "_Tracer") -> Iterator[None]:
    _now.tracer = tracer
    try:
        yield
    finally:
        _now.tracer = None


# The names that differ from an operation's own.
SAME = {
    "__lshift__": "bitwise_left_shift", "__rshift__": "bitwise_right_shift",
    "__and__": "bitwise_and", "__or__": "bitwise_or", "__xor__": "bitwise_xor",
    "_to_copy": "clone",
}  # fmt: skip
COMPARISONS = {"lt", "le", "gt", "ge", "eq", "ne"}


class Operations:
    """To be the first base of a TorchDispatchMode: torch imports its compiler, a second's work, for
    one that defines the method itself."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return self.called(function, args, kwargs or {})

    def called(self, function: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation."""
        raise NotImplementedError


class _Tracer(Operations, TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()
        self._nodes: dict[int, Node] = {}
        # No memory is used again while addresses stand for it.
        self._alive: list[Tensor] = []

    def called(self, function: Any, args: Any, kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        made, given = list(tensors_in(result)), list(tensors_in((args, *kwargs.values())))
        if not any(map(self._is_known, given)):
            return result  # of constants only: a constant
        if function._schema.is_mutable:
            raise NotImplementedError(f"{function} changes a tensor")
        if any(map(self._is_known, made)):
            return result  # a view
        (tensor,) = made
        self._record(function.overloadpacket.__name__, tensor, args, kwargs)
        return result

    def _record(self, name: str, result: Tensor, args: Any, kwargs: Any) -> None:
        name = SAME.get(name, name)
        if name.startswith(("zeros", "ones", "full", "new_")):
            return  # only a tensor's form was asked: a constant
        if name in ("cat", "stack"):
            parts, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0)
            dim %= result.ndim
            if name == "stack":
                parts = [part.unsqueeze(dim) for part in parts]
            accesses = tuple(map(self.access, parts))
            if any(access.dtype != result.dtype for access in accesses):
                raise NotImplementedError(f"{name} of tensors of several types")
            self.know(result, "cat", accesses, dim=dim)
        elif name in ("sum", "amax"):
            dims = args[1] if len(args) > 1 else kwargs.get("dim")
            if list(dims) != [0] or (len(args) > 2 and args[2]) or kwargs.get("keepdim"):
                raise NotImplementedError(f"{name} over {dims}")
            self.know(result, name, (self.access(args[0]),))
        elif name == "index":
            table, (index,) = args[0], args[1]
            if self._is_known(table) or not table.is_contiguous():
                raise NotImplementedError("index into what is not a constant")
            spread = self.access(index)
            inner = result.ndim - index.ndim
            spread = Access(
                spread.node, spread.offset, (*spread.shape, *[1] * inner),
                (*spread.strides, *[0] * inner), spread.dtype,
            )  # fmt: skip
            self.know(result, "index", (self.access(table), spread.expanded(result.shape)))
        else:
            self._record_pointwise(name, result, args, kwargs)

    def _record_pointwise(self, name: str, result: Tensor, args: Any, kwargs: Any) -> None:
        alpha = kwargs.get("alpha", 1)
        if alpha != 1 or (name in ("add", "sub", "rsub") and len(args) > 2):
            raise NotImplementedError(f"{name} with a factor")
        if name == "clamp":
            args = (args[0], args[1] if len(args) > 1 else None, args[2] if len(args) > 2 else None)
            args = (args[0], kwargs.get("min", args[1]), kwargs.get("max", args[2]))
        if name == "clone":
            args = args[:1]
        if name == "rsub":
            name, args = "sub", args[1::-1]
        compute = result.dtype
        if name in COMPARISONS:
            compute = torch.result_type(*args[:2])
        elif name == "clone":
            compute = args[0].dtype
        operands = [
            self.access(arg).expanded(result.shape) if isinstance(arg, Tensor) else arg
            for arg in args
        ]
        self.know(result, name, tuple(operands), compute=compute)

    def know(
        self,
        tensor: Tensor,
        op: str,
        args: tuple[Any, ...],
        dim: int = 0,
        compute: torch.dtype | None = None,
    ) -> Node:
        """The node of `tensor`, from now on."""
        node = Node(
            op, args, tuple(tensor.shape), tensor.stride(), tensor.dtype,
            compute or tensor.dtype, dim, tensor if op == "constant" else None,
            len(self.graph.nodes),
        )  # fmt: skip
        self.graph.nodes.append(node)
        self._alive.append(tensor)
        if op != "constant":
            self._nodes[tensor.untyped_storage().data_ptr()] = node
        return node

    def _is_known(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._nodes

    def access(self, tensor: Tensor) -> Access:
        node = self._nodes.get(tensor.untyped_storage().data_ptr())
        if node is None:
            node = self.know(tensor.contiguous(), "constant", ())
            return Access(node, 0, node.shape, node.strides, node.dtype)
        offset = int(tensor.storage_offset())
        return Access(node, offset, tuple(tensor.shape), tensor.stride(), tensor.dtype)
