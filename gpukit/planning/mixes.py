"""File types: which type each tensor of a quantised model gets, by the rules of llama-quantize."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpukit.errors import ArgumentError
from gpukit.formats.file_types import FileType
from gpukit.formats.gguf_fields import TensorSpec, layer_of, type_sizes
from gpukit.planning.mix_rules import (
    AT_LEAST_Q8_0,
    EIGHT_EXPERTS_O,
    EMBEDDING_TYPES,
    EMBEDDINGS,
    ENDS,
    FALCON_RULES,
    FALLBACKS,
    KINDS,
    LAYERS_70B,
    LIFTED_70B,
    LOWEST,
    LOWEST_OF_EIGHT,
    OUTPUT,
    OUTPUT_TYPES,
    RULES,
    WANT_IMPORTANCE,
    WHERE,
    Mix,
)
from gpukit.planning.overrides import (
    EMBEDDING_TYPE,
    LEAVE_OUTPUT,
    OUTPUT_TYPE,
    Overrides,
    pattern_option,
)
from gpukit.planning.untouched import quantizable


def choose_types(
    tensors: Sequence[TensorSpec],
    metadata: Callable[[str, Any], Any],
    file_type: FileType,
    overrides: Overrides | None = None,
    importance: bool = False,
) -> list[str]:
    """The type of each tensor; `tensors` in output order with their source types."""
    return [c.type for c in choose(tensors, metadata, file_type, overrides, importance)]


@dataclass(frozen=True)
class Choice:
    """What a tensor becomes, and what it was meant to be: another where blocks do not fit.

    `option` is the option that decided, empty where none did.
    """

    type: str
    wanted: str
    option: str = ""


def choose(
    tensors: Sequence[TensorSpec],
    metadata: Callable[[str, Any], Any],
    file_type: FileType,
    overrides: Overrides | None = None,
    importance: bool = False,
) -> list[Choice]:
    """The type of each tensor; `tensors` in output order with their source types.

    `metadata` is a `get(key, default)` over the model's fields; `importance` says whether there
    are importance weights, which some rules look at.
    """
    overrides = overrides or Overrides()
    mix = _mix(tensors, metadata, file_type, importance)
    return [_choose(tensor, mix, overrides) for tensor in tensors]


def needs_importance(name: str, kind: str, file_type: FileType) -> bool:
    """Whether llama-quantize refuses to make tensor `name` a `kind` without importance weights."""
    wants = kind in WANT_IMPORTANCE or (file_type.name == "Q2_K_S" and kind == "Q2_K")
    return wants and name not in ENDS


def _mix(
    tensors: Sequence[TensorSpec],
    metadata: Callable[[str, Any], Any],
    file_type: FileType,
    importance: bool,
) -> Mix:
    arch = metadata("general.architecture", "")

    def number(key: str) -> int:
        value = metadata(f"{arch}.{key}", 0)
        value = value[0] if isinstance(value, list) and value else value
        return int(value) if isinstance(value, int | float) else 0

    n_head, n_head_kv, n_layer = (
        number("attention.head_count"),
        number("attention.head_count_kv"),
        number("block_count"),
    )
    n_expert = number("expert_count")
    return Mix(
        file_type=file_type,
        arch=arch,
        n_layer=n_layer,
        n_v=sum(_kind(tensor.name) == "v" for tensor in tensors),
        n_expert=n_expert,
        gqa=n_head // n_head_kv if n_head_kv else 0,
        tied=all(tensor.name != OUTPUT for tensor in tensors),
        is_70b=LAYERS_70B.get(arch) == n_layer
        and (arch != "llama" or (n_expert != 8 and n_head != n_head_kv)),
        importance=importance,
    )


def _choose(tensor: TensorSpec, mix: Mix, overrides: Overrides) -> Choice:
    name = tensor.name
    if name in overrides.exact:
        return _exactly(tensor, overrides.exact[name], overrides.exact_option)
    if not quantizable(tensor, mix.arch):
        return Choice(tensor.type, tensor.type)
    if overrides.leave_output and name == OUTPUT:
        return Choice(tensor.type, tensor.type, LEAVE_OUTPUT)
    pattern = next((found for found in overrides.patterns if found[0].search(name)), None)
    # The embeddings of each layer are a large table of their own, which a pattern may name.
    named = name == EMBEDDINGS[1] and pattern is not None
    if overrides.embedding_type and name in EMBEDDINGS and not named:
        return _exactly(tensor, overrides.embedding_type, EMBEDDING_TYPE)
    if overrides.output_type and name == OUTPUT:
        return _exactly(tensor, overrides.output_type, OUTPUT_TYPE)
    if pattern is not None:
        return _fitted(tensor, pattern[1], pattern_option(*pattern))
    if overrides.pure or mix.file_type.is_float:
        return _fitted(tensor, mix.file_type.default)
    if overrides.output_type and mix.tied and name in EMBEDDINGS:
        return _fitted(tensor, overrides.output_type, OUTPUT_TYPE)
    return _fitted(tensor, _mixed(tensor, mix))


def _fitted(tensor: TensorSpec, wanted: str, option: str = "") -> Choice:
    return Choice(_fitting(tensor, wanted), wanted, option)


def _exactly(tensor: TensorSpec, wanted: str, option: str) -> Choice:
    """`wanted` and nothing in its place; `ArgumentError` where its blocks do not fit."""
    if fault := unfitting(tensor, wanted):
        small = ", ".join(n for n in ("Q8_0", "F16") if not unfitting(tensor, n))
        raise ArgumentError(f"{option} {wanted}: {tensor.name}: {fault}; choose another: {small}")
    return Choice(wanted, wanted, option)


def _kind(name: str) -> str | None:
    return next((kind for part, kind in KINDS if part in name), None)


def _mixed(tensor: TensorSpec, mix: Mix) -> str:
    default = mix.file_type.default
    if any(part in tensor.name for part in AT_LEAST_Q8_0.get(mix.arch, ())):
        return "Q8_0"
    moe = mix.file_type.name == "MXFP4_MOE"
    if tensor.name == OUTPUT or (mix.tied and tensor.name in EMBEDDINGS):
        if moe or mix.falcon or tensor.ne[0] % type_sizes()[default].block:
            return "Q8_0"
        return default if default == "Q8_0" else OUTPUT_TYPES.get(mix.file_type.name, "Q6_K")
    kind = _kind(tensor.name)
    if moe:
        # Experts are stacked in a third dimension; in one architecture other tensors are, too.
        stacked = len(tensor.ne) > 2 and tensor.ne[2] > 1
        feed_forward = mix.arch != "bailingmoe3" or kind in ("up", "gate", "down")
        return default if stacked and feed_forward else "Q8_0"
    if tensor.name in EMBEDDINGS:
        return EMBEDDING_TYPES.get(mix.file_type.name, default)
    chosen = _by_rule(tensor.name, kind, mix)
    if mix.file_type.name in LOWEST:
        lifted = LOWEST_OF_EIGHT if mix.n_expert == 8 else {}
        return lifted.get(kind or "", chosen)
    if kind == "v" and mix.is_70b:
        chosen = LIFTED_70B.get(chosen, chosen)
    if mix.n_expert == 8:
        if kind in ("v", "k"):
            return "Q8_0"
        if kind == "o" and not mix.falcon:
            return "Q5_K" if mix.file_type.name in EIGHT_EXPERTS_O else default
    return chosen


def _by_rule(name: str, kind: str | None, mix: Mix) -> str:
    if kind is None:
        return mix.file_type.default
    index, count = mix.seen.get(kind, 0), mix.n_v if kind == "v" else mix.n_layer
    mix.seen[kind] = index + 1
    if mix.n_expert > 1 and kind != "v" and mix.file_type.name not in LOWEST:
        index = layer_of(name) or 0
    rules = (FALCON_RULES if mix.falcon else RULES).get(kind, {}).get(mix.file_type.name, ())
    return next(
        (wanted for where, wanted in rules if WHERE[where](mix, index, count)),
        mix.file_type.default,
    )


def _fitting(tensor: TensorSpec, wanted: str) -> str:
    """`wanted`, or what takes its place where blocks do not divide the rows."""
    for candidate in (wanted, FALLBACKS.get(wanted)):
        if candidate is not None and not unfitting(tensor, candidate):
            return candidate
    return "F16"


def unfitting(tensor: TensorSpec, kind: str) -> str:
    """Why rows of `tensor` are no blocks of `kind`, in words; empty where they are."""
    block, width = type_sizes()[kind].block, tensor.ne[0]
    return f"rows of {width} are no multiple of {block}" if width % block else ""


def output_order(name: str) -> tuple[int, bytes]:
    """The sort key of llama-quantize's output: layer, what is in none first, then name."""
    layer = layer_of(name)
    return -1 if layer is None else layer, name.encode()
