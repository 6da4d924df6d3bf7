"""Folders written from folders: every byte that stays, what PEFT merges, and what is beside it."""

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save
from support.checkpoints import save_shards
from support.model_folders import KINDS, copied, loaded, raw, weights
from support.zoo_build import build
from torch import Tensor

from gpukit.conversion.folder import FolderOptions, write_folder
from gpukit.errors import ArgumentError, CheckpointError
from gpukit.events import Warned
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.model_card import Origin
from gpukit.sources.stored import Changes


@pytest.mark.parametrize(
    ("name", "budget"),
    [("qwen2", 4 << 30), ("qwen2-tied", 1), ("qwen2-linear", 4 << 30), ("mixtral-12", 1 << 22)],
)
def test_without_steps_files_are_those_that_safetensors_writes(
    name: str, budget: int, tmp_path: Path
) -> None:
    folder, out = build(name, tmp_path), tmp_path / "out"
    result = copied(folder, out, budget=budget)
    (path,) = out.glob("*.safetensors")
    assert path.name == "model.safetensors"
    stored = weights(folder)
    assert path.read_bytes() == save(stored, {"format": "pt"})
    assert result.read_bytes == sum(t.nbytes for t in stored.values())
    assert result.path == out
    assert {p.name for p in result.paths} == {p.name for p in out.iterdir()}
    assert result.size == sum(p.stat().st_size for p in out.iterdir())
    assert json.loads(json.dumps(result.as_json()))["size"] == result.size
    config = json.loads((folder / "config.json").read_text())
    assert json.loads((out / "config.json").read_text()) == config
    assert (out / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()


ODD = {
    "a.steps": torch.tensor(7),
    "a.scale": torch.tensor(0.5, dtype=torch.bfloat16),
    "b.mask": torch.tensor([[True, False], [False, True]]),
    "c.empty": torch.zeros(0, 4),
    "d.bytes": torch.arange(11, dtype=torch.uint8),
    "e.conv": torch.arange(360, dtype=torch.float32).view(2, 3, 3, 4, 5).to(torch.float16),
    "f.odd": torch.ones(3, dtype=torch.bfloat16),
    "g.whole": torch.arange(5),
    "h.double": torch.randn(3, 5, dtype=torch.float64),
}


def odd(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(save(ODD))
    return folder


def test_whatever_a_file_holds_is_copied(tmp_path: Path) -> None:
    copied(odd(tmp_path / "in"), tmp_path / "out")
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert written == save(ODD, {"format": "pt"})


def test_a_type_is_that_of_floats(tmp_path: Path) -> None:
    copied(odd(tmp_path / "in"), tmp_path / "out", dtype="BF16")
    found = weights(tmp_path / "out")
    for name, values in ODD.items():
        wanted = values
        if values.is_floating_point() and values.numel():
            # float64 comes by float32, as into all that is quantised.
            wanted = values.to(torch.float32).to(torch.bfloat16)
        assert found[name].dtype is wanted.dtype, name
        assert found[name].shape == wanted.shape, name
        assert raw(found[name]) == raw(wanted), name
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"dtype": "bfloat16"}


def test_steps_have_every_row_once(tmp_path: Path) -> None:
    folder = build("qwen2-tied", tmp_path)
    seen: dict[str, dict[int, Tensor]] = {}

    def watch(name: str, row: int, rows: Tensor, /) -> Tensor:
        for number, values in enumerate(rows.clone(), row):
            assert number not in seen.setdefault(name, {}), (name, number)
            seen[name][number] = values
        return rows

    def add(name: str, row: int, rows: Tensor, /) -> Tensor:
        return rows.to(torch.float32) + 1.0

    copied(folder, tmp_path / "out", [watch, add], budget=1 << 19)
    found = weights(tmp_path / "out")
    for name, values in weights(folder).items():
        rows = torch.stack([seen[name][number] for number in range(len(seen[name]))])
        assert rows.view(values.shape).equal(values), name
        assert found[name].equal((values.float() + 1).half()), name


@pytest.mark.parametrize("limit", [1, 40_000, 200_000, 10**9])
def test_shards_are_those_of_transformers(limit: int, tmp_path: Path) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    folder, out = build("qwen3-untied", tmp_path), tmp_path / "out"
    copied(folder, out, max_shard_size=limit)
    with Checkpoint(folder) as checkpoint:
        names = list(checkpoint.tensors)
    stored = weights(folder)
    split = split_torch_state_dict_into_shards(
        {name: stored[name] for name in names}, max_shard_size=limit
    )
    assert {p.name for p in out.glob("*.safetensors")} == split.filename_to_tensors.keys()
    for file, members in split.filename_to_tensors.items():
        data = save({name: stored[name] for name in members}, {"format": "pt"})
        assert (out / file).read_bytes() == data
    index = out / "model.safetensors.index.json"
    assert index.exists() == split.is_sharded
    if split.is_sharded:
        total = sum(values.numel() for values in stored.values())
        content = {
            "metadata": {"total_parameters": total, **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        assert index.read_text() == json.dumps(content, indent=2, sort_keys=True) + "\n"
    loaded(out)


def test_what_stands_beside_the_weights(tmp_path: Path) -> None:
    folder, other = build("qwen2-bpe", tmp_path), tmp_path / "other"
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Base\r\n", newline="")
    (folder / "pytorch_model.bin").write_bytes(b"old")
    other.mkdir()
    (other / "tokenizer.json").write_text("{}")
    copied(folder, tmp_path / "out")
    names = {"README.md", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*names, "model.safetensors"}
    for name in names - {"config.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("the cat").input_ids
    assert ids == transformers.AutoTokenizer.from_pretrained(folder)("the cat").input_ids
    copied(folder, tmp_path / "new", tokenizer=other, origin=Origin("org/base", [("poet", 0.5)]))
    assert (tmp_path / "new" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "new" / "tokenizer_config.json").exists()
    card = (tmp_path / "new" / "README.md").read_text()
    assert card.startswith('---\nlicense: mit\nbase_model:\n- "org/base"\n')
    assert card.endswith('- name: "poet"\n  weight: 0.5\n---\n# Base\n')


@pytest.mark.parametrize("place", ["other", "qwen2-tied/out", "adapter/out"])
def test_places_and_devices_are_looked_at_first(place: str, tmp_path: Path) -> None:
    folder = build("qwen2-tied", tmp_path)
    for name in ("other", "adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    with Checkpoint(folder) as checkpoint:
        inputs = [tmp_path / "adapter"]
        with pytest.raises(ArgumentError, match=r"not empty|which is read"):
            write_folder(checkpoint, tmp_path / place, inputs=inputs, device="cpu")
        with pytest.raises(ArgumentError, match="device"):
            write_folder(checkpoint, tmp_path / "out", device="cuda:77")
    assert sorted(tmp_path.rglob("*")) == before


def test_too_many_shards(tmp_path: Path) -> None:
    folder = odd(tmp_path / "in")
    many = {str(number): torch.zeros(2) for number in range(501)}
    (folder / "model.safetensors").write_bytes(save(many))
    with pytest.raises(ArgumentError, match="shards of 4 bytes make 501 files, at most 500"):
        copied(folder, tmp_path / "out", max_shard_size=4)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_weights_of_torch_become_safetensors(tmp_path: Path) -> None:
    folder = build("qwen2", tmp_path)
    stored = weights(folder)
    name = "model.layers.0.self_attn.q_proj.weight"
    stored[name] = stored[name].t().contiguous().t()
    torch.save(stored, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    copied(folder, tmp_path / "out")
    data = save({n: t.contiguous() for n, t in stored.items()}, {"format": "pt"})
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == data
    assert not list((tmp_path / "out").glob("*.bin"))


@pytest.mark.parametrize("kind", [None, "F32"])
def test_eight_bits_become_sixteen(kind: str | None, tmp_path: Path) -> None:
    folder, out = build("mixtral-fp8", tmp_path), tmp_path / "out"
    copied(folder, out, dtype=kind)
    stored, found = weights(folder), weights(out)
    assert found.keys() == {name for name in stored if not name.endswith("_scale_inv")}
    scaled = 0
    for name, values in found.items():
        wanted = stored[name].float()
        if f"{name}_scale_inv" in stored:
            scales = stored[f"{name}_scale_inv"]
            each = scales.repeat_interleave(48, 0).repeat_interleave(64, 1)
            wanted, scaled = wanted * each[: wanted.shape[0], : wanted.shape[1]], scaled + 1
        assert values.dtype is KINDS[kind or "BF16"], name
        assert values.equal(wanted.to(values.dtype)), name
    assert scaled > 3
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    loaded(out)


def test_settings_of_a_quantisation_that_is_gone_are_told_and_left_out(tmp_path: Path) -> None:
    folder = build("qwen2", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    told: list[Any] = []
    copied(folder, tmp_path / "out", report=told.append)
    (line,) = [event.text for event in told if isinstance(event, Warned)]
    assert "a quantisation (bitsandbytes) that no tensor shows" in line
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


def test_weights_in_four_bits_are_refused(tmp_path: Path) -> None:
    folder = odd(tmp_path / "in")
    settings = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"quantised \(gptq\)"):
        copied(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("value", "kind", "what"),
    [
        (math.nan, None, r"c\.weight: value \[1, 2\] is nan"),
        (math.inf, "F16", r"c\.weight: value \[1, 2\] is inf"),
        (1e5, "F16", r"c\.weight: a value of magnitude 100000 overflows F16; choose BF16 or F32"),
    ],
)
def test_numbers_that_no_model_can_have(
    value: float, kind: str | None, what: str, tmp_path: Path
) -> None:
    folder = odd(tmp_path / "in")
    values = torch.zeros(2, 3)
    values[1, 2] = value
    (folder / "model.safetensors").write_bytes(save({"c.weight": values}))
    with pytest.raises(CheckpointError, match=what):
        copied(folder, tmp_path / "out", dtype=kind)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_added_and_dropped(tmp_path: Path) -> None:
    folder = odd(tmp_path / "in")
    added = {"z.new": "e.conv", "h.double": "f.odd"}  # one of them is there, as a copy may be
    changes = Changes(frozenset(), added, {"f.odd": 5}, frozenset({"g.whole"}))
    copied(folder, tmp_path / "out", changes=changes)
    found = weights(tmp_path / "out")
    assert found.keys() == {*ODD, "z.new"} - {"g.whole"}
    assert found["z.new"].equal(ODD["e.conv"])
    assert found["h.double"].equal(ODD["f.odd"])
    assert found["f.odd"].tolist() == [1, 1, 1, 0, 0]
    with pytest.raises(CheckpointError, match="no tensor nobody, which is to be changed"):
        copied(folder, tmp_path / "again", changes=Changes(added={"z.new": "nobody"}))


def test_a_type_that_no_folder_has() -> None:
    with pytest.raises(ArgumentError, match="weights are F32, F16, BF16, not Q4_K_M; for other"):
        FolderOptions(dtype="Q4_K_M")
    with pytest.raises(ArgumentError, match="shards of 0 bytes"):
        FolderOptions(max_shard_size=0)


COPY = """
import sys
from pathlib import Path
from gpukit.conversion.folder import FolderOptions, write_folder
from gpukit.formats.checkpoint import Checkpoint

def step(name, row, rows):
    return rows.float()

with Checkpoint(Path(sys.argv[1])) as checkpoint:
    options = FolderOptions(max_shard_size=200_000)
    write_folder(checkpoint, Path(sys.argv[2]), [step], options=options, budget=1 << 16)
"""


def test_killed_at_any_moment_it_is_whole_or_not_there(tmp_path: Path) -> None:
    folder, out = build("qwen2", tmp_path), tmp_path / "out"
    stored = weights(folder)
    for delay in (0.0, 0.03):
        command = [sys.executable, "-c", COPY, str(folder), str(out)]
        with subprocess.Popen(command) as process:
            while not list(tmp_path.glob("*out*")) and process.poll() is None:
                time.sleep(0.001)
            time.sleep(delay)
            process.kill()
        assert list(tmp_path.glob("*out*"))
        if out.exists():
            assert weights(out).keys() == stored.keys()
            shutil.rmtree(out)
    copied(folder, out)
    assert raw(weights(out)["lm_head.weight"]) == raw(stored["lm_head.weight"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "qwen2"]


def test_many_shards_come_in(tmp_path: Path) -> None:
    folder = odd(tmp_path / "in")
    (folder / "model.safetensors").unlink()
    save_shards(folder, ODD, 3)
    copied(folder, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == save(ODD, {"format": "pt"})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
