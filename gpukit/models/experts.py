"""Experts of a layer: what config.json says of them, and their matrices as rules of import.

In a checkpoint they lie one by one, or, as transformers 5 has them in memory, as stacks, gate and
up in one. In a GGUF each kind of matrix is one tensor, by number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpukit.errors import CheckpointError, GGUFError
from gpukit.formats.gguf_fields import Field
from gpukit.models.config import ModelConfig
from gpukit.models.rules import Rule, Span
from gpukit.models.values import MOST_EXPERTS, count, optional, whole

GATE, UP, DOWN = "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"
# How scores are made of a router's logits: numbers in `X.expert_gating_func` of a GGUF.
GATINGS = {"softmax": 1, "sigmoid": 2, "softmax_of_chosen": 3}


@dataclass(frozen=True)
class Names:
    """What the experts of a layer are called in a checkpoint.

    one       the matrix of one expert, with {} for its number and {} for `matrices`
    matrices  name there -> name in a GGUF, in the order in which the converter writes them
    stacks    the module whose `gate_up_proj` and `down_proj` hold all of them
    together  the three tensors are written one behind the other, however the stacks are read
    """

    one: str
    matrices: Mapping[str, str]
    stacks: str
    together: bool


def with_experts(
    model: ModelConfig,
    config: Mapping[str, Any],
    key: str,
    experts: int | None = None,
    used: int | None = None,
    used_key: str = "num_experts_per_tok",
) -> ModelConfig:
    """`model` with the number of its experts, `key` in config.json or else `experts`, and of those
    that take part (`used` by default); `CheckpointError` where they are fewer."""
    model = replace(
        model,
        n_expert=whole(config, key, experts, most=MOST_EXPERTS),
        n_expert_used=whole(config, used_key, used),
    )
    if model.n_expert_used > model.n_expert:
        raise CheckpointError(
            f"config.json: {used_key} is {model.n_expert_used}, {key} is {model.n_expert}"
        )
    return model


def with_groups(model: ModelConfig, config: Mapping[str, Any]) -> ModelConfig:
    """`model` with the groups that its experts are chosen in, where config.json says some;
    `CheckpointError` for groups that llama.cpp does not load."""
    said = [key for key in ("n_group", "topk_group") if config.get(key) is not None]
    groups, used = whole(config, "n_group", 1), whole(config, "topk_group", 1)
    if groups > 1 and not _are_groups(model, groups, used):
        raise CheckpointError(
            f"config.json: {model.n_expert_used} of {model.n_expert} experts cannot be chosen in "
            f"{used} (topk_group) of {groups} groups (n_group)"
        )
    return replace(
        model,
        n_expert_groups=groups if "n_group" in said else 0,
        n_expert_groups_used=used if "topk_group" in said else 0,
    )


def _are_groups(model: ModelConfig, groups: int, used: int) -> bool:
    # The best two of a group speak for it.
    size, rest = divmod(model.n_expert, groups)
    return not rest and size > 1 and used < groups and model.n_expert_used <= used * size


def with_stored_experts(config: ModelConfig, found: Mapping[str, Field]) -> ModelConfig:
    """`config` with the experts that a GGUF's metadata describe."""
    at = config.arch
    field = found.get(f"{at}.expert_count")
    if field is None or field.value == 0:
        return config
    experts = count(found, f"{at}.expert_count", most=MOST_EXPERTS)
    used = count(found, f"{at}.expert_used_count")
    if used > experts:
        raise GGUFError(f"{at}.expert_used_count is {used}, there are {experts} experts")
    config = replace(
        config,
        n_expert=experts,
        n_expert_used=used,
        n_ff_expert=count(found, f"{at}.expert_feed_forward_length", config.n_ff),
    )
    groups, some = (
        int(optional(found, f"{at}.expert_group_{key}")) for key in ("count", "used_count")
    )
    if groups > 1 and not _are_groups(config, groups, some):
        raise GGUFError(
            f"{at}.expert_group_count is {groups}, {some} of them used, for {used} of {experts} "
            "experts"
        )
    return replace(config, n_expert_groups=groups, n_expert_groups_used=some)


def expert_rules(
    config: ModelConfig, names: Names, layers: Sequence[int] | None = None
) -> list[Rule]:
    """Every matrix of every expert of `layers` (all without), one by one and as stacks."""
    layers = range(config.n_layer) if layers is None else layers
    apart = [rule for layer in layers for rule in _apart(layer, config, names)]
    return [*apart, *(rule for layer in layers for rule in _stacked(layer, config, names))]


def _apart(layer: int, config: ModelConfig, names: Names) -> list[Rule]:
    shape = (config.expert_ff, config.n_embd)
    return [
        Rule(
            f"model.layers.{layer}.{names.one.format('{}', source)}.weight",
            f"blk.{layer}.{name}.weight",
            shape[::-1] if name == DOWN else shape,
            stack=config.n_expert,
            group=f"blk.{layer}.experts",
        )
        for source, name in names.matrices.items()
    ]


def _stacked(layer: int, config: ModelConfig, names: Names) -> Sequence[Rule]:
    experts, ff, embd = config.n_expert, config.expert_ff, config.n_embd
    at = f"model.layers.{layer}.{names.stacks}"
    both, shape = f"{at}.gate_up_proj", (experts, 2 * ff, embd)

    def half(first: int) -> tuple[Span, ...]:
        return tuple(Span(both, shape, 2 * ff * n + first, ff) for n in range(experts))

    spans = {
        GATE: half(0),
        UP: half(ff),
        DOWN: (Span.whole(f"{at}.down_proj", (experts, embd, ff)),),
    }
    group = f"blk.{layer}.experts" if names.together else ""
    return [
        Rule(
            spans[name],
            f"blk.{layer}.{name}.weight",
            (experts, embd, ff) if name == DOWN else (experts, ff, embd),
            group=group,
        )
        for name in names.matrices.values()
    ]
