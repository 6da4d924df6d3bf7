"""Folders appear whole or not at all; what they carry over, and what their card says."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from gpukit.errors import ArgumentError, CheckpointError, DiskError
from gpukit.formats import atomic
from gpukit.formats.atomic import remove_abandoned, remove_own, temporary_name
from gpukit.formats.carried import carried_files, changed_config
from gpukit.formats.model_card import Origin, merged_card
from gpukit.formats.new_folder import check_folder, new_folder, write_small
from gpukit.formats.safetensors_shards import Shard, ShardsWriter, plan_shards
from gpukit.formats.safetensors_writer import Entry


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_with_all_that_was_written(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(range(256)) * 100)
    out = tmp_path / "out"
    with new_folder(out, 10) as folder:
        assert folder.parent == tmp_path
        assert not out.exists()
        write_small(folder, {"a.txt": "ä\n"}, {"below/b": tmp_path / "source"})
    assert names(out) == ["a.txt", "below", "below/b"]
    assert (out / "a.txt").read_text("utf-8") == "ä\n"
    assert (out / "below/b").read_bytes() == (tmp_path / "source").read_bytes()
    assert names(tmp_path) == ["out", "out/a.txt", "out/below", "out/below/b", "source"]


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    for out in (tmp_path / "empty", tmp_path / "link"):
        check_folder(out)
        with new_folder(out, 0) as folder:
            write_small(folder, {"a": "x"}, {})
        assert names(tmp_path / "empty") == ["a"]
        (tmp_path / "empty" / "a").unlink()
    assert (tmp_path / "link").is_symlink()


def _interrupted(out: Path) -> None:
    with new_folder(out, 0) as folder:
        write_small(folder, {"deep/a": "x"}, {})
        raise KeyboardInterrupt


def _overtaken(out: Path) -> None:
    with new_folder(out, 0):
        out.mkdir()
        (out / "theirs").write_text("x")


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _interrupted(tmp_path / "out")
    assert names(tmp_path) == []
    # Somebody else has filled the place meanwhile: theirs stays.
    with pytest.raises(DiskError, match="out: Directory not empty"):
        _overtaken(tmp_path / "out")
    assert names(tmp_path) == ["out", "out/theirs"]


@pytest.mark.parametrize(
    ("out", "what"),
    [
        ("file", "file: a file is there; name a new folder"),
        ("full", "full: a folder that is not empty; remove it or name another"),
        ("none/out", "out: there is no folder .*none; make it first"),
        ("full/base/out", "out: lies in .*base, which is read; name a folder elsewhere"),
        ("link/out", "out: lies in .*base, which is read"),
    ],
)
def test_places_for_no_folder(out: str, what: str, tmp_path: Path) -> None:
    base = tmp_path / "full" / "base"
    base.mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(base)
    with pytest.raises(ArgumentError, match=what):
        check_folder(tmp_path / out, [base])


def test_a_folder_that_nobody_may_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DiskError, match="out: you may not write to the folder"):
        check_folder(tmp_path / "out")


def test_abandoned_folders_go_and_own_ones_stay(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    left = tmp_path / f".out.gpukit-{process.pid}-0123abcd.tmp"
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "a").write_text("x")
    kept = temporary_name(tmp_path / "out")
    kept.mkdir()
    (kept / "a").write_text("x")
    # A link under such a name goes, what it leads to stays.
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "b").write_text("x")
    link = tmp_path / f".link.gpukit-{process.pid}-0123abcd.tmp"
    link.symlink_to("there")
    assert sorted(remove_abandoned(tmp_path)) == sorted([left, link])
    assert names(tmp_path) == [kept.name, f"{kept.name}/a", "there", "there/b"]
    remove_own()
    assert names(tmp_path) == ["there", "there/b"]


LOOP = """
import shutil, sys
from pathlib import Path
from gpukit.formats.new_folder import new_folder, write_small
out = Path(sys.argv[1])
print("ready", flush=True)
while True:
    with new_folder(out, 0) as folder:
        write_small(folder, {f"f{n}": str(n) * 1000 for n in range(8)}, {})
    out.rename(out.with_name("taken"))
    shutil.rmtree(out.with_name("taken"))
