"""Plans and the pipeline: faults, bounds, and that nothing half-written is left."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import build, weights
from support.command_line import gpukit

from gpukit.conversion import pipeline
from gpukit.conversion.run import run_plan
from gpukit.errors import ArgumentError, CheckpointError, GpukitError, NotFoundError
from gpukit.events import Event, Step
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.planning.overrides import make_overrides
from gpukit.planning.plan import Options
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source


def convert(folder: Path, out: Path, kind: str | None, **how: object) -> object:
    with open_source(folder) as source:
        return run_plan(source, plan_quantize(source, kind), out, **how)  # type: ignore[arg-type]


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    folder = build("plain", tmp_path)
    tensors = weights("plain")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    save_file(tensors, folder / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_down\.weight: value \[3, 5\] is -?\w"):
        convert(folder, out / "x.gguf", "Q4_K_M")
    assert only(out) == []


def test_overflow_of_fp16_is_named(tmp_path: Path) -> None:
    folder = build("f32", tmp_path)
    tensors = weights("f32")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 70000.0
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"ffn_up\.weight: a value of magnitude 70000 over"):
        convert(folder, tmp_path / "x.gguf", "F16")
    convert(folder, tmp_path / "x.gguf", "BF16")
    convert(folder, tmp_path / "x.gguf", "Q8_0")


def test_a_shard_that_shrinks_meanwhile(tmp_path: Path) -> None:
    folder = build("sharded", tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    shard = sorted(folder.glob("*.safetensors"))[1]
    with open_source(folder) as source:
        plan = plan_quantize(source, "Q8_0")
        os.truncate(shard, shard.stat().st_size // 2)
        with pytest.raises(GpukitError, match=rf"{shard.name}.*the file ends at byte"):
            run_plan(source, plan, out / "x.gguf")
    assert only(out) == []


def test_progress_covers_every_byte(tmp_path: Path) -> None:
    events: list[Event] = []
    convert(build("plain", tmp_path), tmp_path / "x.gguf", "Q8_0", report=events.append)
    steps = [event for event in events if isinstance(event, Step)]
    assert steps[0].done == 0
    assert steps[-1].done == steps[-1].total
    assert {step.text for step in steps} == {"quantizing BF16 model to Q8_0"}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("slab", [1, 1000, 40_000])
def test_small_slabs_give_the_same_file(
    slab: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build("wide-heads", tmp_path)
    convert(folder, tmp_path / "a.gguf", "Q8_0")
    monkeypatch.setattr(pipeline, "SLAB_WEIGHTS", slab)
    convert(folder, tmp_path / "b.gguf", "Q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_targets_that_make_no_sense(tmp_path: Path) -> None:
    folder = build("plain", tmp_path)
    with pytest.raises(ArgumentError, match="a folder; name the file"):
        convert(folder, tmp_path, "F16")
    with pytest.raises(ArgumentError, match="there is no folder"):
        convert(folder, tmp_path / "nowhere" / "x.gguf", "F16")
    convert(folder, tmp_path / "x.gguf", "F16")
    with pytest.raises(ArgumentError, match="the same file"):
        convert(tmp_path / "x.gguf", tmp_path / "x.gguf", "Q8_0")
    with pytest.raises(NotFoundError, match="no such file or folder"):
        convert(tmp_path / "missing", tmp_path / "y.gguf", "Q8_0")
    with pytest.raises(ArgumentError, match="device cuda:99 is not here"):
        convert(folder, tmp_path / "y.gguf", "F16", device="cuda:99")


def test_a_quantised_source_is_refused(tmp_path: Path) -> None:
    convert(build("plain", tmp_path), tmp_path / "q8.gguf", "Q8_0")
    with pytest.raises(ArgumentError, match=r"is quantised already \(Q8_0\)"):
        convert(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_K_M")


def test_an_existing_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    folder, out = build("plain", tmp_path), tmp_path / "x.gguf"
    out.write_bytes(b"old")
    tensors = weights("plain")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError):
        convert(folder, out, "Q8_0")
    assert out.read_bytes() == b"old"


def test_overrides_show_in_plan_and_file(tmp_path: Path) -> None:
    with open_source(build("plain", tmp_path)) as source:
        plan = plan_quantize(source, "Q4_K_M", Options(make_overrides(["ffn_down=Q8_0"])))
        run_plan(source, plan, tmp_path / "x.gguf")
    planned = {o.spec.name: o.spec.type for o in plan.outputs}
    with GGUFFile(tmp_path / "x.gguf") as file:
        assert {name: info.type for name, info in file.tensors.items()} == planned
    assert planned["blk.1.ffn_down.weight"] == "Q8_0"
    assert json.loads(json.dumps(plan.as_json()))["size"] == (tmp_path / "x.gguf").stat().st_size


CONVERT = "import sys; from gpukit_cli.app import main; sys.argv[0] = 'gpukit'; main()"


def command(*words: object, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CONVERT, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )


def test_a_full_disk_ends_in_one_line(tmp_path: Path) -> None:
    folder, out = build("plain", tmp_path), tmp_path / "out"
    out.mkdir()
    child = subprocess.run(
        [sys.executable, "-c", CONVERT, "convert", folder, out / "x.gguf", "--type", "F16"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
        check=False,
    )
    assert child.returncode == 1
    assert [line for line in child.stderr.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in child.stderr
    assert only(out) == []


def test_a_killed_run_leaves_nothing_that_the_next_does_not_clear(tmp_path: Path) -> None:
    folder, out = build("llama31", tmp_path), tmp_path / "out"
    out.mkdir()
    child = command("convert", folder, out / "x.gguf", "--type", "Q4_K_M")
    while not only(out) and child.poll() is None:
        pass
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert "x.gguf" not in only(out)
    assert len(only(out)) == 1
    assert gpukit("convert", folder, out / "x.gguf", "--type", "Q8_0").returncode == 0
    assert only(out) == ["x.gguf"]


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    folder = build("plain", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": 400_000, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = weights("plain")
    del tensors["lm_head.weight"]
    tensors["model.embed_tokens.weight"] = torch.full((400_000, 256), 0.01, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from gpukit.conversion.run import run_plan\n"
        "from gpukit.planning.planner import plan_quantize\n"
        "from gpukit.sources.opening import open_source\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with open_source(Path(sys.argv[1])) as source:\n"
        "    plan = plan_quantize(source, 'BF16')\n"
        "    before = peak()\n"
        "    run_plan(source, plan, Path(sys.argv[2]), budget=16 << 20)\n"
        "print(peak() - before)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, folder, tmp_path / "x.gguf"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # 205 MB pass through buffers of 16 MiB.
    assert int(child.stdout) < 64 << 10
