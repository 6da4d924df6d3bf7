"""adapter_config.json of PEFT, read by PEFT's own classes where it says anything out of the
ordinary, checked, and what cannot be merged refused with the remedy.

PEFT takes whatever stands there for true; here every value that is used is of its type.
"""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

from gpukit.adapters.numbers import wrong_rank, wrong_scale
from gpukit.adapters.peft_fields import ordinary
from gpukit.errors import AdapterError, one_line

CONFIG = "adapter_config.json"
CONVERT = "convert it with PEFT (peft.convert_to_lora) or merge it there (merge_and_unload)"
# Ways to begin that change the base: what was trained is only right with the changed one. EVA, MiCA
# and orthogonal ones are not among them: they leave the base as it is.
CHANGED_BASES = {
    "pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "lora_ga": "LoRA-GA", "loftq": "LoftQ",
}  # fmt: skip
# Variants of LoRA that are merged as LoRA is, or as is known here.
KNOWN_VARIANTS = ("use_dora", "velora_config", "alora_invocation_tokens")
VARIANTS = {
    "use_qalora": "QA-LoRA", "use_bdlora": "BD-LoRA", "arrow_config": "Arrow",
    "kasa_config": "KaSA", "monteclora_config": "MonteCLoRA",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What of a LoraConfig decides what its tensors mean. `tokens` are the trained ones by the end
    of their module's name, '' for whatever the embedding is called. An adapter with `invocation`
    works only behind those tokens (aLoRA)."""

    r: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rank_stabilized: bool
    dora: bool
    fan_in_fan_out: bool
    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    saved: tuple[str, ...]
    tokens: Mapping[str, tuple[int, ...]]
    tied: bool
    version: str | None
    base: str | None
    warnings: tuple[str, ...] = ()
    invocation: tuple[int, ...] = ()

    def rank(self, module: str) -> int:
        """The rank of `module`, by the first pattern that is its name's end."""
        return self.ranks.get(pattern_of(self.ranks, module), self.r)

    def scale(self, module: str) -> float:
        """What B·A of `module` is multiplied by."""
        rank = self.rank(module)
        alpha = self.alphas.get(pattern_of(self.alphas, module), self.alpha)
        return alpha / math.sqrt(rank) if self.rank_stabilized else alpha / rank

    def ambiguous(self, module: str) -> bool:
        """Whether several patterns match `module` and say different numbers. Then the first in the
        file counts, which PEFT sorts: it may not be the one that was trained with."""
        return any(
            len({value for pattern, value in table.items() if matches(pattern, module)}) > 1
            for table in (self.ranks, self.alphas)
        )


def matches(pattern: str, module: str) -> bool:
    """Whether `pattern` is the end of `module`, from a dot on."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def pattern_of(patterns: Mapping[str, object], module: str) -> str:
    """The first of `patterns` that matches `module`; else ''."""
    return next((pattern for pattern in patterns if matches(pattern, module)), "")


def settings(path: Path, found: Mapping[str, Any]) -> Settings:
    """What the object in the adapter_config.json at `path` means; `AdapterError` for tuners and
    variants that cannot be merged and for values that make no sense."""
    return _Reader(path, found).settings()


class _Reader:
    """Values of one config, checked one by one."""

    def __init__(self, path: Path, found: Mapping[str, Any]) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._check_type(found)
        self._check_beginning(found.get("init_lora_weights"))
        known = {key: value for key, value in found.items() if key != "runtime_config"}
        self.config: Any = ordinary(known) or self._parsed(known)
        # PEFT's class says its own version where the file says none.
        self.version = self._text("peft_version") if "peft_version" in found else None

    def fail(self, what: str) -> NoReturn:
        raise AdapterError(one_line(f"{self.path}: {what}"))

    def _check_type(self, found: Mapping[str, Any]) -> None:
        kind = found.get("peft_type")
        if kind == "LORA":
            return
        if not isinstance(kind, str):
            self.fail("no peft_type; PEFT writes what kind of adapter it is there")
        self.fail(f"{kind[:40]} cannot be merged, only LORA can: {CONVERT}")

    def _parsed(self, known: Mapping[str, Any]) -> Any:
        """PEFT's own configuration; what it warns about becomes a warning of ours."""
        import peft

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make: Any = peft.PeftConfig.from_peft_type
            try:
                config = make(**known)
            except Exception as error:  # PEFT and Python raise many types for values of no sense
                self.fail(f"PEFT refuses it: {_first_line(error)}")
        names = {field.name for field in fields(config)}
        strange = [key for key in known if key not in names and known[key]]
        if strange:
            shown = ", ".join(sorted(strange)[:4])
            self.warnings.append(
                one_line(f"{self.path}: settings that this PEFT does not know are ignored: {shown}")
            )
        elif len(names.intersection(known)) == len(known):
            texts = (_first_line(warning.message) for warning in caught)
            self.warnings += [one_line(f"{self.path}: PEFT says: {text}") for text in texts]
        return config

    def settings(self) -> Settings:
        self._check_variants()
        r = self._rank("r", self.config.r)
        ranks = {key: self._rank(key, v) for key, v in self._patterns("rank_pattern").items()}
        alphas = {key: self._alpha(key, v) for key, v in self._patterns("alpha_pattern").items()}
        return Settings(
            r=r,
            alpha=self._alpha("lora_alpha", self.config.lora_alpha),
            ranks=ranks,
            alphas=alphas,
            rank_stabilized=self._flag("use_rslora"),
            dora=self._flag("use_dora"),
            fan_in_fan_out=self._flag("fan_in_fan_out"),
            parameters=self._texts("target_parameters"),
            modules=self._targets(),
            saved=self._texts("modules_to_save"),
            tokens=self._tokens(),
            tied=self._flag("ensure_weight_tying"),
            version=self.version,
            base=self._text("base_model_name_or_path"),
            warnings=tuple(self.warnings),
            invocation=self._invocation(),
        )

    def _check_variants(self) -> None:
        if self._value("layer_replication"):
            self.fail(
                "layer_replication: the adapter is for a model whose layers are repeated; build "
                "that model first (PEFT's layer_replication), and merge with it"
            )
        told = fields(self.config) if is_dataclass(self.config) else ()
        variants = {field.name for field in told if field.metadata.get("is_lora_variant")}
        for name in sorted(variants.union(VARIANTS).difference(KNOWN_VARIANTS)):
            if self._value(name):
                self.fail(f"{VARIANTS.get(name, name)} cannot be merged: {CONVERT}")

    def _check_beginning(self, begun: object) -> None:
        name = begun.lower() if isinstance(begun, str) else ""
        known = next((what for key, what in CHANGED_BASES.items() if name.startswith(key)), None)
        if known == "LoftQ":
            self.fail(
                "LoftQ changes the base: merge it with the base that LoftQ wrote, after setting "
                f"init_lora_weights to true in {CONFIG}"
            )
        if known:
            self.fail(
                f"{known} changes the base, and this adapter is the raw one: save it with PEFT's "
                "save_pretrained(path_initial_model_for_weight_conversion=...), which makes plain "
                "LoRA of it"
            )

    def _value(self, name: str) -> Any:
        return getattr(self.config, name, None)

    def _flag(self, name: str) -> bool:
        value = self._value(name)
        if value is not None and not isinstance(value, bool):
            self.fail(f"{name} is {str(value)[:40]!r}; true or false is needed")
        return bool(value)

    def _text(self, name: str) -> str | None:
        value = self._value(name)
        if value is not None and not isinstance(value, str):
            self.fail(f"{name} is {str(value)[:40]!r}; a text is needed")
        return value or None

    def _texts(self, name: str) -> tuple[str, ...]:
        value = self._value(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fail(f"{name} is {str(value)[:40]!r}; a list of names is needed")
        return tuple(value)

    def _targets(self) -> tuple[str, ...]:
        """The names that target_modules lists; none where it is a pattern."""
        value = self._value("target_modules")
        items = value if isinstance(value, set | list) else ()
        if not all(isinstance(item, str) for item in items):
            self.fail(f"target_modules is {str(value)[:40]!r}; a list of names is needed")
        return tuple(sorted(items))

    def _rank(self, name: str, value: Any) -> int:
        if type(value) is int and value == 0:
            self.fail(f"the rank {name} is 0: such an adapter changes nothing; leave it out")
        if wrong := wrong_rank(value):
            self.fail(f"the rank {name} is {wrong}")
        return int(value)

    def _alpha(self, name: str, value: Any) -> float:
        if wrong := wrong_scale(value):
            self.fail(f"alpha {name} is {wrong}")
        return float(value)

    def _patterns(self, name: str) -> Mapping[str, Any]:
        value = self._value(name) or {}
        if not isinstance(value, dict):
            self.fail(f"{name} is {str(value)[:40]!r}; names with numbers are needed")
        for pattern in value:
            try:
                re.compile(rf"(.*\.)?({pattern})$")
            except (re.error, RecursionError, OverflowError) as error:
                self.fail(f"{name}: {pattern[:40]!r} is no pattern: {error}")
        return value

    def _invocation(self) -> tuple[int, ...]:
        value = self._value("alora_invocation_tokens")
        if value is not None and not (_numbers(value) and all(0 <= t < 1 << 31 for t in value)):
            self.fail(f"alora_invocation_tokens is {str(value)[:40]}; numbers of tokens are needed")
        return tuple(value or ())

    def _tokens(self) -> Mapping[str, tuple[int, ...]]:
        value = self._value("trainable_token_indices")
        if value is None:
            return {}
        found = value if isinstance(value, dict) else {"": value}
        if not all(_numbers(indices) for indices in found.values()):
            self.fail(f"trainable_token_indices is {str(value)[:40]}; numbers of tokens are needed")
        return {name: tuple(indices) for name, indices in found.items()}


def _numbers(indices: object) -> bool:
    return isinstance(indices, Sequence) and all(type(i) is int for i in indices)


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
