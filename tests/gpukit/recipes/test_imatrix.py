"""Importance matrices from texts and from each other; runs that are killed; what cannot be."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import checkpoints, zoo_build
from support.checkpoints import DATA
from support.fuzz_formats import change

import gpukit
from gpukit.evaluation.collecting import collect, prepare
from gpukit.formats.imatrix import Collection, Sums, read_collection, read_imatrix
from gpukit.formats.imatrix_writer import write_dat, write_gguf
from gpukit.recipes.imatrix import describe

TINY = DATA / "tiny-shakespeare"
PEER = DATA / "imatrix"
TEXT = PEER / "text.txt"


class Killed(BaseException):
    """What ends a run from outside."""


def killer(after: int) -> Any:
    """A report that ends the run when so many tokens were read."""

    def report(event: gpukit.Step | Any) -> None:
        if isinstance(event, gpukit.Step) and event.done >= after:
            raise Killed

    return report


def changed(folder: Path, name: str, factor: float) -> Path:
    """The tiny model, one tensor times `factor`, as `folder`."""
    shutil.copytree(TINY, folder)
    weights = load_file(folder / "model.safetensors")
    weights[name] *= factor
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def made(out: Path, model: Path = TINY, text: Any = TEXT, **more: Any) -> gpukit.ImatrixResult:
    return gpukit.imatrix(model, text, out, **{"num_ctx": 64, "device": "cpu", **more})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "x.gguf"
    made(out, chunks=6)
    return out


def test_the_result_says_what_was_written(tmp_path: Path) -> None:
    out, heard = tmp_path / "x.gguf", []
    result = made(out, chunks=3, process_output=True, report=heard.append)
    assert result.path == out
    assert (result.format, result.size) == ("gguf", out.stat().st_size)
    assert (result.chunks, result.chunk_size, result.tokens) == (3, 64, 192)
    assert result.datasets == (str(TEXT),)
    assert len(result.statistics) == len(read_imatrix(out).entries) == 29
    assert [s.tensor for s in result.statistics][-1] == "output.weight"
    assert json.loads(json.dumps(result.as_json()))["chunks"] == 3
    steps = [event for event in heard if isinstance(event, gpukit.Step)]
    assert [(s.done, s.total, s.unit) for s in steps] == [
        (n, 192, "tokens") for n in (0, 64, 128, 192)
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
    found = describe(out)
    assert [s.sum_sq for s in found.statistics] == [s.sum_sq for s in result.statistics]
    assert json.loads(json.dumps(found.as_json()))["datasets"] == [str(TEXT)]


def test_texts_are_read_one_after_the_other(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text(TEXT.read_text()[:400])  # two windows
    parts = [made(tmp_path / f"{n}.gguf", chunks=n).path for n in (1, 2)]
    result = made(tmp_path / "both.gguf", text=[short, TEXT.read_text()], chunks=3)
    assert (result.chunks, result.tokens, result.datasets) == (3, 192, (str(short),))
    first, second = (read_collection(part).entries for part in parts)
    for name, sums in read_collection(result.path).entries.items():
        wanted = first[name].squares + second[name].squares
        np.testing.assert_allclose(sums.squares, wanted, rtol=1e-6)
    (tmp_path / "short.txt").write_text("I am.")
    with pytest.raises(gpukit.ArgumentError, match=r"short\.txt: the text has \d tokens; two win"):
        made(tmp_path / "x.gguf", text=[TEXT, tmp_path / "short.txt"], chunks=1)


def test_a_killed_run_goes_on_and_gives_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    with pytest.raises(Killed):
        made(out, chunks=6, save_every=2, report=killer(5 * 64))
    state = tmp_path / "x.gguf.unfinished"
    assert [p.name for p in tmp_path.iterdir()] == [state.name]
    # It is an importance matrix itself.
    assert read_imatrix(state).chunks == 4
    told: list[str] = []
    result = made(out, chunks=6, save_every=2, report=lambda e: told.append(getattr(e, "text", "")))
    assert result.tokens == 2 * 64
    assert f"going on behind chunk 4 of 6, from {state}" in told
    assert out.read_bytes() == whole.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_all_was_read_before_it_was_killed(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        made(tmp_path / "x.gguf", chunks=6, save_every=6, report=killer(6 * 64))
    assert made(tmp_path / "x.gguf", chunks=6).tokens == 0
    assert (tmp_path / "x.gguf").read_bytes() == whole.read_bytes()


def test_another_run_does_not_go_on(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    with pytest.raises(Killed):
        made(out, chunks=6, save_every=2, report=killer(4 * 64))
    state = (tmp_path / "x.gguf.unfinished").read_bytes()
    model = changed(tmp_path / "other", "model.layers.3.mlp.up_proj.weight", 1.5)
    (tmp_path / "text.txt").write_text(TEXT.read_text()[:-20] + "something else there")
    for other, told in (
        ({"text": tmp_path / "text.txt"}, "of another text or tokenizer; finish that"),
        ({"num_ctx": 32}, "with num_ctx 64, not 32; finish that as it was begun, name another"),
        ({"chunks": 1}, "of 4 chunks already, 1 are asked for"),
        ({"process_output": True}, "of another choice of process_output"),
        ({"model": model}, "of another model"),
    ):
        with pytest.raises(gpukit.ArgumentError, match=rf"x\.gguf\.unfinished: .*{told}"):
            made(out, **{"chunks": 6, **other})
    assert (tmp_path / "x.gguf.unfinished").read_bytes() == state
    for bad, error in ((b"junk", "entries|malformed"), (TEXT.read_bytes(), "no importance")):
        (tmp_path / "x.gguf.unfinished").write_bytes(bad)
        with pytest.raises(gpukit.FormatError, match=error):
            made(out)
    shutil.copy(PEER / "tiny-shakespeare.gguf", tmp_path / "x.gguf.unfinished")
    with pytest.raises(gpukit.FormatError, match="no state of gpukit imatrix; finish"):
        made(out)


def test_files_are_added_up(tmp_path: Path) -> None:
    peer = PEER / "tiny-shakespeare.gguf"
    result = gpukit.imatrix(None, None, tmp_path / "x.gguf", in_files=[peer, str(peer)])
    assert (result.chunks, result.tokens, result.datasets) == (24, 0, ("text.txt", "text.txt"))
    one, two = read_collection(peer), read_collection(tmp_path / "x.gguf")
    for name, sums in one.entries.items():
        np.testing.assert_array_equal(2 * sums.squares, two.entries[name].squares)
        np.testing.assert_array_equal(2 * sums.counts, two.entries[name].counts)
        np.testing.assert_array_equal(2 * sums.sums, two.entries[name].sums)
    same = gpukit.imatrix(None, (), tmp_path / "same.gguf", in_files=peer)
    assert read_imatrix(same.path).entries.keys() == one.entries.keys()
    assert (same.path.stat().st_size, same.chunks) == (peer.stat().st_size, 12)


def test_a_text_and_files(tmp_path: Path) -> None:
    made(tmp_path / "first.gguf", chunks=2)
    result = made(tmp_path / "both.gguf", chunks=3, in_files=tmp_path / "first.gguf")
    assert (result.chunks, result.tokens) == (5, 192)
    made(tmp_path / "second.gguf", chunks=3)
    parts = [read_collection(tmp_path / f"{name}.gguf").entries for name in ("first", "second")]
    for name, sums in read_collection(tmp_path / "both.gguf").entries.items():
        a, b = (part[name] for part in parts)
        np.testing.assert_allclose(sums.squares, a.squares + b.squares, rtol=1e-6)


def test_the_older_form_is_written_read_and_added(tmp_path: Path) -> None:
    peer = PEER / "mixtral-12.gguf"
    result = gpukit.imatrix(None, None, tmp_path / "x.dat", in_files=peer)
    assert (result.format, read_collection(tmp_path / "x.dat").chunk_size) == ("dat", 0)
    both = gpukit.imatrix(
        None, None, tmp_path / "both.dat",
        in_files=[tmp_path / "x.dat", peer], output_format="gguf",
    )  # fmt: skip
    assert both.format == "gguf"
    found, one = read_collection(both.path).entries, read_collection(peer).entries
    experts = "blk.0.ffn_up_exps.weight"
    assert found[experts].counts.shape == (12,)
    assert found[experts].sums is None
    dense = "blk.0.attn_q.weight"
    # 6 chunks of 32 both times: nothing is lost by the older form but the last bits.
    np.testing.assert_allclose(found[dense].squares, 2 * one[dense].squares, rtol=1e-6)
    assert found[dense].counts.tolist() == [2 * 192]
    assert describe(tmp_path / "x.dat").statistics[0].sum_sq > 0


def test_files_of_different_models(tmp_path: Path) -> None:
    tiny, tied = PEER / "tiny-shakespeare.gguf", PEER / "tied.gguf"
    told = r"tied\.gguf: has nothing on blk\.2\.attn_k\.weight, .*tiny-shakespeare\.gguf has: im"
    with pytest.raises(gpukit.ArgumentError, match=told):
        gpukit.imatrix(None, None, tmp_path / "x.gguf", in_files=[tiny, tied])
    model = checkpoints.build("tied", tmp_path)
    made(tmp_path / "tied.gguf", model=model, chunks=2)
    assert gpukit.imatrix(
        None, None, tmp_path / "x.gguf", in_files=[tmp_path / "tied.gguf", tied]
    ).warnings == (
        f"chunks of different sizes: 64 ({tmp_path}/tied.gguf), 32 ({tied}); the first is noted, "
        "sums are exact whatever it is",
    )
    for file, told in (
        (tiny, r"blk\.0\.ffn_down\.weight has 768 columns of 1 matrices, .*tied has 512 of 1: it"),
        (
            PEER / "phi3-4k.gguf",
            r"blk\.0\.attn_qkv\.weight is no tensor of .*tied: it was made for",
        ),
    ):
        with pytest.raises(gpukit.ArgumentError, match=told):
            gpukit.imatrix(
                model, TEXT, tmp_path / "x.gguf", num_ctx=32, in_files=file, device="cpu"
            )


def test_a_context_that_the_model_was_not_made_for_is_told(tmp_path: Path) -> None:
    told: list[Any] = []
    model = zoo_build.build("phi3-4k", tmp_path)
    made(tmp_path / "x.gguf", model=model, num_ctx=520, chunks=1, report=told.append)
    (line,) = [event.text for event in told if isinstance(event, gpukit.Warned)]
    assert line.startswith(f"{model}: windows of 520 tokens, the model was made for 512: ")


def test_experts_that_nothing_came_to_are_told(tmp_path: Path) -> None:
    folder = zoo_build.build("mixtral-12", tmp_path)
    result = gpukit.imatrix(folder, TEXT, tmp_path / "x.gguf", num_ctx=3, chunks=1, device="cpu")
    (line,) = result.warnings
    assert line.startswith("nothing came to ")
    assert " matrices of experts, such as number " in line
    assert read_imatrix(tmp_path / "x.gguf").entries["blk.0.ffn_up_exps.weight"].size == 12 * 96


def test_mutants_are_refused_in_a_line_or_read(tmp_path: Path) -> None:
    chooser = random.Random(7)
    squares = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    found = Collection({
        "blk.0.a.weight": Sums(squares[:1], np.array([7]), squares[:1]),
        "blk.1.b_exps.weight": Sums(squares, np.array([3, 0, 9]), squares),
    }, ("a",), 2, 5)  # fmt: skip
    write_gguf(tmp_path / "good.gguf", found)
    write_dat(tmp_path / "good.dat", found)
    outcomes = Counter[str]()
    for number in range(400):
        kind = ("gguf", "dat")[number % 2]
        data = bytearray((tmp_path / f"good.{kind}").read_bytes())
        for _ in range(chooser.choice((1, 1, 2, 3))):
            change(chooser, data, False)
        (tmp_path / "x").write_bytes(data)
        try:
            describe(tmp_path / "x")
            outcomes["described"] += 1
            files = [tmp_path / "x", tmp_path / "good.gguf"]
            gpukit.imatrix(None, None, tmp_path / "out.gguf", in_files=files)
            read_imatrix(tmp_path / "out.gguf")
            outcomes["added"] += 1
        except gpukit.GpukitError as error:
            outcomes["refused" if "\n" not in str(error) else "in several lines"] += 1
    assert set(outcomes) == {"described", "added", "refused"}
    assert min(outcomes.values()) > 40


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"text": None}, "no text for the model to read; give one with --file"),
        ({"model": None}, "no model to read the text; name one"),
        ({"model": None, "text": ()}, "neither a model and a text nor files to add up"),
        (
            {"text": Path("nowhere.txt")},
            r"nowhere\.txt: No such file or directory; name a",
        ),
        ({"text": TINY}, "Is a directory; name a file with text"),
        ({"text": TINY / "model.safetensors"}, "is no UTF-8: a text is wanted"),
        ({"num_ctx": 900}, r"text\.txt: the text has \d+ tokens; two windows of 900 .* 1800"),
        ({"num_ctx": 2}, "num_ctx is 2; windows have 3 tokens at least"),
        ({"text": "I am."}, r"the text has \d tokens; two windows of 64 tokens are 128: give a lo"),
        ({"chunks": 0}, "chunks is 0; at least 1 is needed"),
        ({"save_every": -1}, "save_every is -1; chunks, or 0 for never"),
        ({"output_format": "npz"}, "unknown output_format 'npz'; known: gguf, dat"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"pre": "mine"}, "mine"),
        ({"in_files": ["nowhere.gguf"]}, "no such file; an importance matrix is needed"),
        ({"in_files": [TEXT]}, r"text\.txt: no importance matrix: \d+ entries in"),
        ({"model": TINY / "nowhere"}, "nowhere: no such file or folder"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    words = {"model": TINY, "text": TEXT, **changes}
    with pytest.raises(gpukit.GpukitError, match=told) as caught:
        gpukit.imatrix(
            words.pop("model"), words.pop("text"), tmp_path / "x.gguf",
            **{"device": "cpu", "num_ctx": 64, **words},
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    text = shutil.copy(TEXT, tmp_path / "text.txt")
    model = tmp_path / "model.gguf"
    gpukit.convert(TINY, model, "F16", device="cpu")
    before = model.read_bytes()
    for out in (text, model):
        with pytest.raises(gpukit.ArgumentError, match="input and output are the same file"):
            made(Path(out), model=model, text=Path(text))
    with pytest.raises(gpukit.ArgumentError, match="a folder; name the file to write"):
        made(tmp_path)
    (tmp_path / "y.gguf.unfinished").mkdir()
    with pytest.raises(gpukit.ArgumentError, match=r"y\.gguf\.unfinished: a folder"):
        made(tmp_path / "y.gguf")
    assert model.read_bytes() == before


def test_a_model_that_computes_nothing_sensible(tmp_path: Path) -> None:
    folder = changed(tmp_path / "broken", "model.layers.1.mlp.up_proj.weight", torch.inf)
    with pytest.raises(gpukit.GpukitError, match=r"blk\.1\.ffn_down\.weight: column 0 has a sum"):
        made(tmp_path / "x.gguf", model=folder, chunks=2)
    assert not (tmp_path / "x.gguf").exists()


def test_a_state_of_other_tensors(tmp_path: Path) -> None:
    reading = prepare(TINY, [TEXT], 64, chunks=3)
    x = np.ones((1, 256), np.float32)
    for name, sums, error, told in (
        ("blk.9.attn_q.weight", x, gpukit.ArgumentError, "is no tensor of .*tiny-shakespeare"),
        ("blk.0.ffn_down.weight", x, gpukit.ArgumentError, "has 256 columns of 1 matrices"),
        ("blk.0.attn_q.weight", None, gpukit.FormatError, "no state of gpukit imatrix"),
    ):
        found = Collection({name: Sums(x, np.array([64]), sums)}, (), 1, 64)
        write_gguf(tmp_path / "state", found, more=reading.fields())
        with pytest.raises(error, match=told):
            collect(reading, "cpu", state=tmp_path / "state")
