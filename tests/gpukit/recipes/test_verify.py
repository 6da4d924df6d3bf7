"""Verifying: what gpukit wrote is equal to what its source gives, and what was changed is found."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support import checkpoints
from support.checkpoints import DATA
from support.loras import lora
from support.zoo_build import build

import gpukit
from gpukit.formats.gguf_fields import type_sizes
from gpukit.formats.gguf_reader import GGUFFile

TENSOR = "blk.1.ffn_down.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter of it, and its files of several types."""
    root = tmp_path_factory.mktemp("verify")
    base = build("qwen2", root)
    lora(base, root / "lora")
    for kind in ("BF16", "Q8_0", "Q4_K_M"):
        gpukit.convert(base, root / f"{kind}.gguf", kind, device="cpu")
    return root


def verify(file: Path, source: Path | None = None, **options: object) -> gpukit.Verification:
    return gpukit.verify(file, source, device="cpu", **options)  # type: ignore[arg-type]


def changed(path: Path, out: Path, name: str, at: int, data: bytes | None = None) -> Path:
    """A copy of the GGUF at `path` with `data` at byte `at` of a tensor's data, or there with the
    lowest bit turned over."""
    shutil.copy(path, out)
    with GGUFFile(path) as file:
        offset = file.tensors[name].offset + at
    with out.open("r+b") as target:
        target.seek(offset)
        old = target.read(1)
        target.seek(offset)
        target.write(bytes([old[0] ^ 1]) if data is None else data)
    return out


def block_of(path: Path, name: str) -> int:
    with GGUFFile(path) as file:
        return type_sizes()[file.tensors[name].type].nbytes


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q4_K_M"])
def test_what_was_converted_is_what_its_source_gives(kind: str, root: Path) -> None:
    file, base = root / f"{kind}.gguf", root / "qwen2"
    before = {path: path.stat().st_mtime_ns for path in root.iterdir()}
    found = verify(file, base)
    assert found.equal, (found.metadata, found.notes)
    assert (found.first, found.notes, found.different_blocks) == (None, (), 0)
    with GGUFFile(file) as written:
        assert [t.name for t in found.tensors] == list(written.tensors)
        assert found.nbytes == sum(info.nbytes for info in written.tensors.values())
    assert verify(file, base, type=kind).equal
    assert before == {path: path.stat().st_mtime_ns for path in root.iterdir()}


def test_what_was_quantised_of_a_gguf_is_equal_to_it(root: Path, tmp_path: Path) -> None:
    for middle, kind in (("BF16", "Q6_K"), ("Q8_0", "F16")):
        out = tmp_path / f"{kind}.gguf"
        gpukit.convert(root / f"{middle}.gguf", out, kind, device="cpu")
        assert verify(out, root / f"{middle}.gguf").equal
    again = gpukit.Options(allow_requantize=True)
    gpukit.quantize(root / "Q8_0.gguf", tmp_path / "a.gguf", "Q4_0", options=again, device="cpu")
    assert verify(tmp_path / "a.gguf", root / "Q8_0.gguf").equal
    # The loss of the step in between shows.
    found = verify(tmp_path / "a.gguf", root / "qwen2")
    assert not found.equal
    assert not any(difference.counts for difference in found.metadata)


def test_mixed_types_need_no_recipe(root: Path, tmp_path: Path) -> None:
    types = gpukit.make_overrides(["ffn_down=Q5_1", "attn_v=F16"])
    options = gpukit.Options(overrides=types)
    out = tmp_path / "x.gguf"
    gpukit.quantize(root / "qwen2", out, "Q4_K_S", options=options, device="cpu")
    assert verify(out, root / "qwen2").equal
    found = verify(out, root / "qwen2", type="Q4_K_S")
    assert not found.equal
    assert found.different_blocks == 0
    problems = {tensor.name: tensor.problem for tensor in found.tensors if not tensor.equal}
    assert problems[TENSOR] == "Q5_1, where Q4_K_S has Q4_K"
    assert all("ffn_down" in name or "attn_v" in name for name in problems)
    (number,) = verify(root / "Q8_0.gguf", root / "qwen2", type="Q4_K_S").metadata
    assert (number.key, number.found, number.expected) == ("general.file_type", 7, 14)


