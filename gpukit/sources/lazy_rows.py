"""Rows of the lazy tensors of llama.cpp's converter, without making the whole of each.

The converter (gguf/lazy.py) notes what is to be done with a tensor as a graph: `_func` of `_args`.
Of operations that leave rows where they are only the rows asked for are made; everything else is
made whole, one tensor at a time. Nothing is kept in the graph. `converter_child` imports this in
its own process, where nothing of gpukit is.
"""

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# Operations that change values one by one.
ELEMENTWISE = frozenset(
    ("to", "float", "half", "bfloat16", "numpy", "astype", "contiguous", "clone", "detach", "cpu")
)
# Operations that leave values in their order, if they leave the length of a row.
RESHAPING = frozenset(("view", "reshape", "squeeze", "unsqueeze", "flatten"))
JOINING = frozenset(("stack", "cat", "concat", "concatenate"))
# Whole tensors that are kept because more rows of them will be asked for: two readers may be at
# both sides of a border. Beyond this many bytes together, only the last one is.
KEPT, KEPT_BYTES = 2, 1 << 30


def is_lazy(x: Any) -> bool:
    """Whether `x` is one of the converter's lazy tensors, of torch or of NumPy."""
    return hasattr(type(x), "_recurse_apply") and hasattr(x, "_args")


def evaluate(x: Any) -> Any:
    """The value of a lazy tensor, or `x` itself; nothing is kept in the graph."""
    if not is_lazy(x):
        return x
    if x._data is not None:
        return x._data
    return x._func(*type(x)._recurse_apply(x._args, evaluate), **x._kwargs)


def operation(x: Any) -> str:
    """The name of the method or function that makes the lazy tensor `x`; '' for one unknown."""
    func: Any = x._func
    code = getattr(func, "__code__", None)
    name = getattr(func, "__qualname__", "")
    if code is None or "<lambda>" not in name:
        return str(getattr(func, "__name__", ""))
    if "__getattr__" in name and "name" in code.co_freevars:
        cells: Any = func.__closure__ or ()
        return str(cells[code.co_freevars.index("name")].cell_contents)
    for known in ("numpy", "astype"):
        if name.endswith(f".{known}.<locals>.<lambda>"):
            return known
    return ""


def shape_of(x: Any) -> tuple[int, ...]:
    """The shape of a tensor, lazy or not."""
    return tuple(x._meta.shape if is_lazy(x) else x.shape)


def flat(x: Any) -> "Tensor":
    """A tensor or an array as a matrix of its rows; one of fewer dimensions is one row."""
    import torch

    if isinstance(x, np.ndarray):
        # Mapped files are read only, which torch warns of; nobody writes here.
        x = torch.from_numpy(x if x.flags.writeable else np.array(x))
    found: Tensor = x.reshape(-1, x.shape[-1]) if x.dim() else x.reshape(1, 1)
    return found


def leaf_dtype(x: Any) -> str:
    """What the values of `x` are stored as, such as float32, where only moves and casts lie
    between; '' where they are computed."""
    while is_lazy(x) and x._data is None:
        name, args = operation(x), x._args
        first = args[0] if args else None
        if name in JOINING and isinstance(first, (list, tuple)) and first:
            first = first[0]
        if not is_lazy(first):
            if isinstance(first, (list, tuple)):  # of tensors that something is made of
                return ""
            return str(x._meta.dtype).removeprefix("torch.")
        if name not in ELEMENTWISE | RESHAPING | JOINING:
            return ""
        x = first
    return str(x.dtype).removeprefix("torch.")


