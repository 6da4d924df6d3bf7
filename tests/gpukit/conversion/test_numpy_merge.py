"""Merging without torch: bytes and sums of the other engine, and what it declines."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.loras import lora
from support.zoo_build import build

import gpukit
from gpukit.conversion import pipeline
from gpukit.conversion.arrays import order_of
from gpukit.conversion.engine import Wish
from gpukit.conversion.folder import FolderOptions, FolderResult, merge_folder, write_folder
from gpukit.conversion.numpy_engine import plain_conversion
from gpukit.conversion.run import Result, run_plan
from gpukit.errors import CheckpointError
from gpukit.formats.checkpoint import Checkpoint
from gpukit.models.gemma import plus_one
from gpukit.planning.changes import ChangeTotal
from gpukit.planning.plan import Options
from gpukit.planning.planner import plan_quantize
from gpukit.sources.merged import Chosen, Merge
from gpukit.sources.opening import open_source
from gpukit_kernels import by_name
from gpukit_kernels.cpu import cache, compiled

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiled.compiler() is None, reason="no C compiler"),
]

# Rows that move, biases, fused matrices, experts, tied heads, norms whose numbers change.
ANIMALS = ["mistral-v0.3", "qwen2", "phi3-4k", "mixtral-8x7b", "gemma3"]
TARGETS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    "qkv_proj", "gate_up_proj", "w1", "w2", "w3",
)  # fmt: skip
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@pytest.fixture(autouse=True, scope="module")
def programs() -> None:
    assert compiled.merger() is not None
    for kind in ("Q4_0", "Q8_0"):
        assert compiled._program(by_name(kind), False) is not None


def base_of(name: str, folder: Path, dtype: str | None = None) -> Path:
    base = build(name, folder)
    if dtype is not None:
        for path in base.glob("*.safetensors"):
            tensors = {key: value.to(DTYPES[dtype]) for key, value in load_file(path).items()}
            save_file(tensors, path)
    return base


def adapter(base: Path, folder: Path, rank: int = 4, seed: int = 0, **settings: object) -> Path:
    name = f"lora-{seed}"
    return lora(base, folder / name, rank=rank, seed=seed, targets=TARGETS, **settings)


def chosen(*adapters: Path) -> Merge:
    return Merge(tuple(Chosen(path, 1.0 - number / 3) for number, path in enumerate(adapters)))


def assert_alike(found: Sequence[ChangeTotal], wanted: Sequence[ChangeTotal]) -> None:
    """The same float32 numbers, added up in float64 in another order."""
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert (one.name, one.looked_at) == (other.name, other.looked_at)
        for name in ("relative", "kept", "direction"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9), name


def as_gguf(base: Path, merge: Merge, kind: str | None, out: Path) -> list[Result]:
    """Merged by both engines, torch first."""
    found = []
    for engine in ("torch", "numpy"):
        with open_source(base, merge=merge) as source:
            plan = plan_quantize(source, kind, Options(allow_requantize=True))
            path = out / f"{engine}.gguf"
            found.append(run_plan(source, plan, path, device="cpu", engine=engine))
    one, other = (result.path.read_bytes() for result in found)
    assert one == other
    assert_alike(found[1].changes, found[0].changes)
    for ours, theirs in zip(found[1].totals, found[0].totals, strict=True):
        for key, value in theirs.as_json().items():
            near = isinstance(value, float)
            assert ours.as_json()[key] == (pytest.approx(value, rel=1e-9) if near else value), key
    return found


def as_folder(
    base: Path, merge: Merge, out: Path, dtype: str | None = None, shard: int | None = None
) -> list[FolderResult]:
    found = []
    for engine in ("torch", "numpy"):
        path = out / engine / "merged"
        path.parent.mkdir()
        found.append(
            merge_folder(
                base, merge, path, dtype=dtype, max_shard_size=shard, device="cpu", engine=engine
            )
        )
    one, other = found
    assert [p.name for p in one.paths] == [p.name for p in other.paths]
    for ours, theirs in zip(one.paths, other.paths, strict=True):
        assert ours.read_bytes() == theirs.read_bytes(), ours.name
    assert_alike(other.changes, one.changes)
    return found


@pytest.mark.parametrize("name", ANIMALS)
def test_folder(name: str, tmp_path: Path) -> None:
    base = base_of(name, tmp_path)
    as_folder(base, chosen(adapter(base, tmp_path)), tmp_path)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("to", [None, "BF16", "F16", "F32"])
def test_dtypes_of_folders(dtype: str, to: str | None, tmp_path: Path) -> None:
    base = base_of("qwen2", tmp_path, dtype)
    as_folder(base, chosen(adapter(base, tmp_path)), tmp_path, to, shard=100_000)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ANIMALS)
def test_gguf_from_a_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SLAB_WEIGHTS", 1 << 12)
    base = base_of(name, tmp_path)
    as_gguf(base, chosen(adapter(base, tmp_path)), None, tmp_path)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_types_of_a_gguf(dtype: str, kind: str, tmp_path: Path) -> None:
    base = base_of("mistral-v0.3", tmp_path, dtype)
    as_gguf(base, chosen(adapter(base, tmp_path)), kind, tmp_path)


@pytest.mark.parametrize("name", ["mistral-v0.3", "mixtral-8x7b"])
def test_gguf_from_a_gguf(name: str, tmp_path: Path) -> None:
    base = base_of(name, tmp_path)
    one = adapter(base, tmp_path)
    for kind in ("F16", "BF16"):
        whole = gpukit.convert(base, tmp_path / f"{kind}.gguf", kind, device="cpu").path
        out = tmp_path / kind
        out.mkdir()
        as_gguf(whole, chosen(one), None, out)


def test_a_gguf_adapter(tmp_path: Path) -> None:
    base = base_of("mistral-v0.3", tmp_path)
    whole = gpukit.convert(base, tmp_path / "f16.gguf", "F16", device="cpu").path
    one = gpukit.write_adapter(adapter(base, tmp_path), base, tmp_path / "lora.gguf").path
    as_gguf(whole, chosen(one), None, tmp_path)


@pytest.mark.parametrize("rank", [1, 3, 17])
def test_ranks_and_several_adapters(rank: int, tmp_path: Path) -> None:
    base = base_of("qwen2", tmp_path)
    adapters = [adapter(base, tmp_path, rank, seed) for seed in range(3)]
    as_folder(base, chosen(*adapters), tmp_path)


def with_lengths(base: Path, folder: Path) -> Path:
    """An adapter with DoRA's magnitudes."""
    path = adapter(base, folder, use_dora=True)
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    random = torch.Generator().manual_seed(3)
    for name, values in list(tensors.items()):
        if name.endswith("lora_B.weight"):
            magnitude = torch.rand(len(values), generator=random)
            tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = magnitude
    save_file(tensors, file)
    return path


