"""Adapters of parameters, as PEFT's target_parameters makes them: a stack of experts at once.

Of a stack `[E, rows, width]` of rank r: A is `[E·r, width]`, expert by expert; B is `[rows, r·E]`,
rank by rank. Where PEFT before 0.19 wrote them, the stack's dimensions have changed places: A is
`[E·r, rows]`, B `[width, r·E]`, and the delta is (B·A)ᵀ. Unsloth's older ones have B expert by
expert. Shapes tell the first two apart unless rows and width are the same; nothing tells the third.

Of two parameters of one module the second one's wrapper lies around the first one's, which has
`base_layer.` in its name: `gate_up_proj` inside, `down_proj` outside.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial

from gpukit.adapters.fit import Fit
from gpukit.adapters.peft_config import Settings
from gpukit.adapters.places import Stack, stack
from gpukit.adapters.values import Numbers, Values

# The order of the parameters in a module of experts.
ORDER = ("gate_up_proj", "down_proj")
SWAPPED_BEFORE = (0, 19)


class Layout(Enum):
    """How the tensors of experts lie in a file, where that has to be told."""

    PEFT = "peft"
    SWAPPED = "peft-0.18"
    BY_EXPERT = "unsloth"


@dataclass(frozen=True)
class _Parameter:
    module: str
    name: str
    a: Values
    b: Values


def add_experts(
    fit: Fit,
    module: str,
    nested: Mapping[int, Mapping[str, Values]],
    settings: Settings,
    layout: Layout | None,
) -> bool:
    """Whether `module` is a stack of experts in the base; then its deltas are in `fit`."""
    names = _names(module, settings)
    stacks = {name: found for name in names if (found := stack(fit.base, module, name))}
    if not stacks:
        return False
    if len(names) != len(nested) or set(nested) != set(range(len(names))):
        raise fit.fail(
            f"{module}: {len(nested)} trained parameters in the file, {len(names)} in "
            f"target_parameters ({', '.join(names)}); fetch the adapter again"
        )
    for depth, name in enumerate(reversed(names)):
        parts = nested[depth]
        if set(parts) != {"a", "b"} or name not in stacks:
            raise fit.fail(f"{module}.{name}: A and B of experts, and the base's stack are needed")
        _add(fit, _Parameter(module, name, parts["a"], parts["b"]), stacks[name], settings, layout)
    return True


def _names(module: str, settings: Settings) -> list[str]:
    """The parameters of `module` that were trained, the innermost first."""
    found = dict.fromkeys(
        parameter.rpartition(".")[2]
        for parameter in settings.parameters
        if _ends(f"{module}.{parameter.rpartition('.')[2]}", parameter)
    )
    if not found and module.endswith("experts"):
        return list(ORDER)
    return sorted(found, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def _ends(name: str, parameter: str) -> bool:
    return name == parameter or name.endswith(f".{parameter}")


def _add(
    fit: Fit, parameter: _Parameter, to: Stack, settings: Settings, layout: Layout | None
) -> None:
    name, count = f"{parameter.module}.{parameter.name}", len(to.experts)
    rank = settings.rank(name)
    a, b = parameter.a, parameter.b
    sizes = (("A", a, 0), ("B", b, 1))
    for letter, values, dimension in sizes:
        if len(values.shape) != 2 or values.shape[dimension] != count * rank:
            raise fit.fail(
                f"{name}: {letter} has shape {list(values.shape)}, {count} experts of rank {rank} "
                f"make {count * rank}"
            )
    swapped = _swapped(fit, parameter, to, settings, layout)
    by_expert = layout is Layout.BY_EXPERT
    scale = settings.scale(name)
    for expert, places in enumerate(to.experts):
        one_a = a.rows(expert * rank, rank)
        change = partial(_expert, expert=expert, count=count, by_expert=by_expert)
        one_b = b.changed(change, (b.shape[0], rank))
        if swapped:
            one_a, one_b = one_b.t, one_a.t
        for place in places:
            fit.placed(place, one_b, one_a, scale)


def _expert(b: Numbers, expert: int, count: int, by_expert: bool) -> Numbers:
    """B of one expert `[rows, rank]`."""
    if by_expert:
        return b.reshape(b.shape[0], count, -1)[:, expert]
    return b.reshape(b.shape[0], -1, count)[:, :, expert]


def _swapped(
    fit: Fit, parameter: _Parameter, to: Stack, settings: Settings, layout: Layout | None
) -> bool:
    """Whether rows and width have changed places; `AdapterError` where nobody can know."""
    name = f"{parameter.module}.{parameter.name}"
    found = parameter.b.shape[0], parameter.a.shape[1]
    fits, turned = found == (to.rows, to.width), found == (to.width, to.rows)
    if not fits and not turned:
        raise fit.fail(
            f"{name}: B·A is {list(found)}, the base's experts are {[to.rows, to.width]}; this "
            "adapter was made for another base"
        )
    if fits != turned:
        return turned
    if layout is not None:
        return layout is Layout.SWAPPED
    version = _version(settings.version)
    if version is None:
        raise fit.fail(
            f"{name}: experts of {to.rows} by {to.width} do not tell how A and B lie, and "
            "adapter_config.json has no peft_version: say it (moe_layout "
            f"{', '.join(layout.value for layout in Layout)})"
        )
    return version < SWAPPED_BEFORE


def _version(text: str | None) -> tuple[int, ...] | None:
    numbers = (text or "").split(".")[:2]
    if len(numbers) < 2 or not all(part.isdecimal() and len(part) < 9 for part in numbers):
        return None
    return tuple(int(part) for part in numbers)
