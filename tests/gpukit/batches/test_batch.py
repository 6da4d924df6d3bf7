"""Batches: the bytes of single commands, what a second run leaves alone, what it refuses."""

import fcntl
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
from support.checkpoints import build
from support.loras import lora

import gpukit
from gpukit.batches import needs
from gpukit.batches.journal import journal_of
from gpukit.batches.result import Told

PLAN = """
sources: [plain, tied, small.gguf]
adapters: [none, first, [second, "first:0.5"]]
types: [F16, Q8_0, Q4_0, Q4_K]
output: out/{source}-{adapter}-{type}.gguf
options: {device: cpu, allow_requantize: true, memory: 1G}
"""
ONE = "sources: [plain]\ntypes: [Q8_0]\noutput: x.gguf\noptions: {device: cpu}\n"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("plain", "tied"):
        build(name, folder)
    gpukit.convert(folder / "tied", folder / "small.gguf", "Q8_0", device="cpu")
    for seed, name in enumerate(("first", "second")):
        lora(folder / "plain", folder / name, targets=("q_proj",), seed=seed)
    return folder


@pytest.fixture
def place(inputs: Path, tmp_path: Path) -> Path:
    """A folder with all inputs, which a test may change."""
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    return tmp_path


def _plan(place: Path, text: str = ONE) -> Path:
    path = place / "plan.yaml"
    path.write_text(text)
    return path


def _states(result: gpukit.BatchResult) -> list[str]:
    return [str(row.state) for row in result.rows]


@pytest.mark.thorough
def test_36_jobs_have_the_bytes_of_single_commands(place: Path) -> None:
    plan = _plan(place, PLAN)
    before = gpukit.plan_batch(plan)
    assert not (place / "out").exists()
    assert not (place / "plan.yaml.gpukit").exists()
    assert (_states(before), before.refused) == (["to do"] * 36, ())
    heard: list[Told] = []
    made = gpukit.batch(plan, watch=heard.append)
    assert _states(made) == ["done"] * 36
    assert [told.number for told in heard if told.event is None] == [
        n for n in range(1, 37) for _ in "01"
    ]
    assert {type(told.event) for told in heard} >= {type(None), gpukit.Step}
    # One pass for all types of a source with its adapters.
    steps = [told.event for told in heard if isinstance(told.event, gpukit.Step)]
    assert sum(step.done == 0 for step in steps) == 9
    adapters = ((), (place / "first",), (place / "second", (place / "first", 0.5)))
    options = gpukit.Options(allow_requantize=True)
    rows = iter(zip(before.rows, made.rows, strict=True))
    sources = ("plain", "tied", "small.gguf")
    for source, words, kind in itertools.product(
        sources, adapters, ("F16", "Q8_0", "Q4_0", "Q4_K")
    ):
        foreseen, row = next(rows)
        out = place / "single.gguf"
        with gpukit.plan(place / source, kind, adapters=words, options=options) as single:
            single.write(out, device="cpu")
        assert Path(row.output).read_bytes() == out.read_bytes(), row
        assert foreseen.size == row.size == out.stat().st_size, row
    assert before.disks[0].needed == sum(row.size or 0 for row in made.rows)
    again = gpukit.batch(plan)
    assert (_states(again), [row.made for row in again.rows]) == (["done"] * 36, [False] * 36)