def test_merged_with_its_adapter_only(root: Path, tmp_path: Path) -> None:
    base, adapter = root / "qwen2", f"{root / 'lora'}:0.5"
    for source, kind in ((base, "Q4_K_M"), (root / "BF16.gguf", "Q8_0")):
        out = tmp_path / f"{kind}.gguf"
        gpukit.merge(source, [adapter], out, kind, device="cpu")
        assert verify(out, source, adapters=[adapter]).equal
        without = verify(out, source)
        assert {row.name for row in without.classes if row.equal < row.tensors} == {
            f"blk.*.{part}.weight" for part in (
                "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
            )
        }  # fmt: skip
    other = verify(out, root / "BF16.gguf", adapters=[f"{root / 'lora'}:0.6"])
    assert other.different_blocks > 0


@pytest.mark.parametrize("kind", ["BF16", "Q4_K_M"])
def test_one_byte_is_found_where_it_is(kind: str, root: Path, tmp_path: Path) -> None:
    whole = root / f"{kind}.gguf"
    size = block_of(whole, TENSOR)
    file = changed(whole, tmp_path / "x.gguf", TENSOR, 37 * size + size - 1)
    found = verify(file, root / "qwen2")
    first = found.first
    assert first is not None
    assert (first.name, first.different, first.place) == (TENSOR, 1, (37, size - 1))
    assert [tensor.name for tensor in found.tensors if not tensor.equal] == [TENSOR]
    assert found.different_blocks == 1
    assert "a damaged file" in found.notes[0]
    document = json.loads(json.dumps(found.as_json()))
    assert document["equal"] is False
    assert document["first"]["first_block"] == 37
    assert document["classes"]["blk.*.ffn_down.weight"]["different"] == 1
    # By itself it is a file as good as any.
    assert verify(file).equal


def test_other_weights_and_other_metadata(root: Path, tmp_path: Path) -> None:
    other = shutil.copytree(root / "qwen2", tmp_path / "qwen2")
    weights = load_file(other / "model.safetensors")
    save_file({n: w + 0.5 for n, w in weights.items()}, other / "model.safetensors")
    found = verify(root / "BF16.gguf", other)
    assert any("it was made of other weights" in note for note in found.notes)
    assert not found.metadata
    config = json.loads((root / "qwen2" / "config.json").read_text())
    described = shutil.copytree(root / "qwen2", tmp_path / "called-otherwise")
    found = verify(root / "BF16.gguf", described)
    assert found.equal
    assert found.metadata
    assert not any(difference.counts for difference in found.metadata)
    config["rms_norm_eps"] = 0.25
    (described / "config.json").write_text(json.dumps(config))
    found = verify(root / "BF16.gguf", described)
    (counting,) = (d for d in found.metadata if d.counts)
    assert (counting.key, counting.expected) == ("qwen2.attention.layer_norm_rms_epsilon", 0.25)
    assert (found.equal, found.first) == (False, None)


def test_another_model_is_told_in_a_line(root: Path, tmp_path: Path) -> None:
    wide, narrow = (checkpoints.build(name, tmp_path) for name in ("plain", "narrow-heads"))
    gpukit.convert(wide, tmp_path / "x.gguf", device="cpu")
    for file, source, message in (
        (root / "BF16.gguf", wide, "its architecture is qwen2, that of the source llama"),
        (tmp_path / "x.gguf", narrow, r"0 of its 21 tensors have name and shape of one of the sou"
         r"rce's 21; output.weight, 256 x 2048, is 288 x 2048 there"),
    ):  # fmt: skip
        with pytest.raises(gpukit.FormatError, match=message) as error:
            verify(file, source)
        assert "\n" not in str(error.value)


