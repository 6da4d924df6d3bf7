"""What a report is made of: errors of tensors, worst tokens, the Pareto line, the plot."""

import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from support.checkpoints import DATA

import gpukit
from gpukit.evaluation.pages import finite, visible
from gpukit.evaluation.report_plot import Axis, Point, in_bytes, pareto, size_plot
from gpukit.evaluation.scoring import Scores
from gpukit.evaluation.subjects import look
from gpukit.evaluation.tensor_errors import errors_beside, errors_in_memory
from gpukit.evaluation.windows import Windows
from gpukit.evaluation.worst_tokens import worst_tokens
from gpukit.formats.imatrix import read_imatrix
from gpukit.sources.opening import open_source
from gpukit.tokenizer import Tokenizer

TINY = DATA / "tiny-shakespeare"
IMATRIX = DATA / "imatrix" / "tiny-shakespeare.gguf"
CPU = torch.device("cpu")


def read_with_gguf(path: Path) -> dict[str, np.ndarray]:
    """The values of all matrices in a file, as gguf decodes them."""
    found = {}
    for each in GGUFReader(path).tensors:
        if len(each.shape) > 1:
            values = dequantize(each.data, each.tensor_type)
            found[each.name] = np.asarray(values, np.float64)
    return found


def test_what_cannot_be_seen_is_told() -> None:
    assert visible("a\n\tb\x00\x7f") == "a↵⇥b⟨U+0000⟩⟨U+007F⟩"
    assert visible("\u202e\u200b\ud800\ue000\u2028") == "".join(
        f"⟨U+{n}⟩" for n in ("202E", "200B", "D800", "E000", "2028")
    )
    assert visible("é\u0301\u0301 ünï עברית 漢字") == "é\u0301\u0301 ünï עברית 漢字"
    assert visible("e" + "\u0301" * 3).endswith("⟨U+0301⟩")


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([(1, 3), (2, 2), (3, 1)], [0, 1, 2]),
        ([(3, 1), (2, 2), (1, 3), (2.5, 2.5)], [2, 1, 0]),
        ([(1, 1), (1, 1), (2, 1)], [0]),
        ([(2, 1), (2, 0.5)], [1]),
        ([(1, math.nan), (2, math.inf), (3, 1)], [2]),
        ([], []),
    ],
)
def test_the_pareto_line_has_what_nothing_beats(
    points: list[tuple[float, float]], best: list[int]
) -> None:
    assert pareto(points) == best


def test_numbers_that_json_lacks_are_words() -> None:
    found = finite({"a": [math.nan, 1.5], "b": (math.inf, -math.inf), "c": True, "d": None})
    assert found == {"a": ["NaN", 1.5], "b": ["Infinity", "-Infinity"], "c": True, "d": None}


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [0.0, 1e-9], [1e-6, 3.0], [2e9, 2.001e9]])
def test_every_axis_has_room_and_ticks(values: list[float]) -> None:
    axis = Axis.over(values, 10, 110)
    assert all(10 < axis.at(value) < 110 for value in values)
    places = [axis.at(tick) for tick in axis.ticks()]
    assert 2 <= len(places) <= 12
    assert places == sorted(places)
    assert places[0] >= 10
    assert places[-1] <= 110


def test_a_plot_of_any_points_is_well_formed() -> None:
    points = [Point(f"<{n}&", 1e6 + n, n * 1e-3, 2.0, n == 0) for n in range(40)]
    for some in (points, points[:1]):
        root = ET.fromstring(str(size_plot(some, 2e6)))
        text = " ".join(root.itertext())
        assert all(point.label in text for point in some)
        numbers = [float(v) for each in root.iter() for k, v in each.attrib.items() if k in "xy"]
        assert all(math.isfinite(value) for value in numbers)


def test_sizes_have_units() -> None:
    shown = [in_bytes(size) for size in (0, 999, 1000, 8_400_000, 999_600_000, 5e15)]
    assert shown == ["0 B", "999 B", "1 kB", "8.4 MB", "1 GB", "5e+03 TB"]


def test_tensors_lose_what_gguf_decodes(tmp_path: Path) -> None:
    """In memory and beside a file the same, and as gguf and numpy have it in float64."""
    before, after = tmp_path / "f32.gguf", tmp_path / "q2.gguf"
    gpukit.convert(TINY, before, "F32", device="cpu")
    gpukit.convert(TINY, after, "Q2_K", device="cpu")
    with look(TINY, "tiny", as_type="Q2_K").quantised("cpu") as made:
        ours = {each.name: each for each in errors_in_memory(*made, CPU)}
    with open_source(TINY) as base, open_source(after) as model:
        assert {each.name: each for each in errors_beside(base, model, CPU)} == ours
        assert errors_beside(model, base, CPU) == ()  # what is not quantised lost nothing
    whole, lost = read_with_gguf(before), read_with_gguf(after)
    assert ours.keys() == whole.keys()
    for name, found in ours.items():
        w, q = whole[name], lost[name]
        # Squares in float32 are off by 2^-24 of themselves, what they are of by 2^-24 of w.
        assert found.error == pytest.approx(((w - q) ** 2).sum() / (w**2).sum(), rel=1e-5)
        assert found.weighted is None
    assert (ours["blk.1.ffn_up.weight"].layer, ours["blk.1.ffn_up.weight"].tensor_class) == (
        1,
        "ffn_up",
    )
    assert {each.tensor_class for each in ours.values() if each.layer is None} == {
        "token_embd",
        "output",
    }


def test_importance_weighs_the_columns() -> None:
    imatrix = read_imatrix(IMATRIX)
    with look(TINY, "t", as_type="Q3_K_S", imatrix=imatrix).quantised("cpu") as made:
        found = errors_in_memory(*made, CPU)
    weighed = [each for each in found if each.weighted is not None]
    assert {each.name for each in weighed} == {*imatrix.entries} & {each.name for each in found}
    # The search minimises the weighted error: over all it is the smaller one.
    assert sum(each.weighted or 0 for each in weighed) < sum(each.error for each in weighed)


def test_worst_tokens_come_with_their_text() -> None:
    with open_source(TINY) as source:
        tokenizer = Tokenizer.from_fields({field.key: field for field in source.fields})
    ids = tokenizer.encode("To be, or not to be, that is the question: whether it is nobler")
    ids = np.array(ids[:16], np.int32).reshape(2, 8)
    windows = Windows(ids, 4)
    kld = np.array([0.0, 3.0, 1.0, np.nan, np.inf, 2.0])
    nll = np.arange(6.0)
    found = worst_tokens(Scores(nll, nll + 1, kld, kld > 0), windows, tokenizer, 4)
    assert [each.kld for each in found] == [math.inf, 3.0, 2.0, 1.0]
    assert [(each.chunk, each.position) for each in found] == [(2, 6), (1, 6), (2, 7), (1, 7)]
    first = found[1]
    told = first.before + first.token + first.after
    assert told.startswith("<s>")  # what stands for no text is named
    assert (
        told.removeprefix("<s>") == b"".join(map(tokenizer.token_bytes, ids[0].tolist())).decode()
    )
    assert (first.p, first.p_base) == (math.exp(-1), math.exp(-2))
    least = worst_tokens(Scores(nll), windows, tokenizer, 1)
    assert (least[0].position, least[0].kld, least[0].p_base) == (7, None, None)
