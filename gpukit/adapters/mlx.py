"""Adapters of mlx-lm: its layout, its scale, and its full fine-tunes.

    MODULE.lora_a [in, r], MODULE.lora_b [r, out]       W + s·(a·b)ᵀ
    MODULE.m [out]                                      DoRA, a length a row
    embed_tokens.lora_a [tokens, r], .lora_b [r, width] W + s·a·b
    switch_mlp.MATRIX.lora_a [E, r, in] or [E·r, in], .lora_b [E, out, r]    of all experts
    NAME                                                a full fine-tune: takes the place

The scale is what adapter_config.json says, not α / r; the first mlx-lm also had an α, and took
scale · α / r. Only the last layers are trained, as many as `num_layers` says.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpukit.adapters.base import canonical
from gpukit.adapters.fit import Fit
from gpukit.adapters.numbers import wrong_rank, wrong_scale
from gpukit.adapters.places import stack
from gpukit.adapters.values import Values
from gpukit.errors import AdapterError, one_line

KINDS = ("lora", "dora", "full")
PART = re.compile(r"(?P<module>.+)\.(?P<part>lora_a|lora_b|m)", re.DOTALL)
# What mlx-lm calls the experts of a layer.
SWITCH, EXPERTS = "switch_mlp", "experts"


@dataclass(frozen=True)
class MLXSettings:
    """What of mlx-lm's adapter_config.json decides what the tensors mean."""

    kind: str
    rank: int
    scale: float
    base: str | None


def is_mlx(found: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is one of mlx-lm."""
    return "peft_type" not in found and ("fine_tune_type" in found or "lora_parameters" in found)


def mlx_settings(path: Path, found: Mapping[str, Any]) -> MLXSettings:
    """What the object in the adapter_config.json at `path` means; `AdapterError` for what makes no
    sense."""
    kind = found.get("fine_tune_type", "lora")
    if kind not in KINDS:
        raise _error(path, f"fine_tune_type is {str(kind)[:40]!r}; known: {', '.join(KINDS)}")
    model = found.get("model")
    base = model if isinstance(model, str) and model else None
    if kind == "full":
        return MLXSettings(kind, 0, 1.0, base)
    said = found.get("lora_parameters")
    if not isinstance(said, dict):
        raise _error(path, "no lora_parameters with the rank and the scale; mlx-lm writes them")
    rank: Any = said.get("rank")
    scale = _number(path, said, "scale")
    if wrong := wrong_rank(rank):
        raise _error(path, f"rank is {wrong}")
    if said.get("alpha") is not None:
        scale *= _number(path, said, "alpha") / rank
    return MLXSettings(kind, rank, scale, base)


def _number(path: Path, said: Mapping[str, Any], name: str) -> float:
    if wrong := wrong_scale(said.get(name)):
        raise _error(path, f"{name} in lora_parameters is {wrong}")
    return float(said[name])


def _error(path: Path, what: str) -> AdapterError:
    return AdapterError(one_line(f"{path}: {what}"))


def fit_mlx(fit: Fit, values: Mapping[str, Values], settings: MLXSettings) -> None:
    """Add what the tensors `values` do to `fit`; `AdapterError` for what fits nowhere."""
    modules: dict[str, dict[str, Values]] = {}
    for name, tensor in values.items():
        match = PART.fullmatch(name)
        if match and settings.kind != "full":
            modules.setdefault(match["module"], {})[match["part"]] = tensor
        else:
            fit.replaced(name, tensor)
    for module, parts in modules.items():
        _check(fit, module, parts, settings)
        if f".{SWITCH}." in module:
            _add_switch(fit, module, parts["lora_a"], parts["lora_b"], settings)
        elif fit.base.find(f"{module}.weight") == fit.base.embedding is not None:
            _add_embedding(fit, module, parts, settings)
        else:
            a, b = _matrix(fit, parts["lora_a"]).t, _matrix(fit, parts["lora_b"]).t
            fit.pair(module, b, a)
            _check_rank(fit, module, a.shape[0], settings)
            fit.low_rank(module, b, a, settings.scale, magnitude=parts.get("m"))


def _check(fit: Fit, module: str, parts: Mapping[str, Values], settings: MLXSettings) -> None:
    wanted = {"lora_a", "lora_b", *(("m",) if settings.kind == "dora" else ())}
    if set(parts) != wanted:
        lacking, more = sorted(wanted - set(parts)), sorted(set(parts) - wanted)
        what = f"no {', '.join(lacking)}" if lacking else f"{', '.join(more)} of another kind"
        raise fit.fail(f"{module}: {what} for fine_tune_type {settings.kind}; fetch it again")


def _matrix(fit: Fit, values: Values) -> Values:
    if len(values.shape) != 2:
        raise fit.fail(f"{values.name} has shape {list(values.shape)}; a matrix is needed")
    return values


def _check_rank(fit: Fit, module: str, found: int, settings: MLXSettings) -> None:
    if found != settings.rank:
        raise fit.fail(
            f"{module}: its rank is {found}, adapter_config.json says {settings.rank}; mend rank "
            "there"
        )


def _add_embedding(
    fit: Fit, module: str, parts: Mapping[str, Values], settings: MLXSettings
) -> None:
    b, a = _matrix(fit, parts["lora_a"]), _matrix(fit, parts["lora_b"])
    fit.pair(module, b, a)
    _check_rank(fit, module, a.shape[0], settings)
    fit.low_rank(module, b, a, settings.scale, magnitude=parts.get("m"))


def _add_switch(fit: Fit, module: str, a: Values, b: Values, settings: MLXSettings) -> None:
    """All experts of one matrix."""
    stem, _, matrix = canonical(module).replace(f".{SWITCH}.", f".{EXPERTS}.").rpartition(".")
    to = stack(fit.base, stem, matrix)
    if to is None:
        raise fit.fail(f"{module}: the base has no experts of that name")
    count, rank = len(to.experts), settings.rank
    flat, each = (count * rank, to.width), (count, rank, to.width)
    if a.shape not in (flat, each) or b.shape != (count, to.rows, rank):
        raise fit.fail(
            f"{module}: lora_a and lora_b have shapes {list(a.shape)} and {list(b.shape)}; "
            f"{list(each)} and {[count, to.rows, rank]} belong to the base and the rank"
        )
    for number, places in enumerate(to.experts):
        one_a = a.rows(number * rank, rank) if a.shape == flat else a.matrix(number)
        one_b = b.matrix(number)
        for place in places:
            fit.placed(place, one_b, one_a, settings.scale)
