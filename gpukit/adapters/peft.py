"""Adapters of PEFT: the names in their files, and what each tensor does to the base.

    MODULE.lora_A.weight [r, in], MODULE.lora_B.weight [out, r]      W + s·B·A
    MODULE.lora_B.bias [out]                                         bias + s·b
    MODULE.lora_magnitude_vector                                     DoRA, a length a row
    MODULE.lora_embedding_A [r, tokens], MODULE.lora_embedding_B     the same, transposed
    MODULE.token_adapter.trainable_tokens_delta [n, width]           rows that take the place
    MODULE.weight, MODULE.base_layer.weight (or .bias)               all of it takes the place
    MODULE.modules_to_save.weight, MODULE.original_module.weight     the same again, and the base's
                                                                     own: of resized vocabularies
    MODULE[.base_layer].lora_A.weight                                of a parameter, see `experts`

before which stands `base_model.model.`, or nothing. The scale is α / r, with rsLoRA α / √r, both by
the patterns of adapter_config.json. What the file holds counts, not what target_modules lists.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from gpukit.adapters.delta import LowRank
from gpukit.adapters.experts import Layout, add_experts
from gpukit.adapters.fit import TRANSPOSED, Fit
from gpukit.adapters.peft_config import Settings
from gpukit.adapters.places import places
from gpukit.adapters.ties import same_numbers
from gpukit.adapters.values import Values

PREFIX = "base_model.model."
PARTS = {
    "lora_A.weight": "a", "lora_B.weight": "b", "lora_B.bias": "bias",
    "lora_embedding_A": "embedding_a", "lora_embedding_B": "embedding_b",
    "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
    "token_adapter.trainable_tokens_delta": "tokens", "trainable_tokens_delta": "tokens",
}  # fmt: skip
KEY = re.compile(
    rf"(?P<module>.+?)(?P<nest>(\.base_layer)*)\.(?P<part>{'|'.join(map(re.escape, PARTS))})",
    re.DOTALL,
)
WHOLE = re.compile(
    r"(?P<module>.+?)(\.base_layer|\.modules_to_save)?\.(?P<part>weight|bias)", re.DOTALL
)
ORIGINAL = ".original_module."


@dataclass
class Module:
    """The tensors of one module, by what they are for; `nested` by how deep they lie, 0 outermost,
    where several parameters of a module are trained."""

    parts: dict[str, Values] = field(default_factory=dict)
    nested: dict[int, dict[str, Values]] = field(default_factory=dict)


def fit_peft(
    fit: Fit, values: Mapping[str, Values], settings: Settings, layout: Layout | None
) -> None:
    """Add what the tensors `values` do to `fit`; `AdapterError` for what fits nowhere."""
    modules = _modules(fit, values)
    for name, module in modules.items():
        _add_whole(fit, name, module.parts)
    for name, module in modules.items():
        if not places(fit.base, name) and set(module.parts) <= {"a", "b"} and module.parts:
            inner = {0: {key: module.parts[key] for key in module.parts}, **module.nested}
            if add_experts(fit, name, inner, settings, layout):
                continue
        if module.nested:
            raise fit.fail(f"{name}: nested adapters of what is no stack of experts in the base")
        _add_matrix(fit, name, module.parts, settings)
        _add_embedding(fit, name, module.parts, settings)
        _add_tokens(fit, name, module.parts, settings)
    _check_listed(fit, modules, settings)


def _modules(fit: Fit, values: Mapping[str, Values]) -> dict[str, Module]:
    found: dict[str, Module] = {}
    for name, tensor in values.items():
        bare = name.removeprefix(PREFIX)
        if ORIGINAL in bare and name.replace(ORIGINAL, ".") in values:
            continue
        match = KEY.fullmatch(bare)
        if match is None and "lora_" in bare:
            raise fit.fail(f"{name}: unknown to LoRA; known ends are {', '.join(PARTS)}")
        match = match or WHOLE.fullmatch(bare)
        if match is None:
            raise fit.fail(f"{name}: neither a part of LoRA nor a weight of the base")
        module = found.setdefault(match["module"], Module())
        part = PARTS.get(match["part"], f"whole {match['part']}")
        depth = (match.groupdict().get("nest") or "").count(".base_layer")
        parts = module.nested.setdefault(depth, {}) if depth else module.parts
        if part in parts:
            if part.startswith("whole") and same_numbers(parts[part], tensor):
                continue
            raise fit.fail(f"{name} and {parts[part].name} are one tensor; remove one")
        parts[part] = tensor
    return found


def _pair(fit: Fit, name: str, parts: Mapping[str, Values], a: str, b: str) -> bool:
    """Whether both of a pair are there; `AdapterError` where one is."""
    if a in parts and b in parts:
        return True
    for there, missing in ((a, b), (b, a)):
        if there in parts:
            letter = missing[-1].upper()
            raise fit.fail(
                f"{name}: {parts[there].name} is there, its {letter} is not: truncated or edited; "
                "fetch the adapter again"
            )
    return False


def _check_rank(fit: Fit, name: str, found: int, settings: Settings, key: str) -> None:
    if found != (wanted := settings.rank(key)):
        raise fit.fail(
            f"{name}: A has rank {found}, adapter_config.json says {wanted}: its scale would be "
            "wrong; mend r or rank_pattern there"
        )


def _add_matrix(fit: Fit, name: str, parts: Mapping[str, Values], settings: Settings) -> None:
    if not _pair(fit, name, parts, "a", "b"):
        if "bias" in parts:
            raise fit.fail(f"{name}: {parts['bias'].name} is there, its A and B are not")
        return
    a, b = parts["a"], parts["b"]
    key = _key(name, settings)
    fit.pair(name, b, a)
    _check_rank(fit, name, a.shape[0], settings, key)
    magnitude = _magnitude(fit, name, parts, settings)
    scale = settings.scale(key)
    fit.low_rank(name, b, a, scale, magnitude=magnitude, transposed=_turned(name, settings))
    if "bias" in parts:
        fit.bias(name, parts["bias"], scale)


def _key(name: str, settings: Settings) -> str:
    """What patterns are matched with: the module's name, or that of its parameter if that was
    targeted."""
    parameter = f"{name}.weight"
    named = any(parameter == p or parameter.endswith(f".{p}") for p in settings.parameters)
    return parameter if named else name


def _turned(name: str, settings: Settings) -> bool:
    return settings.fan_in_fan_out or name.endswith(TRANSPOSED)


def _magnitude(
    fit: Fit, name: str, parts: Mapping[str, Values], settings: Settings
) -> Values | None:
    found = parts.get("magnitude")
    if found is None and settings.dora:
        raise fit.fail(f"{name}: use_dora, and no lora_magnitude_vector; fetch the adapter again")
    if found is not None and not settings.dora:
        raise fit.fail(f"{found.name} is DoRA's, and adapter_config.json does not say use_dora")
    return found


def _add_embedding(fit: Fit, name: str, parts: Mapping[str, Values], settings: Settings) -> None:
    if not _pair(fit, name, parts, "embedding_a", "embedding_b"):
        return
    a, b = parts["embedding_a"], parts["embedding_b"]
    fit.pair(name, b, a)
    _check_rank(fit, name, a.shape[0], settings, name)
    magnitude = _magnitude(fit, name, parts, settings)
    rows, width = a.shape[1], b.shape[0]
    tensor = fit.base.find(f"{name}.weight")
    known = tensor and fit.shape(tensor)
    if known != (rows, width):
        raise fit.fail(
            f"{name}: the delta is [{rows}, {width}], the base has {list(known or ()) or 'nothing'}"
        )
    assert tensor is not None
    record = LowRank(a.t, b.t, settings.scale(name), magnitude=magnitude, by_column=bool(magnitude))
    fit.add(tensor, record)


def _add_tokens(fit: Fit, name: str, parts: Mapping[str, Values], settings: Settings) -> None:
    if "tokens" not in parts:
        return
    ends = [key for key in settings.tokens if key in ("", name) or name.endswith(f".{key}")]
    if not ends:
        raise fit.fail(f"{name}: trained tokens that trainable_token_indices does not list")
    fit.rows(name, settings.tokens[ends[0]], parts["tokens"])


def _add_whole(fit: Fit, name: str, parts: Mapping[str, Values]) -> None:
    for end in ("weight", "bias"):
        if f"whole {end}" in parts:
            fit.replaced(f"{name}.{end}", parts[f"whole {end}"])


def _check_listed(fit: Fit, modules: Mapping[str, Module], settings: Settings) -> None:
    """A warning for each name that adapter_config.json lists and the file has nothing of, and for
    patterns that contradict each other."""
    for where, names in (("modules_to_save", settings.saved), ("target_modules", settings.modules)):
        idle = [
            name
            for name in names
            if not any(m == name or m.endswith(f".{name}") or f".{name}." in m for m in modules)
        ]
        if idle:
            shown = ", ".join(idle)
            fit.warn(f"{where} lists {shown}, and no tensor of the adapter belongs to it")
    unclear = [name for name in modules if settings.ambiguous(name)]
    if unclear:
        fit.warn(
            f"several patterns of rank_pattern or alpha_pattern match {unclear[0]} and "
            f"{len(unclear) - 1} others; the first in adapter_config.json counts, as in PEFT"
        )