def test_what_is_done_is_left_alone_and_what_is_gone_is_made(place: Path) -> None:
    plan = _plan(place, ONE.replace("[Q8_0]", "[Q8_0, F16]").replace("x.gguf", "'{type}.gguf'"))
    gpukit.batch(plan)
    first, second = place / "Q8_0.gguf", place / "F16.gguf"
    data, kept = first.read_bytes(), second.stat().st_mtime_ns
    first.unlink()
    assert _states(gpukit.batch_status(plan)) == ["missing", "done"]
    again = gpukit.batch(plan)
    assert [row.made for row in again.rows] == [True, False]
    assert first.read_bytes() == data
    assert second.stat().st_mtime_ns == kept


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: _append(p / "plain/config.json"), "the source's config.json had"),
        (lambda p: os.utime(p / "plain/model.safetensors"), "model.safetensors has changed"),
        (lambda p: (p / "plain/chat_template.jinja").write_text(""), "the source has a new chat"),
        (lambda p: (p / "plain/tokenizer_config.json").unlink(), "tokenizer_config.json is gone"),
        (lambda p: _append(p / "first/adapter_config.json"), "the adapter's adapter_config.json"),
        (lambda p: _plan(p, ADAPTED.replace("first", "first:0.5")), "weight was 1 and is 0.5"),
        (lambda p: _plan(p, ADAPTED.replace("[first]", "[none]")), "adapters were 1 and are 0"),
        (lambda p: _plan(p, ADAPTED.replace("cpu", "cpu, pure: true")), "pure was None and is Tr"),
        (lambda p: _plan(p, ADAPTED.replace("Q8_0", "F16")), "type was 'Q8_0' and is 'F16'"),
        (lambda p: _append(p / "x.gguf"), "it has been written to since it was made"),
        (lambda p: journal_of(p / "x.gguf").unlink(), "no journal says that a batch has made it"),
    ],
)  # fmt: skip
def test_what_has_changed_is_refused(change: object, told: str, place: Path) -> None:
    plan, out = _plan(place, ADAPTED), place / "x.gguf"
    gpukit.batch(plan)
    assert callable(change)
    change(place)
    before = out.stat().st_mtime_ns
    for _ in range(2):
        with pytest.raises(gpukit.ArgumentError, match=r"x.gguf: .*; remove it, or take --force"):
            gpukit.batch(plan)
    assert out.stat().st_mtime_ns == before
    status = gpukit.batch_status(plan)
    assert _states(status) == ["changed"]
    assert told in status.rows[0].why
    assert [row.made for row in gpukit.batch(plan, force=True).rows] == [True]
    assert _states(gpukit.batch(plan)) == ["done"]


ADAPTED = ONE + "adapters: [first]\n"


def test_device_and_memory_change_nothing(place: Path) -> None:
    gpukit.batch(_plan(place))
    plan = _plan(place, ONE.replace("cpu", "auto, memory: 1G"))
    assert _states(gpukit.batch_status(plan)) == ["done"]


def test_a_run_killed_before_the_journals_last_line(place: Path) -> None:
    plan = _plan(place)
    gpukit.batch(plan)
    journal = journal_of(place / "x.gguf")
    lines = journal.read_bytes().splitlines(keepends=True)
    begun, done = lines
    journal.write_bytes(begun + done[:20])
    assert _states(gpukit.batch_status(plan)) == ["done"]
    _append(place / "x.gguf")
    assert _states(gpukit.batch_status(plan)) == ["changed"]
    # The same with something that was there before: it is the old one.
    facts = (place / "x.gguf").stat()
    document = json.loads(begun)
    document["before"] = [facts.st_size, facts.st_mtime_ns, facts.st_ino]
    journal.write_bytes(json.dumps(document).encode() + b"\n")
    assert _states(gpukit.batch_status(plan)) == ["to do"]
    assert [row.made for row in gpukit.batch(plan).rows] == [True]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nonsense\n", r"x.gguf.gpukit.jsonl:1: no line of a journal; remove the file"),
        ('{"event": "done"}\n', r":1: no line of a journal"),
        ('{"event": "begun", "form": 2}\n', r":1: a journal of form 2, 1 is read here; remove it"),
    ],
)
def test_what_is_no_journal_of_ours(text: str, told: str, place: Path) -> None:
    journal_of(place / "x.gguf").write_text(text)
    with pytest.raises(gpukit.FormatError, match=told):
        gpukit.batch(_plan(place))
    assert journal_of(place / "x.gguf").read_text() == text


def test_another_version_is_another_recipe(place: Path) -> None:
    plan = _plan(place)
    gpukit.batch(plan)
    journal = journal_of(place / "x.gguf")
    journal.write_text(journal.read_text().replace(gpukit.__version__, "0.0.9"))
    with pytest.raises(gpukit.ArgumentError, match=r"gpukit was 0.0.9 and is "):
        gpukit.batch(plan)


TWO = ONE.replace("[plain]", "[broken, plain]").replace("x.gguf", "'{source}.gguf'")


def test_what_fits_no_job_is_told_before_anything_is_made(place: Path) -> None:
    shutil.copytree(place / "plain", place / "broken")
    (place / "broken/config.json").write_text("{}")
    plan = _plan(place, TWO)
    with pytest.raises(gpukit.CheckpointError, match="broken"):
        gpukit.batch(plan, keep_going=True)
    assert not list(place.glob("*.gguf.gpukit.jsonl"))
    looked = gpukit.plan_batch(plan)
    assert len(looked.refused) == 1
    assert "broken" in looked.rows[0].why
    assert looked.rows[1].size


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_job_that_fails(keep_going: bool, place: Path) -> None:
    shutil.copytree(place / "plain", place / "broken")
    weights = place / "broken/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2:] = b"\xff\x7f"  # a NaN, which only reading finds
    weights.write_bytes(data)
    plan = _plan(place, TWO)
    made = gpukit.batch(plan, keep_going=keep_going)
    assert _states(made) == ["failed", "done" if keep_going else "to do"]
    assert made.failed == [made.rows[0]]
    assert not (place / "broken.gguf").exists()
    assert (place / "plain.gguf").exists() == keep_going
    status = gpukit.batch_status(plan)
    assert _states(status) == _states(made)
    assert status.rows[0].why == made.rows[0].why
    # Mended, it is made, and nothing else.
    shutil.copy(place / "plain/model.safetensors", weights)
    assert [row.made for row in gpukit.batch(plan).rows] == [True, not keep_going]


