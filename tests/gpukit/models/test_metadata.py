"""general.* from model cards and generation settings that are not what they should be.

What they make of sound ones is compared with the converter in test_forms.py.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpukit.errors import CheckpointError
from gpukit.formats.gguf_fields import Field
from gpukit.models.metadata import Parameters, general_fields


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    def read(front: str = "", name: str | None = None, **generation: Any) -> dict[str, Any]:
        if front:
            (folder / "README.md").write_text(f"---\n{front}\n---\n")
        if generation:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        found: list[Field] = general_fields(folder, "llama", Parameters(1_500_000), name)
        return {field.key: field.value for field in found}

    return read


def test_without_a_card_the_folder_and_the_weights_speak(read: Callable[..., Any]) -> None:
    assert read() == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "Some Model",
        "general.size_label": "1.5M",
    }


def test_a_given_name_counts(read: Callable[..., Any]) -> None:
    assert read("name: Card", name="Given")["general.name"] == "Given"


@pytest.mark.parametrize(
    ("front", "key", "value"),
    [
        ("version: 1.0", "version", "1.0"),
        ("name: 7", "name", "7"),
        ("author: 2020-01-02", "author", "2020-01-02"),
        ("language: [en, no]", "languages", ["en", "no"]),
        ("language: [no, en]", "languages", ["no", "en"]),
        ("tags: [1, a, 2.5]", "tags", ["1", "a", "2.5"]),
    ],
)
def test_words_that_yaml_takes_for_numbers(
    front: str, key: str, value: Any, read: Callable[..., Any]
) -> None:
    assert read(front)[f"general.{key}"] == value


@pytest.mark.parametrize(
    "front",
    [
        "name: [a, b]", "name: {a: b}", "tags: [[a]]", "tags: [null]", "tags: [{a: b}]",
        "license: [1, mit]", "license: {a: b}", "x: [", "x: !!python/object:a b",
        'name: "\\uD800"',
    ],
)  # fmt: skip
def test_cards_that_cannot_be_used(front: str, read: Callable[..., Any]) -> None:
    with pytest.raises(CheckpointError, match=r"README\.md.*mend") as caught:
        read(front)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "generation",
    [
        {"temperature": "warm"}, {"temperature": True}, {"temperature": [1]}, {"top_k": 1.5},
        {"top_k": 1 << 31}, {"top_k": float("inf")}, {"top_k": "20"},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used(generation: dict[str, Any], read: Callable[..., Any]) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json: general\.sampling\."):
        read(**generation)


def test_whole_numbers_may_have_a_point(read: Callable[..., Any]) -> None:
    found = read(top_k=20.0, temperature=1)
    assert found["general.sampling.top_k"] == 20
    assert found["general.sampling.temp"] == 1.0


@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b"\xff"])
def test_settings_that_are_no_object(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"generation_config\.json: .*mend or remove it"):
        general_fields(tmp_path, "llama", Parameters(1), None)


def test_a_snapshot_in_the_cache_has_the_name_of_its_repository(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--Llama-9-2M-Chat-v1.0" / "snapshots" / ("0a" * 20)
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    found = {f.key: f.value for f in general_fields(folder, "llama", Parameters(2_000_000), None)}
    assert found["general.name"] == "Llama 9 2M Chat v1.0"
    assert found["general.finetune"] == "Chat"
    assert found["general.license"] == "mit"


def test_a_linked_folder_keeps_the_name_of_the_link(tmp_path: Path) -> None:
    (tmp_path / "0a1b2c").mkdir()
    (tmp_path / "Llama-9-Chat").symlink_to(tmp_path / "0a1b2c")
    folder = tmp_path / "Llama-9-Chat"
    found = {f.key: f.value for f in general_fields(folder, "llama", Parameters(1), None)}
    assert found["general.name"] == "Llama 9 Chat"
