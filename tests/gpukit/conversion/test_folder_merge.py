"""Adapters merged into a folder: what transformers loads is what peft merged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support import adapters
from support.adapters import ATTENTION, FAMILIES, FUSED, LINEAR, Trained, quiet, reloaded, train
from support.model_folders import KINDS, Merging, copied, loaded, logits, merged, raw, weights

from gpukit.adapters.base import Base
from gpukit.adapters.opening import open_adapter
from gpukit.adapters.together import combined
from gpukit.conversion.folder import write_folder
from gpukit.formats.checkpoint import Checkpoint
from gpukit.sources.stored import changes_of

PLAIN: dict[str, Any] = {"r": 3, "lora_alpha": 5}
TARGETS = {"phi3": FUSED, "mixtral": ATTENTION}


def rounded_base(made: Trained, kind: str) -> Trained:
    """The same with a base in `kind`, and what PEFT makes of that in float64."""
    base, out = made.base.with_name(f"base-{kind}"), made.merged.with_name(f"merged-{kind}")
    copied(made.base, base, dtype=kind)
    fresh = Trained(base, made.adapter, out)
    with quiet():
        reloaded(fresh).merge_and_unload().save_pretrained(out)
    return fresh


def check_merged(made: Trained, out: Path, kind: str) -> None:
    """`out` holds PEFT's sums in float64 rounded once into `kind`, but for what float32 adds to
    that; transformers computes the same logits with it as with those."""
    found, wanted = weights(out), made.expected()
    assert found.keys() >= wanted.keys()
    with quiet():
        peer = transformers.AutoModelForCausalLM.from_pretrained(made.merged, dtype=torch.float64)
    half_a_step = torch.finfo(KINDS[kind]).eps / 2
    for name, values in wanted.items():
        assert found[name].dtype is KINDS[kind], name
        error = (found[name].double() - values).abs()
        # Sums of float32 of these sizes are off by a few of its steps of the largest term.
        slack = 2**-20 * values.abs().max()
        smallest = torch.finfo(KINDS[kind]).tiny * half_a_step
        assert (error <= half_a_step * values.abs() + slack + smallest).all(), name
    for values in (*peer.parameters(), *peer.buffers()):
        if values.dtype is torch.float64 and values.ndim:
            values.data = values.to(KINDS[kind]).double()
    error = (logits(loaded(out)) - logits(peer)).abs().max()
    # A sum that lies between two steps may go to the other one: seldom, and one step of one weight.
    assert error <= {"F32": 1e-5, "F16": 3e-3, "BF16": 2e-2}[kind] * logits(peer).abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_merge_is_that_of_peft_in_every_type(family: str, kind: str, tmp_path: Path) -> None:
    made = rounded_base(train(tmp_path, family, {**PLAIN, "target_modules": LINEAR}), kind)
    merged(made.base, made.adapter, tmp_path / "out", max_shard_size=20_000)
    check_merged(made, tmp_path / "out", kind)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merge_of_every_family_loads(family: str, tmp_path: Path) -> None:
    config = {**PLAIN, "target_modules": TARGETS.get(family, LINEAR)}
    made = rounded_base(train(tmp_path, family, config), "BF16")
    adapter = merged(made.base, made.adapter, tmp_path / "out")
    check_merged(made, tmp_path / "out", "BF16")
    base, found = weights(made.base), weights(tmp_path / "out")
    assert base.keys() == found.keys()
    other = {name for name, values in base.items() if raw(values) != raw(found[name])}
    assert other == adapter.deltas.keys()


FORMS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "biases": {"bias": "all"},
    "added-biases": {"lora_bias": True},
    "saved": {"modules_to_save": ["norm", "lm_head"]},
    "tokens": {"trainable_token_indices": [7, 3]},
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_an_adapter_does(form: str, tmp_path: Path) -> None:
    """A few rows at a time, and tensors of one dimension."""
    config = {**PLAIN, "target_modules": ["q_proj", "up_proj"], **FORMS[form]}
    made = rounded_base(train(tmp_path, "llama-biases", config), "BF16")
    merged(made.base, made.adapter, tmp_path / "out", budget=1 << 12)
    check_merged(made, tmp_path / "out", "BF16")


def test_float64_stays(tmp_path: Path) -> None:
    made = train(tmp_path, "qwen3", {**PLAIN, "target_modules": LINEAR})
    merged(made.base, made.adapter, tmp_path / "out")
    adapters.check_same(weights(tmp_path / "out"), made.expected())


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"]])
def test_a_head_that_is_not_the_embedding_any_more(saved: list[str], tmp_path: Path) -> None:
    config = {**PLAIN, "target_modules": ATTENTION, "modules_to_save": saved}
    made = rounded_base(train(tmp_path, "llama-tied", config), "F32")
    adapter = merged(made.base, made.adapter, tmp_path / "out")
    assert adapter.added
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["tie_word_embeddings"] is False
    found = weights(tmp_path / "out")
    assert not found["lm_head.weight"].equal(found["model.embed_tokens.weight"])
    with quiet():
        peer = reloaded(made).merge_and_unload()
    error = (logits(loaded(tmp_path / "out")) - logits(peer)).abs().max()
    assert error <= 1e-5 * logits(peer).abs().max()


@pytest.mark.parametrize("rows", [45, 33])
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_a_vocabulary_of_another_size(family: str, rows: int, tmp_path: Path) -> None:
    import peft

    made = Trained(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    with quiet():
        plain = adapters.model(family)
        plain.save_pretrained(made.base)
        plain.resize_token_embeddings(rows)
        config = peft.LoraConfig(r=2, target_modules=ATTENTION)
        wrapped = peft.get_peft_model(plain, config, autocast_adapter_dtype=False)
        adapters.fill(wrapped)
        wrapped.save_pretrained(made.adapter, save_embedding_layers=True)
        wrapped.merge_and_unload().save_pretrained(made.merged)
    for kind in (None, "BF16"):
        out = tmp_path / f"out-{kind}"
        adapter = merged(made.base, made.adapter, out, dtype=kind)
        assert adapter.vocabulary == rows
        assert json.loads((out / "config.json").read_text())["vocab_size"] == rows
        assert loaded(out).get_input_embeddings().weight.shape[0] == rows
        for name, values in made.expected().items():
            found = weights(out)[name]
            assert found.shape == values.shape
            if kind is None:
                assert (found - values).abs().max() <= 1e-12 * values.abs().max()
    # A part of the new rows at a time gives the same.
    with Checkpoint(made.base) as base, open_adapter(made.adapter, Base.of(base)) as opened:
        records = combined([opened])
        changes = changes_of(base, records, opened.added)
        write_folder(base, tmp_path / "slabs", [Merging(records)], changes=changes, budget=1)
    slabs, whole = tmp_path / "slabs" / "model.safetensors", tmp_path / "out-None"
    assert slabs.read_bytes() == (whole / "model.safetensors").read_bytes()
