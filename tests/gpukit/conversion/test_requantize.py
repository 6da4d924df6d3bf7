"""From quantised types, to floats, from and into split files: llama-quantize's and gguf's bytes."""

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from support import gguf_models
from support.checkpoints import DATA

import gpukit_kernels as kernels
from gpukit.conversion.run import Result, run_plan
from gpukit.errors import ArgumentError, CheckpointError, DiskError, GGUFError
from gpukit.formats import atomic
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_split import parse_size, part_path
from gpukit.planning.plan import Options
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

GOLDEN = json.loads((DATA / "golden" / "requantized.json").read_text())
STEPS = [key.split() for key in GOLDEN if not key.startswith("split")]
SPLIT_TYPES = [key.removeprefix("split ") for key in GOLDEN if key.startswith("split")]


def quantize(source: Path, out: Path, kind: str | None, **options: object) -> Result:
    with open_source(source) as model:
        plan = plan_quantize(model, kind, Options(**options))  # type: ignore[arg-type]
        return run_plan(model, plan, out)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def split_model(folder: Path) -> Path:
    return gguf_models.build("eight-layers", folder, 20)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("first", "second"), STEPS)
def test_quantised_sources_give_llama_quantizes_file(
    first: str, second: str, tmp_path: Path
) -> None:
    quantize(gguf_models.build("width-288", tmp_path), tmp_path / "a.gguf", first)
    quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", second, allow_requantize=True)
    assert digest(tmp_path / "b.gguf") == GOLDEN[f"{first} {second}"]


def test_floats_need_no_leave_and_hold_the_decoded_values(tmp_path: Path) -> None:
    model = gguf_models.build("eight-layers", tmp_path)
    quantize(model, tmp_path / "q.gguf", "Q4_K_M")
    with pytest.raises(ArgumentError, match=r"quantised already \(Q6_K\).*--allow-requantize"):
        quantize(tmp_path / "q.gguf", tmp_path / "b.gguf", "Q8_0")
    quantize(tmp_path / "q.gguf", tmp_path / "f.safetensors", "F32")
    found = load_file(tmp_path / "f.safetensors")
    for tensor in gguf.GGUFReader(tmp_path / "q.gguf").tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(found[tensor.name], values), tensor.name


def test_safetensors_hold_no_quantised_types(tmp_path: Path) -> None:
    quantize(gguf_models.build("tied", tmp_path), tmp_path / "q.gguf", "Q4_0")
    with pytest.raises(ArgumentError, match="choose --type F32, F16 or BF16"):
        quantize(tmp_path / "q.gguf", tmp_path / "f.safetensors", None)
    assert "f.safetensors" not in names(tmp_path)


@pytest.mark.parametrize("kind", SPLIT_TYPES)
def test_parts_are_kept_as_llama_quantize_keeps_them(kind: str, tmp_path: Path) -> None:
    model = split_model(tmp_path)
    (tmp_path / "out").mkdir()
    result = quantize(model, tmp_path / "out" / "x.gguf", kind, keep_split=True)
    assert [digest(path) for path in result.paths] == GOLDEN[f"split {kind}"]
    assert names(tmp_path / "out") == [path.name for path in result.paths]


def test_any_part_names_the_model_and_joining_gives_its_bytes(tmp_path: Path) -> None:
    whole = gguf_models.build("eight-layers", tmp_path)
    first = split_model(tmp_path)
    last = sorted(tmp_path.glob("eight-layers-*"))[-1]
    assert first != last
    quantize(last, tmp_path / "joined.gguf", None)
    assert digest(tmp_path / "joined.gguf") == digest(whole)
    quantize(first, tmp_path / "a.gguf", "Q4_K_M")
    quantize(whole, tmp_path / "b.gguf", "Q4_K_M")
    assert digest(tmp_path / "a.gguf") == digest(tmp_path / "b.gguf")


def test_splitting_by_size_gives_the_parts_of_the_gguf_package(tmp_path: Path) -> None:
    whole = gguf_models.build("eight-layers", tmp_path)
    quantize(whole, tmp_path / "ours.gguf", None, split_max_size=20_000)
    writer = gguf.GGUFWriter(
        tmp_path / "theirs.gguf", "llama", split_max_size=20_000, small_first_shard=False
    )
    reader = gguf.GGUFReader(whole)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = sorted(tmp_path.glob("ours-*")), sorted(tmp_path.glob("theirs-*"))
    assert len(ours) == len(theirs) > 3
    for a, b in zip(ours, theirs, strict=True):
        assert a.read_bytes() == b.read_bytes(), a


