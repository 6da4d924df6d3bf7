"""The page of a batch: the numbers of its JSON, nothing in it acts, a browser shows it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.chromium import browser, program
from support.pages import HOSTILE, check_harmless, data_of

from gpukit.batches.needs import Need
from gpukit.batches.result import BatchResult, Row
from gpukit.batches.states import State
from gpukit.batches.summary_page import page

NUMBERS = {
    "state": "done", "perplexity": 9.9663, "error": 0.25, "difference": 0.0625,
    "difference_error": 0.03, "kld": 0.013978, "kld_error": 0.002626, "kld_999": 0.0849,
    "same_top": 0.8667, "same_top_error": 0.05, "seconds": 1.5,
}  # fmt: skip


def _row(kind: str, size: int | None, state: State = State.DONE, **more: Any) -> Row:
    found = {"seconds": 2.0, "bits_per_weight": 4.5, "evaluation": NUMBERS, **more}
    return Row("model", "none", kind, f"{kind}.gguf", state, size=size, **found)


def _result(*rows: Row, **more: Any) -> BatchResult:
    return BatchResult(Path("/plans/plan.yaml"), rows, seconds=12.5, **more)


REAL = _result(
    _row("Q8_0", 4_000_000, evaluation={**NUMBERS, "kld": 0.0001}),
    _row("Q4_K_M", 2_000_000),
    _row("Q4_0", 2_100_000, evaluation={**NUMBERS, "kld": 0.05}),
    _row("Q2_K", 1_000_000, evaluation={"state": "failed", "why": "too short"}),
    _row("F16", None, State.FAILED, why="no room", seconds=None, bits_per_weight=None,
         evaluation={"state": "to do"}),
    disks=(Need("/out", 9_100_000, 10**12),),
)  # fmt: skip


def _hostile() -> str:
    words = "".join(HOSTILE)
    numbers = {**NUMBERS, "kld": "Infinity", "perplexity": "NaN", "error": None}
    rows = [
        Row(w, words, w, words, State.FAILED, words, 10, 0.0, False, None, {**numbers, "kld": 0.1})
        for w in HOSTILE
    ]
    rows.append(Row("a", "b", "c", "d", State.DONE, evaluation=numbers))
    result = BatchResult(Path(words), tuple(rows), (1, 2), warnings=(words,), refused=(words,))
    return page(result.as_json())


def test_the_numbers_in_the_page_are_those_of_the_json() -> None:
    text = page(REAL.as_json())
    assert data_of(text, "gpukit-batch") == REAL.as_json()
    shown = check_harmless(text, "gpukit-batch").text
    for word in (
        "plan.yaml: 4 of 5 jobs done", "4 done, 1 failed", "2 MB", "1 MB/s", "4.50", "9.9663",
        "± 0.2500", "0.0625", "0.013978", "0.0849", "86.67 %",
        "done, not evaluated", "too short", "no room", "model: size against KL divergence",
    ):  # fmt: skip
        assert word in shown, word
    # The larger one that loses more is beaten.
    assert text.count("on the Pareto line</span>") == 2
    assert "On the Pareto line: Q4_K_M, Q8_0." in shown


def test_without_evaluations_there_are_no_columns_for_them() -> None:
    rows = [_row("Q8_0", 1000, evaluation=None), _row("F16", None, State.TO_DO, evaluation=None)]
    shown = check_harmless(page(_result(*rows).as_json()), "gpukit-batch").text
    assert "PPL" not in shown
    assert "Why" not in shown
    alone = {key: value for key, value in NUMBERS.items() if "kld" not in key}
    shown = check_harmless(
        page(_result(_row("Q8_0", 1000, evaluation=alone)).as_json()), "gpukit-batch"
    ).text
    assert "size against perplexity" in shown


def test_hostile_words_stay_words() -> None:
    shown = check_harmless(_hostile(), "gpukit-batch").text
    assert "<script>alert(1)</script>" in shown


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, Path]]]:
    if program() is None:
        pytest.skip("no Chromium is here")
    folder = tmp_path_factory.mktemp("browser")
    for name, text in (("real", page(REAL.as_json())), ("hostile", _hostile())):
        (folder / f"{name}.html").write_bytes(text.encode("utf-8", "backslashreplace"))
    with browser(folder / "profile") as found:
        yield found, {name: folder / f"{name}.html" for name in ("real", "hostile")}


@pytest.mark.peer
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
@pytest.mark.parametrize("name", ["real", "hostile"])
def test_a_browser_shows_it_and_asks_nobody(
    opened: tuple[Any, dict[str, Path]], name: str, width: int, dark: bool
) -> None:
    tab, pages = opened
    tab.open(pages[name], width, dark=dark)
    assert tab.requests() == [pages[name].resolve().as_uri()]
    assert tab.complaints() == []
    wide, high = tab.size()
    assert wide <= width  # nothing but the table scrolls sideways, and that in itself
    assert high > 800
    paper = tab.call("CSS.getComputedStyleForNode", nodeId=tab.body())["computedStyle"]
    color = next(each["value"] for each in paper if each["name"] == "background-color")
    assert color == ("rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)")
    assert tab.screenshot().startswith(b"\x89PNG")
