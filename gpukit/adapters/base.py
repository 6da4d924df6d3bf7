"""The model that an adapter is for, as far as a fit can be judged: tensors, shapes, settings.

Names of one tensor differ between the versions and the tools that wrote it. All of these are the
same here, `layers.0.mlp.experts.1.gate_proj.weight`:

    model.layers.0.mlp.experts.1.gate_proj.weight
    model.language_model.layers.0.mlp.experts.1.gate_proj.weight
    base_model.model.model.layers.0.block_sparse_moe.experts.1.w1.weight
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gpukit.errors import AdapterError
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.folder import model_name
from gpukit.models.rules import Rule

# What stands before a name and tells nothing: PEFT's wrapper, and where the text's model is.
PREFIXES = frozenset(("base_model", "model", "language_model"))
MOE, MLP = "block_sparse_moe", "mlp"
# Mixtral's names of an expert's matrices, and everybody else's.
EXPERT_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
EXPERT = re.compile(r"(.*\bexperts)\.(\d+)\.(w[123])(\..*)?", re.DOTALL)
EMBEDDING, HEAD = "embed_tokens", "lm_head"


def canonical(name: str) -> str:
    """The one form of a name, whoever wrote it."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in PREFIXES:
        parts = parts[1:]
    found = ".".join(MLP if part == MOE else part for part in parts)
    if match := EXPERT.fullmatch(found):
        stem, number, matrix, rest = match.groups()
        return f"{stem}.{number}.{EXPERT_NAMES[matrix]}{rest or ''}"
    return found


@dataclass(frozen=True)
class Base:
    """A model at `path`: its tensors' shapes by name, outermost first, and its config.json. Of one
    that is a GGUF, `rules` say how its tensors would be made of these. `called` are names that it
    has elsewhere, as in a store."""

    path: Path
    tensors: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any]
    rules: tuple[Rule, ...] = ()
    called: tuple[str, ...] = ()

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Base":
        """The base that a Hugging Face folder is."""
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        return cls(checkpoint.folder, shapes, checkpoint.config)

    @cached_property
    def _by_canonical(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.tensors:
            found.setdefault(canonical(name), []).append(name)
        return found

    def find(self, name: str) -> str | None:
        """The tensor that `name` means, None where the base has none of that name."""
        if name in self.tensors:
            return name
        found = self._by_canonical.get(canonical(name), [])
        if len(found) > 1:
            raise AdapterError(f"{self.path}: {name} may be {found[0]} or {found[1]} of the base")
        return found[0] if found else None

    @cached_property
    def text(self) -> Mapping[str, Any]:
        """The settings of the text's model."""
        inner = self.config.get("text_config")
        return {**self.config, **inner} if isinstance(inner, dict) else self.config

    @cached_property
    def embedding(self) -> str | None:
        return self.find(f"{EMBEDDING}.weight")

    @cached_property
    def head(self) -> str | None:
        return self.find(f"{HEAD}.weight")

    @cached_property
    def tied(self) -> bool:
        """Whether the head is the embedding, as a copy in the file or not there at all."""
        said = self.text.get("tie_word_embeddings")
        return said is True or (said is not False and self.head is None)

    @cached_property
    def with_head(self) -> "Base":
        """The same with a head of its own where it has none but the embedding."""
        if not self.tied or self.head is not None or self.embedding is None:
            return self
        return replace(
            self,
            tensors={**self.tensors, f"{HEAD}.weight": self.tensors[self.embedding]},
            config={**self.config, "tie_word_embeddings": True},
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the model is called."""
        said = self.config.get("_name_or_path")
        named = (said,) if isinstance(said, str) and said else ()
        return (*self.called, model_name(self.path), *named)

    @cached_property
    def layers(self) -> int:
        """How many layers its tensors belong to."""
        numbers = (re.search(r"\blayers\.(\d+)\.", name) for name in self.tensors)
        return 1 + max((int(match[1]) for match in numbers if match), default=-1)
