"""Layers that guess further tokens: kept in a file, left out of it, or the only ones in it."""

import re
from collections.abc import Sequence
from dataclasses import replace

from gpukit.models.config import ModelConfig
from gpukit.models.rules import Rule

# What a file of those layers alone has of all others.
ENDS = ("token_embd.weight", "output_norm.weight", "output.weight")
_LAYER = re.compile(r"blk\.(\d+)\.")


def guesses(config: ModelConfig, name: str) -> bool:
    """Whether the tensor `name` of a GGUF belongs to a layer that guesses further tokens."""
    found = _LAYER.match(name)
    return found is not None and int(found[1]) in config.unused_layers


def chosen(
    config: ModelConfig, rules: Sequence[Rule], mtp: bool | None
) -> tuple[ModelConfig, list[Rule], frozenset[str]]:
    """`config` and `rules` of those layers and the ends of the model (`mtp`), of all others (False)
    or of all (None), and which tensors of the checkpoint are passed over."""
    if mtp is None:
        return config, list(rules), frozenset()
    kept = [
        rule for rule in rules if guesses(config, rule.name) == mtp or (mtp and rule.name in ENDS)
    ]
    used = {source for rule in kept for source in rule.sources}
    passed = {source for rule in rules for source in rule.sources} - used
    return (config if mtp else replace(config, n_nextn=None)), kept, frozenset(passed)
