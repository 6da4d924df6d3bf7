"""Experts of a layer: what config.json says of them, and their matrices as rules of import.

In a checkpoint they lie one by one, or, as transformers 5 has them in memory, as stacks, gate and
up in one. In a GGUF each kind of matrix is one tensor, by number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpukit.errors import CheckpointError
from gpukit.models.config import ModelConfig
from gpukit.models.rules import Rule, Span
from gpukit.models.values import MOST_EXPERTS, whole

GATE, UP, DOWN = "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"


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
    model: ModelConfig, config: Mapping[str, Any], key: str, count: int, used: int
) -> ModelConfig:
    """`model` with the number of its experts, `key` in config.json or else `count`, and of those
    that take part (`used` by default); `CheckpointError` where they are fewer."""
    model = replace(
        model,
        n_expert=whole(config, key, count, most=MOST_EXPERTS),
        n_expert_used=whole(config, "num_experts_per_tok", used),
    )
    if model.n_expert_used > model.n_expert:
        raise CheckpointError(
            f"config.json: num_experts_per_tok is {model.n_expert_used}, {key} is {model.n_expert}"
        )
    return model


def expert_rules(config: ModelConfig, names: Names) -> list[Rule]:
    """Every matrix of every expert, one by one and as stacks."""
    layers = range(config.n_layer)
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
    count, ff, embd = config.n_expert, config.expert_ff, config.n_embd
    at = f"model.layers.{layer}.{names.stacks}"
    both, shape = f"{at}.gate_up_proj", (count, 2 * ff, embd)

    def half(first: int) -> tuple[Span, ...]:
        return tuple(Span(both, shape, 2 * ff * n + first, ff) for n in range(count))

    spans = {
        GATE: half(0),
        UP: half(ff),
        DOWN: (Span.whole(f"{at}.down_proj", (count, embd, ff)),),
    }
    group = f"blk.{layer}.experts" if names.together else ""
    return [
        Rule(
            spans[name],
            f"blk.{layer}.{name}.weight",
            (count, embd, ff) if name == DOWN else (count, ff, embd),
            group=group,
        )
        for name in names.matrices.values()
    ]