@pytest.mark.parametrize("name", ["mistral-v0.3", "phi3-4k"])
def test_dora(name: str, tmp_path: Path) -> None:
    base = base_of(name, tmp_path)
    one = with_lengths(base, tmp_path)
    as_folder(base, chosen(one), tmp_path)
    as_gguf(base, chosen(one), "F16", tmp_path)


def test_deltas_of_nothing_are_looked_at_whole(tmp_path: Path) -> None:
    base = base_of("qwen2", tmp_path)
    path = lora(base, tmp_path / "lora")
    tensors = load_file(path / "adapter_model.safetensors")
    for name, values in tensors.items():
        if name.endswith("lora_B.weight"):
            values[:-1] = 0
    save_file(tensors, path / "adapter_model.safetensors")
    as_folder(base, chosen(path), tmp_path)


def test_a_copy_needs_no_torch(tmp_path: Path) -> None:
    base = base_of("qwen2", tmp_path)
    with open_source(base) as source:
        plan = plan_quantize(source, None)
        one, two = (
            run_plan(source, plan, tmp_path / f"{engine}.gguf", device="cpu", engine=engine)
            for engine in ("torch", "numpy")
        )
    assert one.path.read_bytes() == two.path.read_bytes()


@pytest.mark.parametrize("to", [None, "BF16", "F16"])
def test_a_folder_of_several_dtypes_copied(to: str | None, tmp_path: Path) -> None:
    base = base_of("gemma3", tmp_path)
    tensors = load_file(base / "model.safetensors")
    for number, name in enumerate(sorted(tensors)):
        tensors[name] = tensors[name].to(list(DTYPES.values())[number % 3])
    save_file(tensors, base / "model.safetensors")
    one, two = (
        (tmp_path / engine).joinpath("model.safetensors").read_bytes()
        for engine in ("torch", "numpy")
        if copied(base, tmp_path / engine, to, engine)
    )
    assert one == two
    as_gguf(base, chosen(adapter(base, tmp_path)), to, tmp_path)


