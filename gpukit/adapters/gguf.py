"""GGUF adapters as llama.cpp has them: names and rows of a GGUF, brought back to the checkpoint's.

    NAME.lora_a [r, in], NAME.lora_b [out, r]       W + s·B·A, s = α / r, or 1 without α
    token_embd.weight.lora_a [tokens, r]            the two have changed sides: W + s·A·Bᵀ
    NAME.lora_a [E, r, in], NAME.lora_b [E, out, r] of all experts
    NAME (a norm)                                   takes the place; llama.cpp passes over it

(shapes outermost first, as in numpy). The rows of B are in the order that a GGUF has: what the
converter moved (queries and keys of a Llama) is moved back.
"""

from collections.abc import Mapping
from functools import partial
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from gpukit.adapters.base import Base
from gpukit.adapters.delta import LowRank
from gpukit.adapters.fit import Fit
from gpukit.adapters.values import Numbers, Values
from gpukit.errors import GGUFError
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_split import GGUFModel
from gpukit.models.config import ModelConfig
from gpukit.models.registry import (
    Architecture,
    architecture_of,
    architecture_of_class,
    architectures,
)
from gpukit.models.rules import ColumnOrder, Rule, Span

ALPHA, ALORA = "adapter.lora.alpha", "adapter.alora.invocation_tokens"
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
ENDS = (".lora_a", ".lora_b")


def fit_gguf(fit: Fit, file: GGUFFile, values: Mapping[str, Values]) -> None:
    """Add what the tensors `values` of `file` do to `fit`; `AdapterError` for what fits nowhere."""
    arch = architecture_of_class(fit.base.config, str(fit.base.path / "config.json"))
    alpha = _alpha(fit, file, arch)
    rules = _rules(fit.base, arch)
    pairs: dict[str, dict[str, Values]] = {}
    for name, tensor in values.items():
        end = next((end for end in ENDS if name.endswith(end)), "")
        pairs.setdefault(name.removesuffix(end), {})[end] = tensor
    for name, parts in pairs.items():
        rule = rules.get(name)
        if rule is None:
            raise fit.fail(f"{name}: a {arch.name} GGUF of this base has no such tensor")
        if set(parts) == {""}:
            _add_whole(fit, rule, parts[""])
        elif set(parts) == set(ENDS):
            _add_pair(fit, rule, parts[".lora_a"], parts[".lora_b"], alpha)
        else:
            shown = ", ".join(sorted(name + end for end in parts))
            raise fit.fail(f"{shown}: lora_a and lora_b are needed; fetch the adapter again")


def _alpha(fit: Fit, file: GGUFFile, arch: Architecture) -> float:
    """The file's α; `AdapterError` for a file that is no LoRA of the base's architecture."""
    kind, tuner = file.get("general.type"), file.get("adapter.type")
    if kind != "adapter" or tuner != "lora":
        raise fit.fail(
            f"a GGUF of general.type {str(kind)[:40]!r} and adapter.type {str(tuner)[:40]!r}; an "
            "adapter and lora are needed"
        )
    tokens = file.get(ALORA) or []
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise fit.fail(f"aLoRA works only behind tokens, and {ALORA} is {str(tokens)[:40]!r}")
    fit.invocation = tuple(tokens)
    made_for = file.get("general.architecture")
    if made_for != arch.name:
        raise fit.fail(f"made for {str(made_for)[:40]!r}, the base is {arch.name!r}")
    alpha = file.get(ALPHA, 0.0)  # llama.cpp takes one that is not there for 0
    if not isinstance(alpha, float) or not isfinite(alpha):
        raise fit.fail(f"{ALPHA} is {str(alpha)[:40]}; a number is needed")
    return alpha


def gguf_base(model: GGUFModel) -> Base:
    """A GGUF as a base: the checkpoint that it could have been made from; its `rules` bring deltas
    back (`moved`). `GGUFError` for an architecture that is unknown, or metadata that lack
    something."""
    named = architecture_of(_text(model, "general.architecture"), str(model.path))
    try:
        config = named.restore(model.fields)
    except GGUFError as error:
        raise GGUFError(f"{model.path}: {error}") from None
    # Several classes become one architecture: the one that makes most of the tensors is meant.
    alike = [arch for arch in architectures() if arch.name == named.name]
    arch, rules = max(((a, _made(a, config, model)) for a in alike), key=lambda pair: len(pair[1]))
    spans = [span for rule in rules.values() for span in rule.spans]
    said = {
        "architectures": [arch.classes[0]],
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head_kv,
        "tie_word_embeddings": HEAD not in rules,
    }
    name = _text(model, "general.name")
    settings = {**said, "_name_or_path": name} if name else said
    shapes = {span.source: span.shape for span in spans}
    return Base(model.path, shapes, settings, tuple(rules.values()))