def test_a_plan_that_no_disk_holds_is_refused(place: Path, small_disk: Path) -> None:
    plan = _plan(place, ONE.replace("x.gguf", f"{small_disk}/new/x.gguf"))
    with pytest.raises(gpukit.DiskError, match=r"small: the outputs need \d+ bytes, \d+ are free"):
        gpukit.batch(plan)
    assert list(small_disk.iterdir()) == []
    assert "the outputs need" in gpukit.plan_batch(plan).refused[0]


def test_a_plan_that_needs_more_memory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    1024 kB\n")
    monkeypatch.setattr(needs, "MEMINFO", place / "meminfo")
    with pytest.raises(gpukit.GpukitError, match=r"buffers of .* 1048576 bytes of memory are free"):
        gpukit.batch(_plan(place))
    gpukit.batch(_plan(place, ONE.replace("cpu", "cpu, memory: 900K")))


def test_two_at_once(place: Path) -> None:
    plan = _plan(place)

    def first(told: Told) -> None:
        if told.event is not None:
            return
        for shard in (None, (1, 2)):
            with pytest.raises(gpukit.ArgumentError, match="another batch of this plan is running"):
                gpukit.batch(plan, shard=shard)
        if told.row.state == "running":
            assert _states(gpukit.batch_status(plan))[0] in ("to do", "running")

    assert _states(gpukit.batch(plan, watch=first)) == ["done"]


def test_shards_run_beside_each_other(place: Path) -> None:
    plan = _plan(place, TWO.replace("broken", "tied"))
    heard = []

    def first(told: Told) -> None:
        if not heard:
            heard.append(told)
            with pytest.raises(gpukit.ArgumentError, match="another batch of this plan"):
                gpukit.batch(plan, shard=(1, 2))
            assert _states(gpukit.batch(plan, shard=(2, 2))) == ["done"]

    assert [row.source for row in gpukit.batch(plan, shard=(1, 2), watch=first).rows] == ["tied"]
    assert _states(gpukit.batch_status(plan)) == ["done", "done"]


def test_an_output_that_another_plan_makes(place: Path) -> None:
    plan = _plan(place)
    gpukit.batch(plan)
    with journal_of(place / "x.gguf").open() as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        assert _states(gpukit.batch_status(plan)) == ["running"]
        with pytest.raises(gpukit.ArgumentError, match="another batch is making it"):
            gpukit.batch(plan)


def test_results_in_the_store(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUKIT_MODELS", str(place / "store"))
    text = "sources: [plain]\nadapters: [none, first]\ntypes: [Q8_0]\nstore: me/\n"
    plan = _plan(place, text + "options: {device: cpu}\n")
    made = gpukit.batch(plan)
    assert [row.output for row in made.rows] == ["me/plain:Q8_0", "me/plain-first:Q8_0"]
    store = gpukit.Store()
    for row, adapters in zip(made.rows, ((), (place / "first",)), strict=True):
        gpukit.convert(place / "plain", place / "y.gguf", "Q8_0", adapters=adapters, device="cpu")
        assert store.resolve(row.output).gguf.read_bytes() == (place / "y.gguf").read_bytes()
    assert [row.made for row in gpukit.batch(plan).rows] == [False, False]
    store.remove("me/plain-first:Q8_0")
    assert _states(gpukit.batch_status(plan)) == ["done", "missing"]
    assert [row.made for row in gpukit.batch(plan).rows] == [False, True]
    _plan(place, text.replace("first", "first:0.5"))
    with pytest.raises(gpukit.ArgumentError, match="take adapters with weight 1 only"):
        gpukit.batch(plan)


def test_what_a_batch_has_made_is_no_source(place: Path) -> None:
    plan = _plan(place, "sources: ['*.gguf']\ntypes: [F16]\noutput: '{source}-{type}.gguf'\n")
    assert len(gpukit.batch(plan).rows) == 1
    assert _states(gpukit.batch(plan)) == ["done"]
