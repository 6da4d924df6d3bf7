"""Results that are sent when they are made: to a registry and to a hub on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import hub_uploads, registry
from support.checkpoints import build
from support.command_line import gpukit as command
from support.pushing import BY_TWO, check_pushes

import gpukit
from gpukit.batches import workers
from gpukit.batches.portions import Portion
from gpukit.batches.result import Told
from gpukit.remote import wire

PLAN = """
sources: [plain]
types: [Q8_0, F16]
store: me/
options: {{device: cpu}}
push: {{to: "{}/me/{{source}}:{{type}}", insecure: true}}
"""
TO_THE_HUB = """
sources: [plain]
types: [Q8_0, F16]
output: out/{type}.gguf
options: {device: cpu}
push: hf.co/ann/{source}-gguf/{source}-{type}.gguf
overrides: [{match: {type: F16}, push: false}]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    build("plain", tmp_path)
    for name, value in {
        "HOME": tmp_path, "GPUKIT_MODELS": tmp_path / "models",
        "XDG_CACHE_HOME": tmp_path / "cache", "NO_PROXY": "127.0.0.1,localhost",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    return tmp_path


@pytest.fixture
def server() -> Iterator[registry.Server]:
    with registry.serve() as it:
        yield it


def _states(result: gpukit.BatchResult) -> list[tuple[str, str]]:
    return [(str(row.state), (row.push or {"state": "none"})["state"]) for row in result.rows]


def _plan(place: Path, text: str) -> Path:
    path = place / "plan.yaml"
    path.write_text(text)
    return path


def test_to_a_registry(place: Path, server: registry.Server) -> None:
    plan = _plan(place, PLAN.format(server.host))
    assert _states(gpukit.plan_batch(plan)) == [("to do", "to do")] * 2
    heard: list[Told] = []
    made = gpukit.batch(plan, watch=heard.append)
    assert _states(made) == [("done", "done")] * 2
    assert set(server.manifests) == {"me/plain:Q8_0", "me/plain:F16"}
    told = [(t.number, t.count, str(t.row.state)) for t in heard if t.event is None]
    assert told == [
        (n, 2, state) for n in (1, 2) for state in ("running", "pushing", "done")
    ]  # fmt: skip
    document = json.loads(json.dumps(made.as_json(), allow_nan=False))
    push = document["jobs"][0]["push"]
    assert push["to"] == f"{server.host}/me/plain:Q8_0"
    assert push["moved"] > 1 << 20
    asked = len(server.asked)
    again = gpukit.batch(plan)
    assert [row.made for row in again.rows] == [False, False]
    assert _states(again) == _states(gpukit.batch_status(plan)) == [("done", "done")] * 2
    assert len(server.asked) == asked


def test_what_could_not_be_sent_is_sent_alone(
    place: Path, server: registry.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "PATIENCE", wire.Patience(tries=3, first=0.01, most=0.05))
    nobody = PLAN.format("127.0.0.1:1")
    plan = _plan(place, nobody)
    failed = gpukit.batch(plan, keep_going=True)
    assert _states(failed) == [("failed", "failed")] * 2
    why = failed.rows[0].why
    assert why.startswith("not pushed to 127.0.0.1:1/me/plain:Q8_0: ")
    assert "\n" not in why
    for told in (gpukit.batch_status(plan), gpukit.plan_batch(plan)):
        assert [row.why for row in told.rows] == [row.why for row in failed.rows]
    # Without --keep-going the first failure is the last.
    assert _states(gpukit.batch(plan)) == [("failed", "failed"), ("failed", "failed")]
    there = [row.size for row in failed.rows]
    _plan(place, PLAN.format(server.host))
    heard: list[Told] = []
    again = gpukit.batch(plan, watch=heard.append)
    assert _states(again) == [("done", "done")] * 2
    assert [(row.made, row.size) for row in again.rows] == [(False, size) for size in there]
    told = [(t.number, t.count, str(t.row.state)) for t in heard if t.event is None]
    assert told == [(n, 2, state) for n in (1, 2) for state in ("pushing", "done")]


@pytest.mark.usefixtures("forked_workers")
def test_by_two_processes(place: Path, server: registry.Server) -> None:
    build("tied", place)
    check_pushes(_plan(place, BY_TWO.format(server.host)), server, jobs=2)


@pytest.mark.usefixtures("forked_workers")
def test_a_worker_that_dies_while_it_sends(
    place: Path, server: registry.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("tied", place)
    plan = _plan(place, BY_TWO.format(server.host).replace(", F16", ""))
    started: list[workers.Worker] = []
    take = workers.Worker.take

    def noted(self: workers.Worker, portion: Portion) -> None:
        started.append(self)
        take(self, portion)

    monkeypatch.setattr(workers.Worker, "take", noted)
    server.faults["POST uploads"] = [registry.Fault(stall=True)]
    killed: list[str] = []

    def watch(told: Told) -> None:
        if told.row.state == "pushing" and not killed:
            killed.append(told.row.output)
            next(w for w in started if _makes(w, told.row.output)).process.kill()
            server.freed.set()

    made = gpukit.batch(plan, keep_going=True, jobs=2, watch=watch)
    assert killed
    assert _states(made) == [("done", "done")] * 2
    assert set(server.manifests) == {"me/plain:Q8_0", "me/tied:Q8_0"}


def _makes(worker: workers.Worker, output: str) -> bool:
    held = worker.portion
    return held is not None and output in {at.job.target for at in held.standings}


def test_to_the_hub_by_the_command(place: Path) -> None:
    plan = _plan(place, TO_THE_HUB)
    told = command("batch", plan, "--dry-run").stdout
    assert "to do, to be pushed to hf.co/ann/plain-gguf/plain-Q8_0.gguf\n" in told
    with hub_uploads.serve() as hub:
        place_of = {
            "HF_HOME": str(place / "hf"), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        refused = command("batch", plan, HF_TOKEN="hf_other", **place_of)
        assert refused.returncode == 1
        line = refused.stderr.splitlines()[-1]
        assert line.startswith(
            f"Error: 1 of 2 jobs failed; {place}/out/Q8_0.gguf: not pushed to hf"
        )
        assert "set HF_TOKEN to a token that may" in line
        made = command("batch", plan, HF_TOKEN=hub.token, **place_of)
    assert made.returncode == 0, made.stderr
    assert "done, pushed to hf.co/ann/plain-gguf/plain-Q8_0.gguf\n" in made.stdout
    assert made.stderr.splitlines()[0] == f"[1/1] {place}/out/Q8_0.gguf: pushing"
    there = hub.repos["ann/plain-gguf"]
    assert there["plain-Q8_0.gguf"] == (place / "out/Q8_0.gguf").read_bytes()
    assert sorted(there) == ["README.md", "plain-Q8_0.gguf"]
    assert "pushed: to hf.co/ann/plain-gguf/" in command("batch", "logs", plan, "1").stdout


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("hf.co/ann/", "r.example/ann/", r"plan.yaml:6: r.example/ann/.*: files go to the hub"),
        ("ann/{source}-gguf/{source}", "{source}", r"plan.yaml:6: hf.co/plain-Q8_0.gguf: no id on"),
        ("-{type}", "", r"plan.yaml:6: .*Q8_0.gguf and .*F16.gguf would be sent there; tell th"),
        ("{type}.gguf\nov", "{kind}.gguf\nov", r"plan.yaml:6: .*unknown {kind}; known: {source}"),
        ("push: hf", "push:\n  too: hf", r"plan.yaml:7: unknown key 'too'; known: to, private, in"),
        ("push: hf.co", "push: {private: true}\n#", r"plan.yaml:6: 'to' is missing in push"),
    ],
)
def test_what_is_refused(place: Path, old: str, new: str, told: str) -> None:
    text = TO_THE_HUB.replace("push: false", "options: {pure: true}")
    with pytest.raises(gpukit.ArgumentError, match=told):
        gpukit.plan_batch(_plan(place, text.replace(old, new)))
