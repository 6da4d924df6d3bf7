"""The page of a measurement: its numbers, that it asks for nothing, that nothing in it acts."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import DATA
from support.chromium import browser, program
from support.pages import HOSTILE, Reader, check_harmless, data_of

import gpukit
from gpukit.errors import ArgumentError, DiskError
from gpukit.evaluation.report import Measured, document
from gpukit.evaluation.report_page import page
from gpukit.evaluation.tensor_errors import TensorError
from gpukit.evaluation.worst_tokens import WorstToken

TINY = DATA / "tiny-shakespeare"
TEXT = DATA / "shakespeare.txt"
IMATRIX = DATA / "imatrix" / "tiny-shakespeare.gguf"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[gpukit.Perplexity, ...], str]:
    """Two types beside their source, and the page."""
    out = tmp_path_factory.mktemp("report") / "out.html"
    rows = gpukit.perplexities(
        [TINY], TEXT, types=["Q8_0", "Q2_K"], imatrix=IMATRIX, num_ctx=32, chunks=3,
        device="cpu", save_report=out,
    )  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["out.html"]
    return rows, out.read_text(encoding="utf-8")


def hostile_page() -> str:
    """A page whose every word is hostile."""
    words = "".join(HOSTILE)
    numbers: dict[str, Any] = {
        "model": words, "type": words, "size": 10, "bits_per_weight": 4.0, "against": words,
        "perplexity": math.inf, "error": math.nan, "chunks": 1, "tokens": 2, "num_ctx": 8,
        "stride": None, "device": "cpu", "text_sha256": None, "tokens_per_second": None,
        "running": [math.inf], "kld": 0.5, "kld_error": math.nan, "kld_median": -math.inf,
        "dp": math.nan, "dp_error": 0.0,
    }  # fmt: skip
    errors = tuple(
        TensorError(f"blk.{n}.{word}.weight", word, value)
        for n, (word, value) in enumerate(
            zip(HOSTILE, [0.0, math.nan, math.inf, 0.1], strict=False)
        )
    )
    worst = [WorstToken(1, 5, w, w, w, 0.1, 0.2, math.inf) for w in HOSTILE]
    model = Measured(numbers, words, words, (*errors, TensorError(words, "X", 0.2)), tuple(worst))
    return page(document([model, model], {words: words, "None": None}))


def test_the_numbers_in_the_page_are_those_of_the_result(
    made: tuple[tuple[gpukit.Perplexity, ...], str],
) -> None:
    rows, text = made
    found = data_of(text)
    for row, model in zip(rows, found["models"], strict=True):
        told = json.loads(json.dumps(row.as_json()))
        assert {key: model[key] for key in told} == told
        assert sorted(model.keys() - told.keys()) == ["recipe", "revision", "tensors", "worst"]
    assert found["pareto"] == [2, 1]
    shown = check_harmless(text).text
    for row in rows:
        assert f"{row.perplexity:.4f}" in shown
        assert f"± {row.error:.4f}" in shown
    for row in rows[1:]:
        assert row.divergence is not None
        assert f"{row.divergence.kld.mean.value:.6f}" in shown
        assert f"{row.divergence.kld.at['999']:.4f}" in shown
        assert f"{100 * row.divergence.same_top.value:.2f}\xa0%" in shown.replace(" %", "\xa0%")


def test_the_head_says_how_it_was_measured(
    made: tuple[tuple[gpukit.Perplexity, ...], str],
) -> None:
    rows, text = made
    facts = data_of(text)["facts"]
    assert str(rows[0].text_sha256) in facts["Text"]
    assert re.search(r"sha256 [0-9a-f]{64}$", facts["Importance"])
    assert facts["Reference"].startswith(f"{TINY} (BF16; ")
    assert facts["Context"].startswith("32 tokens, 15 of each")
    assert facts["Chunks"] == "3, 45 tokens scored"
    assert gpukit.__version__ in facts["Versions"]
    shown = Reader(text).text
    assert all(name in shown and value in shown for name, value in facts.items())
    assert "A small difference within the error is no difference." in shown


def test_tables_and_plots_speak_to_who_does_not_see(
    made: tuple[tuple[gpukit.Perplexity, ...], str],
) -> None:
    found = Reader(made[1])
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in found.tags if tag == "th")
    tags = [tag for tag, _ in found.tags]
    assert {"title", "desc", "svg", "caption"} <= {*tags}
    assert dict(found.tags)["html"] == {"lang": "en"}
    numbers = {attrs["id"] for _, attrs in found.tags if "id" in attrs}
    for _, attrs in found.tags:
        assert {*str(attrs.get("aria-labelledby", "")).split()} <= numbers


def test_hostile_words_stay_words() -> None:
    text = hostile_page()
    shown = check_harmless(text).text
    assert "<script>alert(1)</script>" in shown
    assert "{{ 7 * 7 }}" in shown
    assert "⟨U+202E⟩" in shown
    found = data_of(text)
    assert found["models"][0]["perplexity"] == "Infinity"
    assert found["models"][0]["worst"][0]["before"] == HOSTILE[0]
    script = text[text.index('id="gpukit-report"') :].split(">", 1)[1].split("</script>")[0]
    assert not set(script) & set("<>&")
    assert script.isascii()


def test_a_model_alone_has_a_page_too(tmp_path: Path) -> None:
    out = tmp_path / "alone.html"
    gpukit.perplexity(TINY, TEXT, num_ctx=32, chunks=2, device="cpu", save_report=out)
    text = out.read_text(encoding="utf-8")
    shown = check_harmless(text).text
    assert "What the model expects least." in shown
    assert "Size against divergence" not in shown
    assert data_of(text)["facts"]["Reference"] == "none: perplexity alone"


def test_what_a_journal_knows_makes_the_same_page(tmp_path: Path) -> None:
    def run(name: str) -> Any:
        gpukit.perplexities(
            [TINY], TEXT, types=["Q4_0"], num_ctx=32, chunks=2, device="cpu",
            journal=tmp_path / "journal", save_report=tmp_path / name,
        )  # fmt: skip
        models = data_of((tmp_path / name).read_text(encoding="utf-8"))["models"]
        return [{**model, "tokens_per_second": None} for model in models]

    first = run("1.html")
    assert first[1]["tensors"]
    assert run("2.html") == first


def test_a_page_that_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    def refused(out: Path, **words: Any) -> pytest.ExceptionInfo[Exception]:
        with pytest.raises((ArgumentError, DiskError)) as told:
            gpukit.perplexity("no/such.gguf", TEXT, save_report=out, device="cpu", **words)
        return told

    assert refused(tmp_path).match("a folder; name the file")
    assert refused(tmp_path / "no" / "out.html").match("there is no folder")
    assert refused(TEXT).match("input and output are the same file")
    both = tmp_path / "both"
    assert refused(both, journal=both).match("two outputs of one name")
    assert not both.exists()


@pytest.fixture(scope="module")
def opened(
    made: tuple[tuple[gpukit.Perplexity, ...], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, dict[str, Path]]]:
    """A browser, and pages for it."""
    if program() is None:
        pytest.skip("no Chromium is here")
    folder = tmp_path_factory.mktemp("browser")
    pages = {"real": made[1], "hostile": hostile_page()}
    for name, text in pages.items():
        (folder / f"{name}.html").write_bytes(text.encode("utf-8", "backslashreplace"))
    with browser(folder / "profile") as found:
        yield found, {name: folder / f"{name}.html" for name in pages}


@pytest.mark.peer
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["real", "hostile"])
def test_a_browser_shows_it_and_asks_nobody(
    opened: tuple[Any, dict[str, Path]], name: str, width: int, dark: bool
) -> None:
    tab, pages = opened
    tab.open(pages[name], width, dark=dark)
    assert tab.requests() == [pages[name].resolve().as_uri()]
    assert tab.complaints() == []
    wide, high = tab.size()
    assert wide <= width  # nothing but tables scrolls sideways, and those in themselves
    assert high > 1000
    shot = tab.screenshot()
    assert shot.startswith(b"\x89PNG")
    assert [int.from_bytes(shot[at : at + 4], "big") for at in (16, 20)] == [wide, high]
    paper = tab.call("CSS.getComputedStyleForNode", nodeId=tab.body())["computedStyle"]
    color = next(each["value"] for each in paper if each["name"] == "background-color")
    assert color == ("rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)")
    assert tab.pdf().startswith(b"%PDF")
