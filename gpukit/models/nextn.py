"""Layers that guess further tokens: kept in a file, left out of it, or the only ones in it."""

from collections.abc import Sequence
from dataclasses import replace

from gpukit.models.config import ModelConfig
from gpukit.models.rules import Rule
from gpukit.models.unused import ENDS


def chosen(
    config: ModelConfig, rules: Sequence[Rule], mtp: bool | None
) -> tuple[ModelConfig, list[Rule], frozenset[str]]:
    """`config` and `rules` of those layers and the ends of the model (`mtp`), of all others (False)
    or of all (None), and which tensors of the checkpoint are passed over."""
    if mtp is None:
        return config, list(rules), frozenset()
    kept = [
        rule
        for rule in rules
        if config.unused.guesses(rule.name) == mtp or (mtp and rule.name in ENDS)
    ]
    used = {source for rule in kept for source in rule.sources}
    passed = {source for rule in rules for source in rule.sources} - used
    return (config if mtp else replace(config, n_nextn=None)), kept, frozenset(passed)
