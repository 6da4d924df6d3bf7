"""The settings of PEFT's LoraConfig with what they are where a file does not say: an adapter that
uses nothing out of the ordinary is read without importing PEFT, which takes four seconds.

A test compares this with PEFT's own class.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

# Settings whose values are looked at one by one, or that say nothing about a merge.
OWN: Mapping[str, Any] = {
    "task_type": None, "peft_type": None, "auto_mapping": None, "peft_version": None,
    "base_model_name_or_path": None, "revision": None, "inference_mode": False, "r": 8,
    "target_modules": None, "exclude_modules": None, "lora_alpha": 8, "lora_dropout": 0.0,
    "fan_in_fan_out": False, "bias": "none", "use_rslora": False, "modules_to_save": None,
    "init_lora_weights": True, "rank_pattern": {}, "alpha_pattern": {},
    "trainable_token_indices": None, "use_dora": False, "target_parameters": None,
    "ensure_weight_tying": False,
}  # fmt: skip
# Those that only PEFT judges where they say anything else than this.
USUAL: Mapping[str, Any] = {
    "layers_to_transform": None, "layers_pattern": None, "megatron_config": None,
    "megatron_core": "megatron.core", "loftq_config": {}, "eva_config": None, "corda_config": None,
    "lora_ga_config": None, "velora_config": None, "alora_invocation_tokens": None,
    "use_qalora": False, "qalora_group_size": 16, "monteclora_config": None,
    "layer_replication": None, "lora_bias": False, "use_bdlora": None, "arrow_config": None,
    "kasa_config": None,
}  # fmt: skip
TASKS = (None, "CAUSAL_LM")
BEGINNINGS = (True, False, "gaussian")


def ordinary(found: Mapping[str, Any]) -> SimpleNamespace | None:
    """The configuration that PEFT makes of the object in an adapter_config.json, None where that
    takes PEFT to tell."""
    known = {**OWN, **USUAL}
    if not found.keys() <= known.keys():
        return None
    config = {**known, **found}
    usual = all(_same(config[name], value) for name, value in USUAL.items())
    begins = any(_same(config["init_lora_weights"], value) for value in BEGINNINGS)
    tasks = any(_same(config["task_type"], value) for value in TASKS)
    if not (usual and begins and tasks and isinstance(config["target_modules"], list | str | None)):
        return None
    return SimpleNamespace(**config)


def _same(one: object, other: object) -> bool:
    """Whether both are the same; 0 is not false."""
    return type(one) is type(other) and one == other
