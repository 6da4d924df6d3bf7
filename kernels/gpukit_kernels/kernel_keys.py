"""What the machine code of a Triton kernel is made of, and its digest.

A key has the source text of the kernel and of every function that it calls, the values that they
take from their modules, its signature and constants, and what Triton is told. It is equal wherever
Triton, its assembler and these are: in the interpreter, too. Triton's own keys have the lines of
files in them, and not the values of other modules.
"""

import ast
import hashlib
import inspect
import textwrap
from dataclasses import dataclass
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import triton.language as tl

from gpukit_kernels.errors import QuantError
from gpukit_kernels.launched import Kernel

# Of two texts, that which is compiled.
INTERPRETED = "INTERPRETED"
Attributes = dict[tuple[int, ...], list[list[Any]]]


@dataclass(frozen=True)
class Inputs:
    """What Triton compiles besides the function: types by argument, and what it may rely on."""

    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: Attributes
    options: dict[str, Any]


def inputs(kernel: Kernel) -> Inputs:
    """As the launcher of `kernel` would have it compiled."""
    signature = {
        **kernel.pointers,
        **dict.fromkeys(kernel.integers, "i32"),
        **dict.fromkeys(kernel.floats, "fp32"),
        **dict.fromkeys(kernel.constants, "constexpr"),
    }
    # What a launcher finds out of real arguments: pointers and most widths are multiples of 16.
    order = list(kernel.function.arg_names)
    aligned = [*kernel.pointers, *(name for name in kernel.integers if name in kernel.aligned)]
    return Inputs(
        {name: signature[name] for name in order},
        kernel.constants,
        {(order.index(name),): [["tt.divisibility", 16]] for name in aligned},
        {
            "num_warps": kernel.warps,
            "num_stages": kernel.stages,
            "enable_fp_fusion": not kernel.exact,
        },
    )


def key(kernel: Kernel) -> str:
    """16 hexadecimal digits; `QuantError` names a value that no key can tell apart."""
    given = inputs(kernel)
    walk = _Walk()
    told = [
        walk.told(kernel.function, kernel.name),
        *(f"{name}={walk.told(given.constants[name], name)}" for name in sorted(given.constants)),
        *map(str, (given.signature, given.attributes, sorted(given.options.items()))),
    ]
    digest = hashlib.sha256("\n".join([*told, *walk.texts.values()]).encode())
    return digest.hexdigest()[:16]


class _Walk:
    """`texts` of all functions that values led to, by module and name, in the order of calls."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def told(self, value: Any, name: str) -> str:
        """`value` as text; of a function its name, and its text goes to `texts`."""
        if name.endswith(INTERPRETED):
            return "False"
        if isinstance(value, tl.constexpr):
            return self.told(value.value, name)
        if isinstance(value, bool | int | float | str | None):
            return repr(value)
        if isinstance(value, tuple | list):
            return f"({', '.join(self.told(each, name) for each in value)})"
        if isinstance(value, tl.dtype):
            return str(value)
        function = getattr(value, "fn", value)
        if isinstance(function, FunctionType) and not _of_triton(function):
            return self._function(function)
        if isinstance(value, ModuleType) or _of_triton(value):
            return ""  # its name stands in the text
        raise QuantError(f"{name} is a {type(value).__name__}: a key of a kernel cannot have it")

    def _function(self, function: FunctionType) -> str:
        name = f"{function.__module__}.{function.__qualname__}"
        if name in self.texts:
            return name
        self.texts[name] = ""  # a function may lead to itself
        text, paths = _read(function)
        found = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
        values: dict[str, str] = {}
        for path in paths:
            if path[0] not in found:
                continue  # Python's own
            value, seen = found[path[0]], 1
            while isinstance(value, ModuleType) and seen < len(path):
                value, seen = getattr(value, path[seen]), seen + 1
            values[".".join(path[:seen])] = self.told(value, ".".join(path[:seen]))
        self.texts[name] = f"{name}\n{text}\n{values}"
        return name


def _of_triton(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] == "triton"


@cache
def _read(function: FunctionType) -> tuple[str, list[tuple[str, ...]]]:
    """Its text without docstring and comments, and every name that it reads from outside, with the
    attributes that are asked of it: `("tl", "load")`."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(tree, ast.FunctionDef)
    if ast.get_docstring(tree) is not None:
        del tree.body[0]
    code, paths = function.__code__, set()
    local = {*code.co_varnames, *code.co_cellvars}
    for node in ast.walk(tree):
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id not in local:
            paths.add((node.id, *names))
    return ast.unparse(tree), sorted(paths)