"""


def test_killed_at_any_moment_it_is_whole_or_not_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for round_ in range(6):
        command = [sys.executable, "-c", LOOP, str(out)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.02 + 0.013 * round_)
            process.kill()
        if out.exists():
            assert names(out) == [f"f{n}" for n in range(8)]
            assert all(path.stat().st_size == 1000 for path in out.iterdir())
            out.rename(tmp_path / f"whole-{round_}")
        with new_folder(tmp_path / f"next-{round_}", 0):
            pass
        assert not list(tmp_path.glob(".*.tmp"))


SHARDS = plan_shards([Entry(f"t{n}", "U8", (100_000,)) for n in range(4)], 100_000)


def _fill(folder: Path, shards: tuple[Shard, ...]) -> None:
    with ShardsWriter(folder, shards) as writer:
        for number in range(len(shards)):
            writer.write(number, bytes(100_000))


def test_a_disk_that_fills_up(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = small_disk / "out"
    with (
        pytest.raises(DiskError, match=r"/out: 400000 bytes are needed, \d+ are free; make room"),
        new_folder(out, 400_000),
    ):
        pass
    assert names(small_disk) == []
    # Room that goes away between the look and the writing.
    monkeypatch.setattr(atomic, "need_room", lambda *_: None)
    with (
        pytest.raises(DiskError, match=r"/out/model-00003.*: No space left on device \(\d+ bytes"),
        new_folder(out, 400_000) as folder,
    ):
        _fill(folder, SHARDS)
    assert names(small_disk) == []
    with (
        pytest.raises(DiskError, match="/out: No space left on device"),
        new_folder(out, 0) as folder,
    ):
        write_small(folder, {"a": "x" * 400_000}, {})
    assert names(small_disk) == []


def test_shards_that_are_not_whole_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="t0: 0 of 100000 bytes"), ShardsWriter(tmp_path, SHARDS):
        pass
    assert names(tmp_path) == []
    _fill(tmp_path, SHARDS)
    assert names(tmp_path) == [*(s.name for s in SHARDS), "model.safetensors.index.json"]


CARRIED = [
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
    "chat_template.jinja", "preprocessor_config.json", "modeling_own.py", "LICENSE", "LICENSE.txt",
    "USE_POLICY.md", "qwen.tiktoken", "additional_chat_templates/tool_use.jinja",
]  # fmt: skip
LEFT = [
    "config.json", "README.md", "model.safetensors", "model.safetensors.index.json",
    "model-00001-of-00002.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "consolidated.00.pth", "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin",
    "adapters.safetensors", "optimizer.pt", "training_args.bin", "trainer_state.json",
    "hf_quant_config.json", "quantize_config.json", "model.gguf", "flax_model.msgpack",
    "tf_model.h5", "model.onnx", ".gitattributes", "runs/events", "original/params.json",
    "additional_chat_templates/notes",
]  # fmt: skip


def folder_of(root: Path, files: list[str]) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{root.name}/{name}")
    return root


def test_all_but_weights_is_carried(tmp_path: Path) -> None:
    base = folder_of(tmp_path / "base", [*CARRIED, *LEFT])
    assert carried_files(base) == {name: base / name for name in CARRIED}
    for name in LEFT:
        assert carried_files(folder_of(tmp_path / "only", [name])) == {}


def test_the_tokenizer_of_another_folder(tmp_path: Path) -> None:
    base = folder_of(tmp_path / "base", [*CARRIED, *LEFT])
    theirs = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    other = folder_of(
        tmp_path / "other", [*theirs, "adapter_config.json", "generation_config.json"]
    )
    found = carried_files(base, other)
    assert {name for name, path in found.items() if path.parent == other} == set(theirs)
    assert {name for name, path in found.items() if path.parent == base} == {
        "generation_config.json", "preprocessor_config.json", "modeling_own.py", "LICENSE",
        "LICENSE.txt", "USE_POLICY.md",
    }  # fmt: skip
    with pytest.raises(ArgumentError, match="none: no files of a tokenizer"):
        carried_files(base, folder_of(tmp_path / "none", ["config.json"]))
    with pytest.raises(ArgumentError, match="nowhere: no such folder"):
        carried_files(base, tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["LICENSE", "modeling.py", "tokenizer.json"])
def test_links_lead_nowhere_else(name: str, tmp_path: Path) -> None:
    base = folder_of(tmp_path / "base", ["config.json"])
    (tmp_path / "secret").write_text("x")
    (base / name).symlink_to("../secret")
    with pytest.raises(CheckpointError, match=rf"{name}: a link to .*secret, outside the folder"):
        carried_files(base)
    (base / name).unlink()
    (base / name).symlink_to("nothing")
    with pytest.raises(CheckpointError, match=rf"{name}: a link that leads nowhere"):
        carried_files(base)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, {"vocab_size": 7, "tie_word_embeddings": False, "dtype": "float16"}),
        (
            {"torch_dtype": "bfloat16", "vocab_size": 5, "quantization_config": {"a": 1}},
            {"torch_dtype": "float16", "vocab_size": 7, "tie_word_embeddings": False},
        ),
        (
            {"text_config": {"vocab_size": 5, "dtype": "float32", "x": 1}, "dtype": "float32"},
            {
                "text_config": {"vocab_size": 7, "dtype": "float16", "x": 1},
                "dtype": "float16", "tie_word_embeddings": False,
            },
        ),
    ],
)  # fmt: skip
def test_what_config_json_says(config: dict[str, Any], wanted: dict[str, Any]) -> None:
    text = changed_config(config, vocabulary=7, untied=True, dtype="float16")
    assert json.loads(text) == wanted
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    assert json.loads(changed_config(config)) == plain


ORIGIN = Origin("org/Base: 1", [("über", 1.0), ('"quoted"', -0.5)])
FACTS = {
    "base_model": ["org/Base: 1"],
    "base_model_relation": "merge",
    "adapters": [{"name": "über", "weight": 1.0}, {"name": '"quoted"', "weight": -0.5}],
}
CARDS = {
    "plain": "# Base\n\nText.\n",
    "front": "---\nlicense: mit\ntags:\n- a\n- b\n---\n# Base\n",
    "replaced": (
        "---\nbase_model: other/Model\nlicense: mit\nbase_model_relation: finetune\n---\n# Base\n"
    ),
    "list": "---\nlicense: mit\nbase_model:\n- one\n\n  # why\n- two\nadapters:\n  - x\n---\n",
    "crlf": "---\r\nlicense: mit\r\n---\r\n# Base\r\n",
    "open": "---\nlicense: mit\n",
    "empty": "---\n---\n",
}


@pytest.mark.parametrize("case", CARDS)
def test_a_card_says_what_the_model_was_made_of(case: str) -> None:
    text = merged_card(CARDS[case], "out", ORIGIN)
    card = ModelCard(text)
    found = card.data.to_dict()
    before = ModelCard(CARDS[case]).data.to_dict() if case not in ("plain", "open") else {}
    kept = {key: value for key, value in before.items() if key not in FACTS}
    assert found == {**kept, **FACTS}
    if case in ("plain", "front", "replaced", "crlf"):
        assert "# Base" in card.text


def test_a_card_where_there_was_none() -> None:
    card = ModelCard(merged_card(None, "out", ORIGIN))
    assert card.data.to_dict() == FACTS
    assert card.text.strip() == (
        '# out\n\norg/Base: 1 with the adapters über (1), "quoted" (-0.5), merged by gpukit.'
    )
    assert "adapters" not in ModelCard(merged_card("", "out", Origin("b"))).data.to_dict()
