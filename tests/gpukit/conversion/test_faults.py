"""Sources with values that are not finite, disks that fill up, shards that lack: one line each,
and nothing half-written."""

import json
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from support import forked, quant_kinds
from support.checkpoints import build
from support.command_line import gpukit

from gpukit.conversion.run import run_plan
from gpukit.errors import CheckpointError, DiskError, GpukitError
from gpukit.formats import atomic
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.imatrix import Imatrix
from gpukit.planning.plan import Options
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source
from gpukit_kernels import QUANTS

NAME = "blk.0.attn_q.weight"
ROWS, WIDTH = 4, 256
# Where a block has a scale in fp16: the last one there, a minimum's if there is one.
SCALES = {
    "Q4_0": 0, "Q4_1": 2, "Q5_0": 0, "Q5_1": 2, "Q8_0": 0, "Q2_K": 82, "Q3_K": 108, "Q4_K": 2,
    "Q5_K": 2, "Q6_K": 208, "IQ4_NL": 0, "IQ4_XS": 0, "IQ2_XXS": 0, "IQ2_XS": 0, "IQ2_S": 0,
    "IQ3_XXS": 0, "IQ3_S": 0, "IQ1_S": 0, "TQ1_0": 52, "TQ2_0": 64,
}  # fmt: skip
# Scales of NVFP4 are finite all, in 8 bits without a NaN.
SCALED = [name for name, row in QUANTS.items() if row.block > 1 and name != "NVFP4"]


