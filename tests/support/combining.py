"""A base with several adapters, and what PEFT makes of them together."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from support import adapters
from support.adapters import LINEAR, base_of, check_same, quiet
from torch import Tensor

from gpukit.adapters.adapter import Adapter
from gpukit.adapters.combine import combine
from gpukit.adapters.delta import Delta, LowRank, merged
from gpukit.adapters.mixing import METHODS
from gpukit.adapters.opening import open_adapter

ALL = [*LINEAR, "embed_tokens", "lm_head"]
WEIGHTS = {2: [0.7, -0.4], 3: [1.0, -0.6, 0.25]}
SEED = 7


@dataclass(frozen=True)
class Family:
    """A base with several adapters, by their folders."""

    base: Path
    adapters: tuple[Path, ...]

    def stored(self) -> dict[str, Tensor]:
        return load_file(self.base / "model.safetensors")

    @contextmanager
    def opened(self) -> Iterator[list[Adapter]]:
        base = base_of(self.base)
        with ExitStack() as stack:
            yield [stack.enter_context(open_adapter(path, base)) for path in self.adapters]

    def combined(self, *args: Any, **settings: Any) -> Mapping[str, tuple[Delta, ...]]:
        with self.opened() as found:
            return combine(found, *args, **settings)

    def merged(self, *args: Any, **settings: Any) -> dict[str, Tensor]:
        """Every tensor with the combination merged by the reference in float64."""
        found = self.stored()
        settings.setdefault("dtype", torch.float64)
        with self.opened() as adapters:
            for name, records in combine(adapters, *args, **settings).items():
                found[name] = merged(found[name], records, torch.float64)
        return found

    @cache  # noqa: B019
    def peft(self, dtype: torch.dtype = torch.float64) -> Any:
        """The base with all adapters, called 0, 1, ..."""
        with quiet():
            plain = transformers.AutoModelForCausalLM.from_pretrained(self.base, dtype=dtype)
            rest = self.adapters[1:]
            model = peft.PeftModel.from_pretrained(
                plain, self.adapters[0], adapter_name="0", autocast_adapter_dtype=False
            )
            for number, path in enumerate(rest, 1):
                model.load_adapter(path, str(number), autocast_adapter_dtype=False)
        return model


def low_rank(records: Sequence[Delta]) -> list[LowRank]:
    return [record for record in records if isinstance(record, LowRank)]


def make(
    root: Path, family: str, configs: Sequence[Mapping[str, Any]], dtype: torch.dtype | None = None
) -> Family:
    paths = tuple(root / f"adapter-{number}" for number in range(len(configs)))
    with quiet():
        adapters.model(family).save_pretrained(root / "base")
        for number, (path, config) in enumerate(zip(paths, configs, strict=True)):
            plain = adapters.model(family)
            wrapped = peft.get_peft_model(
                plain, peft.LoraConfig(**config), autocast_adapter_dtype=False
            )
            adapters.fill(wrapped)
            wrapped.save_pretrained(path)
            file = path / "adapter_model.safetensors"
            torch.manual_seed(number)
            saved = load_file(file)
            for name, values in saved.items():
                if "lora_" in name:  # all but copies of the base's own
                    saved[name] = torch.randn_like(values).to(dtype or values.dtype)
            save_file(saved, file)
    return Family(root / "base", paths)


def add(model: Any, weights: Sequence[float], method: str, **settings: Any) -> None:
    """PEFT's combination as adapter `mix`; chance is seeded when that has been set up."""
    set_up = model.base_model.inject_adapter

    def seeded(*args: Any, **named: Any) -> None:
        set_up(*args, **named)
        torch.manual_seed(SEED)

    names = [str(number) for number in range(len(weights))]
    model.base_model.inject_adapter = seeded
    try:
        with quiet():
            model.add_weighted_adapter(names, list(weights), "mix", method, **settings)
    finally:
        model.base_model.inject_adapter = set_up


def peft_merged(family: Family, *args: Any, **settings: Any) -> dict[str, Tensor]:
    """Every tensor of the base with PEFT's combination added."""
    model = family.peft()
    add(model, *args, **settings)
    found = family.stored()
    with quiet():
        for name, module in model.base_model.model.named_modules():
            if isinstance(module, LoraLayer):
                found[f"{name}.weight"] += module.get_delta_weight("mix").detach()
        model.delete_adapter("mix")
    return found


def pruning(method: str) -> dict[str, Any]:
    return {"density": 0.4} if METHODS[method].prunes else {}


def chance(method: str) -> dict[str, Any]:
    return {"seed": SEED} if METHODS[method].prunes == "chance" else {}


def check_method(family: Family, method: str, weights: Sequence[float], **settings: Any) -> None:
    given = pruning(method) | settings
    found = family.merged(weights, method, **given, **chance(method))
    stored = family.stored()
    check_same(found, peft_merged(family, weights, method, **given))
    assert sum(not found[name].equal(stored[name]) for name in stored) > 4


SAME = [{"r": 3, "lora_alpha": 5}, {"r": 3, "lora_alpha": 2}, {"r": 3, "use_rslora": True}]
OTHERS = [
    {"r": 3, "lora_alpha": 5, "rank_pattern": {"q_proj": 2}},
    {"r": 5, "lora_alpha": 2, "use_rslora": True},
    {"r": 1, "lora_alpha": 1},
]


def first_of(family: Family, count: int) -> Family:
    return Family(family.base, family.adapters[:count])