def test_tensors_that_only_one_side_has(root: Path, tmp_path: Path) -> None:
    other = shutil.copytree(root / "qwen2", tmp_path / "short")
    weights = load_file(other / "model.safetensors")
    settings = json.loads((other / "config.json").read_text())
    last = settings["num_hidden_layers"] - 1
    (other / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": last}))
    kept = {name: w for name, w in weights.items() if f".layers.{last}." not in name}
    save_file(kept, other / "model.safetensors")
    found = verify(root / "BF16.gguf", other)
    assert {t.problem for t in found.tensors if not t.equal} == {"not in the source"}
    gpukit.convert(other, tmp_path / "short.gguf", device="cpu")
    found = verify(tmp_path / "short.gguf", root / "qwen2")
    wrong = [t for t in found.tensors if not t.equal]
    assert {t.problem for t in wrong} == {"missing in the file"}
    assert all(t.name.startswith(f"blk.{last}.") for t in wrong)
    assert "qwen2.block_count" in {d.key for d in found.metadata if d.counts}


def test_a_truncated_file_and_a_folder_are_refused(root: Path, tmp_path: Path) -> None:
    data = (root / "Q8_0.gguf").read_bytes()
    (tmp_path / "x.gguf").write_bytes(data[:-4000])
    for source in (None, root / "qwen2"):
        with pytest.raises(gpukit.GGUFError, match=r"truncated: .* needs bytes up to"):
            verify(tmp_path / "x.gguf", source)
    with pytest.raises(gpukit.ArgumentError, match="a model folder; name a GGUF"):
        verify(root / "qwen2", root / "qwen2")
    with pytest.raises(gpukit.ArgumentError, match=r"imatrix is for comparing .*--from"):
        verify(root / "Q8_0.gguf", imatrix="x.gguf")
    with pytest.raises(gpukit.ArgumentError, match="no adapter to merge"):
        verify(root / "Q8_0.gguf", root / "qwen2", merge_base="nf4")


def test_importance_is_asked_for(tmp_path: Path) -> None:
    base, imatrix = DATA / "tiny-shakespeare", DATA / "imatrix" / "tiny-shakespeare.gguf"
    out = tmp_path / "x.gguf"
    gpukit.convert(base, out, "Q4_0", imatrix=imatrix, device="cpu")
    assert verify(out, base, imatrix=imatrix).equal
    found = verify(out, base)
    assert not found.equal
    assert "was quantised with importance (" in found.notes[0]
    assert "tiny-shakespeare.gguf): give --imatrix" in found.notes[0]


def test_a_split_file_and_a_name_of_the_store(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpukit.convert(
        root / "qwen2", tmp_path / "x.gguf", "Q8_0", split_max_size=200_000, device="cpu"
    )
    parts = sorted(tmp_path.glob("x-*.gguf"))
    assert len(parts) > 1
    assert verify(parts[1], root / "qwen2").equal
    assert verify(parts[0]).equal
    monkeypatch.setenv("GPUKIT_MODELS", str(tmp_path / "models"))
    modelfile = gpukit.Modelfile(source=str(root / "qwen2"))
    gpukit.Store().create("tiny", modelfile, "Q8_0", device="cpu")
    assert gpukit.verify("tiny", root / "qwen2", device="cpu").equal
    assert gpukit.verify(root / "Q8_0.gguf", "tiny", device="cpu").equal


# The byte of a block with the upper half of its scale, and what that is called.
@pytest.mark.parametrize(
    ("kind", "name", "at", "said"),
    [("Q8_0", TENSOR, 1, "d"), ("Q4_K_M", "token_embd.weight", 3, "dmin")],
)
def test_a_scale_that_is_not_finite(
    kind: str, name: str, at: int, said: str, root: Path, tmp_path: Path
) -> None:
    whole = root / f"{kind}.gguf"
    size = block_of(whole, name)
    for high, value in ((0x7E, "nan"), (0xFC, "inf")):
        place = 5 * size + at - 1
        file = changed(whole, tmp_path / "x.gguf", name, place, bytes([0, high]))
        found = verify(file)
        first = found.first
        assert first is not None
        assert (first.name, first.problem) == (name, f"{said} of block 5 is {value}")
        assert not found.equal
    assert verify(whole).equal


def test_bytes_behind_the_end_are_told(root: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes((root / "Q8_0.gguf").read_bytes() + bytes(100))
    found = verify(tmp_path / "x.gguf")
    assert found.equal
    assert "100 bytes behind the last tensor belong to nothing" in found.notes[0]


def test_alone_it_needs_no_torch(root: Path) -> None:
    code = (
        "import sys, gpukit; assert gpukit.verify(sys.argv[1]).equal; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(root / "Q8_0.gguf")], check=True)