class Rows:
    """Rows of lazy tensors, and a few whole tensors that they were cut from."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Any, Tensor]] = {}

    def of(self, x: Any, begin: int, end: int) -> "Tensor":
        """Rows `begin` to `end` of the matrix that `x` is: of the logical order of its values."""
        if not is_lazy(x):
            return self._eager(x, begin, end)
        if x._data is not None:
            return self._eager(x._data, begin, end)
        make = self._sliced(x)
        return make(begin, end) if make is not None else self._cut(x, begin, end)

    def _eager(self, x: Any, begin: int, end: int) -> "Tensor":
        if x.ndim > 1 and isinstance(x, np.ndarray):
            return flat(x.reshape(-1, x.shape[-1])[begin:end])
        return flat(x)[begin:end]

    def _cut(self, x: Any, begin: int, end: int) -> "Tensor":
        """The rows of what is stored, or of all of `x`."""
        stored: Any = x._args[0] if x._args else None
        if hasattr(stored, "mmap_bytes"):
            return flat(evaluate(x))[begin:end]
        if hasattr(stored, "get_shape") and len(shape_of(x)) == 2:
            return flat(stored[begin:end])
        return self._whole(x)[begin:end]

    def _sliced(self, x: Any) -> "Callable[[int, int], Tensor] | None":
        """What makes rows of `x` alone; None where it has to be made whole."""
        name, args, shape = operation(x), x._args, shape_of(x)
        if not args or not shape:
            return None
        first, others = args[0], args[1:]
        if any(map(is_lazy, (*others, *x._kwargs.values()))):
            return None
        if name in JOINING:
            return self._joined(x)
        if not is_lazy(first) or not shape_of(first):
            return None
        if name in ELEMENTWISE and shape_of(first) == shape:
            return lambda begin, end: self._mapped(x, self.of(first, begin, end))
        # A view as another type has no numbers, or other rows.
        numbers = not x._kwargs and all(isinstance(n, (int, tuple, list)) for n in others)
        if name in RESHAPING and numbers and shape_of(first)[-1] == shape[-1]:
            return lambda begin, end: self.of(first, begin, end)
        return None

    def _mapped(self, x: Any, rows: "Tensor") -> "Tensor":
        """The cast or copy that `x` is, of some rows."""
        name = operation(x)
        if name == "numpy":
            return rows
        if name == "astype":
            return flat(rows.numpy().astype(*x._args[1:], **x._kwargs))
        found: Tensor = getattr(rows, name)(*x._args[1:], **x._kwargs)
        return found

    def _joined(self, x: Any) -> "Callable[[int, int], Tensor] | None":
        """Tensors one behind the other along the first dimension."""
        items, shape = x._args[0], shape_of(x)
        others = {**x._kwargs, **({"dim": x._args[1]} if len(x._args) == 2 else {})}
        along = others.pop("dim", others.pop("axis", 0))
        if others or len(x._args) > 2 or along != 0 or not isinstance(items, (list, tuple)):
            return None
        if len(shape) < 2 or any(not shape_of(i) or shape_of(i)[-1] != shape[-1] for i in items):
            return None
        # Joining values of several types makes them one.
        kinds = {str((i._meta if is_lazy(i) else i).dtype) for i in items}
        if len(kinds) != 1:
            return None

        import torch

        def make(begin: int, end: int) -> "Tensor":
            parts, at = [], 0
            for item in items:
                rows = prod(shape_of(item)[:-1])
                low, high = max(begin - at, 0), min(end - at, rows)
                if low < high:
                    parts.append(self.of(item, low, high))
                at += rows
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        return make

    def _whole(self, x: Any) -> "Tensor":
        """All of `x`, kept for the next rows of it."""
        if id(x) in self._kept:
            return self._kept[id(x)][1]
        while len(self._kept) >= KEPT or (self._kept and self._size(x) + self._held > KEPT_BYTES):
            self._kept.pop(next(iter(self._kept)))
        found = flat(evaluate(x))
        # With the tensor itself, so that no other one has its number.
        self._kept[id(x)] = (x, found)
        return found

    @property
    def _held(self) -> int:
        return sum(kept.nbytes for _, kept in self._kept.values())

    @staticmethod
    def _size(x: Any) -> int:
        return int(prod(shape_of(x)) * x._meta.dtype.itemsize)