def model(folder: Path, kind: str, data: np.ndarray, arch: str = "llama") -> Path:
    """A GGUF with a matrix of `kind` among others in F32."""
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(1)
    values = np.random.default_rng(0).standard_normal((ROWS, WIDTH), dtype=np.float32)
    for name in ("token_embd.weight", "output.weight", "blk.0.ffn_down.weight"):
        writer.add_tensor(name, values)
    raw = None if kind in ("F32", "F16") else gguf.GGMLQuantizationType[kind]
    writer.add_tensor(NAME, data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refused(path: Path, out: Path, kind: str | None) -> str:
    """What is said; afterwards nothing is in `out`."""
    out.mkdir(exist_ok=True)
    with open_source(path) as source:
        plan = plan_quantize(source, kind, Options(allow_requantize=True))
        with pytest.raises(GpukitError) as caught:
            run_plan(source, plan, out / "x.gguf")
    assert list(out.iterdir()) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("to", [None, "Q4_0", "F16"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_floats_that_are_not_finite(kind: str, to: str | None, tmp_path: Path) -> None:
    values = np.ones((ROWS, WIDTH), np.float32)
    values[2, 7] = np.nan
    data: np.ndarray = values.astype(np.float16) if kind == "F16" else values
    if kind == "BF16":
        data = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    said = refused(model(tmp_path, kind, data), tmp_path / "out", to)
    assert f"model.gguf: {NAME}: value [2, 7] is nan" in said


@pytest.mark.parametrize("to", [None, "Q4_0"])
@pytest.mark.parametrize("kind", SCALED)
def test_scales_that_are_not_finite(kind: str, to: str | None, tmp_path: Path) -> None:
    row = QUANTS[kind]
    blocks = quant_kinds.random_blocks(kind, ROWS * WIDTH // row.block).copy()
    which = blocks[WIDTH // row.block]  # the first of row 1
    if kind == "MXFP4":
        # By its levels alone a block of zeros.
        which[:] = 0
        which[0] = 255
    elif kind == "IQ1_M":
        which[48:] = 0xFF  # its scale lies in four nibbles
    else:
        which[SCALES[kind] : SCALES[kind] + 2] = (0x00, 0x7C)
    path = model(tmp_path, kind, blocks.reshape(ROWS, -1))
    # The type that the matrix has already means that it only moves.
    for target in {to, kind if kind in ("Q4_0", "Q8_0", "IQ4_NL") else to}:
        said = refused(path, tmp_path / "out", target)
        assert f"model.gguf: {NAME}: value [1, " in said


def test_an_architecture_that_nobody_knows(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((ROWS, WIDTH), dtype=np.float32)
    path, out = model(tmp_path, "F32", values, "nobody"), tmp_path / "out.gguf"
    with open_source(path) as source:
        run_plan(source, plan_quantize(source, "Q4_K_M"), out)
    with GGUFFile(out) as file:
        assert file.get("general.architecture") == "nobody"
        types = {name: info.type for name, info in file.tensors.items()}
    # A model of one layer: all of it is the first and the last eighth.
    assert types == {
        "output.weight": "Q6_K",
        "token_embd.weight": "Q4_K",
        NAME: "Q4_K",
        "blk.0.ffn_down.weight": "Q6_K",
    }


@pytest.mark.parametrize("name", ["x.gguf", "x.safetensors"])
@pytest.mark.parametrize("split", [None, 100_000])
def test_a_disk_that_fills_up(
    name: str, split: int | None, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.ones((400, WIDTH), np.float32)
    path = model(tmp_path, "F32", values)
    options = Options(split_max_size=split)
    if name == "x.safetensors" and split:
        options = Options()
    with open_source(path) as source:
        plan = plan_quantize(source, "F32", options)
        with pytest.raises(DiskError, match=r"x.*: \d+ bytes are needed, \d+ are free; make room"):
            run_plan(source, plan, small_disk / name)
        assert list(small_disk.iterdir()) == []
        # Room that goes away between the look and the writing.
        monkeypatch.setattr(atomic, "need_room", lambda *_: None)
        with pytest.raises(DiskError, match=r"x.*: No space left on device \(\d+ bytes are free\)"):
            run_plan(source, plan, small_disk / name)
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize(
    ("case", "what"),
    [
        (
            "missing",
            "model-00002-of-00003.safetensors: missing; model.safetensors.index.json lists",
        ),
        ("cut", "model-00002-of-00003.safetensors: .*truncated|the file ends"),
        ("header", "model-00002-of-00003.safetensors: "),
    ],
)
def test_shards_that_lack_or_are_damaged(case: str, what: str, tmp_path: Path) -> None:
    folder = build("sharded", tmp_path)
    shard = folder / "model-00002-of-00003.safetensors"
    if case == "missing":
        shard.unlink()
    elif case == "cut":
        os.truncate(shard, shard.stat().st_size - 100)
    else:
        data = bytearray(shard.read_bytes())
        data[20:40] = b"\xff" * 20
        shard.write_bytes(data)
    done = gpukit("quantize", folder, tmp_path / "x.gguf", "Q4_0")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("Error: ")
    with pytest.raises(GpukitError, match=what):
        open_source(folder)
    assert not list(tmp_path.glob("*x.gguf*"))


def test_a_killed_run_in_parts_is_cleared_by_the_next(tmp_path: Path) -> None:
    folder, out = build("llama31", tmp_path), tmp_path / "out"
    out.mkdir()
    words = ["quantize", folder, out / "x.gguf", "Q8_0", "--split-max-size", "200K", "--json"]
    child = forked.command(*words)
    while not list(out.iterdir()) and child.poll() is None:
        pass
    child.kill()
    child.wait()
    left = list(out.iterdir())
    assert left
    assert all(path.suffix == ".tmp" for path in left)
    done = gpukit(*words)
    assert done.returncode == 0
    assert sorted(map(str, out.iterdir())) == json.loads(done.stdout)["paths"]


def test_huge_values_that_no_scale_can_hold(tmp_path: Path) -> None:
    values = np.ones((ROWS, WIDTH), np.float32)
    values[0, 0] = 9e6
    with (
        open_source(model(tmp_path, "F32", values)) as source,
        pytest.raises(
            CheckpointError, match=rf"{NAME}: a value of magnitude 9e\+06 overflows Q4_0"
        ),
    ):
        run_plan(source, plan_quantize(source, "Q4_0"), tmp_path / "x.gguf")
    assert not list(tmp_path.glob("*x.gguf*"))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "IQ4_NL"])
def test_importance_that_no_search_can_add_up(kind: str, tmp_path: Path) -> None:
    values = np.linspace(-3, 3, ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
    entries = {NAME: np.full(WIDTH, 3e38, np.float32)}
    options = Options(imatrix=Imatrix(Path("huge.dat"), entries))
    with (
        open_source(model(tmp_path, "F32", values)) as source,
        pytest.raises(CheckpointError, match=rf"{NAME}: .* importance of up to 3e\+38 overflows"),
    ):
        run_plan(source, plan_quantize(source, kind.replace("_K", "_K_M"), options), tmp_path / "x")
    assert not list(tmp_path.glob("*x*"))