def _made(arch: Architecture, config: ModelConfig, model: GGUFModel) -> dict[str, Rule]:
    """The first rule for each tensor of `model` that `arch` makes."""
    found: dict[str, Rule] = {}
    for rule in arch.rules(config):
        if rule.name in model.tensors:
            found.setdefault(rule.name, rule)
    return found


def _text(model: GGUFModel, key: str) -> str | None:
    field = model.fields.get(key)
    return field.value if field is not None and isinstance(field.value, str) else None


def _rules(base: Base, arch: Architecture) -> dict[str, Rule]:
    """How each tensor of a GGUF of `base` is made; of several ways the one whose sources exist."""
    if base.rules:
        return {rule.name: rule for rule in base.rules}
    found: dict[str, Rule] = {}
    for rule in arch.rules(arch.read(base.config)):
        if rule.name not in found and all(base.find(source) for source in rule.sources):
            found[rule.name] = rule
    return found


def _add_whole(fit: Fit, rule: Rule, values: Values) -> None:
    span = rule.spans[0]
    if len(rule.spans) > 1 or span.transform is not None:
        raise fit.fail(f"{rule.name}: a whole tensor that a GGUF has changed cannot be merged")
    fit.replaced(span.source, values)


def _add_pair(fit: Fit, rule: Rule, a: Values, b: Values, alpha: float) -> None:
    if rule.name == EMBEDDING and len(a.shape) == len(b.shape) == 2:
        a, b = b.t, a
    shape = rule.full_shape
    rank = b.shape[-1]
    wanted = (*shape[:-2], rank, shape[-1]), (*shape[:-1], rank)
    if len(shape) < 2 or (a.shape, b.shape) != wanted or not rank:
        raise fit.fail(
            f"{rule.name}: lora_a and lora_b of shapes {list(a.shape)} and {list(b.shape)} for a "
            f"tensor of {list(shape)} in the base; this adapter was made for another base"
        )
    scale = alpha / rank if alpha else 1.0
    each, at = shape[-2], 0
    for span in rule.spans:
        # A span lies within one matrix, or is several whole ones.
        rows = min(each, span.rows)
        for done in range(0, span.rows, rows):
            part = span._replace(first=span.first + done, rows=rows)
            matrix, row = divmod(at + done, each)
            whole = (a, b) if len(shape) == 2 else (a.matrix(matrix), b.matrix(matrix))
            _add_span(fit, part, row, *whole, scale)
        at += span.rows


def _add_span(fit: Fit, span: Span, row: int, a: Values, b: Values, scale: float) -> None:
    """The rows of one span: those of B·A from `row` on."""
    tensor = fit.base.find(span.source)
    assert tensor is not None
    if fit.base.tensors[tensor] != span.shape:
        raise fit.fail(
            f"{tensor} of the base has shape {list(fit.base.tensors[tensor])}, its config.json "
            f"asks for {list(span.shape)}"
        )
    part = b.rows(row, span.rows)
    if isinstance(span.transform, ColumnOrder):
        a = a.changed(span.transform.back)
    elif span.transform is not None:
        part = part.changed(partial(_back, order=_order(fit, span)))
    fit.add(tensor, LowRank(part, a, scale, span.first))


def _order(fit: Fit, span: Span) -> NDArray[np.intp]:
    """For each row of the checkpoint the one of the GGUF that holds it."""
    assert span.transform is not None
    numbers = np.arange(span.rows, dtype=np.float64)[:, None]
    moved = span.transform(numbers).reshape(-1)
    order: NDArray[np.intp] = moved.argsort()
    if not np.array_equal(moved[order], numbers[:, 0]):
        raise fit.fail(f"{span.source}: a GGUF has changed its values; no delta can be moved back")
    return order


def _back(values: Numbers, order: NDArray[np.intp]) -> Numbers:
    return np.take(values, order, 0)
