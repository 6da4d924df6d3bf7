"""From two models to the tensors and the configuration of an adapter of PEFT."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gpukit.adapters import peft_writing as writing
from gpukit.adapters.base import HEAD
from gpukit.adapters.comparing import Comparison
from gpukit.adapters.low_rank import Difference, factorise
from gpukit.adapters.values import Values
from gpukit.errors import ArgumentError, one_line
from gpukit.events import Report, Step

COMPARING = "comparing weights"


@dataclass(frozen=True)
class Energy:
    """Sums of squares of one matrix: of what is kept, of the difference, and of the base's weight;
    and whether it was decomposed exactly."""

    kept: float
    energy: float
    weight: float
    exact: bool


def ratio(energy: float, weight: float) -> float:
    """||dW|| / ||W|| of two sums of squares."""
    return math.sqrt(energy / weight) if weight else math.inf


@dataclass
class Extractor:
    """Makes one adapter of `rank`, by `run`; `ArgumentError` for a rank that no weight has.

    Afterwards `found` are energies by class, `left` what differs and has no place, by class, with
    the name and ||dW|| / ||W|| of each, `changed` the modules with B·A, `saved` those that are
    saved whole, `experts` B and A of each expert of stacks that differ, and `parameters` what PEFT
    calls these.
    """

    models: Comparison
    rank: int
    embeddings: bool
    norms: bool
    found: dict[str, list[Energy]] = field(default_factory=dict)
    left: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    experts: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    parameters: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        most = max((min(b.shape) for _, b in self.models.pairs if self._wanted(b)), default=0)
        if self.rank > most:
            folder = self.models.base.folder
            raise ArgumentError(
                f"a rank of {self.rank}; no weight of {folder} has more than {most}"
            )

    def _wanted(self, base: Values) -> bool:
        """Whether a tensor becomes B·A if it differs."""
        kind = self.embeddings or not self.models.is_vocabulary(base)
        return kind and self.models.is_matrix(base)

    def run(self, device: torch.device, report: Report) -> dict[str, Tensor]:
        """The adapter's tensors by name; a tensor of each model is read at a time."""
        tensors: dict[str, Tensor] = {}
        sizes = self.models.base.tensors
        stacks = self.models.stacks()
        done, total = 0, sum(sizes[base.name].nbytes for _, base in self.models.pairs)
        for tuned, base in self.models.pairs:
            report(Step(COMPARING, done, total))
            if any(base is each for each in stacks):
                self._stack(tuned, base, device)
            else:
                tensors |= self._compared(tuned, base, Difference(tuned, base, device))
            done += sizes[base.name].nbytes
        report(Step(COMPARING, total, total))
        tensors |= self._experts(stacks)
        if not self.changed and not self.experts:
            others = self.left or self.saved
            what = "no weight that becomes B·A differs" if others else "they are the same"
            raise self.models.fail(f"{what}; there is nothing to extract")
        return tensors

    def _compared(self, tuned: Values, base: Values, d: Difference) -> dict[str, Tensor]:
        """The tensors for what `base` differs by; none where that is nothing or has no place."""
        if not d.energy:
            return {}
        module = base.name.removesuffix(".weight")
        if self.norms and self.models.is_norm(base):
            self.saved.append(module)
            return writing.whole(base.name, tuned.read())
        if not self._wanted(base):
            kind = ".".join(base.name.split(".")[-2:])
            self.left.setdefault(kind, []).append((base.name, ratio(d.energy, d.weight)))
            return {}
        factors = factorise(d, self.rank)
        self.changed.append(module)
        energy = Energy(factors.kept, factors.energy, factors.weight, factors.exact)
        self.found.setdefault(module.rpartition(".")[2], []).append(energy)
        if base.name != self.models.model.embedding:
            return writing.linear(module, factors.b, factors.a)
        named = writing.embedding(module, factors.b, factors.a)
        if self.models.model.tied:
            # PEFT keeps both of what it trains as one.
            named |= writing.linear(HEAD, factors.b, factors.a)
        return named

    def _stack(self, tuned: Values, base: Values, device: torch.device) -> None:
        """Each expert's matrix of a stack by itself."""
        pairs = [self._nothing(base)] * base.shape[0]
        for number in range(base.shape[0]):
            one, other = (each.matrix(number) for each in (tuned, base))
            d = Difference(one, other, device)
            if d.energy:
                factors = factorise(d, self.rank)
                pairs[number] = factors.b, factors.a
                self.experts[base.name] = pairs
                energy = Energy(factors.kept, factors.energy, factors.weight, factors.exact)
                self.found.setdefault(base.name.rpartition(".")[2], []).append(energy)

    def _nothing(self, stack: Values) -> tuple[Tensor, Tensor]:
        """B and A of an expert that does not differ."""
        _, rows, width = stack.shape
        return torch.zeros(rows, self.rank), torch.zeros(self.rank, width)

    def _experts(self, stacks: Sequence[Values]) -> dict[str, Tensor]:
        """The tensors of all stacks of the kinds that differ anywhere: PEFT adapts a kind in every
        layer."""
        kinds = {name.rpartition(".")[2] for name in self.experts}
        modules: dict[str, dict[str, Sequence[tuple[Tensor, Tensor]]]] = {}
        for base in stacks:
            module, _, kind = base.name.rpartition(".")
            if kind in kinds:
                nothing = [self._nothing(base)] * base.shape[0]
                pairs = self.experts.get(base.name, nothing)
                modules.setdefault(module, {})[kind] = pairs
        self.parameters = sorted(
            {f"{_end(module)}.{kind}" for module, parts in modules.items() for kind in parts}
        )
        found: dict[str, Tensor] = {}
        for module, parts in modules.items():
            found |= writing.experts(module, parts)
        return found

    def warnings(self) -> Iterator[str]:
        """What differs and is not in the adapter, a line a class."""
        for kind, tensors in self.left.items():
            which, most = max(tensors, key=lambda pair: pair[1])
            yield one_line(
                f"{kind}: {len(tensors)} tensors differ and are not in the adapter, ||dW|| / ||W|| "
                f"is {most:.3g} at most ({which})"
            )

    def config(self, base: str) -> dict[str, Any]:
        """adapter_config.json."""
        matrices = [b for _, b in self.models.pairs if self.models.is_matrix(b)]
        modules = [matrix.name.removesuffix(".weight") for matrix in matrices]
        model = self.models.model
        tying = model.tied and model.embedding in [f"{name}.weight" for name in self.changed]
        targets = writing.targets(self.changed, modules)
        settings: dict[str, Any] = {"modules_to_save": self.saved} if self.saved else {}
        if self.parameters:
            settings["target_parameters"] = self.parameters
        if tying:
            targets.append(HEAD)
            settings["ensure_weight_tying"] = True
        return writing.config(self.rank, targets, base, **settings)


def _end(module: str) -> str:
    """The last two parts of a module's name."""
    return ".".join(module.split(".")[-2:])
