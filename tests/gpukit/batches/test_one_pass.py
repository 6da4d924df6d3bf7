"""Jobs that read the same are one pass; a failure of one output is its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import build, weights

import gpukit
from gpukit.batches.journal import last_record
from gpukit.batches.result import Told

PLAN = """
sources: [plain]
types: [BF16, Q4_0, Q8_0]
output: "{type}.gguf"
include: [{sources: [plain], types: [F32]}]
options: {device: cpu}
overrides: [{match: {type: Q8_0}, options: {tensor_types: [ffn_down=F16]}}]
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    build("plain", tmp_path)
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


def states(result: gpukit.BatchResult) -> list[str]:
    return [str(row.state) for row in result.rows]


def passes(heard: list[Told]) -> int:
    steps = [told.event for told in heard if isinstance(told.event, gpukit.Step)]
    return sum(step.done == 0 for step in steps)


def told(heard: list[Told]) -> list[tuple[int, str, str]]:
    return [(t.number, Path(t.row.output).stem, str(t.row.state)) for t in heard if not t.event]


def test_one_reading_for_all_types_wherever_they_stand(plan: Path) -> None:
    heard: list[Told] = []
    made = gpukit.batch(plan, watch=heard.append)
    assert states(made) == ["done"] * 4
    assert passes(heard) == 1
    assert told(heard) == [
        (n, kind, state)
        for n, kind in enumerate(("BF16", "Q4_0", "Q8_0", "F32"), 1)
        for state in ("running", "done")
    ]
    wanted = gpukit.Options(overrides=gpukit.make_overrides(["ffn_down=F16"]))
    for kind in ("BF16", "Q4_0", "Q8_0", "F32"):
        options = wanted if kind == "Q8_0" else gpukit.Options()
        with gpukit.plan(plan.parent / "plain", kind, options=options) as single:
            single.write(plan.parent / "single", device="cpu")
        found = (plan.parent / f"{kind}.gguf").read_bytes()
        assert found == (plan.parent / "single").read_bytes(), kind
    # What is gone is made alone, the rest left alone.
    (plan.parent / "Q4_0.gguf").unlink()
    again = gpukit.batch(plan)
    assert [row.made for row in again.rows] == [False, True, False, False]


def test_another_device_or_budget_is_another_pass(plan: Path) -> None:
    plan.write_text(PLAN.replace("{tensor_types: [ffn_down=F16]}", "{memory: 1G}"))
    heard: list[Told] = []
    gpukit.batch(plan, watch=heard.append)
    assert passes(heard) == 2


def test_what_a_pass_needs_grows_with_its_outputs_up_to_its_budget(plan: Path) -> None:
    plan.write_text("sources: [plain]\ntypes: [BF16]\noutput: '{type}.gguf'\n")
    one = gpukit.plan_batch(plan).memory
    plan.write_text(plan.read_text().replace("[BF16]", "[BF16, Q4_0, Q8_0, F32]"))
    four = gpukit.plan_batch(plan).memory
    assert one is not None
    assert four is not None
    assert four.needed == one.needed * (16 + 3 * 4) // 16
    plan.write_text(plan.read_text() + "options: {memory: 1M}\n")
    bounded = gpukit.plan_batch(plan).memory
    assert bounded is not None
    assert bounded.needed == 1_000_000 < one.needed


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_failure_is_of_one_output(keep_going: bool, plan: Path) -> None:
    tensors = weights("plain")
    name = next(name for name in tensors if "down_proj" in name)
    tensors[name] = tensors[name].clone().to(torch.bfloat16)
    tensors[name][1, 1] = 9e6  # no block of Q4_0 holds it
    save_file(tensors, plan.parent / "plain" / "model.safetensors")
    plan.write_text(PLAN.replace("ffn_down=F16", "ffn_down=BF16"))
    heard: list[Told] = []
    made = gpukit.batch(plan, keep_going=keep_going, watch=heard.append)
    rest = "done" if keep_going else "to do"
    assert states(made) == ["done", "failed", rest, rest]
    assert "overflows Q4_0" in made.rows[1].why
    warned = [t.event.text for t in heard if isinstance(t.event, gpukit.Warned)]
    assert [line for line in warned if "one pass" in line] == [
        f"one pass for 4 outputs failed, each is made alone: {made.rows[1].why}"
    ]
    assert states(gpukit.batch_status(plan)) == states(made)
    assert not list(plan.parent.glob(".*.tmp"))
    record = last_record(plan.parent / "Q4_0.gguf.gpukit.jsonl")
    assert record is not None
    assert record.end is not None
    assert record.end["error"] == made.rows[1].why
    numbers = [number for number, *_ in told(heard)]
    assert numbers == sorted(numbers)
    if keep_going:
        single = gpukit.convert(plan.parent / "plain", plan.parent / "single", "F32", device="cpu")
        assert (plan.parent / "F32.gguf").read_bytes() == single.path.read_bytes()


READ = """
import sys
import subprocess
import sys
from pathlib import Path
import gpukit
import gpukit.recipes.merge, gpukit.conversion.torch_engine, gpukit.sources.merged
def read(): return int(Path("/proc/self/io").read_text().split()[1])
gpukit.batch(sys.argv[1])
had = read()
gpukit.batch(sys.argv[2])
print(read() - had)
"""


def test_the_system_counts_one_reading(plan: Path) -> None:
    """Bytes of /proc/self/io, of a second batch in a process in which everything is loaded."""
    text = "sources: [plain]\noutput: {}/{{type}}.gguf\noptions: {{device: cpu}}\ntypes: [{}]\n"
    plan.write_text(text.format("one", "BF16, Q8_0, Q4_0, F16"))
    other = plan.with_name("other.yaml")
    other.write_text(text.format("two", "BF16, Q8_0, Q4_0, F16"))
    child = subprocess.run(
        [sys.executable, "-c", READ, plan, other], capture_output=True, text=True, check=True
    )
    stored = (plan.parent / "plain/model.safetensors").stat().st_size
    # Beside it the heads of files and their ends are looked at, 128 KiB of each, a few times.
    assert stored <= int(child.stdout) < 1.5 * stored