def copied(base: Path, out: Path, to: str | None, engine: Wish) -> FolderResult:
    with Checkpoint(base) as checkpoint:
        return write_folder(
            checkpoint, out, options=FolderOptions(dtype=to), device="cpu", engine=engine
        )


@pytest.mark.parametrize("end", ["A", "B"])
def test_what_overflows_is_refused_alike(end: str, tmp_path: Path) -> None:
    base = base_of("qwen2", tmp_path)
    path = lora(base, tmp_path / "lora", targets=["up_proj"])
    tensors = load_file(path / "adapter_model.safetensors")
    for name, values in tensors.items():
        if name.endswith(f"lora_{end}.weight"):
            values[0, 0] = 3e38
    save_file(tensors, path / "adapter_model.safetensors")
    said = []
    for engine in ("torch", "numpy"):
        with pytest.raises(CheckpointError) as caught:
            merge_folder(base, chosen(path), tmp_path / "out", device="cpu", engine=engine)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert not (tmp_path / "out").exists()


def test_what_is_declined(tmp_path: Path) -> None:
    base = base_of("qwen2", tmp_path)
    path = lora(base, tmp_path / "lora", modules_to_save=["norm"])
    tensors = load_file(path / "adapter_model.safetensors")
    norm = load_file(base / "model.safetensors")["model.norm.weight"]
    tensors["base_model.model.model.norm.weight"] = norm * 2
    save_file(tensors, path / "adapter_model.safetensors")
    for merge, why in (
        (chosen(path), "output_norm.weight is changed by more than a low-rank delta"),
        (Merge(chosen(path).adapters, base="nf4"), "NF4 cannot be done"),
    ):
        with open_source(base, merge=merge) as source:
            plan = plan_quantize(source, None)
            assert plain_conversion(source, plan.outputs, "cpu") == why


def test_what_changes_numbers_moves_no_rows() -> None:
    assert order_of(plus_one, 4) is None


RUN = """
import sys
from gpukit_cli.app import main
try:
    main()
finally:
    print("torch" in sys.modules)
"""


@pytest.mark.thorough
def test_a_command_whose_program_is_kept_does_without_torch(tmp_path: Path) -> None:
    base = base_of("mistral-v0.3", tmp_path)
    one = adapter(base, tmp_path)
    whole = gpukit.convert(base, tmp_path / "f16.gguf", "F16", device="cpu").path
    lone = gpukit.write_adapter(one, base, tmp_path / "lora.gguf").path
    there = {key: value for key, value in os.environ.items() if key != cache.VARIABLE}
    there["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    for turn, wanted in (("first", "True"), ("second", "False")):
        for number, (model, lora_of, end) in enumerate(
            ((base, one, ""), (base, one, ".gguf"), (whole, lone, ".gguf"))
        ):
            if turn == "first" and number:
                continue
            done = subprocess.run(
                [sys.executable, "-c", RUN, "merge", model, tmp_path / f"{turn}-{number}{end}",
                 "--adapter", lora_of, "--json"],
                env=there, capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert done.stdout.splitlines()[-1] == wanted, (turn, number)
