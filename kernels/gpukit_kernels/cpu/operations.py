"""Operations of torch as C."""

import struct
from dataclasses import replace
from typing import Any

import torch

from gpukit_kernels.cpu.scopes import Scopes, Value, signed
from gpukit_kernels.cpu.trace import COMPARISONS, Access, Node

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def kind_of(dtype: torch.dtype) -> str:
    """The kind of a `Value` of `dtype`."""
    if dtype is torch.bool:
        return "m"
    return "f" if dtype in (torch.float32, torch.float64) else "i"


def literal(number: Any, dtype: torch.dtype) -> str:
    """C of a number in all lanes."""
    if kind_of(dtype) == "f":
        single = float(torch.tensor(float(number), dtype=torch.float32))
        (bits,) = struct.unpack("<i", struct.pack("<f", single))
        return f"bits_f(splat_i({bits & 0xFFFFFFFF:#x}))"
    if dtype is torch.bool:
        raise NotImplementedError("a truth that is a constant")
    return f"splat_i({signed(int(number))})"


def whole_literal(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, Value) and value.text.startswith("splat_i("):
        return int(value.text[8:-1])
    return None


def operation(node: Node, texts: list[Any]) -> str:
    """C of the operation of `node` on operands of its kind."""
    kind = kind_of(node.compute)
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
    if op == "copysign" and kind == "f":
        return f"signed_f({a}, {b})"
    if op == "sqrt" and node.compute is torch.float64:
        return f"root_f({a})"
    raise NotImplementedError(f"{op} of {node.compute}")


def extreme(node: Node) -> tuple[str, Access, Access] | None:
    """Of a `where` that takes one of the two floats that it compares: C of a function of two, and
    those."""
    condition, yes, no = node.args
    if not (isinstance(condition, Access) and isinstance(yes, Access) and isinstance(no, Access)):
        return None
    asked = condition.node
    if asked.op not in ("gt", "lt") or asked.compute is not torch.float32:
        return None
    if condition != Access(asked, 0, node.shape, asked.strides, torch.bool):
        return None
    low, high = asked.args if asked.op == "lt" else asked.args[::-1]
    if (yes, no) == (high, low):
        return "larger_f", yes, no
    if (yes, no) == (low, high):
        return "smaller_f", yes, no
    return None


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


def folded(node: Node, values: list[Any]) -> Value | None:
    """Bits of a byte that are still in their word."""
    first, *more = values
    if not (isinstance(first, Value) and first.mask and len(more) == 1):
        return None
    (second,) = more
    number = whole_literal(second)
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


def converted(scopes: Scopes, value: Value, have: torch.dtype, wanted: torch.dtype) -> Value:
    """`value`, a `have`, as a `wanted`, rounded as torch rounds."""
    if have == wanted:
        return value
    number = whole_literal(value)
    if have in WHOLE and wanted in WHOLE:
        if wanted is torch.uint8 and not value.mask:
            return scopes.line(f"{value.text} & 255", kind_of(wanted), [value])
        return value  # int16 is only made to be seen as float16
    value = scopes.plain(value)
    if have in WHOLE and wanted is torch.float32 and number is not None:
        return Value(literal(number, wanted), "f", 0)
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
    if text is None and have in WHOLE and wanted is torch.float32:
        text = "to_f({})"
    if text is None:
        raise NotImplementedError(f"{have} to {wanted}")
    return scopes.line(text.format(value.text), kind_of(wanted), [value])


def seen(scopes: Scopes, value: Value, have: torch.dtype, dtype: torch.dtype) -> Value:
    """The same bits as another type."""
    if have == dtype or {have, dtype} == {torch.int16, torch.float16}:
        return value
    if {have, dtype} == {torch.float32, torch.int32}:
        return scopes.line(
            f"bits_{kind_of(dtype)}({scopes.plain(value).text})", kind_of(dtype), [value]
        )
    if (have, dtype) == (torch.uint8, torch.int8):
        if value.mask == 255 and not value.up:
            shift = f"{value.text} << {24 - value.shift}" if value.shift < 24 else value.text
            return scopes.line(f"({shift}) >> 24", kind_of(dtype), [value])
        return scopes.line(f"({scopes.plain(value).text} << 24) >> 24", kind_of(dtype), [value])
    raise NotImplementedError(f"{have} seen as {dtype}")


def operand(scopes: Scopes, value: Any, have: torch.dtype | None, wanted: torch.dtype) -> Value:
    """An argument, a `have` or a number, as a `wanted`."""
    if have is None:
        return Value(literal(value, wanted), kind_of(wanted), 0)
    if isinstance(value, Value) and have != wanted:
        return converted(scopes, value, have, wanted)
    return scopes.plain(value)
