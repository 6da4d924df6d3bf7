"""From a plan to its jobs: names, places, globs, what is left out and what is refused."""

from pathlib import Path

import pytest
from support.checkpoints import build
from support.loras import lora

import gpukit
from gpukit.batches.matrix import expand
from gpukit.batches.preparing import in_shard, shard_of
from gpukit.batches.reading import read_plan
from gpukit.errors import ArgumentError, NotFoundError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two model folders, a GGUF and two adapters, which nothing changes."""
    folder = tmp_path_factory.mktemp("matrix")
    for name in ("plain", "tied"):
        build(name, folder / "models")
    gpukit.convert(folder / "models" / "tied", folder / "small.gguf", "Q8_0", device="cpu")
    (folder / "models" / "notes.txt").write_text("no model")
    for seed, name in enumerate(("first", "second")):
        lora(folder / "models/plain", folder / "loras" / name, targets=("q_proj",), seed=seed)
    return folder


def _jobs(place: Path, text: str) -> tuple[list[str], list[str]]:
    """The results of the plan `text`, and the lines for the user."""
    path = place / "plan.yaml"
    path.write_text(text)
    jobs, warnings = expand(read_plan(path))
    return [job.target.removeprefix(f"{place}/") for job in jobs], warnings


OUT = "output: out/{source}/{adapter}-{type}.gguf\n"


def test_the_matrix(place: Path) -> None:
    text = "sources: [models/*, small.gguf]\nadapters: [none, 'loras/*', [loras/first:0.5, "
    text += "loras/second]]\ntypes: [F16, q4_k]\n"
    found, warnings = _jobs(place, text + OUT)
    assert found == [
        f"out/{source}/{adapter}-{kind}.gguf"
        for source in ("plain", "tied", "small")
        for adapter in ("none", "first", "second", "first-0.5+second")
        for kind in ("F16", "Q4_K_M")
    ]
    assert not warnings


def test_includes_and_excludes(place: Path) -> None:
    text = "sources: [models/*]\nadapters: [none, loras/first]\ntypes: [F16, Q8_0]\n" + OUT
    text += "exclude:\n- {source: TIED, adapter: first}\n- {type: q8_*, adapter: none}\n"
    text += "- {source: nobody}\ninclude:\n- {sources: [models/tied], types: [Q2_K]}\n"
    text += "overrides:\n- {match: {type: q9}, options: {pure: true}}\n"
    found, warnings = _jobs(place, text)
    assert found == [
        "out/plain/none-F16.gguf", "out/plain/first-F16.gguf", "out/plain/first-Q8_0.gguf",
        "out/tied/none-F16.gguf", "out/tied/none-Q2_K.gguf",
    ]  # fmt: skip
    assert warnings == [
        f"{place}/plan.yaml:8: excludes nothing",
        f"{place}/plan.yaml:12: matches no job",
    ]


def test_later_overrides_go_over_earlier_ones(place: Path) -> None:
    path = place / "plan.yaml"
    (place / "plain-F16.dat").touch()
    path.write_text(
        "sources: [models/plain]\ntypes: [F16, Q8_0]\n" + OUT + "options: {device: cpu}\n"
        "overrides:\n- {match: {}, options: {pure: true, leave_output_tensor: true}}\n"
        "- {match: {type: F*}, options: {pure: false, imatrix: '{source}-{type}.dat'}}\n"
    )
    first, second = (job.options for job in expand(read_plan(path))[0])
    assert (first.pure, first.leave_output_tensor, first.device) == (False, True, "cpu")
    assert first.imatrix == str(place / "plain-F16.dat")
    assert (second.pure, second.imatrix) == (True, None)


def test_names_of_the_store(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUKIT_MODELS", str(place / "store"))
    text = "sources: [models/plain]\nadapters: [none, [loras/first, loras/second]]\ntypes: [Q8_0]\n"
    assert _jobs(place, text + "store: me/")[0] == ["me/plain:Q8_0", "me/plain-first-second:Q8_0"]
    assert _jobs(place, text + "store: true\noutput: x:{adapter}")[0] == [
        "x:none", "x:first-second",
    ]  # fmt: skip
    with pytest.raises(ArgumentError, match=r"plan.yaml:4: invalid model name"):
        _jobs(place, text + "store: ' '")


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("sources:\n- models/plain\n- models/none\ntypes: [F16]\n" + OUT, NotFoundError,
         r"plan.yaml:3: models/none: .*: no such file or folder, and no model of that name"),
        ("sources: [nothing/*]\ntypes: [F16]\n" + OUT, ArgumentError, r":1: .*no model matches"),
        ("sources: [models/plain]\nadapters:\n- loras/none\ntypes: [F16]\n" + OUT, NotFoundError,
         r"plan.yaml:3: loras/none: .*no such file"),
        ("sources: [models/plain]\nadapters: [models/n*]\ntypes: [F16]\n" + OUT, ArgumentError,
         r":2: models/n\*: no adapter matches"),
        ("sources: [models/*]\ntypes: [F16]\noutput: '{type}.gguf'", ArgumentError,
         r"plan.yaml:3: .*/F16.gguf would be the result of plain with none as F16 and tied with"),
        ("sources: [models/plain]\ntypes: [Q4_K, Q4_K_M]\n" + OUT, ArgumentError, "would be the"),
        ("sources: [small.gguf]\ntypes: [F16]\noutput: models/../small.gguf", ArgumentError,
         r"plan.yaml:3: .*/small.gguf is read by this plan"),
        ("sources: [{path: models/plain, name: a/b}]\ntypes: [F16]\n" + OUT, ArgumentError,
         "'a/b' is no name"),
        ("sources: [{path: models/*, name: a}]\ntypes: [F16]\n" + OUT, ArgumentError,
         "2 models match; one name is for one model"),
        ("sources: [models/plain]\ntypes: [F16]\nexclude: [{}]\n" + OUT, ArgumentError,
         ":3: nothing is left of the matrix"),
        ("sources: [models/plain]\ntypes: [F16]\noptions:\n  imatrix: x.dat\n" + OUT, ArgumentError,
         r":4: .*/x.dat: no such file"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, kind: type[Exception], told: str, place: Path) -> None:
    with pytest.raises(kind, match=told):
        _jobs(place, text)


def test_shards_are_all_of_it_and_nothing_twice(place: Path) -> None:
    path = place / "plan.yaml"
    path.write_text("sources: [models/*, small.gguf]\ntypes: [F16, Q8_0]\n" + OUT)
    jobs, _ = expand(read_plan(path))
    parts = [in_shard(jobs, (i, 2)) for i in (1, 2)]
    assert [{job.source.name for job in part} for part in parts] == [{"plain", "small"}, {"tied"}]
    assert sorted(j.number for part in parts for j in part) == [job.number for job in jobs]
    assert shard_of("3/4") == (3, 4)
    for wrong in ("0/4", "5/4", "1", "a/b", "1/", "-1/4"):
        with pytest.raises(ArgumentError, match="I/N is needed"):
            shard_of(wrong)
