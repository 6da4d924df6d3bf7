"""Runs that end before their time: the next goes on where they were, and gives the same bytes."""

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import build
from support.loras import lora

import gpukit
from gpukit.conversion import noting, pipeline, resuming
from gpukit.conversion.resuming import Resume
from gpukit.conversion.run import run_plan
from gpukit.conversion.run_many import run_plans
from gpukit.conversion.stages import Stages
from gpukit.formats.ledger import ledger_of, partial_of
from gpukit.planning.plan import Options
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source


class Killed(BaseException):
    """What ends a run."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of a few rows, which are noted at once."""
    monkeypatch.setattr(pipeline, "SLAB_WEIGHTS", 1 << 15)
    monkeypatch.setattr(noting, "SECONDS", 0.001)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    build("plain", folder)
    lora(folder / "plain", folder / "lora", targets=("q_proj", "down_proj"), seed=1)
    gpukit.convert(folder / "plain", folder / "f16.gguf", "F16", device="cpu")
    return folder


def after(share: float) -> gpukit.Report:
    """Ends a run when this share of the bytes is through."""

    def report(event: object) -> None:
        if isinstance(event, gpukit.Step) and event.done >= share * event.total:
            raise Killed

    return report


def killed(run: Callable[..., Any], share: float) -> None:
    with pytest.raises(Killed):
        run(resume=True, report=after(share))


