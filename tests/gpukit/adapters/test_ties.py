"""Models whose head is their embedding: what an adapter trained as one stays one, the rest parts.

Where PEFT's own merge changes what was not trained, or changes it twice, what counts is what the
model computes with the adapter beside it.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.adapters import (
    UNTIED,
    Trained,
    base_of,
    check_same,
    fill,
    model,
    ours,
    quiet,
    reloaded,
    train,
)

from gpukit.adapters.opening import open_adapter
from gpukit.errors import AdapterError

PLAIN: dict[str, Any] = {"r": 2, "lora_alpha": 5}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _same_logits(made: Trained, added: bool) -> None:
    """Our merge computes what the base computes with the adapter beside it."""
    found, adapter = ours(made)
    assert adapter.added == ({HEAD: EMBEDDING} if added else {})
    assert len(adapter.warnings) == added
    assert not added or "tie_word_embeddings false" in adapter.warnings[0]
    plain = model("llama-tied", **(UNTIED if added else {}))
    plain.load_state_dict(found if added else {**found, HEAD: found[EMBEDDING]})
    tokens = torch.arange(1, 20)[None]
    with quiet(), torch.no_grad():
        wanted, got = reloaded(made)(tokens).logits, plain(tokens).logits
    assert (wanted - got).abs().max() < 1e-10 * wanted.abs().max()


TOGETHER = {
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 1]},
    "tokens-of-both": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [5, 1], "lm_head": [5, 1]},
    },
    "saved-as-one": {
        "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"],
        "ensure_weight_tying": True,
    },
    "trained-as-one": {
        "target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True
    },
}  # fmt: skip
APART = {
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "head": {"target_modules": ["lm_head"]},
    "saved-embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved-both": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens-of-the-head": {
        "target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [2]}
    },
    "other-tokens-of-the-head": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"lm_head": [2, 9], "embed_tokens": [9]},
    },
}  # fmt: skip


@pytest.mark.parametrize("form", TOGETHER)
def test_what_was_trained_as_one_stays_one(form: str, tmp_path: Path) -> None:
    _same_logits(train(tmp_path, "llama-tied", {**PLAIN, **TOGETHER[form]}), added=False)


@pytest.mark.parametrize("form", APART)
def test_what_was_trained_alone_gets_a_head_of_its_own(form: str, tmp_path: Path) -> None:
    _same_logits(train(tmp_path, "llama-tied", {**PLAIN, **APART[form]}), added=True)


def test_a_head_in_the_file_that_is_a_copy_follows_the_embedding(tmp_path: Path) -> None:
    config = {**PLAIN, **TOGETHER["tokens"]}
    made = train(tmp_path, "llama-tied", config)
    stored = made.stored()
    save_file({**stored, HEAD: stored[EMBEDDING].clone()}, made.base / "model.safetensors")
    found, adapter = ours(made)
    assert found[HEAD].equal(found[EMBEDDING])
    assert not found[HEAD].equal(stored[EMBEDDING])
    assert not adapter.added


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_a_vocabulary_of_another_size(family: str, tmp_path: Path) -> None:
    import peft

    made = Trained(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    with quiet():
        plain = model(family)
        plain.save_pretrained(made.base)
        plain.resize_token_embeddings(43)
        targets = ["q_proj"] if family == "llama-tied" else ["q_proj", "lm_head", "embed_tokens"]
        config = peft.LoraConfig(**PLAIN, target_modules=targets)
        wrapped = peft.get_peft_model(plain, config, autocast_adapter_dtype=False)
        fill(wrapped)
        wrapped.save_pretrained(made.adapter, save_embedding_layers=True)
        wrapped.merge_and_unload().save_pretrained(made.merged)
    found, adapter = ours(made)
    check_same(found, made.expected())
    assert adapter.vocabulary == found[EMBEDDING].shape[0] == 43
    assert not adapter.added
    # One of the two alone does not make a model.
    path = made.adapter / "adapter_model.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if "lm_head" not in k}
    save_file(tensors, path)
    with pytest.raises(
        AdapterError, match=r"one of embedding and head .* 43.*save_embedding_layer"
    ):
        open_adapter(made.adapter, base_of(made.base))


@pytest.mark.parametrize("saved", [["embed_tokens", "lm_head"], ["embed_tokens"]])
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_a_vocabulary_of_another_size_in_modules_to_save(
    family: str, saved: list[str], tmp_path: Path
) -> None:
    import peft

    made = Trained(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    with quiet():
        plain = model(family)
        plain.save_pretrained(made.base)
        plain.resize_token_embeddings(43)
        config = peft.LoraConfig(**PLAIN, target_modules=["q_proj"], modules_to_save=saved)
        wrapped = peft.get_peft_model(plain, config, autocast_adapter_dtype=False)
        fill(wrapped)
        wrapped.save_pretrained(made.adapter, save_embedding_layers=True)
        wrapped.merge_and_unload().save_pretrained(made.merged)
    path = made.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    # What was trained stands there twice, beside what was there before.
    again = "base_model.model.model.embed_tokens.modules_to_save.weight"
    assert again in tensors
    assert again.replace("modules_to_save", "original_module") in tensors
    found, adapter = ours(made)
    check_same(found, made.expected())
    assert adapter.vocabulary == 43
    save_file({**tensors, again: tensors[again] + 1}, path)
    with pytest.raises(AdapterError, match=r"embed_tokens\S+ and \S+ are one tensor; remove one"):
        open_adapter(made.adapter, base_of(made.base))


def test_a_base_is_tied_when_its_config_or_its_tensors_say_so() -> None:
    base = {EMBEDDING: (4, 2)}
    with quiet():
        assert transformers.LlamaConfig().tie_word_embeddings is False
    from gpukit.adapters.base import Base

    assert Base(Path("x"), base, {}).tied
    assert Base(Path("x"), {**base, HEAD: (4, 2)}, {"tie_word_embeddings": True}).tied
    assert not Base(Path("x"), {**base, HEAD: (4, 2)}, {}).tied
    assert Base(Path("x"), base, {"text_config": {"tie_word_embeddings": True}}).with_head.head