def test_parts_that_are_missing_or_mixed_up(tmp_path: Path) -> None:
    first = split_model(tmp_path)
    parts = sorted(tmp_path.glob("eight-layers-*"))
    saved = parts[1].read_bytes()
    parts[1].unlink()
    with pytest.raises(GGUFError, match=rf"{parts[1].name}: missing; 1 of the {len(parts)} parts"):
        open_source(first)
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(GGUFError, match="says that it is part 3, its name says 2"):
        open_source(first)
    parts[1].write_bytes(saved[: len(saved) // 2])
    with pytest.raises(GGUFError, match=rf"{parts[1].name}: truncated"):
        open_source(first)
    parts[1].write_bytes(saved)
    lone = tmp_path / "lone.gguf"
    parts[0].rename(lone)
    with pytest.raises(GGUFError, match=f"one of {len(parts)} parts of a model, but not called"):
        open_source(lone)


def test_options_that_contradict_each_other(tmp_path: Path) -> None:
    model = gguf_models.build("tied", tmp_path)
    with pytest.raises(ArgumentError, match="--keep-split needs a GGUF in several parts"):
        quantize(model, tmp_path / "x.gguf", "Q8_0", keep_split=True)
    with pytest.raises(ArgumentError, match="exclude each other"):
        quantize(model, tmp_path / "x.gguf", "Q8_0", keep_split=True, split_max_size=5)
    for text in ("", "2T", "-1", "0", "1.G", ".5G", "1e3", "0.1", "9" * 19, "9" * 5000):
        with pytest.raises(ArgumentError, match="is no size"):
            parse_size(text)
    assert parse_size("500m") == 500_000_000
    assert parse_size("5.5G") == 5_500_000_000


def test_parts_appear_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gguf_models.build("tied", tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    tensors = {t.name: t for t in gguf.GGUFReader(model).tensors}
    data = bytearray(model.read_bytes())
    at = tensors["token_embd.weight"].data_offset
    data[at : at + 2] = b"\x80\x7f"  # infinity in BF16
    model.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"token_embd\.weight: value \[0, 0\] is inf"):
        quantize(model, out / "x.gguf", "Q8_0", split_max_size=5000)
    assert names(out) == []
    data[at : at + 2] = b"\x80\x3f"
    model.write_bytes(data)
    free = atomic.shutil.disk_usage(tmp_path)._replace(free=9000)
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _path: free)
    with pytest.raises(DiskError, match="bytes are needed, 9000 are free"):
        quantize(model, out / "x.gguf", "Q8_0", split_max_size=5000)
    assert names(out) == []
    monkeypatch.undo()
    result = quantize(model, out / "x.gguf", "Q8_0", split_max_size=5000)
    count = len(result.paths)
    assert count > 3
    assert [part_path(out / "x.gguf", i, count).name for i in range(count)] == names(out)
    assert sum(len(GGUFFile(path).tensors) for path in result.paths) == len(tensors)


def test_scales_of_quantised_tensors_that_only_move_must_be_finite(tmp_path: Path) -> None:
    quantize(gguf_models.build("tied", tmp_path), tmp_path / "q.gguf", "Q8_0")
    data = bytearray((tmp_path / "q.gguf").read_bytes())
    with GGUFFile(tmp_path / "q.gguf") as file:
        at = file.tensors["blk.1.attn_q.weight"].offset + kernels.by_name("Q8_0").nbytes
    data[at : at + 2] = b"\x00\x7e"  # NaN in F16
    (tmp_path / "q.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"blk\.1\.attn_q\.weight: value \[0, 32\] is nan"):
        quantize(tmp_path / "q.gguf", tmp_path / "x.gguf", None)


def test_the_error_is_that_of_the_decoded_values(tmp_path: Path) -> None:
    model = gguf_models.build("eight-layers", tmp_path)
    result = quantize(model, tmp_path / "q.gguf", "Q4_K_M")
    before = {t.name: t for t in gguf.GGUFReader(model).tensors}
    after = {t.name: t for t in gguf.GGUFReader(tmp_path / "q.gguf").tensors}
    (found,) = [c for c in result.classes if c.name == "blk.*.ffn_down.weight"]
    error = square = 0.0
    for i in range(8):
        name = f"blk.{i}.ffn_down.weight"
        x, y = (gguf.dequantize(t.data, t.tensor_type).astype(np.float64)
                for t in (before[name], after[name]))  # fmt: skip
        error, square = error + ((x - y) ** 2).sum(), square + (x**2).sum()
    assert found.types == ("Q6_K", "Q4_K")
    assert found.compared == found.weights == 8 * 6 * 256
    assert found.relative_rms == pytest.approx((error / square) ** 0.5, rel=1e-6)