def pieces(out: Path) -> list[dict[str, Any]]:
    text = ledger_of(out).read_text()
    lines = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    return [line for line in lines if "tensor" in line]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The output and the row of each piece that is read."""
    found: list[tuple[int, int]] = []
    read = Stages._read

    def noted(self: Stages, slab: Any, buffer: Any) -> Any:
        found.extend((piece.output, piece.at) for piece in slab)
        return read(self, slab, buffer)

    monkeypatch.setattr(Stages, "_read", noted)
    return found


Make = Callable[..., gpukit.Result]
WAYS: dict[str, Callable[[Path, Path], Make]] = {
    "quantize": lambda i, out: (
        lambda **how: gpukit.quantize(i / "f16.gguf", out / "x.gguf", "Q4_K_M", device="cpu", **how)
    ),
    "convert": lambda i, out: (
        lambda **how: gpukit.convert(
            i / "plain", out / "x.gguf", "Q8_0", device="cpu", split_max_size=500_000, **how
        )
    ),
    "safetensors": lambda i, out: (
        lambda **how: gpukit.convert(
            i / "f16.gguf", out / "x.safetensors", "F32", device="cpu", **how
        )
    ),
    "merge": lambda i, out: (
        lambda **how: gpukit.merge(  # type: ignore[dict-item, return-value]
            i / "plain", [i / "lora"], out / "x.gguf", "Q5_K", device="cpu", **how
        )
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_next_run_goes_on(
    way: str, inputs: Path, tmp_path: Path, reads: list[tuple[int, int]]
) -> None:
    places = [tmp_path / name for name in ("whole", "killed")]
    for place in places:
        place.mkdir()
    whole = WAYS[way](inputs, places[0])()
    everything = sorted(reads)
    run = WAYS[way](inputs, places[1])
    for share in (0.3, 0.6, 1.0):
        killed(run, share)
        name = "x.safetensors" if way == "safetensors" else "x.gguf"
        done = {(line["tensor"], line["start"]) for line in pieces(places[1] / name)}
        assert done
        assert not any(path.suffix in (".gguf", ".safetensors") for path in places[1].iterdir())
        reads.clear()
    result = run(resume=True)
    assert not done & set(reads)
    assert sorted(done | set(reads)) == everything
    assert files(places[1]) == files(places[0])
    for path in places[0].iterdir():
        assert (places[1] / path.name).read_bytes() == path.read_bytes()
    same = ("size", "weights", "types", "classes", "changes")
    ours, theirs = (rounded(found.as_json()) for found in (result, whole))
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


def rounded(found: Any) -> Any:
    """Sums to ten digits: the engines add up in other orders."""
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    return f"{found:.10g}" if isinstance(found, float) else found


def test_a_piece_is_noted_once(inputs: Path, tmp_path: Path) -> None:
    run = WAYS["quantize"](inputs, tmp_path)
    for share in (0.2, 0.4, 0.4, 0.8):
        killed(run, share)
    found = [(line["tensor"], line["start"]) for line in pieces(tmp_path / "x.gguf")]
    assert len(found) == len(set(found))


def test_without_it_the_next_run_begins_anew(inputs: Path, tmp_path: Path) -> None:
    run = WAYS["quantize"](inputs, tmp_path)
    killed(run, 0.5)
    assert len(files(tmp_path)) == 2
    assert run().path == tmp_path / "x.gguf"
    assert files(tmp_path) == ["x.gguf"]
    with pytest.raises(Killed):
        run(report=after(0.5))
    assert files(tmp_path) == ["x.gguf"]


def test_other_slabs_than_those_of_the_killed_run(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[tuple[int, int]]
) -> None:
    run = WAYS["quantize"](inputs, tmp_path)
    data = run().path.read_bytes()
    killed(run, 0.5)
    done = {line["tensor"] for line in pieces(tmp_path / "x.gguf")}
    monkeypatch.setattr(pipeline, "SLAB_WEIGHTS", 50_000)
    reads.clear()
    assert run(resume=True).path.read_bytes() == data
    # Of a whole tensor it does not matter how it was cut; part of one is made anew.
    assert len(done & {output for output, _ in reads}) <= 3 < len(done)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda i, out: os.utime(i / "f16.gguf"), "the source's f16.gguf has changed"),
        (lambda i, out: _head(out, '"gpukit":"', '"gpukit":"x'), "gpukit was x0.1.0 and is 0.1.0"),
        (lambda i, out: _head(out, "Q4_K_M", "Q4_0"), "type was 'Q4_0' and is 'Q4_K_M'"),
        (lambda i, out: _head(out, '"layout":"', '"layout":"x'), "the types that are chosen"),
    ],
)
def test_what_has_changed_is_refused(
    inputs: Path, tmp_path: Path, change: Callable[[Path, Path], None], told: str
) -> None:
    shutil.copy(inputs / "f16.gguf", tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    run = WAYS["quantize"](tmp_path, out)
    killed(run, 0.5)
    change(tmp_path, out)
    left = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(gpukit.ArgumentError, match="run without --resume to begin anew") as error:
        run(resume=True)
    assert f"{out / 'x.gguf'}: {told}" in str(error.value)
    assert {path: path.read_bytes() for path in out.iterdir()} == left
    run()
    assert files(out) == ["x.gguf"]


def _head(out: Path, old: str, new: str) -> None:
    path = ledger_of(out / "x.gguf")
    path.write_text(path.read_text().replace(old, new, 1))


def test_another_form_is_refused(inputs: Path, tmp_path: Path) -> None:
    run = WAYS["quantize"](inputs, tmp_path)
    killed(run, 0.5)
    _head(tmp_path, '"form":1', '"form":2')
    with pytest.raises(gpukit.ArgumentError, match="a ledger of form 2, 1 is read here; go on"):
        run(resume=True)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("damage", "warned"),
    [
        (lambda out: _cut(ledger_of(out), -5), ""),
        (lambda out: _append(ledger_of(out), b"\0\0\0\n{}\n"), ""),
        (lambda out: _append(ledger_of(out), b'{"tensor":0,"start":7,"size":1,"told":3}\n'), ""),
        (lambda out: _append(ledger_of(out), b'{"tensor":999,"start":0,"size":1}\n'), ""),
        (lambda out: _cut(ledger_of(out), 20), "its ledger is damaged"),
        (lambda out: _cut(ledger_of(out), 0), ""),
        (lambda out: ledger_of(out).unlink(), ""),
        (lambda out: partial_of(out, 0).unlink(), ".x.gguf.0.gpukit-part is gone"),
        (lambda out: _cut(partial_of(out, 0), 5000), ".x.gguf.0.gpukit-part has 5000 of"),
    ],
)
def test_what_is_damaged_is_made_anew(
    inputs: Path, tmp_path: Path, damage: Callable[[Path], None], warned: str
) -> None:
    run, out = WAYS["quantize"](inputs, tmp_path), tmp_path / "x.gguf"
    data = run().path.read_bytes()
    out.unlink()
    killed(run, 0.5)
    damage(out)
    events: list[gpukit.Event] = []
    assert run(resume=True, report=events.append).path.read_bytes() == data
    assert files(tmp_path) == ["x.gguf"]
    lines = [event.text for event in events if isinstance(event, gpukit.Warned)]
    assert len(lines) == bool(warned)
    assert warned in "".join(lines)


def _cut(path: Path, size: int) -> None:
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_two_runs_on_one_output(inputs: Path, tmp_path: Path) -> None:
    run = WAYS["quantize"](inputs, tmp_path)
    tried: list[str] = []

    def another(event: object) -> None:
        if isinstance(event, gpukit.Step) and event.done and not tried:
            with pytest.raises(gpukit.ArgumentError, match="another run is making it") as error:
                run(resume=True)
            tried.append(str(error.value))
            run()  # without --resume, as ever: the last one wins

    data = run(resume=True, report=another).path.read_bytes()
    assert tried
    assert files(tmp_path) == ["x.gguf"]
    assert run().path.read_bytes() == data


@pytest.mark.parametrize("types", [["F16"], ["Q4_0", "F16"]])
def test_a_disk_without_room_keeps_nothing(
    types: list[str], inputs: Path, small_disk: Path, tmp_path: Path
) -> None:
    """Of several outputs also those whose own disk has room."""
    outs = [tmp_path / "y.gguf", small_disk / "x.gguf"][-len(types) :]
    with open_source(inputs / "f16.gguf") as source:
        plans = [plan_quantize(source, kind, Options()) for kind in types]
        wishes = [Resume({"type": kind}) for kind in types]
        with pytest.raises(gpukit.DiskError, match=r"x.gguf: \d+ bytes are needed, \d+ are free"):
            run_plans(source, plans, outs, device="cpu", resume=wishes)
    assert files(small_disk) == []
    assert files(tmp_path) == ["small"]


@pytest.mark.parametrize("moment", ["publish", "remove"])
def test_killed_at_the_end(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str,
    reads: list[tuple[int, int]],
) -> None:  # fmt: skip
    run = WAYS["convert"](inputs, tmp_path)
    data = {path: path.read_bytes() for path in run().paths}
    for path in data:
        path.unlink()
    where = resuming.Ledger if moment == "remove" else resuming.PlacedWriter
    function, count = getattr(where, moment), [0]

    def kill(self: Any) -> None:
        count[0] += 1
        if moment == "remove" or count[0] == 3:
            raise Killed
        function(self)

    with monkeypatch.context() as patch:
        patch.setattr(where, moment, kill)
        with pytest.raises(Killed):
            run(resume=True)
    assert len([name for name in files(tmp_path) if name.endswith(".gguf")]) == (
        len(data) if moment == "remove" else 2
    )
    reads.clear()
    assert {path: path.read_bytes() for path in run(resume=True).paths} == data
    assert reads == []
    assert files(tmp_path) == sorted(path.name for path in data)


def test_a_fault_of_the_input_leaves_nothing(inputs: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "bad.gguf", tmp_path / "out"
    out.mkdir()
    shutil.copy(inputs / "f16.gguf", source)
    with source.open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(b"\xff" * 32)
    with pytest.raises(gpukit.CheckpointError):
        gpukit.quantize(source, out / "x.gguf", "Q8_0", device="cpu", resume=True)
    assert files(out) == []


def test_many_files_of_one_reading_go_on(
    inputs: Path, tmp_path: Path, reads: list[tuple[int, int]]
) -> None:
    places = [tmp_path / name for name in ("whole", "killed")]
    for place in places:
        place.mkdir()

    def run(place: Path = places[1], **how: Any) -> list[gpukit.Result]:
        types = ["Q4_K_M", "Q5_K_M", "Q8_0"]
        return gpukit.quantize_many(
            inputs / "f16.gguf", place / "{type}.gguf", types, device="cpu", **how
        )

    whole = run(places[0])
    everything = set(reads)
    outs = [places[1] / path.name for path in sorted(places[0].iterdir())]
    for share in (0.3, 0.7):
        killed(run, share)
    # One of them is behind the others: what it has no need of is not written to them again.
    ledger = ledger_of(outs[0])
    os.truncate(ledger, ledger.stat().st_size * 2 // 3)
    before = [len(pieces(out)) for out in outs]
    killed(run, 1.0)
    after = [pieces(out) for out in outs]
    for old, found in zip(before, after, strict=True):
        assert old < len(found) == len({(line["tensor"], line["start"]) for line in found})
    reads.clear()
    results = run(resume=True)
    assert set(reads) < everything
    assert files(places[1]) == files(places[0])
    for path in places[0].iterdir():
        assert (places[1] / path.name).read_bytes() == path.read_bytes()
    for ours, theirs in zip(results, whole, strict=True):
        assert rounded(ours.as_json()["types"]) == rounded(theirs.as_json()["types"])


def test_one_of_many_that_is_another_loses_nothing(inputs: Path, tmp_path: Path) -> None:
    def run(**how: Any) -> list[gpukit.Result]:
        types = ["Q4_0", "Q8_0"]
        return gpukit.quantize_many(
            inputs / "f16.gguf", tmp_path / "{type}.gguf", types, device="cpu", **how
        )

    killed(run, 0.5)
    path = ledger_of(tmp_path / "Q8_0.gguf")
    path.write_text(path.read_text().replace('"type":"Q8_0"', '"type":"Q8_1"'))
    left = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(gpukit.ArgumentError, match="type was 'Q8_1' and is 'Q8_0'"):
        run(resume=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == left
    run()
    assert files(tmp_path) == ["Q4_0.gguf", "Q8_0.gguf"]


def test_the_digest_is_that_of_all(inputs: Path, tmp_path: Path) -> None:
    with gpukit.plan(inputs / "f16.gguf", "Q8_0") as plan:

        def run(**how: Any) -> gpukit.Result:
            out = tmp_path / "x.gguf"
            of = resuming.Resume({"gpukit": "1", "source": [], "adapters": [], "recipe": {}})
            how.pop("resume", None)
            return run_plan(
                plan.source, plan.records, out, device="cpu", digest=True, resume=of, **how
            )

        killed(run, 0.5)
        result = run()
    assert result.digest == sha256(result.path.read_bytes()).hexdigest()


def test_chance_needs_a_seed(inputs: Path, tmp_path: Path) -> None:
    how = gpukit.Combining("dare_linear", density=0.5)
    with pytest.raises(gpukit.ArgumentError, match="give --seed with --resume"):
        gpukit.merge(
            inputs / "plain", [inputs / "lora"], tmp_path / "x.gguf", combine=how, resume=True
        )
