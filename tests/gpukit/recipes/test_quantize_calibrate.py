"""`quantize` with a text that the model reads first."""

from pathlib import Path

import pytest
from support.checkpoints import DATA

import gpukit
from gpukit.errors import ArgumentError
from gpukit.events import Event, Step
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.imatrix import read_imatrix
from gpukit.planning.overrides import make_overrides
from gpukit.planning.plan import Options

TINY = DATA / "tiny-shakespeare"
IMATRIX = DATA / "imatrix" / "tiny-shakespeare.gguf"
TEXT = DATA / "imatrix" / "text.txt"


def held(path: Path) -> dict[str, tuple[str, bytes]]:
    with GGUFFile(path) as file:
        return {name: (info.type, file.read(info).tobytes()) for name, info in file.tensors.items()}


@pytest.fixture(scope="module")
def importance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("importance") / "x.gguf"
    return gpukit.imatrix(TINY, TEXT, path, device="cpu").path


def test_a_text_is_as_good_as_its_importance_matrix(importance: Path, tmp_path: Path) -> None:
    options = Options(imatrix=read_imatrix(importance))
    files = [tmp_path / f"{number}.gguf" for number in range(3)]
    gpukit.quantize(TINY, files[0], "Q2_K_S", options=options, device="cpu")
    gpukit.quantize(TINY, files[1], "Q2_K_S", calibrate=TEXT, device="cpu")
    with gpukit.plan(TINY, "Q2_K_S", calibrate=TEXT.read_text(), device="cpu") as plan:
        plan.write(files[2], device="cpu")
    assert held(files[0]) == held(files[1]) == held(files[2])
    with GGUFFile(files[1]) as file:
        assert file.get("quantize.imatrix.entries_count") == 28
        assert file.get("quantize.imatrix.file") is None


def test_types_within_a_target_are_chosen_by_it(importance: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    options = Options(imatrix=read_imatrix(importance), target_bpw=4.0)
    gpukit.quantize(TINY, one, options=options, device="cpu")
    gpukit.quantize(TINY, two, options=Options(target_bpw=4.0), calibrate=TEXT, device="cpu")
    assert held(one) == held(two)


def test_what_is_wrong_shows_before_the_text_is_read(importance: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    lossy = gpukit.convert(TINY, tmp_path / "q8.gguf", "Q8_0", device="cpu").path
    told: list[Event] = []
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT.read_bytes())
    odd = Options(make_overrides(["attn_v=Q4_K"], output_type="Q8_0"), target_bpw=1.0)
    for source, target, kind, options, words, error in (
        (TINY, out, "Q4_0", Options(imatrix=read_imatrix(IMATRIX)), TEXT, "both are importance"),
        (TINY, out, None, Options(), TEXT, "no type; give a file type such as Q4_K_M"),
        (TINY, out, "Q4_0", Options(), "I am.", r"windows of 512 .* give a longer text$"),
        (TINY, out, "Q4_0", Options(), Path("nowhere"), "nowhere: No such file or directory"),
        (TINY, text, "Q4_0", Options(), text, "text.txt"),
        (TINY, out, "Q8_0", Options(), TEXT, "--calibrate: no tensor becomes a type that takes"),
        (TINY, out, None, odd, TEXT, "--target-bpw 1 cannot be reached: from"),
        (lossy, out, "Q4_0", Options(), TEXT, "is quantised already"),
    ):
        with pytest.raises(ArgumentError, match=error):
            gpukit.quantize(
                source, target, kind, options=options, calibrate=words, device="cpu",
                report=told.append,
            )  # fmt: skip
    assert not [event for event in told if isinstance(event, Step)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q8.gguf", "text.txt"]
    assert text.read_bytes() == TEXT.read_bytes()
